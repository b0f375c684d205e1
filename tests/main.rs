//! The tests that drive the real binary over real sockets; an index of what stands where.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on fails with the line it happened on"
)]

/// Starting and ending the binary, reading what it says, clients of every kind.
mod support;

/// Clients that behave badly, and the well-behaved one beside them.
mod bad_clients;
/// Addresses, options, refusals: what the command line promises.
mod command_line;
/// `--config`: settings from a file, beside flags and the environment.
mod config;
/// `standfast connect`: the client that comes back.
mod connect;
/// The control socket, and the commands that use it.
mod control;
/// Read deadline, write stall, half-close timeout.
mod deadlines;
/// A drain that takes its time: its delay, its spread, and what ends it.
mod drain;
/// An embedder's server: the library from outside, several listeners, panicking services.
mod embedding;
/// `serve exec`: one process per connection.
mod exec;
/// `serve forward`: the relay, from both of its sides.
mod forward;
/// Who is let in, and how many how fast.
mod guard;
/// Many idle connections: their keepalive probes do not leave at once.
mod herd;
/// `serve hub`: a line from one client goes to all others.
mod hub;
/// `serve --keep`: the process that stays, and starts another server when one crashes.
mod keeper;
/// Connection limits and running out of descriptors.
mod limits;
/// `standfast load`: the generator that proves what a restart did to its clients.
mod load;
/// The budget for all that waits.
mod memory;
/// What a server tells of itself over HTTP.
mod metrics;
/// `--mptcp`: clients over several paths.
mod multipath;
/// Who the server and the programs it starts are, and what they may.
mod privileges;
/// Half-open peers: found, in time, with the exact reason.
mod reaping;
/// The services: echo, discard, print.
mod services;
/// Drain, second signal, nohup, exit codes, the summary.
mod signals;
/// Living slow readers live, and no answer is lost at a close.
/// A process that stood still, stopped by SIGSTOP: it judges nobody by time in which it did not look.
mod standstill;
/// A stdout or a stderr that takes nothing, or is closed.
mod stuck_output;
/// Under a service manager: what it is told, the sockets it passes.
mod systemd;
/// A running server succeeded by another process, with its clients.
mod takeover;
/// TLS at the door.
mod tls;
/// `standfast top`, in a terminal of tmux.
mod top;
/// Listeners that are Unix sockets.
mod unix_sockets;
