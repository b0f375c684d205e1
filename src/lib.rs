//! A TCP listening server that holds on to its clients and lets go of the dead ones: the engine, to embed.
//!
//! It accepts clients, hands their bytes to a [`Service`] of yours, delivers the answers, and ends each connection
//! with one exact [`CloseReason`]. A peer that vanished without saying so (half-open) is found within one stated
//! bound in every state, idle or with output waiting; a slow reader that lives is never taken for one.
//!
//! Its other half is a client that comes back: [`client::Client`] dials, finds out that a server is gone by the same rules, and
//! dials again, with backoff.
//!
//! What it does not do: TLS, protocols. It starts one thread a core and needs no asynchronous runtime.
//!
//! # An echo server
//!
//! ```
//! use standfast::{Config, Context, Listen, Server, Service};
//!
//! struct Echo;
//!
//! impl Service for Echo {
//!     type State = (); // what is remembered of one connection
//!
//!     fn open(&self, _conn: &mut Context<'_>) {}
//!
//!     fn input(&self, _state: &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
//!         conn.write(bytes);
//!         bytes.len() // used all of it
//!     }
//! }
//!
//! # fn main() -> Result<(), standfast::Error> {
//! let listen = Listen::new("127.0.0.1:0".parse().unwrap(), Echo);
//! let server = Server::bind(Config { listen: vec![listen], ..Config::default() })?;
//! println!("listening on {}", server.addresses()[0]);
//! # server.handle().drain();
//! let summary = server.run()?; // until a Handle says drain() or stop()
//! println!("{summary}");
//! # Ok(())
//! # }
//! ```
//!
//! # The map
//!
//! The folders of `src/` are layers, and each imports only from those above it: `docs/architecture.md` has the list, file
//! by file, and `tests/tidy.rs` checks it. In the order of a connection's life:
//!
//! | stage | file | |
//! |---|---|---|
//! | listen | `listen/listener.rs` | `SO_REUSEADDR`, bind, backlog; or an inherited socket |
//! | accept | `listen/accept.rs` | a batch until there is no more; paused without descriptors |
//! | admit | `listen/admission.rs` | limits in all and per address |
//! | configure | `liveness/sockopt.rs` | keepalive and its kin, inherited from the listener on Linux |
//! | poll | `worker/` | one turn: wait, dispatch, accept, leftovers, deadlines, orders, closes |
//! | read, serve | `connection/` | until there is no more, the budget is spent, or there is no room |
//! | service | `service/` | bytes in, bytes out: the trait you write |
//! | write | `io/` | straight to the socket; what it will not take waits |
//! | deadline | `time/` | who is due, and when; by which time that is judged |
//! | reap | `liveness/reap.rs` | the judgement over silence, and the reason for an error |
//! | close | `liveness/close.rs` | FIN, reset or release; the reason; the one line in the log |
//! | handoff | `handoff/` | or to a new process: what a connection is goes there, with its bytes |
//!
//! A link to a server outlives its connections: `client/` is the loop, `dial/` connects, and what happens in between is
//! the same as above, from read to reap.
//!
//! # Logging
//!
//! Through [`log`], with key-values; nothing is printed by the library. Each connection that ends leaves one line at
//! info, `closed`, with `id peer listener reason age read written`, and `errno probes retransmits` where the kernel
//! gave a verdict.
//!
//! A logger that does not show key-values shows the word `closed` and nothing else. `env_logger` shows them with its feature
//! `kv`, which its default features leave out; `tracing-log` leaves them out, whatever its features.
//!
//! # Features
//!
//! `cli` (default) carries what only the binary needs: an embedder sets `default-features = false`. `control` (part of
//! `cli`, Linux) is the control socket and the takeover: [`Config::control`](crate::Config) and what stands beside it. `nats`
//! (no default) has hubs on several machines share a feed: `Hub::over_nats`.
//! `tls` (part of `cli`) is TLS at the door and at the dial: [`Listen`] and [`Dial`](dial::Dial) have `tls` then.
#![deny(clippy::print_stdout, clippy::print_stderr)]
// What is of no use at all shows where everything is built.
#![cfg_attr(
    not(metrics),
    expect(dead_code, reason = "only a takeover or the metrics use it")
)]

mod address;
pub mod client;
mod config;
mod connection;
#[cfg(control)]
pub mod control;
pub mod dial;
mod error;
mod handle;
#[cfg_attr(not(control), path = "no_handoff.rs")]
mod handoff;
pub mod inspect;
mod io;
mod listen;
mod liveness;
pub mod memory;
#[cfg(metrics)]
mod metrics;
mod os;
mod parse;
#[cfg(test)]
#[path = "../tests/support/seeded.rs"]
mod seeded;
mod server;
mod service;
pub mod services;
mod time;
#[cfg(feature = "tls")]
mod tls;
#[cfg_attr(not(control), path = "no_vault.rs")]
mod vault;
#[cfg(control)]
mod wire;
mod worker;

pub use address::Address;
pub use address::endpoint::{Endpoint, Peer};
pub use address::network::{IpPrefix, Network};
pub use address::ownership::Ownership;
#[cfg(metrics)]
pub use config::Metrics;
pub use config::{AcceptProxy, AcceptRate, Config, Listen, WhenFull};
pub use error::Error;
pub use handle::Handle;
pub use handle::lifecycle::Lifecycle;
pub use io::stats::Summary;
pub use listen::effective::Effective;
pub use liveness::close::CloseReason;
pub use liveness::keepalive::{DEAD_AFTER_LEAST, DetectionError, Keepalive};
#[cfg(control)]
#[doc(hidden)]
pub use os::journal::Journal;
pub use parse::ParseError;
pub use server::Server;
#[cfg(control)]
#[doc(hidden)]
pub use service::Left;
#[doc(hidden)]
pub use service::RoundStage;
pub use service::{AnyService, Context, Exported, Far, Patience, Ready, Service, Survive};
#[cfg(feature = "tls")]
pub use tls::{CertificateInfo, ClientAuth, Tls, TlsError, TlsSettings, TlsVersion};

/// The process that a server is in: what it was started with, its limits, its threads and its children, and waiting in it.
pub mod process {
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub use crate::os::children;
    pub use crate::os::descriptors::{descriptors_for_connections, raise_descriptor_limit};
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    pub use crate::os::identity::{Identity, ResourceLimit};
    pub use crate::os::inherited;
    pub use crate::os::threads;
    pub use crate::time::allowance::Allowance;
}

/// The README's examples compile and run, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/embedding.md")]
struct Documents;
