//! No test can hang: one that does not end within a bound ends the whole process, with its name.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::io::Write;
use std::process;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::{children, clock};

/// Far above what the longest test needs on a busy machine; in seconds, another one for the test of this.
const BOUND: &str = "STANDFAST_TEST_BOUND";
const DEFAULT_BOUND: u64 = 300;

/// The tests that run, and since when.
static RUNNING: Mutex<Option<HashMap<ThreadId, (String, Instant)>>> = Mutex::new(None);

thread_local! {
    static WATCHED: OnceCell<Watched> = const { OnceCell::new() };
}

/// Ends with its thread, and so with the test.
struct Watched(ThreadId);

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(running) = &mut *running() {
            running.remove(&self.0);
        }
    }
}

fn running() -> MutexGuard<'static, Option<HashMap<ThreadId, (String, Instant)>>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the test that runs on this thread watched from now on. What every test needs of `support` calls it.
pub(crate) fn watch() {
    // While the thread ends there is nothing to watch any more.
    let _ = WATCHED.try_with(|watched| {
        watched.get_or_init(|| {
            static STARTED: Once = Once::new();
            STARTED.call_once(|| {
                thread::spawn(bark);
            });
            let thread = thread::current();
            // The harness names a test's thread by the test; threads that tests start have no name, or one of theirs.
            if let Some(name) = thread.name().filter(|name| name.contains("::")) {
                let tests = &mut *running();
                let tests = tests.get_or_insert_with(HashMap::new);
                tests.insert(thread.id(), (name.to_owned(), clock()));
            }
            Watched(thread.id())
        });
    });
}

fn bark() {
    let bound = std::env::var(BOUND).map_or(DEFAULT_BOUND, |bound| bound.parse().unwrap());
    let bound = Duration::from_secs(bound);
    loop {
        thread::park_timeout(Duration::from_millis(500));
        let late = running().iter().flatten().find_map(|(_, (name, since))| {
            (clock().saturating_duration_since(*since) > bound).then(|| name.clone())
        });
        if let Some(test) = late {
            // Past the capture of the harness: this process says nothing any more.
            let _ = writeln!(
                std::io::stderr(),
                "\ntest {test} did not end within {} s: it hangs, and all tests end here",
                bound.as_secs()
            );
            children::kill_all();
            process::abort();
        }
    }
}

/// In a process of its own this test is the one that hangs.
#[test]
fn a_test_that_hangs_ends_the_run_with_its_name() {
    if std::env::var_os(BOUND).is_some() {
        watch();
        loop {
            thread::park();
        }
    }
    let test = thread::current().name().unwrap().to_owned();
    let mut command = process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test, "--test-threads", "2"]);
    command.env(BOUND, "1").stdout(process::Stdio::null());
    let mut child = command.stderr(process::Stdio::piped()).spawn().unwrap();
    let said = super::server::lines(child.stderr.take().unwrap());
    let status = super::server::wait_for(&mut child, super::GUARD);
    let said: Vec<String> = said.into_iter().collect();
    assert!(!status.success());
    let expected = format!("test {test} did not end within 1 s: it hangs, and all tests end here");
    assert!(said.contains(&expected), "{said:?}");
}
