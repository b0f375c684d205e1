//! Its server is succeeded by another process while it is in use, and it notices nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::clients::Stream;
use crate::support::connecting::Connecting;
use crate::support::home::Home;

/// It was connected once, until the server answered its FIN.
#[track_caller]
fn assert_unnoticed(connecting: &Connecting) {
    let said = ["connected to", "lost", "reconnecting", "cannot"].map(|what| connecting.said(what));
    assert_eq!(said, [1, 0, 0, 0], "{:?}", connecting.lines);
}

#[test]
fn a_takeover_under_a_conversation_is_not_noticed() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let address = server.address();
    let mut connecting = Connecting::start(address, &[]);
    connecting.connects(address);
    for round in 0..3 {
        for line in [format!("before {round}\n"), format!("after {round}\n")] {
            connecting.types(line.clone());
            connecting.prints(line.as_bytes());
            if line.starts_with("before") {
                server = home.succeed(&mut server, &[]);
            }
        }
    }
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    assert_unnoticed(&connecting);
}

#[test]
fn a_takeover_under_full_load_loses_no_byte_and_is_not_noticed() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let address = server.address();
    let mut connecting = Connecting::start(address, &[]);
    connecting.connects(address);
    let over = Arc::new(AtomicBool::new(false));
    let (mut sent, mut got) = (Stream::default(), Stream::default());
    std::thread::scope(|scope| {
        let over_after = Arc::clone(&over);
        let (home, server) = (&home, &mut server);
        scope.spawn(move || {
            let end = Over(over_after);
            for _ in 0..3 {
                *server = home.succeed(server, &[]);
            }
            drop(end);
        });
        while !over.load(Ordering::SeqCst) {
            // Two pieces are under way at any time.
            connecting.types(sent.next(65536));
            while got.at + 65536 < sent.at {
                got.verify(&connecting.stdout_bytes(4096));
            }
        }
    });
    connecting.ends_stdin();
    assert_eq!(connecting.ends(), 0, "{:?}", connecting.lines);
    got.verify(&connecting.stdout_rest());
    assert_eq!(got.at, sent.at);
    assert_unnoticed(&connecting);
}

/// Says that it is over, also when the test failed.
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
