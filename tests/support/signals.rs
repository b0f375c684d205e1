//! What a program under test does with signals when it starts: as a shell leaves them, whoever started the tests.

use std::fs;
use std::sync::{Arc, Once};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Has no signal ignored in what is started from here, though it is here: `nohup cargo test`, or in the background of a
/// script. One that is caught is not ignored after execve(2).
pub(crate) fn unignore() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .unwrap_or(0);
        for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM] {
            if ignored & 1 << (signal - 1) != 0 {
                let _ = signal_hook::flag::register(signal, Arc::default());
            }
        }
    });
}
