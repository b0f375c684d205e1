//! A long turn: whoever has output waiting already, or much to say, is served behind the others, and served.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use standfast::{Context, Service};

use crate::support::clients::connect_with_window;
use crate::support::connecting::assert_gets;
use crate::support::embedded::{Embedded, listen};
use crate::support::{GUARD, connect, pass, until};

/// Longer than a turn goes on with those whose output waits.
const COSTLY: Duration = Duration::from_millis(10);

/// `fill` has output wait from then on, and what else comes of such a client takes time; `hold` waits for the gate.
struct Costly {
    held: Sender<()>,
    gate: Mutex<Receiver<()>>,
    /// Messages served of those whose output waits.
    served: Arc<AtomicUsize>,
}

impl Service for Costly {
    type State = bool;

    fn open(&self, _: &mut Context<'_>) -> bool {
        false
    }

    fn input(&self, fills: &mut bool, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        match bytes {
            b"fill" => {
                *fills = true;
                self.output(fills, conn);
            }
            b"hold" => {
                self.held.send(()).unwrap();
                self.gate.lock().unwrap().recv_timeout(GUARD).unwrap();
            }
            b"how many" => {
                let served = self.served.load(Ordering::Relaxed);
                conn.write(&[u8::try_from(served).unwrap()]);
            }
            _ => {
                pass(COSTLY);
                self.served.fetch_add(1, Ordering::Relaxed);
            }
        }
        bytes.len()
    }

    fn output(&self, fills: &mut bool, conn: &mut Context<'_>) {
        while *fills && conn.waiting() == 0 && !conn.has_failed() {
            conn.write(&[b'x'; 4096]);
        }
    }
}

#[test]
fn in_a_long_turn_those_whose_output_waits_come_behind_the_others() {
    const COUNT: usize = 8;
    let (held, is_held) = channel();
    let (go_on, gate) = channel();
    let served = Arc::new(AtomicUsize::new(0));
    let service = Costly {
        held,
        gate: Mutex::new(gate),
        served: Arc::clone(&served),
    };
    let server = Embedded::start_on(1, vec![listen(service)]);
    let address = server.address();
    let mut filled = [(); COUNT].map(|()| connect_with_window(address, 65536));
    for client in &mut filled {
        client.write_all(b"fill").unwrap();
        assert_gets(client, b"x");
    }
    let [mut holding, mut other] = [(); 2].map(|()| connect(address));
    other.write_all(b"how many").unwrap();
    assert_gets(&mut other, &[0]);
    // Held up, the worker hears of all of them at once, in the order in which they spoke.
    holding.write_all(b"hold").unwrap();
    is_held.recv_timeout(GUARD).unwrap();
    for client in &mut filled {
        client.write_all(b"!").unwrap();
    }
    other.write_all(b"how many").unwrap();
    go_on.send(()).unwrap();
    let mut before = [0];
    other.read_exact(&mut before).unwrap();
    assert!(before[0] <= 1, "{} came before it", before[0]);
    until("all are served", || served.load(Ordering::Relaxed) == COUNT);
    server.stop();
}

/// Counts what it is sent. `hold` waits for the gate, `how much` is told what came before.
struct Counting {
    held: Sender<()>,
    gate: Mutex<Receiver<()>>,
    counted: Arc<AtomicU64>,
}

impl Service for Counting {
    type State = ();

    fn open(&self, conn: &mut Context<'_>) {
        conn.write(b"o");
    }

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        match bytes {
            b"hold" => {
                self.held.send(()).unwrap();
                self.gate.lock().unwrap().recv_timeout(GUARD).unwrap();
            }
            b"how much" => conn.write(&self.counted.load(Ordering::Relaxed).to_le_bytes()),
            _ => {
                let count = bytes.len() as u64;
                self.counted.fetch_add(count, Ordering::Relaxed);
            }
        }
        bytes.len()
    }
}

#[test]
fn hundreds_that_have_much_to_say_at_once_do_not_keep_one_waiting_for_all_of_it() {
    let (held, is_held) = channel();
    let (go_on, gate) = channel();
    let counted = Arc::new(AtomicU64::new(0));
    let service = Counting {
        held,
        gate: Mutex::new(gate),
        counted: Arc::clone(&counted),
    };
    let server = Embedded::start_on(1, vec![listen(service)]);
    let address = server.address();
    let open = || {
        let mut client = connect(address);
        assert_gets(&mut client, b"o");
        client
    };
    let mut talkers: Vec<_> = (0..400).map(|_| open()).collect();
    let (mut holding, mut other) = (open(), open());
    holding.write_all(b"hold").unwrap();
    is_held.recv_timeout(GUARD).unwrap();
    let mut said = 0;
    for client in &mut talkers {
        client.set_nonblocking(true).unwrap();
        said += client.write(&[b'x'; 256 * 1024]).unwrap() as u64;
    }
    other.write_all(b"how much").unwrap();
    go_on.send(()).unwrap();
    let mut before = [0; 8];
    other.read_exact(&mut before).unwrap();
    let before = u64::from_le_bytes(before);
    assert!(before < said / 4, "{before} of {said} bytes came before it");
    until("all is read", || counted.load(Ordering::Relaxed) == said);
    server.stop();
}
