//! Relays to an upstream and back: bytes both ways, half-close included.
//!
//! A client waits while no upstream can be reached, for as long as it is worth (a server that restarts); meanwhile it is
//! not read, so nothing of it is lost. Which upstreams there are and in which order they are tried is for
//! `upstreams.rs` to say.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::dial::{DialError, DialErrorKind};
use crate::error::Error;
use crate::service::{Context, Exported, Service};
use crate::upstream::Upstream;
use crate::upstreams::{Balance, Upstreams};

/// How long the log is spared the next word about upstreams that cannot be reached.
const QUIET: Duration = Duration::from_secs(60);

/// Relays to an upstream and back.
#[derive(Debug)]
pub struct Forward {
    settings: Upstreams,
    upstreams: Vec<Upstream>,
    /// Clients so far: whose turn it is.
    clients: AtomicUsize,
    /// When the log may be told again that no upstream can be reached, in seconds since the start.
    quiet_until: AtomicU64,
}

/// A connection on its way to an upstream.
#[derive(Debug, Default)]
pub struct Search {
    /// The upstream that was tried first.
    first: usize,
    /// How many were tried since.
    tried: usize,
    /// How often all were.
    rounds: u32,
}

impl Forward {
    /// # Errors
    /// No upstream, or one that nobody can be reached at; a timeout below 1 ms.
    pub fn new(settings: Upstreams) -> Result<Self, Error> {
        settings.check()?;
        let addresses = settings.addresses.iter();
        let upstreams = addresses
            .map(|address| Upstream::new(address.clone(), settings.connect_timeout))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            settings,
            upstreams,
            clients: AtomicUsize::new(0),
            quiet_until: AtomicU64::new(0),
        })
    }

    fn dial(&self, search: &Search, conn: &mut Context<'_>, after: Duration) {
        let at = (search.first + search.tried) % self.upstreams.len();
        conn.dial(&self.upstreams[at], after);
    }

    /// Says that clients wait, now and then.
    fn say_waiting(&self, conn: &Context<'_>, error: &DialError) {
        let now = conn.now().as_secs();
        let until = self.quiet_until.load(Ordering::Relaxed);
        if now >= until {
            let next = now + QUIET.as_secs();
            self.quiet_until.store(next, Ordering::Relaxed);
            log::warn!(error:%; "no upstream can be reached, clients wait");
        }
    }
}

impl Service for Forward {
    type State = Search;

    fn name(&self) -> &'static str {
        "forward"
    }

    fn open(&self, conn: &mut Context<'_>) -> Search {
        let first = match self.settings.balance {
            Balance::InOrder => 0,
            Balance::RoundRobin => self.clients.fetch_add(1, Ordering::Relaxed),
        };
        let search = Search {
            first,
            ..Search::default()
        };
        self.dial(&search, conn, Duration::ZERO);
        search
    }

    fn dialed(&self, search: &mut Search, conn: &mut Context<'_>, outcome: Result<(), &DialError>) {
        let Err(error) = outcome else {
            let header = self.settings.send_proxy.map(|version| {
                let local = conn.local().ok();
                version.of(conn.peer(), local)
            });
            if let (Some(header), Some(mut far)) = (header, conn.far()) {
                far.write(header.as_bytes());
            }
            return;
        };
        if error.kind() == DialErrorKind::Interrupted {
            return self.dial(search, conn, Duration::ZERO);
        }
        log::debug!(id = conn.id(), error:%; "upstream not reached");
        search.tried += 1;
        if search.tried < self.upstreams.len() {
            return self.dial(search, conn, Duration::ZERO);
        }
        search.tried = 0;
        search.rounds = search.rounds.saturating_add(1);
        // The search began with the connection, in whatever process that was.
        let waited = conn.age();
        let random = RandomState::new().hash_one(search.rounds);
        let pause = self.settings.backoff.wait(search.rounds, random);
        match self.settings.wait {
            Some(wait) if waited < wait => {
                self.say_waiting(conn, error);
                // The last try comes when the wait is over.
                self.dial(search, conn, pause.min(wait.saturating_sub(waited)));
            }
            _ => conn.upstream_failed(error),
        }
    }

    #[inline]
    fn input(&self, _: &mut Search, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        match conn.far() {
            Some(mut far) => {
                far.write(bytes);
                bytes.len()
            }
            None => 0,
        }
    }

    fn end(&self, _: &mut Search, conn: &mut Context<'_>, _: &[u8]) {
        match conn.far() {
            Some(mut far) => far.half_close(),
            None => conn.finish(),
        }
    }

    fn dials(&self) -> bool {
        true
    }

    fn outlasts_drain(&self) -> bool {
        true
    }

    fn descriptors(&self) -> usize {
        2
    }

    /// A search begins anew in the other process, but for its age, which is the connection's.
    fn export(&self, _: &Search) -> Option<Exported> {
        Some(Exported {
            schema: 1,
            bytes: Vec::new(),
        })
    }

    fn import(&self, exported: &Exported) -> Result<Search, String> {
        if exported.schema != 1 {
            return Err(format!("a search of form {}", exported.schema));
        }
        Ok(Search::default())
    }
}
