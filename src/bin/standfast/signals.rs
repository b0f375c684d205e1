//! Signals: those that end a program, the first and any that follows, and for a server those that would end it without a
//! word. What they bring about is for their hearer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXFSZ,
};
#[cfg(top)]
use signal_hook::consts::{SIGCONT, SIGWINCH};
use signal_hook::iterator::Signals;
use standfast::process::threads;

use crate::Failure;

/// How long signals count as one wish: timeout(1) signals its child and then its group, and so does a person whose
/// fingers stammer.
const ONE_WISH: Duration = Duration::from_millis(500);

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signal {
    pub(crate) name: &'static str,
    pub(crate) meaning: Meaning,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// To end, in order.
    End,
    /// The same once more: now it is urgent.
    EndAtOnce,
    /// To let a successor take over.
    Restart,
    /// To end, and to leave the connections to the next process, where a service manager has them meanwhile; else to end.
    Leave,
    /// To open the log's file anew.
    Reopen,
    /// Nothing; it tells something.
    None,
}

/// Has `hearer` hear SIGINT, SIGTERM and SIGHUP from now on, on a thread of its own; SIGHUP only if it was not ignored
/// at the start, as nohup(1) has it.
pub(crate) fn obey(hearer: impl Fn(Signal) + Clone + Send + 'static) -> Result<(), Failure> {
    hear(Vec::new(), Meaning::End, hearer)
}

/// The same for what draws on a terminal: it hears of its size, and that it runs again after a stop.
#[cfg(top)]
pub(crate) fn obey_on_terminal(
    hearer: impl Fn(Signal) + Clone + Send + 'static,
) -> Result<(), Failure> {
    let known = vec![
        (SIGWINCH, "SIGWINCH", Meaning::None),
        (SIGCONT, "SIGCONT", Meaning::None),
    ];
    hear(known, Meaning::End, hearer)
}

/// The same for a server: it hears SIGUSR2 as well, what init programs in containers are told to end by, and what would
/// end it without being meant so. SIGQUIT is left to end it with a core file. `hangup`: what a SIGHUP means to it.
pub(crate) fn obey_all(
    hangup: Meaning,
    hearer: impl Fn(Signal) + Clone + Send + 'static,
) -> Result<(), Failure> {
    // A log at its greatest size (`ulimit -f`) is no reason to end: the write fails, and that is all. No line: it would
    // be the next.
    signal_hook::flag::register(SIGXFSZ, Arc::default()).map_err(|error| failed(&error))?;
    let servers = SERVERS.iter().copied().chain(halts());
    hear(servers.collect(), hangup, hearer)
}

type Known = (i32, &'static str, Meaning);

/// What only a server hears.
const SERVERS: &[Known] = &[
    (SIGUSR1, "SIGUSR1", Meaning::Reopen),
    (SIGUSR2, "SIGUSR2", Meaning::Restart),
    (SIGALRM, "SIGALRM", Meaning::None),
    (SIGVTALRM, "SIGVTALRM", Meaning::None),
    (SIGPROF, "SIGPROF", Meaning::None),
    #[cfg(target_os = "linux")]
    (libc::SIGIO, "SIGIO", Meaning::None),
    #[cfg(target_os = "linux")]
    (libc::SIGSTKFLT, "SIGSTKFLT", Meaning::None),
    #[cfg(target_os = "linux")]
    (libc::SIGPWR, "SIGPWR", Meaning::End),
];

/// The real-time signals: by three of them systemd(1), as the first process of a container, is told to halt, to power off and
/// to begin anew.
#[cfg(target_os = "linux")]
fn halts() -> impl Iterator<Item = Known> {
    let first = libc::SIGRTMIN();
    (first..=libc::SIGRTMAX()).map(move |number| match number - first {
        3 => (number, "SIGRTMIN+3", Meaning::End),
        4 => (number, "SIGRTMIN+4", Meaning::End),
        5 => (number, "SIGRTMIN+5", Meaning::Leave),
        _ => (number, "a real-time signal", Meaning::None),
    })
}

/// All signals that mean something to a server, or would end it, with what they mean; a SIGHUP that is ignored means nothing.
pub(crate) fn of_a_server(hangup: Meaning) -> impl Iterator<Item = (i32, Meaning)> {
    let servers = SERVERS.iter().copied().chain(halts());
    let servers = servers.map(|(number, _, meaning)| (number, meaning));
    let hangup = (SIGHUP, hangup);
    let hangup = (!hangup_is_ignored()).then_some(hangup);
    let ends = [SIGINT, SIGTERM, SIGQUIT].map(|number| (number, Meaning::End));
    servers.chain(hangup).chain(ends)
}

#[cfg(not(target_os = "linux"))]
fn halts() -> impl Iterator<Item = Known> {
    std::iter::empty()
}

fn hear(
    mut known: Vec<Known>,
    hangup: Meaning,
    hearer: impl Fn(Signal) + Clone + Send + 'static,
) -> Result<(), Failure> {
    let wishes = Arc::new(Mutex::new(Wishes::default()));
    let hear = move |name: &'static str, meaning: Meaning| {
        let meaning = if meaning == Meaning::End {
            let mut wishes = wishes.lock().unwrap_or_else(PoisonError::into_inner);
            #[expect(
                clippy::disallowed_methods,
                reason = "a signal comes from outside every loop, which have the clock"
            )]
            wishes.another(Instant::now())
        } else {
            Some(meaning)
        };
        if let Some(meaning) = meaning {
            hearer(Signal { name, meaning });
        }
    };
    // ctrlc's own handling of SIGTERM and SIGHUP would replace an ignored SIGHUP, so it gets SIGINT alone.
    let interrupted = hear.clone();
    // It starts a thread without asking.
    threads::make_room_for_one().map_err(|error| failed(&error))?;
    ctrlc::set_handler(move || interrupted("SIGINT", Meaning::End))
        .map_err(|error| failed(&error))?;
    known.push((SIGTERM, "SIGTERM", Meaning::End));
    if !hangup_is_ignored() {
        known.push((SIGHUP, "SIGHUP", hangup));
    }
    let mut signals =
        Signals::new(known.iter().map(|known| known.0)).map_err(|error| failed(&error))?;
    threads::start("signals", move || {
        for signal in signals.forever() {
            if let Some(&(_, name, meaning)) = known.iter().find(|known| known.0 == signal) {
                hear(name, meaning);
            }
        }
    })
    .map_err(|error| failed(&error))?;
    Ok(())
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("cannot take over the handling of signals: {error}"))
}

/// The wishes that the program may end.
#[derive(Debug, Default)]
struct Wishes {
    first: Option<Instant>,
}

impl Wishes {
    /// What one more of them means; nothing new, so soon after the first.
    fn another(&mut self, now: Instant) -> Option<Meaning> {
        let Some(first) = self.first else {
            self.first = Some(now);
            return Some(Meaning::End);
        };
        let soon = now.saturating_duration_since(first) < ONE_WISH;
        (!soon).then_some(Meaning::EndAtOnce)
    }
}

/// Whether this process was started with SIGHUP ignored: `SigIgn` of proc(5), where the system has that.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "a time to count from; none passes"
    )]
    fn a_second_signal_counts_from_half_a_second_after_the_first() {
        let begin = Instant::now();
        let mut wishes = Wishes::default();
        let mut at = |millis| wishes.another(begin + Duration::from_millis(millis));
        assert_eq!(at(0), Some(Meaning::End));
        assert_eq!(at(0), None, "timeout(1) signals twice");
        assert_eq!(at(499), None);
        assert_eq!(at(500), Some(Meaning::EndAtOnce));
        assert_eq!(at(501), Some(Meaning::EndAtOnce));
    }
}
