//! Takeovers between two servers of this process: services that let nothing go, or fail at it.

use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use standfast::{
    CloseReason, Config, Context, Error, Exported, Handle, Listen, Server, Service, Summary,
};

use crate::support::clients::{assert_over, connect_with_window};
use crate::support::home::Home;
use crate::support::{assert_echoes, connect, read_to_fin, send_until_stuck, until};

/// Echoes. A client that begins with `stay` cannot leave; with `panic`, the service fails at the attempt.
struct Echoes;

#[derive(Clone, Copy, Default)]
enum Way {
    #[default]
    Leave,
    Stay,
    Panic,
}

impl Service for Echoes {
    type State = Way;

    fn open(&self, _: &mut Context<'_>) -> Way {
        Way::Leave
    }

    fn input(&self, way: &mut Way, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        match bytes {
            [b's', b't', b'a', b'y', ..] => *way = Way::Stay,
            [b'p', b'a', b'n', b'i', b'c', ..] => *way = Way::Panic,
            _ => {}
        }
        conn.write(bytes);
        bytes.len()
    }

    fn export(&self, way: &Way) -> Option<Exported> {
        match way {
            Way::Leave => Some(Exported::default()),
            Way::Stay => None,
            Way::Panic => panic!("asked for, in a test"),
        }
    }

    fn import(&self, _: &Exported) -> Result<Way, String> {
        Ok(Way::Leave)
    }
}

type Serving = JoinHandle<Result<Summary, Error>>;

fn config(port: u16) -> Config {
    Config {
        listen: vec![Listen::new(
            format!("127.0.0.1:{port}").parse().unwrap(),
            Echoes,
        )],
        workers: NonZeroUsize::new(2),
        drain_timeout: Some(Duration::from_secs(1)),
        ..Config::default()
    }
}

/// A server that runs, and its control socket.
fn run(mut server: Server, control: &Path) -> (Handle, Serving) {
    let control = server.control(control).unwrap();
    let handle = server.handle();
    let serving = thread::spawn(move || {
        let summary = server.run();
        drop(control);
        summary
    });
    (handle, serving)
}

/// One server, and another one that takes over from it.
struct Pair {
    _home: Home,
    control: PathBuf,
    address: std::net::SocketAddr,
    old: Serving,
}

impl Pair {
    fn start() -> Self {
        let home = Home::new();
        let control = home.join("c.sock");
        let old = Server::bind(config(0)).unwrap();
        let address = old.addresses()[0].tcp().unwrap();
        let (_, old) = run(old, &control);
        Self {
            _home: home,
            control,
            address,
            old,
        }
    }

    fn leaving(&self) -> TcpStream {
        let mut client = connect(self.address);
        assert_echoes(&mut client, b"hello");
        client
    }

    fn take_over(&self) -> (Handle, Serving) {
        let new = Server::take_over(config(self.address.port()), &self.control);
        run(new.unwrap().unwrap(), &self.control)
    }

    /// Waits for the end of the old one.
    fn summary(self) -> Summary {
        until("the old one ends", || self.old.is_finished());
        self.old.join().unwrap().unwrap()
    }
}

#[test]
fn a_service_that_panics_as_a_connection_is_to_leave_keeps_only_that_one() {
    let pair = Pair::start();
    let mut leaves: Vec<_> = (0..6).map(|_| pair.leaving()).collect();
    let mut stays = connect(pair.address);
    assert_echoes(&mut stays, b"panic");
    let address = pair.address;
    let (handle, new) = pair.take_over();
    let ended = pair.summary();
    let takeover = ended.takeover.unwrap();
    assert_eq!((takeover.connections, takeover.staying), (6, 1));
    assert_eq!(read_to_fin(&mut stays), b"");
    for client in &mut leaves {
        assert_echoes(client, b"and on");
    }
    assert_echoes(&mut connect(address), b"new");
    drop((leaves, stays));
    handle.drain();
    new.join().unwrap().unwrap();
}

/// Echoes, and always has more to send ahead.
struct Publishes;

impl Service for Publishes {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }

    fn export(&self, (): &()) -> Option<Exported> {
        Some(Exported::default())
    }

    fn import(&self, _: &Exported) -> Result<(), String> {
        Ok(())
    }

    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        let part = Exported {
            schema: 1,
            bytes: vec![7; 100_000],
        };
        Some((part, ahead + 1))
    }

    fn import_ahead(&self, part: &Exported) -> Result<(), String> {
        assert_eq!(part.bytes.len(), 100_000, "whole");
        Ok(())
    }

    fn export_common(&self, ahead: u64) -> Option<Exported> {
        assert!(ahead > 1, "some of it went ahead");
        None
    }
}

#[test]
fn a_service_that_publishes_for_ever_does_not_put_the_freeze_off_for_ever() {
    let config = |port: u16| Config {
        listen: vec![Listen::new(
            format!("127.0.0.1:{port}").parse().unwrap(),
            Publishes,
        )],
        ..config(port)
    };
    let home = Home::new();
    let control = home.join("c.sock");
    let old = Server::bind(config(0)).unwrap();
    let address = old.addresses()[0].tcp().unwrap();
    let (_, old) = run(old, &control);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hello");
    let new = Server::take_over(config(address.port()), &control).unwrap();
    let (handle, new) = run(new.unwrap(), &control);
    until("the old one ends", || old.is_finished());
    old.join().unwrap().unwrap();
    assert_echoes(&mut client, b"and on");
    drop(client);
    handle.drain();
    new.join().unwrap().unwrap();
}

#[test]
fn who_stays_and_does_not_read_is_cut_when_the_time_to_drain_is_over() {
    let pair = Pair::start();
    let mut leaves = pair.leaving();
    let mut stays = connect_with_window(pair.address, 4096);
    assert_echoes(&mut stays, b"stay");
    send_until_stuck(&mut stays, b"who reads all this?");
    let (handle, new) = pair.take_over();
    let ended = pair.summary();
    let takeover = ended.takeover.clone().unwrap();
    assert_eq!((takeover.connections, takeover.staying), (1, 1));
    assert_eq!(ended.closed(CloseReason::Drain), 1, "{ended}");
    assert_over(&mut stays);
    assert_echoes(&mut leaves, b"and on");
    drop((leaves, stays));
    handle.drain();
    new.join().unwrap().unwrap();
}
