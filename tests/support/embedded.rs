//! A server of the library's within the test process, and what it logs.

use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};

use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use standfast::{AnyService, Config, Error, Handle, Listen, Server, Summary};

use super::{Closed, GUARD, connect, facts, now};

/// A running [`Server`]; stopped when dropped.
pub(crate) struct Embedded {
    pub(crate) handle: Handle,
    pub(crate) addresses: Vec<SocketAddr>,
    serving: Option<JoinHandle<Result<Summary, Error>>>,
}

/// `service` on a free port of 127.0.0.1, everything else by default.
pub(crate) fn listen(service: impl Into<AnyService>) -> Listen {
    Listen::new("127.0.0.1:0".parse().unwrap(), service)
}

impl Embedded {
    pub(crate) fn start(listen: Listen) -> Self {
        Self::start_all(vec![listen])
    }

    /// One server with several listeners, and two workers.
    pub(crate) fn start_all(listen: Vec<Listen>) -> Self {
        Self::start_on(2, listen)
    }

    /// The same with so many workers.
    pub(crate) fn start_on(workers: usize, listen: Vec<Listen>) -> Self {
        LOG_TAKEN.call_once(|| {
            log::set_logger(&LINES).unwrap();
            log::set_max_level(LevelFilter::Info);
        });
        let server = Server::bind(Config {
            listen,
            workers: NonZeroUsize::new(workers),
            ..Config::default()
        })
        .unwrap();
        Self {
            handle: server.handle(),
            addresses: server
                .addresses()
                .iter()
                .filter_map(standfast::Endpoint::tcp)
                .collect(),
            serving: Some(thread::spawn(|| server.run())),
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// The `closed` line of `client`'s connection, once it is there.
    pub(crate) fn closed(&self, client: &TcpStream) -> Closed {
        self.closed_from(client.local_addr().unwrap())
    }

    /// The `closed` line of the connection from `peer`, where the client itself is gone.
    pub(crate) fn closed_from(&self, peer: SocketAddr) -> Closed {
        let peer = format!(" peer={peer} ");
        // Tests in the same process have servers of their own.
        let listeners = self.addresses.iter();
        let listeners: Vec<_> = listeners.map(|at| format!(" listener={at} ")).collect();
        let end = now() + GUARD;
        let mut lines = LINES.lock();
        loop {
            let mine = lines.iter().filter(|line| {
                line.starts_with("closed ") && listeners.iter().any(|at| line.contains(at))
            });
            let mine: Vec<&String> = mine.collect();
            if let Some(line) = mine.iter().find(|line| line.contains(&peer)) {
                return Closed {
                    facts: facts(line),
                    line: line.to_string(),
                };
            }
            let left = end.saturating_duration_since(now());
            assert!(!left.is_zero(), "no closed line for{peer}in {mine:#?}");
            (lines, _) = LINES
                .came
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Drains to the end.
    pub(crate) fn drain(mut self) -> Summary {
        self.handle.drain();
        self.serving.take().unwrap().join().unwrap().unwrap()
    }

    /// Ends the server at once.
    pub(crate) fn stop(mut self) -> Summary {
        self.handle.stop();
        self.serving.take().unwrap().join().unwrap().unwrap()
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

static LOG_TAKEN: Once = Once::new();
static LINES: Lines = Lines {
    lines: Mutex::new(Vec::new()),
    came: Condvar::new(),
};

/// What all embedded servers of this process logged: message, then ` key=value` for each fact.
struct Lines {
    lines: Mutex<Vec<String>>,
    came: Condvar,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        struct Pairs(String);
        impl<'kvs> VisitSource<'kvs> for Pairs {
            fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
                let value = value.to_string();
                if value != "None" {
                    self.0.push_str(&format!(" {key}={value}"));
                }
                Ok(())
            }
        }
        let mut pairs = Pairs(record.args().to_string());
        record.key_values().visit(&mut pairs).unwrap();
        self.lock().push(pairs.0);
        self.came.notify_all();
    }

    fn flush(&self) {}
}
