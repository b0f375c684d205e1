//! `standfast load`: what it counts, against servers that echo and peers that do not.

/// Peers that change what they echo: each fault in its own column.
mod faults;
/// Sizes, windows, rates: everything comes back, and is counted.
mod figures;
/// Connections that are only held, or made anew for each message; many of them.
mod holding;
/// Progress, the table and the JSON object, expectations, signals.
mod output;
/// The page of `--html`.
mod page;
/// Peers that say nothing, hang up, or say something else.
mod peers;
/// What is asked wrongly, and nobody there.
mod refusals;
/// The server is killed, restarted, replaced, stopped, under load.
mod restarts;
