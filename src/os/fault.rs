//! Deaths and waits that tests ask for, each at one place of the program: none without the feature `faults`, as in a release.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

/// By the variable `STANDFAST_FAULT`, as `die-PLACE`, `abort-PLACE` or `wait-PLACE`, what happens, and where; and a file, by
/// `STANDFAST_FAULT_FILE`: whoever takes that away there dies, once for each time that it is put there; who waits does as long as
/// it is there.
static ASKED_FOR: OnceLock<Option<(Fault, String, PathBuf)>> = OnceLock::new();

#[derive(Clone, Copy)]
enum Fault {
    Die,
    Abort,
    Wait,
}

/// Ends the process at this place, if that was asked for, as `kill -9` or abort(3) do; or has it wait.
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
        let fault = match how {
            "die" => Fault::Die,
            "abort" => Fault::Abort,
            "wait" => Fault::Wait,
            _ => return None,
        };
        let file = std::env::var_os("STANDFAST_FAULT_FILE")?;
        Some((fault, place.to_owned(), file.into()))
    });
    let Some((fault, asked, file)) = asked else {
        return;
    };
    if asked != place {
        return;
    }
    match fault {
        Fault::Wait => {
            while file.exists() {
                std::thread::park_timeout(Duration::from_millis(1));
            }
        }
        _ if std::fs::remove_file(file).is_err() => {}
        Fault::Abort => std::process::abort(),
        Fault::Die => {
            // It does not come back from there.
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }
}
