//! What `standfast top` watches, as typed.

use std::time::Duration;

use crate::args::control::ServerArgs;
use crate::units::duration;

/// The least time from one question to the next.
const LEAST: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys: ? shows them all. Arrows choose a connection, Enter shows all of it, k ends it and asks before; / filters, < and > sort by
another column, r turns the order, Tab shows what else there is, q ends.

A server that ends, or cannot be asked, is waited for: what it said last stays on the screen, and a line says so. A takeover is
no end: figures go on over it. The connections are asked for as often as --interval says, but so that it takes no more than a
twentieth of a core, though every 15 s at least.

NO_COLOR turns colours off; what is not ASCII is drawn where the locale is UTF-8.
Exit codes: 0 ended by q or a signal, 1 there is no server or no terminal any more, 2 asked wrongly, or not on a terminal.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// How often the server is asked; at least 100ms.
    #[arg(long, value_name = "DUR", value_parser = interval, allow_hyphen_values = true, default_value = "1s")]
    pub(crate) interval: Duration,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval < LEAST => Err("below 100ms".to_owned()),
        interval => Ok(interval),
    }
}
