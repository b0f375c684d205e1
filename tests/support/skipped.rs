//! Tests that cannot run here: said aloud when it happens, counted at the end, and a failure where CI relies on them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

/// What is missing, and which tests want it.
type Wanted = BTreeMap<String, BTreeSet<String>>;

static WANTED: Mutex<Wanted> = Mutex::new(Wanted::new());

/// Whether the test on this thread lacks one of `programs`, and so cannot run here.
pub(crate) fn lacks(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let missing = |program: &&&str| !folders.iter().any(|at| at.join(program).exists());
    let Some(missing) = programs.iter().find(missing) else {
        return false;
    };
    let thread = std::thread::current();
    cannot_run(thread.name().unwrap_or("a test"), missing);
    true
}

/// `test` cannot run here for want of `what`.
pub(crate) fn cannot_run(test: &str, what: &str) {
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} cannot run for want of: {what} (scripts/setup installs what the tests need)"
    );
    // Past the capture of the harness.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {test}, for want of: {what}");
    let mut wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    let tests = wanted.entry(what.to_owned()).or_default();
    tests.insert(test.to_owned());
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(count_at_the_end);
}

#[expect(
    unsafe_code,
    reason = "the harness offers nothing that runs after the last test"
)]
fn count_at_the_end() {
    // SAFETY: `count` takes nothing, returns nothing and does not unwind (it neither panics nor prints by a macro).
    unsafe { libc::atexit(count) };
}

extern "C" fn count() {
    let wanted = WANTED.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = writeln!(std::io::stderr(), "{}", summary(&wanted));
}

fn summary(wanted: &Wanted) -> String {
    let tests: BTreeSet<&String> = wanted.values().flatten().collect();
    let list: Vec<String> = wanted
        .iter()
        .map(|(what, tests)| format!("{what} ({})", tests.len()))
        .collect();
    format!(
        "{} tests did not run for want of: {}. scripts/setup installs what they need.\n",
        tests.len(),
        list.join(", ")
    )
}

#[test]
fn what_did_not_run_is_counted_by_what_it_wants() {
    let tests = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let wanted = [
        ("nc.openbsd".to_owned(), tests(&["a", "b"])),
        ("nc.traditional".to_owned(), tests(&["b"])),
        ("root".to_owned(), tests(&["c"])),
    ];
    assert_eq!(
        summary(&wanted.into()),
        "3 tests did not run for want of: nc.openbsd (2), nc.traditional (1), root (1). \
         scripts/setup installs what they need.\n"
    );
}
