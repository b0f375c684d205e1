//! Faults that tests put into the new process.

use std::time::Duration;

/// Faults that the tests put into the new process, one at a time, by the variable `STANDFAST_FAULT`: none without the
/// feature `faults`, as in a release.
pub(super) fn fault(name: &str) -> bool {
    cfg!(feature = "faults")
        && std::env::var_os("STANDFAST_FAULT").is_some_and(|fault| fault == name)
}

/// Dies or hangs, if that is the fault for this phase.
pub(crate) fn may_fail(phase: &str) {
    if !cfg!(feature = "faults") {
        return;
    }
    if fault(&format!("abort-{phase}")) {
        std::process::abort();
    }
    while fault(&format!("hang-{phase}")) {
        std::thread::park_timeout(Duration::from_secs(3600));
    }
}
