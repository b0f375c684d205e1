//! `standfast connect`, as its user meets it: a netcat that comes back.

/// Whom it connects to, and from where.
mod addresses;
/// What waits for a server that is not there, and what of it is dropped.
mod buffer;
/// What people type at nc and ncat.
mod habits;
/// A server that half-closes, and one that says goodbye: a FIN does not tell them apart.
mod half_close;
/// Each way to lose a server: found, and said with its reason.
mod losses;
/// The two programs that this project grew from, as one command each.
mod netcat;
/// Coming back: again and again, until it may not.
mod reconnecting;
/// Options that are wrong, or contradict each other.
mod refusals;
/// Line ends and heartbeats.
mod sending;
/// Signals, and what becomes of bytes when one comes.
mod signals;
/// Every kind of stdin, and what its end means.
mod stdin;
/// Every kind of stdout.
mod stdout;
/// Its server is succeeded by another process.
mod takeover;
