//! A TCP listening server that holds on to its clients and lets go of the dead ones: the engine, to embed.
//!
//! It accepts clients, hands their bytes to a [`Service`] of yours, delivers the answers, and ends each connection
//! with one exact [`CloseReason`]. A peer that vanished without saying so (half-open) is found within one stated
//! bound in every state, idle or with output waiting; a slow reader that lives is never taken for one.
//!
//! Its other half is a client that comes back: [`Client`] dials, finds out that a server is gone by the same rules, and
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
//! A connection's life, each stage a file:
//!
//! | stage | file | |
//! |---|---|---|
//! | listen | `listener.rs` | `SO_REUSEADDR`, bind, backlog; or an inherited socket |
//! | accept | `accept.rs` | a batch until there is no more; paused without descriptors |
//! | admit | `admission.rs` | limits in all and per address |
//! | configure | `sockopt.rs` | keepalive and its kin, inherited from the listener on Linux |
//! | poll | `worker.rs` | one turn: wait, dispatch, accept, leftovers, deadlines, orders, closes |
//! | read, serve | `connection.rs` | until there is no more, the budget is spent, or there is no room |
//! | service | `service.rs` | bytes in, bytes out: the trait you write |
//! | write | `io.rs`, `outbox.rs` | straight to the socket; what it will not take waits |
//! | deadline | `deadline.rs`, `horizon.rs` | who is due, and when; by which time that is judged |
//! | reap | `reap.rs` | the judgement over silence, and the reason for an error |
//! | close | `close.rs` | FIN, reset or release; the reason; the one line in the log |
//! | handoff | `handoff/` | or to a new process: what a connection is goes there, with its bytes |
//!
//! A link to a server, which outlives its connections: `client.rs` is the loop, `resolve.rs` and `dial.rs` connect,
//! `backoff.rs` says when to try again, and what happens in between is the same as above, from read to reap.
//!
//! What a service may want beyond bytes in and out, each a call of [`Context`], [`Handle`] or [`Service`]:
//!
//! | want | call | file | who does |
//! |---|---|---|---|
//! | output of its own, for many | [`Handle::prompt`] | `worker/prompt.rs` | `services/hub.rs` |
//! | another socket, dialled for the connection | [`Context::dial`] | `worker/dialing.rs`, `connection/far.rs` | `services/forward.rs` |
//! | to give the socket away, and watch what else there is | [`Context::give_away`] | `connection/lent.rs`, `io/lent.rs` | `services/exec.rs` |
//!
//! Whom a relay dials says `upstreams.rs`, what it tells first `proxy_header.rs`, who may speak in a hub `network.rs`.
//!
//! Around it: `config.rs` (every setting), `keepalive.rs` (the arithmetic of detection), `server.rs` (from settings to
//! summary), `handle.rs` (the way in from other threads), `wanted.rs` (whether an order still stands), `control/` (the
//! way in from other processes), `inspect.rs`, `stats.rs`, `check.rs`, `address.rs`, `endpoint.rs`, `socket_file.rs`, `holder.rs`, `timer.rs`, `readiness.rs`, `error.rs`, and
//! `sys.rs`, the system calls no safe crate offers. Files import only from those that come before them in a connection's
//! life or stand around it; `server.rs` is imported by nobody.
//!
//! # Logging
//!
//! Through [`log`], with key-values; nothing is printed by the library. Each connection that ends leaves one line at
//! info, `closed`, with `id peer listener reason age read written`, and `errno probes retransmits` where the kernel
//! gave a verdict.
//!
//! # Features
//!
//! `cli` (default) carries what only the binary needs: an embedder sets `default-features = false`. `control` (part of
//! `cli`, Linux) is the control socket and the takeover: [`Server::control`](crate::Server) and what stands beside it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod address;
mod client;
mod config;
mod connection;
#[cfg(control)]
pub mod control;
mod dial;
mod error;
mod handle;
#[cfg(control)]
mod handoff;
mod inspect;
mod io;
mod listen;
mod liveness;
mod memory;
mod os;
mod server;
mod service;
pub mod services;
mod time;
#[cfg(control)]
mod wire;
mod worker;

pub use address::Address;
pub use address::endpoint::{Endpoint, Peer};
pub use client::{Caller, Client, End, Link, LinkId, Links, Next, Wake};
pub use config::{Config, Listen, WhenFull};
pub use dial::backoff::Backoff;
pub use dial::resolve::Family;
pub use dial::upstream::Upstream;
pub use dial::{Dial, DialError, DialErrorKind};
pub use error::Error;
pub use handle::Handle;
pub use inspect::{
    ConnectionInfo, DeadlineKind, ListenerInfo, MemoryInfo, NextDeadline, Role, Status, Takeover,
    UpstreamInfo,
};
pub use io::stats::Summary;
pub use listen::effective::Effective;
pub use liveness::close::CloseReason;
pub use liveness::keepalive::{DEAD_AFTER_LEAST, DetectionError, Keepalive};
pub use memory::{Held, KernelMemory, Memory, MemorySource, WaitingKind};
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub use os::children;
pub use os::descriptors::{descriptors_for_connections, raise_descriptor_limit};
pub use os::inherited;
pub use server::Server;
pub use service::{AnyService, Context, Exported, Patience, Ready, Service, Stage};
pub use services::forward::proxy_header::ProxyHeader;
pub use services::forward::upstreams::{Balance, Fails, Upstreams};
pub use services::hub::network::Network;

/// The README's examples compile and run, too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
