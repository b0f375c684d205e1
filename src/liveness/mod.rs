//! A peer's end: found (`keepalive.rs`, `sockopt.rs`, `herd.rs`), judged (`reap.rs`), and named (`close.rs`).

pub(crate) mod close;
pub(crate) mod herd;
pub(crate) mod keepalive;
pub(crate) mod multipath;
pub(crate) mod reap;
pub(crate) mod sockopt;
