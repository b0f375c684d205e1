//! Processes that became this one's without being started by it, as in a container: nobody else waits for them.

use std::thread;
use std::time::Duration;

use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;
use standfast::process::{children, threads};

use crate::Failure;

/// How long a process that has ended is left to its owner, before it is looked who stands behind it.
const GLANCE: Duration = Duration::from_millis(50);

/// Reaps them from now on, on a thread of its own, if there are or may be any.
pub(crate) fn reap() -> Result<(), Failure> {
    if !children::has_others() {
        return Ok(());
    }
    let failed = |error| Failure::failed(format!("cannot wait for processes: {error}"));
    let mut signals = Signals::new([SIGCHLD]).map_err(failed)?;
    threads::start("orphans", move || {
        loop {
            while !children::reap_others() {
                thread::park_timeout(GLANCE);
            }
            // However many have ended since.
            let _ = signals.wait().count();
        }
    })
    .map_err(failed)?;
    Ok(())
}
