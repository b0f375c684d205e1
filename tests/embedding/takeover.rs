//! Takeovers between two servers of this process: services that let nothing go, or fail at it.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use standfast::control::{ControlSocket, Replace};
use standfast::inspect::Takeover;
use standfast::{
    CloseReason, Config, Context, Error, Exported, Handle, Lifecycle, Listen, Server, Service,
    Summary,
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

fn config(port: u16, control: &Path) -> Config {
    Config {
        listen: vec![Listen::new(
            format!("127.0.0.1:{port}").parse().unwrap(),
            Echoes,
        )],
        workers: NonZeroUsize::new(2),
        drain_timeout: Some(Duration::from_secs(1)),
        control: Some(ControlSocket {
            path: Some(control.to_owned()),
            // The first one has an address of its own.
            replace: if port == 0 {
                Replace::Never
            } else {
                Replace::Always
            },
            ..ControlSocket::default()
        }),
        ..Config::default()
    }
}

/// A server that runs.
fn run(config: Config) -> (SocketAddr, Handle, Serving) {
    let server = Server::bind(config).unwrap();
    let address = server.addresses()[0].tcp().unwrap();
    let handle = server.handle();
    (address, handle, thread::spawn(move || server.run()))
}

/// Another one takes over from that, and that has ended. On a busy machine a freeze may come too late: then once more.
fn succeed(old: &Serving, config: impl Fn() -> Config) -> (Handle, Serving) {
    loop {
        let (_, handle, new) = run(config());
        until("one of them ends", || {
            old.is_finished() || new.is_finished()
        });
        if old.is_finished() {
            return (handle, new);
        }
        new.join().unwrap().unwrap_err();
    }
}

/// One server, and another one that takes over from it.
struct Pair {
    _home: Home,
    control: PathBuf,
    address: SocketAddr,
    old: Serving,
}

impl Pair {
    fn start() -> Self {
        let home = Home::new();
        let control = home.join("c.sock");
        let (address, _, old) = run(config(0, &control));
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
        succeed(&self.old, || config(self.address.port(), &self.control))
    }

    /// Of the old one.
    fn summary(self) -> Summary {
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

/// Echoes, and has last words in every way there is, be its connection somebody else's or not.
struct LastWords;

impl Service for LastWords {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(bytes);
        bytes.len()
    }

    fn over(&self, (): &mut (), conn: &mut Context<'_>, _: CloseReason) {
        conn.write(b"written");
        let _ = conn.send(b"sent");
        let _ = conn.send_vectored(&[IoSlice::new(b"sent "), IoSlice::new(b"together")]);
        conn.half_close();
        conn.finish();
    }

    fn export(&self, (): &()) -> Option<Exported> {
        Some(Exported::default())
    }

    fn import(&self, _: &Exported) -> Result<(), String> {
        Ok(())
    }
}

/// Of TLS the new process seals with the same keys and numbers meanwhile.
#[test]
fn what_a_service_says_to_those_who_have_left_reaches_nobody() {
    for tls in [false, true] {
        let home = Home::new();
        let control = home.join("c.sock");
        let config = |port: u16| {
            let address = format!("127.0.0.1:{port}").parse().unwrap();
            let mut listen = Listen::new(address, LastWords);
            listen.tls = tls.then(crate::tls::settings);
            Config {
                listen: vec![listen],
                ..config(port, &control)
            }
        };
        let (address, _, old) = run(config(0));
        let mut clients: Vec<Box<dyn Conversation>> = (0..4).map(|_| begin(address, tls)).collect();
        for client in &mut clients {
            client.assert_answers(b"hello");
        }
        let (handle, new) = succeed(&old, || config(address.port()));
        old.join().unwrap().unwrap();
        for client in &mut clients {
            client.assert_answers(b"and on");
        }
        drop(clients);
        handle.drain();
        new.join().unwrap().unwrap();
    }
}

/// A client, with TLS or without.
trait Conversation: Read + Write {
    fn assert_answers(&mut self, bytes: &[u8]) {
        self.write_all(bytes).unwrap();
        let mut answer = vec![0; bytes.len()];
        self.read_exact(&mut answer).unwrap();
        assert_eq!(answer, bytes);
    }
}

impl<T: Read + Write> Conversation for T {}

fn begin(address: SocketAddr, tls: bool) -> Box<dyn Conversation> {
    match tls {
        true => Box::new(crate::tls::client(address)),
        false => Box::new(connect(address)),
    }
}

#[test]
fn a_service_that_publishes_for_ever_does_not_put_the_freeze_off_for_ever() {
    let home = Home::new();
    let control = home.join("c.sock");
    let config = |port: u16| Config {
        listen: vec![Listen::new(
            format!("127.0.0.1:{port}").parse().unwrap(),
            Publishes,
        )],
        ..config(port, &control)
    };
    let (address, _, old) = run(config(0));
    let mut client = connect(address);
    assert_echoes(&mut client, b"hello");
    let (handle, new) = succeed(&old, || config(address.port()));
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

/// Notes what it is told.
#[derive(Debug, Default)]
struct Noted(Mutex<Vec<&'static str>>);

impl Noted {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push(what);
    }
}

impl Lifecycle for Noted {
    fn running(&self, _: &Handle) {
        self.note("running");
    }

    fn settled(&self, _: &Handle) {
        self.note("settled");
    }

    fn alone(&self, _: &Handle) {
        self.note("alone");
    }

    fn objection(&self, _: u32) -> Option<String> {
        self.note("objection");
        None
    }

    fn handed_over(&self, _: &Takeover) {
        self.note("handed over");
    }

    fn ending(&self) {
        self.note("ending");
    }

    fn ended(&self) {
        self.note("ended");
    }
}

#[test]
fn who_runs_a_server_is_told_what_happens_to_it_in_order() {
    let home = Home::new();
    let control = home.join("c.sock");
    let noted = [(); 2].map(|()| Arc::<Noted>::default());
    let config = |port, noted: &Arc<Noted>| Config {
        lifecycle: Arc::clone(noted) as _,
        ..config(port, &control)
    };
    let (address, _, old) = run(config(0, &noted[0]));
    assert_echoes(&mut connect(address), b"hello");
    let (handle, new) = succeed(&old, || {
        noted[1].0.lock().unwrap().clear();
        config(address.port(), &noted[1])
    });
    old.join().unwrap().unwrap();
    handle.wait_until_alone();
    handle.drain();
    new.join().unwrap().unwrap();
    let [mut old, new] = noted.map(|noted| noted.0.lock().unwrap().clone());
    // Once for each attempt.
    old.dedup();
    let begin = ["running", "settled", "alone"];
    assert_eq!(old[..3], begin);
    assert_eq!(old[3..], ["objection", "handed over", "ended"]);
    assert_eq!(new[..3], begin);
    assert_eq!(new[3..], ["ending", "ended"]);
}

#[test]
fn a_server_that_has_to_take_over_and_finds_none_says_so() {
    let home = Home::new();
    let refused = Server::bind(config(1, &home.join("c.sock"))).unwrap_err();
    assert!(
        matches!(&refused, Error::TakeOver { source, .. } if source.kind() == ErrorKind::NotFound),
        "{refused:?}"
    );
}

#[test]
fn a_control_socket_that_was_asked_for_must_be_had_and_goes_with_its_server() {
    let home = Home::new();
    let control = home.join("c.sock");
    let server = Server::bind(config(0, &control)).unwrap();
    assert_eq!(server.control(), Some(&*control));
    let refused = Server::bind(config(0, &control)).unwrap_err();
    assert!(
        matches!(&refused, Error::Control { source, .. } if source.kind() == ErrorKind::AddrInUse),
        "{refused:?}"
    );
    drop(server);
    assert!(!control.exists());
}
