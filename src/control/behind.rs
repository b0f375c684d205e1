//! What stayed with a process that was taken over from, which drains it: whoever asks the one that took over is passed on.
//!
//! The line of the takeover is there until the end of either. A question goes over it together with the socket of who has
//! asked, and the answer straight to there. Of several processes in a row each passes on to the one before it.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use super::{Desk, PATIENCE, lock};
use crate::wire::line::{Line, now};
use crate::wire::question::{Answer, Question};

/// The process that was taken over from, as long as it lives.
#[derive(Clone)]
pub(super) struct Former {
    line: Line,
    pid: u32,
}

/// For the process that took over.
impl Desk {
    /// Process `pid`, at the other end of `line`, answers for what stayed with it.
    pub(crate) fn follow(&self, line: &Line, pid: u32) {
        let line = line.clone();
        *lock(&self.former) = Some(Former { line, pid });
    }

    /// Whether somebody else is to go on with a question to which this process has no more than `answer` to say.
    pub(super) fn is_passed_on(
        &self,
        question: &Question,
        answer: &Answer,
        line: &Line,
    ) -> io::Result<bool> {
        match (question, answer) {
            (Question::List, _) | (Question::Kill { .. }, Answer::Refused(_)) => {}
            _ => return Ok(false),
        }
        let former = lock(&self.former).clone();
        let Some(Former { line: theirs, pid }) = former else {
            return Ok(false);
        };
        match theirs.pass_on(question, Some(line), now() + PATIENCE) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                let why =
                    format!("process {pid}, which drains what stayed with it, does not answer");
                line.send(&Answer::Refused(why)).map(|()| true)
            }
            // It has ended, and nothing is there any more.
            Err(_) => Ok(false),
        }
    }

    /// What stayed elsewhere ends at once.
    pub(crate) fn stop_those_behind(&self) {
        let former = lock(&self.former).clone();
        let passed = former.map(|former| {
            let until = now() + PATIENCE;
            former.line.pass_on(&Question::Stop, None, until)
        });
        if let Some(Err(error)) = passed {
            log::debug!(error:%; "the former process does not hear that it is to stop");
        }
    }
}

/// For the process that was taken over from.
impl Desk {
    /// Answers those who are passed on from the other end of `line`, until either process ends.
    pub(super) fn answer_for_those_behind(&self, line: &Line) {
        const LONG: Duration = Duration::from_secs(3600);
        loop {
            let mut said = Vec::new();
            let heard = line.until_spoken_to(now() + LONG);
            let clients = match heard.and_then(|()| line.take_bytes(&mut said, now() + PATIENCE)) {
                Ok(clients) => clients,
                Err(error)
                    if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::InvalidData) =>
                {
                    continue;
                }
                Err(_) => return,
            };
            // The last words of the takeover are none.
            let Ok(question) = serde_json::from_slice(&said) else {
                continue;
            };
            match clients.into_iter().next() {
                Some(client) => {
                    let client = Line::new(Arc::new(client), PATIENCE);
                    let answered = client.and_then(|client| self.answer_behind(&question, &client));
                    if let Err(error) = answered {
                        log::debug!(error:%; "control client failed");
                    }
                    // The workers may be idle.
                    self.handle.memory().replenish();
                }
                None if matches!(question, Question::Stop) => {
                    log::info!(by = "successor"; "ending at once");
                    self.stop_those_behind();
                    self.handle.stop();
                }
                None => {}
            }
        }
    }

    fn answer_behind(&self, question: &Question, line: &Line) -> io::Result<()> {
        let _ordered = question.is_order().then(|| self.orders.note());
        let answer = match question {
            Question::List => self.list(line, Some(std::process::id()))?,
            Question::Kill { id } => self.kill(line, *id)?,
            _ => Answer::Refused("this server was taken over".to_owned()),
        };
        if self.is_passed_on(question, &answer, line)? {
            return Ok(());
        }
        line.send(&answer)
    }
}
