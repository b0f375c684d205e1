//! Orders that wait for a worker that hangs in a call of its service.

use std::io::Write;
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use standfast::control::Client;
use standfast::control::ControlSocket;
use standfast::{CloseReason, Config, Context, Handle, Listen, Server, Service, Summary};

use crate::support::home::Home;
use crate::support::{assert_echoes, connect, until};

/// Whether a worker hangs, and is to.
#[derive(Default)]
struct Hang {
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Hang {
    fn set(&self, hangs: bool, is_to: bool) {
        *self.state.lock().unwrap() = (hangs, is_to);
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(bool, bool) -> bool) {
        let state = self.state.lock().unwrap();
        let waiting = |&mut (hangs, is_to): &mut (bool, bool)| !until(hangs, is_to);
        drop(self.changed.wait_while(state, waiting).unwrap());
    }
}

/// Echoes. With `!` its worker hangs until it is told to go on.
struct Hangs(Arc<Hang>);

impl Service for Hangs {
    type State = ();

    fn open(&self, _: &mut Context<'_>) {}

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        if bytes == b"!" {
            self.0.set(true, true);
            self.0.wait(|_, is_to| !is_to);
        }
        conn.write(bytes);
        bytes.len()
    }
}

/// A server of one worker, a client of it that has been answered, and one in whose call it hangs.
struct Hung {
    _home: Home,
    path: PathBuf,
    hang: Arc<Hang>,
    handle: Handle,
    serving: JoinHandle<Summary>,
    waiting: TcpStream,
    _hanging: TcpStream,
}

impl Hung {
    fn start() -> Self {
        let (home, hang) = (Home::new(), Arc::<Hang>::default());
        let path = home.join("c.sock");
        let service = Hangs(Arc::clone(&hang));
        let server = Server::bind(Config {
            listen: vec![Listen::new("127.0.0.1:0".parse().unwrap(), service)],
            workers: NonZeroUsize::new(1),
            control: Some(ControlSocket {
                path: Some(path.clone()),
                ..ControlSocket::default()
            }),
            ..Config::default()
        })
        .unwrap();
        let address = server.addresses()[0].tcp().unwrap();
        let handle = server.handle();
        let serving = thread::spawn(move || server.run().unwrap());
        let mut waiting = connect(address);
        assert_echoes(&mut waiting, b"hello");
        let mut hanging = connect(address);
        hanging.write_all(b"!").unwrap();
        hang.wait(|hangs, _| hangs);
        Self {
            _home: home,
            path,
            hang,
            handle,
            serving,
            waiting,
            _hanging: hanging,
        }
    }

    fn client(&self) -> Client {
        Client::at(self.path.clone())
    }

    /// The worker goes on; what was in its mailbox before this has been done when this returns.
    fn go_on(&self) {
        self.hang.set(false, false);
        assert_eq!(
            self.handle
                .connections()
                .map(|batch| batch.len())
                .sum::<usize>(),
            2
        );
    }

    fn end(self) -> Summary {
        self.handle.stop();
        self.serving.join().unwrap()
    }
}

#[test]
fn a_kill_that_was_given_up_while_the_worker_hung_is_not_carried_out() {
    let mut hung = Hung::start();
    let impatient = hung.client().within(Duration::from_millis(50));
    let error = impatient.kill(1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    hung.go_on();
    assert_echoes(&mut hung.waiting, b"and on");
    assert_eq!(hung.end().closed(CloseReason::Killed), 0);
}

#[test]
fn a_kill_that_is_waited_for_comes_when_the_worker_goes_on() {
    let hung = Hung::start();
    let client = hung.client();
    let killing = thread::spawn(move || client.kill(1));
    // It is in the mailbox, or will be: either way the worker comes to it.
    hung.hang.set(false, false);
    killing.join().unwrap().unwrap();
    assert_eq!(hung.end().closed(CloseReason::Killed), 1);
}

/// Each has a thread of the server's, and a descriptor.
#[test]
fn who_gives_up_on_a_worker_that_hangs_leaves_nothing_behind() {
    let hung = Hung::start();
    let answering = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let names =
            threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
        names
            .filter(|name| name.trim_end() == "control-client")
            .count()
    };
    let impatient = hung.client().within(Duration::from_millis(50));
    for _ in 0..3 {
        impatient.kill(1).unwrap_err();
        impatient.connections().unwrap_err();
    }
    until("nobody waits for the worker any more", || answering() == 0);
    hung.go_on();
    hung.end();
}
