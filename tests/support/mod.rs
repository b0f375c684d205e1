//! What the tests share: the binary and its processes, clients, and waiting for things with a bound.

mod children;
pub(crate) mod clients;
pub(crate) mod connecting;
mod contention;
pub(crate) mod embedded;
pub(crate) mod home;
mod kernel;
pub(crate) mod loading;
pub(crate) mod peers;
pub(crate) mod seeded;
mod server;
mod signals;
mod skipped;
mod watchdog;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) use contention::Began;
pub(crate) use kernel::{deafen, leave_address_space, leave_descriptors, row, undeafen};
pub(crate) use server::{
    Closed, Guarded, Orphan, Server, children, facts, listening, output, restarted,
};
pub(crate) use skipped::{cannot_run, lacks};

/// Longest wait for anything that is not itself about time: a hang guard, far above what is needed.
pub(crate) const GUARD: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn standfast() -> Command {
    watchdog::watch();
    signals::unignore();
    let mut command = Command::new(env!("CARGO_BIN_EXE_standfast"));
    command.env_remove("RUST_LOG");
    command
}

/// A connected client, with a hang guard on its reads and writes.
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    watchdog::watch();
    let client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(GUARD)).unwrap();
    client.set_write_timeout(Some(GUARD)).unwrap();
    client
}

/// Waits until delayed acknowledgements are out, as a client must before it turns deaf. Time itself is the event.
pub(crate) fn settle() {
    pass(Duration::from_millis(200));
}

/// Waits until a signal is another wish than one that came just now. Time itself is the event.
pub(crate) fn until_another_signal_counts() {
    pass(Duration::from_millis(600));
}

/// Lets time pass where time is what the test is about.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where tests let time pass"
)]
pub(crate) fn pass(time: Duration) {
    watchdog::watch();
    thread::sleep(time);
}

/// The clock, for measuring how long something took.
pub(crate) fn now() -> Instant {
    watchdog::watch();
    clock()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where tests read the clock"
)]
fn clock() -> Instant {
    Instant::now()
}

/// Asks again and again until `done`, within the hang guard.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + GUARD;
    while !done() {
        assert!(now() < end, "{what}: not in time");
        pass(Duration::from_millis(5));
    }
}

/// `sh -c SCRIPT`, in which `"$@"` is `standfast ARGS...`.
pub(crate) fn shell(script: &str, args: &[&str]) -> Command {
    let standfast = standfast();
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(standfast.get_program())
        .args(args)
        .env_remove("RUST_LOG");
    command
}

/// Sends `bytes` and reads as many back, which have to be the same.
pub(crate) fn assert_echoes(client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).unwrap();
    let mut echoed = vec![0; bytes.len()];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(echoed, bytes);
}

/// All that still comes, to the FIN.
pub(crate) fn read_to_fin(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Sends `text` over and over until neither the server nor the kernel takes any more. Answers how many bytes were
/// taken.
pub(crate) fn send_until_stuck(client: &mut TcpStream, text: &[u8]) -> usize {
    let patience = Some(Duration::from_millis(500));
    client.set_write_timeout(patience).unwrap();
    // Many at once: some megabytes in a dozen bytes each would take minutes on a busy machine.
    let text = text.repeat(65536 / text.len() + 1);
    let mut sent = 0;
    loop {
        match client.write(&text[sent % text.len()..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
                break;
            }
        }
    }
    client.set_write_timeout(Some(GUARD)).unwrap();
    sent
}
