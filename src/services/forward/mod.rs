//! Relays to an upstream and back: bytes both ways, half-close included.
//!
//! A client waits while no upstream can be reached, for as long as it is worth (a server that restarts); meanwhile it is
//! not read, so nothing of it is lost. Which upstreams there are and in which order they are tried is for
//! `options.rs` to say, which of them are worth a try for `health.rs`; `journey.rs` is what crosses a takeover.

mod health;
mod journey;
mod options;
mod proxy_header;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::dial::upstream::Upstream;
use crate::dial::{DialError, DialErrorKind};
use crate::error::Error;
use crate::handle::Handle;
use crate::inspect::UpstreamInfo;
use crate::service::{Context, Exported, Patience, Service, Survive};
use crate::services::forward::health::{Down, Health};
use crate::services::forward::journey::Gone;
pub use crate::services::forward::options::{Balance, Fails, ForwardOptions};
use crate::services::forward::proxy_header::Header;
pub use crate::services::forward::proxy_header::ProxyHeader;
use crate::time::deadline::Moment;

/// How long the log is spared the next word about upstreams that cannot be reached.
const QUIET: Duration = Duration::from_secs(60);

/// The form of an exported search, and of what all have in common.
const SCHEMA: u16 = 2;

/// Relays to an upstream and back.
#[derive(Debug)]
pub struct Forward {
    settings: ForwardOptions,
    upstreams: Vec<(Upstream, Health)>,
    /// Turns given so far.
    turns: AtomicU64,
    /// When the log may be told again that no upstream can be reached, in seconds since the start.
    quiet_until: AtomicU64,
    server: OnceLock<Handle>,
}

/// A connection on its way to an upstream.
#[derive(Debug, Default)]
pub struct Search {
    /// The turn it was given: which upstream is tried first.
    turn: u64,
    /// The one that is being tried.
    at: usize,
    /// Those that were tried in this round.
    tried: Vec<usize>,
    /// How often all were.
    rounds: u32,
    /// One of them failed otherwise than by a certificate that one side does not believe: it may be there later.
    is_hopeful: bool,
}

impl Forward {
    /// # Errors
    /// No upstream, or one that nobody can be reached at; a timeout below 1 ms.
    pub fn new(settings: ForwardOptions) -> Result<Self, Error> {
        settings.check()?;
        let addresses = settings.addresses.iter();
        let upstreams = addresses
            .map(|address| {
                let upstream = Upstream::of(settings.dial(address))?;
                Ok((upstream, Health::default()))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self {
            settings,
            upstreams,
            turns: AtomicU64::new(0),
            quiet_until: AtomicU64::new(0),
            server: OnceLock::new(),
        })
    }

    /// Whose turn it is. By turns, it passes those over that count as down, so that the others share their clients.
    fn turn(&self, now: Duration) -> u64 {
        if self.settings.balance == Balance::InOrder {
            return 0;
        }
        let mut turn = 0;
        for _ in &self.upstreams {
            turn = self.turns.fetch_add(1, Ordering::Relaxed);
            let (_, health) = &self.upstreams[self.number(turn, 0)];
            if health.is_promising(now) {
                break;
            }
        }
        turn
    }

    /// The `at`th upstream, counted from the one whose `turn` it is.
    fn number(&self, turn: u64, at: usize) -> usize {
        let count = self.upstreams.len();
        let turn = usize::try_from(turn % count as u64).unwrap_or(0);
        (turn + at) % count
    }

    /// Dials the next upstream of this round, if one is left: first those that are worth a try, then the others.
    fn dial_next(&self, search: &mut Search, conn: &mut Context<'_>, after: Duration) -> bool {
        let now = conn.now();
        let numbers = (0..self.upstreams.len()).map(|at| self.number(search.turn, at));
        let mut left = numbers.filter(|number| !search.tried.contains(number));
        let fails = &self.settings.fails;
        let admitted = left
            .clone()
            .find(|&number| self.upstreams[number].1.admits(now, fails));
        let Some(number) = admitted.or_else(|| left.next()) else {
            return false;
        };
        search.tried.push(number);
        search.at = number;
        let (upstream, _) = &self.upstreams[number];
        // In front of a handshake, as haproxy has it; else it is said as the first bytes.
        let header = self.header(conn, upstream.has_tls());
        let preface = header.as_ref().map_or(&[][..], Header::as_bytes);
        conn.dial_behind(upstream, after, preface);
        true
    }

    /// Dials the first upstream of a round.
    fn begin(&self, search: &mut Search, conn: &mut Context<'_>, after: Duration) {
        search.tried.clear();
        search.is_hopeful = false;
        // There is at least one.
        self.dial_next(search, conn, after);
    }

    /// What tells an upstream who the client is, if that is wanted and said `now`.
    fn header(&self, conn: &Context<'_>, now: bool) -> Option<Header> {
        let version = self.settings.send_proxy.filter(|_| now)?;
        Some(version.of(conn.peer(), conn.local().ok()))
    }

    /// Remembers that an upstream could not be reached, and says so once.
    fn failed(&self, search: &Search, conn: &Context<'_>, error: &DialError) {
        log::debug!(id = conn.id(), error:%; "upstream not reached");
        let (upstream, health) = &self.upstreams[search.at];
        // Of the upstream that says nothing.
        if error.kind() != DialErrorKind::Local && health.failed(conn.now(), &self.settings.fails) {
            log::warn!(upstream:% = upstream.address(), error:%; "upstream is down");
        }
    }

    /// Remembers that an upstream was reached, and says so if it was down.
    fn reached(&self, search: &Search, conn: &Context<'_>) {
        let (upstream, health) = &self.upstreams[search.at];
        if let Some(down_for) = health.reached(conn.now()) {
            let down_for = down_for.as_millis() as f64 / 1e3;
            log::info!(upstream:% = upstream.address(), down_for; "upstream is up");
        }
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

    /// Those that count as down, and since and until when.
    fn down(&self) -> impl Iterator<Item = (&Upstream, Option<Down>)> {
        self.upstreams
            .iter()
            .map(|(upstream, health)| (upstream, health.down()))
    }

    /// The time, as [`Context::now`] has it; before the server starts there is none.
    fn now(&self) -> Duration {
        let now = self.server.get().map(Handle::now);
        now.map_or(Duration::ZERO, |now| now.since(Moment::at_start()))
    }
}

impl Service for Forward {
    type State = Search;

    fn name(&self) -> &'static str {
        "forward"
    }

    fn patience(&self) -> Patience {
        Patience::with_work()
    }

    fn start(&self, server: &Handle) {
        // The first of several: their times are compared with one another.
        let _ = self.server.set(server.clone());
    }

    fn open(&self, conn: &mut Context<'_>) -> Search {
        let mut search = Search {
            turn: self.turn(conn.now()),
            ..Search::default()
        };
        self.begin(&mut search, conn, Duration::ZERO);
        search
    }

    fn dialed(&self, search: &mut Search, conn: &mut Context<'_>, outcome: Result<(), &DialError>) {
        let Err(error) = outcome else {
            self.reached(search, conn);
            search.tried = Vec::new();
            let (upstream, _) = &self.upstreams[search.at];
            let header = self.header(conn, !upstream.has_tls());
            if let (Some(header), Some(mut far)) = (header, conn.far()) {
                far.write(header.as_bytes());
            }
            return;
        };
        if error.kind() == DialErrorKind::Interrupted {
            return self.begin(search, conn, Duration::ZERO);
        }
        self.failed(search, conn, error);
        search.is_hopeful |= error.kind() != DialErrorKind::Certificate;
        if self.dial_next(search, conn, Duration::ZERO) {
            return;
        }
        search.rounds = search.rounds.saturating_add(1);
        // The search began with the connection, in whatever process that was.
        let waited = conn.age();
        let random = RandomState::new().hash_one(search.rounds);
        let pause = self.settings.backoff.wait(search.rounds, random);
        match self.settings.wait {
            Some(wait) if waited < wait && search.is_hopeful => {
                self.say_waiting(conn, error);
                // The last try comes when the wait is over.
                self.begin(search, conn, pause.min(wait.saturating_sub(waited)));
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
        if conn.is_truncated() {
            // To the upstream a FIN would be the end in order that it was not.
            return conn.fail_as_truncated();
        }
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

    fn upstreams(&self) -> Vec<UpstreamInfo> {
        let now = self.now();
        let infos = self.down().map(|(upstream, down)| {
            let down_for = down.map(|down| now.saturating_sub(down.since));
            UpstreamInfo::new(upstream.address().to_string(), down_for)
        });
        infos.collect()
    }

    fn survive(&self) -> Survive {
        Survive::Relay
    }

    /// A search begins anew in the other process, but for its turn, and its age, which is the connection's.
    fn export(&self, search: &Search) -> Option<Exported> {
        Some(Exported {
            schema: SCHEMA,
            bytes: search.turn.to_le_bytes().to_vec(),
        })
    }

    fn import(&self, exported: &Exported) -> Result<Search, String> {
        let mut bytes = &exported.bytes[..];
        let turn = match exported.schema {
            // Of which nothing went along.
            1 => 0,
            SCHEMA => journey::number(&mut bytes).ok_or("a search that cannot be read")?,
            other => return Err(format!("a search of form {other}")),
        };
        Ok(Search {
            turn,
            ..Search::default()
        })
    }

    fn export_common(&self, _: u64) -> Option<Exported> {
        let now = self.now();
        let gone = self.down().filter_map(|(upstream, down)| {
            let down = down?;
            Some(Gone {
                address: upstream.address().to_string(),
                down_for: now.saturating_sub(down.since),
                left: down.until.saturating_sub(now),
            })
        });
        let gone: Vec<Gone> = gone.collect();
        Some(Exported {
            schema: SCHEMA,
            bytes: journey::pack(self.turns.load(Ordering::Relaxed), &gone),
        })
    }

    fn import_common(&self, exported: &Exported) -> Result<(), String> {
        if exported.schema != SCHEMA {
            return Err(format!("upstreams in form {}", exported.schema));
        }
        let unpacked = journey::unpack(&exported.bytes);
        let (turns, gone) = unpacked.ok_or("upstreams that cannot be read")?;
        self.turns.store(turns, Ordering::Relaxed);
        let now = self.now();
        for (upstream, health) in &self.upstreams {
            let address = upstream.address().to_string();
            let Some(gone) = gone.iter().find(|gone| gone.address == address) else {
                continue;
            };
            if self.settings.fails.max.is_some() {
                health.is_down(Down {
                    since: now.saturating_sub(gone.down_for),
                    until: now + gone.left.min(self.settings.fails.timeout),
                });
            }
        }
        Ok(())
    }
}
