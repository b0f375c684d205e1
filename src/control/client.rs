//! The asking side of the control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::address::endpoint::Endpoint;
use crate::control::path;
use crate::inspect::{ConnectionInfo, Status, Takeover};
use crate::wire::line::{Line, now};
use crate::wire::question::{Answer, Hello, Question};

/// How long a client waits for a sign of life if nobody says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a question is asked again whose answer was cut off.
const TRIES: usize = 3;

/// A running server, asked from another process.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

impl Client {
    /// The server whose control socket is at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            patience: PATIENCE,
        }
    }

    /// Waits at most so long until the server is reached and answers, and then for each sign of life of one that needs
    /// longer. What was not answered by then is given up, and not carried out later. 30 s unless said.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The control sockets this user's servers have, of those that listen first on `port`, or of all.
    #[must_use]
    pub fn candidates(port: Option<u16>) -> Vec<PathBuf> {
        path::existing(port)
    }

    /// Where it is asked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks the process that has the server, and has `hear` listen to what it says: `None` if another one has by now.
    fn ask<T>(
        &self,
        question: &Question,
        hear: impl Fn(Line) -> io::Result<Option<T>>,
    ) -> io::Result<T> {
        let until = now() + self.patience;
        let mut tries = TRIES;
        loop {
            let heard = Line::connect(&self.path, until).and_then(|line| {
                if !line.is_of_this_user()? {
                    return Err(io::Error::other(format!(
                        "the server at {} is another user's: ask as that user",
                        self.path.display()
                    )));
                }
                line.send(question)?;
                hear(line)
            });
            match heard {
                Ok(Some(heard)) => return Ok(heard),
                Ok(None) if now() < until => {}
                Ok(None) => return Err(io::ErrorKind::TimedOut.into()),
                // It ended, and another may have the server: with the question in its hands or, as far as an order may
                // be asked again, without having read it.
                Err(error)
                    if tries > 0
                        && (is_unread(&error) || is_cut_off(&error) && !question.is_order()) =>
                {
                    tries -= 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks for the server itself. Answers which process gives it, too, and whether others can be passed on to it then.
    pub(crate) fn take_over(&self, hello: Hello) -> io::Result<(Line, u32, bool)> {
        self.ask(&Question::TakeOver(hello), |line| {
            let heard = answer(&line)?;
            let giving = heard.map(|heard| match heard {
                Answer::Giving { pid, hears } => Ok((line, pid, hears)),
                other => Err(refused(other)),
            });
            giving.transpose()
        })
    }

    /// The sockets at which the server tells of itself over HTTP: copies, while it goes on answering there.
    pub(crate) fn metrics(&self) -> io::Result<Vec<(Endpoint, OwnedFd)>> {
        self.ask(&Question::Metrics, |line| match answer(&line)? {
            Some(Answer::Metrics(addresses)) if addresses.is_empty() => Ok(Some(Vec::new())),
            Some(Answer::Metrics(addresses)) => {
                let sockets = line.take_bytes(&mut Vec::new(), now() + self.patience)?;
                Ok(Some(addresses.into_iter().zip(sockets).collect()))
            }
            Some(other) => Err(refused(other)),
            None => Ok(None),
        })
    }

    /// Asks for something that has one answer.
    fn one<T>(&self, question: &Question, take: impl Fn(Answer) -> io::Result<T>) -> io::Result<T> {
        self.ask(question, |line| answer(&line)?.map(&take).transpose())
    }

    /// Asks for something that is done or refused.
    fn order(&self, question: &Question) -> io::Result<()> {
        self.one(question, |answer| match answer {
            Answer::Done => Ok(()),
            other => Err(refused(other)),
        })
    }

    /// The server, its listeners and its counters.
    ///
    /// # Errors
    /// No server answers there, or it refuses.
    pub fn status(&self) -> io::Result<Status> {
        self.one(&Question::Status, |answer| match answer {
            Answer::Status(status) => Ok(*status),
            other => Err(refused(other)),
        })
    }

    /// Every open connection, in the order of their numbers.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn connections(&self) -> io::Result<Vec<ConnectionInfo>> {
        let mut all = self.ask(&Question::List, |line| {
            let mut all = Vec::new();
            loop {
                match answer(&line)? {
                    Some(Answer::Connections(batch)) => all.extend(batch),
                    Some(Answer::Done) => return Ok(Some(all)),
                    Some(other) => return Err(refused(other)),
                    None => return Ok(None),
                }
            }
        })?;
        all.sort_by_key(|connection: &ConnectionInfo| connection.id);
        Ok(all)
    }

    /// Ends connection `id`.
    ///
    /// # Errors
    /// As [`status`](Self::status); there is no such connection.
    pub fn kill(&self, id: u64) -> io::Result<()> {
        self.order(&Question::Kill { id })
    }

    /// Makes the server drain.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn drain(&self) -> io::Result<()> {
        self.order(&Question::Drain)
    }

    /// Ends the server at once.
    ///
    /// # Errors
    /// As [`status`](Self::status).
    pub fn stop(&self) -> io::Result<()> {
        self.order(&Question::Stop)
    }

    /// Has the server start its own successor, and waits for what comes of it. While another restart is under way it
    /// waits for its end, and is asked of the process that has the server then.
    ///
    /// # Errors
    /// As [`status`](Self::status); and in words, why the server goes on by itself.
    pub fn restart(&self) -> io::Result<Takeover> {
        self.one(&Question::Restart, |answer| match answer {
            Answer::Restarted(takeover) => Ok(takeover),
            other => Err(refused(other)),
        })
    }
}

/// The next answer; `None` if another process has the server.
fn answer(line: &Line) -> io::Result<Option<Answer>> {
    loop {
        match line.receive()? {
            Answer::Wait => {}
            Answer::Moved => return Ok(None),
            answer => return Ok(Some(answer)),
        }
    }
}

fn is_cut_off(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}

/// The other end was closed with the question unread in it (`unix_release_sock` in the kernel's `net/unix/af_unix.c`), or
/// before that.
fn is_unread(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn refused(answer: Answer) -> io::Error {
    match answer {
        Answer::Refused(why) => io::Error::other(why),
        _ => io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"),
    }
}
