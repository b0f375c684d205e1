//! The command line of `load` as typed.
#![expect(clippy::doc_markdown, reason = "these comments are the text of --help")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use crate::args::dial::DialArgs;
use crate::args::{count, size};
use crate::units::duration;

/// Durations: a plain number is seconds; suffixes ms s m h d. Sizes take k m g.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Durations: a plain number is seconds; suffixes ms s m h d. Sizes take k m g; rates k m, and fractions.

Every byte is verified by its place in the stream: lost, duplicated, reordered and corrupted bytes
are counted apart. Latency is from when a message was due (--rate max: sent) to the last byte of its
echo, so one that has to wait for its connection is late, too; with --churn, from the begin of the
connection.

Signals: the first SIGTERM, SIGINT or SIGHUP ends the run early, with the full table; a second one,
half a second later or more, does not wait for outstanding echoes.
Exit codes: 0 done, whatever was lost; 1 an --expect did not hold, no connection could be made, or not
one message came back as it was sent (--idle: no connection was up at the end); 2 asked wrongly.")]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    pub(crate) dial: DialArgs,

    /// Connections held at a time.
    #[arg(short, long, value_name = "N", value_parser = count, allow_hyphen_values = true, default_value = "1")]
    pub(crate) connections: NonZeroUsize,

    /// New connections a second at the start. [default: as fast as possible, at most 2000 handshakes under way]
    #[arg(long, value_name = "R", value_parser = rate, allow_hyphen_values = true)]
    pub(crate) connect_rate: Option<Rate>,

    /// Messages a second, all connections together; max: each as soon as there is room for it. With --churn:
    /// connections a second. [default: max]
    #[arg(short, long, value_name = "R", value_parser = rate, allow_hyphen_values = true, conflicts_with = "idle")]
    pub(crate) rate: Option<Rate>,

    /// Bytes of a message, at most 64m. [default: 64]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, conflicts_with = "idle")]
    pub(crate) size: Option<usize>,

    /// How long to send. It counts from when all connections are up, or the connect timeout has passed since the last
    /// of them was begun.
    #[arg(short = 'T', long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, default_value = "10s")]
    pub(crate) duration: Duration,

    /// Messages that may be outstanding on a connection. [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), allow_hyphen_values = true, conflicts_with_all = ["idle", "churn"])]
    pub(crate) pipeline: Option<u32>,

    /// Open the connections and only watch them.
    #[arg(long, conflicts_with = "churn")]
    pub(crate) idle: bool,

    /// Connect, send one message, await its echo, close, and again.
    #[arg(long, conflicts_with = "connect_rate")]
    pub(crate) churn: bool,

    /// Only count the bytes that come back.
    #[arg(long, conflicts_with = "idle")]
    pub(crate) no_verify: bool,

    /// A connection that is owed an echo and gets nothing for this long is given up, and made anew. At the end the last
    /// echoes are awaited, too, until all have come or nothing has for this long. [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, conflicts_with = "idle")]
    pub(crate) read_timeout: Option<Duration>,

    /// Threads, each with its share of the connections.
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true, default_value = "1")]
    pub(crate) workers: NonZeroUsize,

    /// Exit with 1 unless it holds, such as 'lost == 0' or 'p99_ms < 5'; repeatable. The names are the keys of --json,
    /// the comparisons == != < <= > >=.
    #[arg(long, value_name = "NAME OP NUMBER", help_heading = "Output")]
    pub(crate) expect: Vec<String>,

    /// One JSON object in place of the table.
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Write the run as a page to look at: latency, messages and connections over time, ends and restarts where they
    /// happened, the table. It needs nothing but itself.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) html: Option<PathBuf>,

    /// No progress on stderr.
    #[arg(short, long, help_heading = "Output")]
    pub(crate) quiet: bool,
}

/// So many a second, or as many as possible.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rate {
    Max,
    PerSecond(f64),
}

impl Rate {
    pub(crate) const fn per_second(self) -> Option<f64> {
        match self {
            Self::Max => None,
            Self::PerSecond(rate) => Some(rate),
        }
    }
}

/// So many a second: a number, with k or m for thousands and millions; or `max`.
fn rate(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate::Max);
    }
    let (number, unit) = match text.to_ascii_lowercase().chars().last() {
        Some('k') => (&text[..text.len() - 1], 1e3),
        Some('m') => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    // Not all that is a number to Rust: no exponent, no sign, no nan.
    let plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
    let parsed: Option<f64> = number.parse().ok().filter(|_| plain);
    match parsed.map(|number| number * unit) {
        Some(0.0) => Err("0 a second would send nothing".to_owned()),
        Some(rate) if (1e-3..=1e9).contains(&rate) => Ok(Rate::PerSecond(rate)),
        Some(_) => Err("a rate is between 0.001 and 1000m a second".to_owned()),
        None => {
            Err("expected a number a second, with k or m, such as 500 or 20k; or max".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        for (text, expected) in [
            ("max", Rate::Max),
            ("500", Rate::PerSecond(500.0)),
            ("20k", Rate::PerSecond(20_000.0)),
            ("1.5M", Rate::PerSecond(1_500_000.0)),
            ("0.5", Rate::PerSecond(0.5)),
        ] {
            assert_eq!(rate(text), Ok(expected), "{text}");
        }
        for text in [
            "", "k", "0", "-1", "1e3", "nan", "inf", "1g", "1.2.3", "2000m", "é",
        ] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
