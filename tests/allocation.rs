//! A message echoed allocates nothing: 10,000 of them, counted on the server's threads.
//!
//! A test binary of its own, for the allocator is the whole process's.
#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to write; this one only counts and passes on"
)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the line it happened on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use standfast::{Config, Context, Listen, Server, Service};

thread_local! {
    /// Whether this thread's allocations count.
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

impl Counting {
    fn count() {
        // A thread that is ending has no local value any more, and does not count.
        if COUNTED.try_with(Cell::get).unwrap_or(false) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above with this layout, so from the system.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        // SAFETY: as in `dealloc`; the caller keeps the rest of the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An echo that has the threads it runs on counted.
struct Counted;

impl Service for Counted {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {
        COUNTED.set(true);
    }

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }
}

/// Sends a message on each connection and waits for its echo, `rounds` times.
fn echo(clients: &mut [TcpStream], rounds: usize, size: usize) {
    let message = vec![7; size];
    let mut echoed = vec![0; size];
    for _ in 0..rounds {
        for client in &mut *clients {
            client.write_all(&message).unwrap();
        }
        for client in &mut *clients {
            client.read_exact(&mut echoed).unwrap();
        }
    }
    assert_eq!(echoed, message);
}

#[test]
fn an_echoed_message_allocates_nothing() {
    // All deadlines armed, as anybody would have them.
    let server = Server::bind(Config {
        listen: vec![Listen::new("127.0.0.1:0".parse().unwrap(), Counted)],
        workers: NonZeroUsize::new(2),
        ..Config::default()
    })
    .unwrap();
    let (address, handle) = (server.addresses()[0].tcp().unwrap(), server.handle());
    let serving = thread::spawn(|| server.run());
    let mut clients: Vec<TcpStream> = (0..10)
        .map(|_| {
            let client = TcpStream::connect(address).unwrap();
            client.set_nodelay(true).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            client
        })
        .collect();

    // The counting counts: opening connections does allocate.
    echo(&mut clients, 10, 64);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "no allocation was ever counted");

    echo(&mut clients, 500, 64);
    echo(&mut clients, 500, 4096);
    let messages = 10_000;
    let grown = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(grown, 0, "{grown} allocations for {messages} messages");

    drop(clients);
    handle.drain();
    let summary = serving.join().unwrap().unwrap();
    assert_eq!(summary.read, 10 * 10 * 64 + 10 * 500 * 64 + 10 * 500 * 4096);
}
