//! Deaths that tests ask for, each at one place of the program: none without the feature `faults`, as in a release.

use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

/// By the variable `STANDFAST_FAULT`, as `die-PLACE` or `abort-PLACE`, how and where; and a file, by `STANDFAST_FAULT_FILE`:
/// whoever takes that away there dies, once for each time that it is put there.
static ASKED_FOR: OnceLock<Option<(bool, String, PathBuf)>> = OnceLock::new();

/// Ends the process at this place, if that was asked for, as `kill -9` or abort(3) do.
#[inline]
pub(crate) fn may_die(place: &str) {
    if cfg!(feature = "faults") {
        die_if_asked(place);
    }
}

fn die_if_asked(place: &str) {
    let asked = ASKED_FOR.get_or_init(|| {
        let fault = std::env::var("STANDFAST_FAULT").ok()?;
        let (how, place) = fault.split_once('-')?;
        let aborts = match how {
            "die" => false,
            "abort" => true,
            _ => return None,
        };
        let file = std::env::var_os("STANDFAST_FAULT_FILE")?;
        Some((aborts, place.to_owned(), file.into()))
    });
    let Some((aborts, asked, file)) = asked else {
        return;
    };
    if asked == place && std::fs::remove_file(file).is_ok() {
        if *aborts {
            std::process::abort();
        }
        // It does not come back from there.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
