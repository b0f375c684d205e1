//! Signals: SIGINT, SIGTERM and SIGHUP, the first and any that follows. What they bring about is for their hearer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Failure;

/// A signal that came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signal {
    pub(crate) name: &'static str,
    /// Another came before: now it is urgent.
    pub(crate) again: bool,
}

/// Has `hearer` hear SIGINT, SIGTERM and SIGHUP from now on, on a thread of its own; SIGHUP only if it was not ignored
/// at the start, as nohup(1) has it.
pub(crate) fn obey(hearer: impl Fn(Signal) + Clone + Send + 'static) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot take over the handling of signals: {error}"))
    };
    let came = Arc::new(AtomicBool::new(false));
    let obey = move |name: &'static str| {
        let again = came.swap(true, Ordering::SeqCst);
        hearer(Signal { name, again });
    };
    // ctrlc's own handling of SIGTERM and SIGHUP would replace an ignored SIGHUP, so it gets SIGINT alone.
    let interrupted = obey.clone();
    ctrlc::set_handler(move || interrupted("SIGINT")).map_err(|error| failed(&error))?;
    let wanted: &[i32] = if hangup_is_ignored() {
        &[SIGTERM]
    } else {
        &[SIGTERM, SIGHUP]
    };
    let mut signals = Signals::new(wanted).map_err(|error| failed(&error))?;
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                obey(if signal == SIGHUP {
                    "SIGHUP"
                } else {
                    "SIGTERM"
                });
            }
        })
        .map_err(|error| failed(&error))?;
    Ok(())
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
