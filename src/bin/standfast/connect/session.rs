//! From stdin to the server and from the server to stdout, over one link that comes back: what is sent when, which change
//! of state is said, and when it is the end. What follows from an ended connection is for `verdict.rs` to say.

use std::io::{self, ErrorKind};
use std::mem;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use standfast::CloseReason;
use standfast::client::{Caller, End, Link, LinkId, Links, Next};
use standfast::dial::{DialError, DialErrorKind};
use standfast::process::Allowance;

use crate::args::dial_tls::{INSECURE, with_hint};
use crate::args::{OnReadTimeout, Reconnect};
use crate::connect::heartbeat::Heartbeat;
use crate::connect::input::{Input, State, unread};
use crate::connect::lines::{Seconds, connected, dropped, lost, undelivered};
use crate::connect::outgoing::Dropped;
use crate::connect::output::Output;
use crate::connect::parting::{LOOK_FIRST, Meaning, Parting, Scene};
use crate::connect::up::Up;
use crate::connect::verdict::{Happened, Stdin, Verdict, follows, settled};
use crate::logger::say;
use crate::stdout;

/// How long the end may take after the first signal.
const PATIENCE: Duration = Duration::from_secs(2);

/// The exit codes beyond 0, 1 and 2.
const GAVE_UP: u8 = 3;
const READ_TIMEOUT: u8 = 4;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) reconnect: Reconnect,
    pub(crate) on_read_timeout: OnReadTimeout,
    /// How long nothing must have been sent, and the line that is sent then, with its end.
    pub(crate) heartbeat: Option<(Duration, Vec<u8>)>,
    /// How long after the end of stdin it leaves.
    pub(crate) quit_after: Option<Duration>,
    pub(crate) half_close: bool,
    /// How long nothing may move in either direction before it ends with the code of a read timeout.
    pub(crate) idle: Option<Duration>,
    /// It leaves as soon as it is connected.
    pub(crate) leaves_at_once: bool,
    /// What the server sends is not wanted.
    pub(crate) discards: bool,
    /// stdin is a terminal.
    pub(crate) is_terminal: bool,
    /// Whoever answers is believed, which is to be said with each connection.
    pub(crate) insecure: bool,
    /// What finds a vanished server, to be said with each connection.
    pub(crate) detection: Option<Arc<OnceLock<String>>>,
}

/// One run of the program.
#[derive(Debug)]
pub(crate) struct Session {
    settings: Settings,
    input: Arc<Input>,
    output: Arc<Output>,
    link: Option<LinkId>,
    /// The connection there is.
    up: Option<Up>,
    /// How the one before ended.
    last: Option<Happened>,
    /// Bytes that stdin had given when it was last looked at, and since when that is so.
    given: u64,
    given_at: Option<Instant>,
    /// When to leave after the end of stdin.
    quit_at: Option<Instant>,
    /// How long the end may take, which begins with the first signal.
    patience: Allowance,
    /// stdin could not be read to its end.
    stdin_failed: bool,
    /// What was dropped when that was last said.
    said: Dropped,
    /// The exit code, once it is known.
    outcome: Option<u8>,
}

impl Session {
    pub(crate) fn new(settings: Settings, input: Arc<Input>, output: Arc<Output>) -> Self {
        Self {
            settings,
            input,
            output,
            link: None,
            up: None,
            last: None,
            given: 0,
            given_at: None,
            quit_at: None,
            patience: Allowance::new(PATIENCE),
            stdin_failed: false,
            said: Dropped::default(),
            outcome: None,
        }
    }

    /// The exit code, and how long the end may still take if a signal asked for it.
    pub(crate) fn outcome(&self) -> (u8, Allowance) {
        let code = self.outcome.unwrap_or(1);
        (code.max(u8::from(self.stdin_failed)), self.patience)
    }

    /// What was dropped since that was last said.
    pub(crate) fn say_dropped(&mut self) {
        let now = self.input.lock().outgoing.dropped();
        if now != mem::replace(&mut self.said, now) {
            say(&dropped(now));
        }
    }

    fn stdin(state: &State) -> Stdin {
        match (state.outgoing.has_ended(), state.given > 0) {
            (false, _) => Stdin::Open,
            (true, false) => Stdin::Silent,
            (true, true) if state.unsent() > 0 => Stdin::Unsent,
            (true, true) => Stdin::Sent,
        }
    }

    /// Sends what waits, as far as the kernel takes it: first a heartbeat that is due, or the rest of one. Answers whether
    /// that was put off, for the server has to be asked first.
    fn flush(&mut self, link: &mut Link<'_>) -> bool {
        let Some(up) = &mut self.up else { return false };
        if up.is_full || up.half_closed || up.leaving || up.is_doubtful() {
            return false;
        }
        let now = link.now();
        let mut state = self.input.lock();
        if let Some(heartbeat) = &mut up.heartbeat {
            let owed = heartbeat.owed(state.outgoing.front().is_empty(), now);
            if !owed.is_empty() {
                let wanted = owed.len();
                let count = link.send(owed);
                heartbeat.paid(count, now);
                up.sent += count as u64;
                up.is_full = count < wanted;
            }
        }
        if up.may_send() && !state.outgoing.front().is_empty() && up.may_have_gone(link) {
            return true;
        }
        let mut moved = false;
        while !up.is_full && up.may_send() && !state.outgoing.front().is_empty() {
            let front = state.outgoing.front();
            let count = link.send(front);
            up.is_full = count < front.len();
            up.has_sent(&front[..count], now);
            state.outgoing.advance(count);
            moved |= count > 0;
        }
        if moved {
            up.has_moved(link);
        }
        drop(state);
        if moved {
            self.input.has_moved();
        }
        false
    }

    /// What is to be done while connected, and when again.
    fn tend(&mut self, link: &mut Link<'_>) -> Option<Instant> {
        let now = link.now();
        let has_room = self.output.has_room();
        if let Some(up) = &mut self.up
            && up.is_paused
            && has_room
        {
            up.is_paused = false;
            link.resume();
        }
        let mut look_at = self.part(link);
        if self.flush(link) {
            look_at = Some(now);
        }
        let idle_at = self.idle_at(link);
        let state = self.input.lock();
        let (stdin, unsent, stopped) = (Self::stdin(&state), state.unsent(), state.stopped);
        drop(state);
        let up = self.up.as_mut()?;
        if stopped {
            let stop_by = self.stop(link, unsent);
            return [stop_by, look_at, idle_at].into_iter().flatten().min();
        }
        if stdin == Stdin::Sent
            && self.settings.half_close
            && !mem::replace(&mut up.half_closed, true)
        {
            link.half_close();
        }
        if stdin == Stdin::Sent && up.parting.is_some() {
            // Both have said all; it is over when all has arrived.
            up.go(link);
        }
        if matches!(stdin, Stdin::Sent | Stdin::Silent)
            && let Some(wait) = self.settings.quit_after
        {
            let quit_at = *self.quit_at.get_or_insert(now + wait);
            // What stdout has no room for would be lost.
            if link.known() >= quit_at && !up.is_paused && !mem::replace(&mut up.leaving, true) {
                link.leave();
            }
        }
        let quit_at = self.quit_at.filter(|_| !up.leaving && !up.is_paused);
        let heartbeat = up.heartbeat.as_ref().and_then(Heartbeat::next);
        let heartbeat = heartbeat.filter(|_| !up.half_closed && !up.leaving && !up.is_full);
        [quit_at, heartbeat, look_at, idle_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// When nothing will have moved for too long; if that is now, it is the end.
    fn idle_at(&mut self, link: &mut Link<'_>) -> Option<Instant> {
        let idle = self.settings.idle?;
        let up = self.up.as_mut()?;
        let moved = up.moved.filter(|_| !up.is_paused);
        let idle_at = moved.unwrap_or_else(|| link.now()) + idle;
        if link.known() >= idle_at {
            say(&format!("nothing sent or received for {}", Seconds(idle)));
            let in_doubt = up.in_doubt(link.unacknowledged());
            self.say_undelivered(in_doubt);
            self.outcome = Some(READ_TIMEOUT);
        }
        // What is heard until then is known only a moment later.
        Some(idle_at.max(link.now() + Duration::from_millis(1)))
    }

    /// After the server's FIN: what it meant, and what follows from that. When to look again.
    fn part(&mut self, link: &mut Link<'_>) -> Option<Instant> {
        let now = link.now();
        let up = self.up.as_mut()?;
        if up.half_closed || up.leaving {
            return None;
        }
        let idle = up.idle(link);
        let parting = up.parting.as_mut()?;
        let queued = link.unacknowledged();
        let mut state = self.input.lock();
        let scene = Scene {
            stdin: Self::stdin(&state),
            is_terminal: self.settings.is_terminal,
            quiet: now.saturating_duration_since(self.given_at.unwrap_or(now)),
            at_line_end: state.given > 0 && !state.outgoing.has_begun(),
            idle,
            waits: !state.outgoing.front().is_empty(),
            gives: !self.settings.is_terminal && unread() > 0,
            acknowledged: up.sent.saturating_sub(queued),
            queued,
            is_last: self.settings.reconnect == Reconnect::Never,
        };
        let was_known = parting.reads_on();
        match parting.meaning(&scene) {
            Meaning::HalfClose => {
                state.outgoing.advance(parting.answered());
                drop(state);
                self.input.has_moved();
                if !was_known {
                    say(&format!("half-closed by {}, which reads on", link.server()));
                }
            }
            Meaning::Patience => {
                say(&format!(
                    "half-closed by {}: waiting for stdin",
                    link.server()
                ));
            }
            Meaning::Goodbye => up.go(link),
            Meaning::Ask => {
                let asked = up.ask(state.outgoing.front(), link);
                return asked.then(|| now + LOOK_FIRST);
            }
            Meaning::Unknown(pause) => return Some(now + pause?),
        }
        None
    }

    /// A signal came while connected: what was read is sent, and then we leave.
    fn stop(&mut self, link: &mut Link<'_>, unsent: u64) -> Option<Instant> {
        let piece = self.patience.piece_at(link.now());
        let up = self.up.as_mut()?;
        let in_doubt = up.in_doubt(link.unacknowledged());
        let Some(piece) = piece else {
            self.fail_undelivered(unsent + in_doubt);
            return None;
        };
        let look_at = link.now() + piece;
        if unsent == 0 && !up.leaving {
            if in_doubt > 0 {
                up.leaving = true;
                link.leave();
            } else if up.received
                < *up
                    .heard_out
                    .get_or_insert_with(|| up.received + link.unread())
                && link.unread() > 0
            {
                // What has come is first: with the next turn, or when stdout has room. What comes later is not.
                return Some(if up.is_paused { look_at } else { link.now() });
            } else {
                link.half_close();
                self.outcome = Some(0);
            }
        }
        Some(look_at)
    }

    /// What is to be done while not connected, and when again.
    fn wait(&mut self, now: Instant) -> Option<Instant> {
        let state = self.input.lock();
        let (stdin, unsent, stopped) = (Self::stdin(&state), state.unsent(), state.stopped);
        drop(state);
        if stopped {
            self.fail_undelivered(unsent);
        } else if stdin == Stdin::Sent {
            // Nothing is left to connect for.
            if self.last == Some(Happened::Lost) {
                say("stdin is at its end, and the connection that took the last of it was lost");
            }
            self.outcome = Some(settled(self.last));
        } else if self.quit_at.is_some_and(|quit_at| now >= quit_at) {
            self.outcome = Some(0);
        }
        self.quit_at
    }

    /// The end, and so many bytes did not get there.
    fn fail_undelivered(&mut self, bytes: u64) {
        if bytes > 0 {
            say(&undelivered(bytes));
        }
        self.outcome = Some(u8::from(bytes > 0));
    }

    /// The end, though something waits to be sent, be it in stdin itself, or so many bytes of what was sent are
    /// `in_doubt`. Whether that is so.
    fn say_undelivered(&self, in_doubt: u64) -> bool {
        let state = self.input.lock();
        // Keys that were pressed are meant for whoever reads the terminal next.
        let is_read = state.outgoing.has_ended() || self.settings.is_terminal;
        let unread = if is_read { 0 } else { unread() };
        let bytes = state.unsent() + unread + in_doubt;
        drop(state);
        if bytes > 0 {
            say(&undelivered(bytes));
        }
        bytes > 0
    }

    /// How many bytes were sent on the connection there is that are not known to have arrived.
    fn in_doubt(&self, links: &mut Links<'_>) -> u64 {
        let link = self.link.and_then(|id| links.link(id));
        match (&self.up, link) {
            (Some(up), Some(link)) => up.in_doubt(link.unacknowledged()),
            _ => 0,
        }
    }

    /// What stdin and stdout have met with; that may be the end.
    fn look_at_ends(&mut self, links: &mut Links<'_>) {
        if let Some(error) = self.output.failure() {
            let in_doubt = self.in_doubt(links);
            let failed = self.say_undelivered(in_doubt);
            self.outcome = Some(stdout_failed(&error).max(u8::from(failed)));
        }
        let mut state = self.input.lock();
        let failure = state.failure.take();
        let (urgent, unsent, had_bytes) = (state.urgent, state.unsent(), state.given > 0);
        drop(state);
        if urgent && self.outcome.is_none() {
            let in_doubt = self.in_doubt(links);
            self.fail_undelivered(unsent + in_doubt);
        }
        if let Some(error) = failure {
            say(&format!("cannot read stdin: {error}"));
            self.stdin_failed = true;
            if !had_bytes {
                self.outcome = Some(1);
            }
        }
    }

    /// What follows on a connection that is over or could not be had. `line` says it.
    fn next(
        &mut self,
        happened: Happened,
        in_doubt: u64,
        line: impl FnOnce(Verdict) -> String,
    ) -> Next {
        let mut state = self.input.lock();
        state.outgoing.disconnected();
        let (stdin, unsent, stopped) = (Self::stdin(&state), state.unsent(), state.stopped);
        drop(state);
        self.input.has_moved();
        let verdict = follows(happened, stdin, self.settings.reconnect, self.last);
        say(&line(verdict));
        if !matches!(happened, Happened::NotConnected | Happened::Refused) {
            self.last = Some(happened);
        }
        match verdict {
            _ if stopped => self.fail_undelivered(unsent + in_doubt),
            Verdict::Retry => return Next::Retry,
            Verdict::Exit(code) => {
                let failed = self.say_undelivered(in_doubt);
                self.outcome = Some(code.max(u8::from(failed)));
            }
        }
        Next::Drop
    }
}

impl Caller for Session {
    fn connected(&mut self, link: &mut Link<'_>) {
        // Whoever reads that it is connected may rely on it: from then on nothing is dropped.
        self.input.lock().outgoing.connected();
        let in_full = self.settings.detection.is_some();
        let mut line = connected(link.server(), link.tls().as_ref(), in_full);
        if let Some(detection) = &self.settings.detection {
            if let Ok(local) = link.local() {
                line = format!("{line} from {local}");
            }
            if let Some(detection) = detection.get() {
                line = format!("{line}, {detection}");
            }
        }
        say(&line);
        if self.settings.insecure {
            say(INSECURE);
        }
        self.say_dropped();
        let heartbeat = self.settings.heartbeat.clone();
        self.up = Some(Up {
            moved: Some(link.clock()),
            heartbeat: heartbeat.map(|(every, line)| Heartbeat::new(every, line, link.now())),
            ..Up::default()
        });
        if self.settings.leaves_at_once {
            self.outcome = Some(0);
            return;
        }
        self.flush(link);
    }

    fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]) {
        let has_room = self.settings.discards || self.output.put(bytes);
        let Some(up) = &mut self.up else { return };
        up.has_received(bytes.len(), link);
        if !has_room {
            up.is_paused = true;
            link.pause();
        }
    }

    fn writable(&mut self, link: &mut Link<'_>) {
        if let Some(up) = &mut self.up {
            up.is_full = false;
        }
        self.flush(link);
    }

    fn silent(&mut self, _: &mut Link<'_>, silence: Duration) -> bool {
        match (self.settings.on_read_timeout, &mut self.up) {
            (OnReadTimeout::Wait, _) => {
                say(&format!(
                    "nothing received for {}, waiting on",
                    Seconds(silence)
                ));
                return false;
            }
            (OnReadTimeout::Exit, Some(up)) => up.timed_out = true,
            _ => {}
        }
        true
    }

    fn half_closed(&mut self, link: &mut Link<'_>) -> bool {
        if let Some(up) = &mut self.up {
            let acknowledged = up.sent.saturating_sub(link.unacknowledged());
            // That it has gone, keepalive finds out: not on a Unix socket. A heartbeat is for those who cannot wait for that.
            let was_untouched = self.last.is_none()
                && up.heartbeat.is_none()
                && up.sent == 0
                && up.received == 0
                && link.server().tcp().is_some();
            up.parting = Some(Parting::new(link.age(), acknowledged, was_untouched));
        }
        true
    }

    fn ended(&mut self, _: LinkId, end: &End) -> Next {
        let mut up = self.up.take().unwrap_or_default();
        // Then it was left with a FIN.
        up.half_closed |= end.reason == CloseReason::ReadTimeout;
        let in_doubt = up.in_doubt(end.unacknowledged);
        if up.leaving {
            say(&match end.reason {
                CloseReason::Service | CloseReason::PeerClosed => format!("left {}", end.server),
                reason => lost(end, reason),
            });
            self.fail_undelivered(in_doubt);
            return Next::Drop;
        }
        if up.timed_out {
            say(&lost(end, end.reason));
            self.say_undelivered(in_doubt);
            self.outcome = Some(READ_TIMEOUT);
            return Next::Drop;
        }
        let reason = match up.parting {
            // What came after its FIN, be it a reset, tells only that it was its goodbye.
            Some(_) if up.gone || !up.may_send() => CloseReason::PeerClosed,
            _ => end.reason,
        };
        let happened = match reason {
            _ if end.refuses_certificate() => Happened::Refused,
            CloseReason::PeerClosed if in_doubt == 0 => Happened::Closed,
            _ => Happened::Lost,
        };
        self.next(happened, in_doubt, |verdict| match (happened, verdict) {
            // As it should be.
            (Happened::Closed, Verdict::Exit(0)) => format!("closed by {}", end.server),
            _ => lost(end, reason),
        })
    }

    fn failed(&mut self, _: LinkId, error: &DialError) -> Next {
        let happened = match error.kind() {
            DialErrorKind::Certificate => Happened::Refused,
            _ => Happened::NotConnected,
        };
        self.next(happened, 0, |_| with_hint(error))
    }

    fn retrying(&mut self, _: LinkId, attempt: u32, wait: Duration) {
        say(&format!(
            "reconnecting in {} (attempt {attempt})",
            Seconds(wait)
        ));
    }

    fn gave_up(&mut self, _: LinkId, retries: u32) {
        say(&format!("gave up after {}", retried(retries)));
        self.say_undelivered(0);
        self.outcome = Some(GAVE_UP);
    }

    fn stood_still(&mut self, length: Duration) {
        say(&format!("stood still for {}", Seconds(length)));
    }

    fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
        let given = self.input.lock().given;
        if self.given_at.is_none() || mem::replace(&mut self.given, given) != given {
            self.given_at = Some(links.now());
        }
        self.look_at_ends(links);
        let mut again = None;
        if self.outcome.is_none() {
            let id = *self.link.get_or_insert_with(|| links.open());
            again = match links.link(id) {
                Some(mut link) => self.tend(&mut link),
                None => self.wait(links.now()),
            };
        }
        if self.outcome.is_some() {
            links.end();
        }
        again
    }
}

/// The exit code when stdout takes no more. A reader that has had enough is no fault of anybody's.
pub(crate) fn stdout_failed(error: &io::Error) -> u8 {
    if error.kind() == ErrorKind::BrokenPipe {
        return 0;
    }
    let failure = stdout::failed(error);
    say(&failure.to_string());
    failure.code
}

/// `1 retry`, `5 retries`.
fn retried(count: u32) -> String {
    match count {
        1 => "1 retry".to_owned(),
        _ => format!("{count} retries"),
    }
}
