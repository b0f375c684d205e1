//! A long turn: whoever has output waiting already is served behind the others, and served.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use standfast::{Config, Context, Service};

use crate::support::clients::connect_with_window;
use crate::support::connecting::assert_gets;
use crate::support::embedded::listen;
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
    let config = Config {
        listen: vec![listen(service)],
        workers: NonZeroUsize::new(1),
        ..Config::default()
    };
    let server = standfast::Server::bind(config).unwrap();
    let (address, handle) = (server.addresses()[0].tcp().unwrap(), server.handle());
    let serving = thread::spawn(|| server.run());
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
    std::io::Read::read_exact(&mut other, &mut before).unwrap();
    assert!(before[0] <= 1, "{} came before it", before[0]);
    until("all are served", || served.load(Ordering::Relaxed) == COUNT);
    handle.stop();
    serving.join().unwrap().unwrap();
}
