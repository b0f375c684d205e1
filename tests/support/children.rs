//! What the tests have started, to be ended when the tests themselves cannot.

use rustix::process::{Pid, Signal, kill_process};

/// Kills every process that this one has started and not waited for.
pub(crate) fn kill_all() {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else {
        return;
    };
    for thread in threads.flatten() {
        // Absent where the kernel has no CONFIG_PROC_CHILDREN.
        let children = std::fs::read_to_string(thread.path().join("children"));
        for child in children.unwrap_or_default().split_ascii_whitespace() {
            if let Some(pid) = child.parse().ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
