//! Services with output of their own: called when they asked for it, and when there is room again.

use std::io::{IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use standfast::{Context, Handle, RoundStage, Service};

use crate::support::clients::connect_with_window;
use crate::support::embedded::{Embedded, listen};
use crate::support::{now, read_to_fin, until};

/// What happened to a [`Crier`].
#[derive(Default)]
struct Seen {
    server: OnceLock<Handle>,
    outputs: AtomicUsize,
    begun: AtomicUsize,
    went_on: AtomicUsize,
    over: AtomicUsize,
}

/// Whatever a client says, everybody gets an exclamation mark for it; `?` panics in the one that said it.
struct Crier(Arc<Seen>);

impl Service for Crier {
    type State = bool;

    fn start(&self, server: &Handle) {
        let _ = self.0.server.set(server.clone());
    }

    fn open(&self, conn: &mut Context<'_>) -> bool {
        conn.write(b".");
        false
    }

    fn input(&self, panics: &mut bool, _: &mut Context<'_>, bytes: &[u8]) -> usize {
        *panics |= bytes.contains(&b'?');
        self.0.server.get().unwrap().prompt(Duration::ZERO);
        bytes.len()
    }

    fn output(&self, panics: &mut bool, conn: &mut Context<'_>) {
        assert!(!*panics, "as it was told");
        self.0.outputs.fetch_add(1, Ordering::SeqCst);
        conn.write(b"!");
    }

    fn round(&self, _: usize, stage: RoundStage) {
        match stage {
            RoundStage::Begins => self.0.begun.fetch_add(1, Ordering::SeqCst),
            RoundStage::Over { .. } => self.0.over.fetch_add(1, Ordering::SeqCst),
            RoundStage::GoesOn => self.0.went_on.fetch_add(1, Ordering::SeqCst),
            RoundStage::Gone => 0,
        };
    }
}

/// A server of one, and clients whose greeting has come.
fn criers(clients: usize) -> (Arc<Seen>, Embedded, Vec<TcpStream>) {
    let seen = Arc::<Seen>::default();
    let server = Embedded::start(listen(Crier(Arc::clone(&seen))));
    let mut clients: Vec<_> = (0..clients).map(|_| server.connect()).collect();
    for client in &mut clients {
        assert_hears(client, b".");
    }
    (seen, server, clients)
}

#[track_caller]
fn assert_hears(client: &mut TcpStream, what: &[u8]) {
    let mut heard = vec![0; what.len()];
    client.read_exact(&mut heard).unwrap();
    assert_eq!(heard, what);
}

#[test]
fn a_prompt_reaches_every_connection_once() {
    // More than are asked in one turn.
    let (seen, server, mut clients) = criers(1200);
    clients[0].write_all(b"cry").unwrap();
    for client in &mut clients {
        assert_hears(client, b"!");
    }
    until("both workers are through", || {
        seen.over.load(Ordering::SeqCst) == 2
    });
    assert_eq!(seen.outputs.load(Ordering::SeqCst), clients.len());
    assert!(
        seen.went_on.load(Ordering::SeqCst) > 0,
        "other work in between"
    );
    // From without as from within; and prompts that were made before it came count as one.
    let asked = now();
    for _ in 0..100 {
        server.handle.prompt(Duration::from_millis(200));
    }
    for client in &mut clients {
        assert_hears(client, b"!");
    }
    assert!(asked.elapsed() >= Duration::from_millis(200), "too early");
    until("both workers are through", || {
        seen.over.load(Ordering::SeqCst) == 4
    });
    assert_eq!(seen.begun.load(Ordering::SeqCst), 4);
    assert_eq!(seen.outputs.load(Ordering::SeqCst), 2 * clients.len());
    drop(clients);
    server.drain();
}

#[test]
fn an_earlier_prompt_is_not_held_up_by_a_later_one() {
    let (_, server, mut clients) = criers(3);
    server.handle.prompt(Duration::from_secs(3600));
    server.handle.prompt(Duration::from_millis(1));
    server.handle.prompt(Duration::from_secs(1800));
    for client in &mut clients {
        assert_hears(client, b"!");
    }
}

#[test]
fn output_that_panics_ends_its_own_connection_only() {
    let (_, server, mut clients) = criers(3);
    clients[1].write_all(b"?").unwrap();
    assert_eq!(server.closed(&clients[1]).reason(), "service");
    for at in [0, 2] {
        assert_hears(&mut clients[at], b"!");
        clients[at].write_all(b"cry").unwrap();
        assert_hears(&mut clients[at], b"!");
    }
}

/// As many bytes as it is asked for, by turns in one part or in three, and no more of them waiting than one piece.
struct Fountain;

const PIECE: usize = 4096;
const PIECES: usize = 2000;

impl Service for Fountain {
    type State = usize;

    fn open(&self, _: &mut Context<'_>) -> usize {
        0
    }

    fn input(&self, given: &mut usize, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        self.output(given, conn);
        bytes.len()
    }

    fn output(&self, given: &mut usize, conn: &mut Context<'_>) {
        while *given < PIECES && conn.waiting() == 0 {
            let piece = [b'a' + u8::try_from(*given % 26).unwrap(); PIECE];
            let sent = if given.is_multiple_of(2) {
                conn.send(&piece)
            } else {
                let (first, rest) = piece.split_at(1000);
                let parts = [first, &[], rest].map(IoSlice::new);
                conn.send_vectored(&parts)
            };
            conn.write(&piece[sent..]);
            *given += 1;
        }
        assert!(conn.waiting() <= PIECE);
        if *given == PIECES {
            conn.finish();
        }
    }
}

#[test]
fn a_service_is_called_when_there_is_room_again() {
    let server = Embedded::start(listen(Fountain));
    let mut client = connect_with_window(server.address(), 4096);
    client.write_all(b"go").unwrap();
    let heard = read_to_fin(&mut client);
    assert_eq!(heard.len(), PIECE * PIECES);
    for (at, piece) in heard.chunks(PIECE).enumerate() {
        let letter = b'a' + u8::try_from(at % 26).unwrap();
        assert!(piece.iter().all(|&byte| byte == letter), "piece {at}");
    }
    assert_eq!(server.closed(&client).reason(), "service");
}
