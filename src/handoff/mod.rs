//! The takeover: a running server gives its listeners and its live connections to a new process.
//!
//! Invariant: at any moment one process alone reads, writes or ends a connection. Until [`Commit`] that is the old
//! one, whatever goes wrong; from [`Owned`] on it is the new one. In between nobody does: the old one has sent
//! [`Commit`] and waits, and the new one says [`Owned`] before it touches anything. If the new one ends without having
//! said it, be [`Commit`] read or not, the old one goes on.
//!
//! 1. hello: the new process says what it is; the old one compares, and refuses or begins.
//! 2. pre-copy: while it serves, the old one sends every connection, descriptor, record and bytes, and whatever changes on
//!    them; the new one registers them, and does not read. One that gets another descriptor, as of a far side that is
//!    connected now, is taken back and sent anew.
//! 3. freeze: the old one's workers stop between two events and send the little that has changed since. Where that takes
//!    too long they thaw, and all goes on as in 2 until the next freeze.
//! 4. commit, and the new process owns. 5. running.
//!
//! `compare.rs` says what of a server goes, `give.rs` is the old process's side and `share.rs` each of its workers' part, joined by `wire/baton.rs`; `take.rs` is the new one's side,
//! `ahead.rs` what connections have in common, `wire/record.rs` the form of what passes between them, `carry.rs` a connection into that form and out of it.
//!
//! [`Commit`]: crate::wire::record::Message::Commit
//! [`Owned`]: crate::wire::record::Message::Owned

mod ahead;
mod carry;
pub(crate) mod compare;
pub(crate) mod fault;
pub(crate) mod give;
mod piece;
pub(crate) mod share;
pub(crate) mod take;
