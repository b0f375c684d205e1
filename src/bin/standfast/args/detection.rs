//! How a vanished peer is to be found, as typed and as meant. The arithmetic, and what of it is a contradiction, is the
//! library's.
#![expect(clippy::doc_markdown, reason = "these comments are the text of --help")]

use std::time::Duration;

use standfast::{Keepalive, ParseError};

use crate::Failure;
use crate::units::{Setting, duration, duration_or_off};

#[derive(Debug, clap::Args)]
pub(crate) struct DetectionArgs {
    /// TCP keepalive in seconds and probes, or off: finds the idle vanished peer. An empty field keeps the
    /// system's. [default: 60:10:3]
    #[arg(long, value_name = "IDLE:INTERVAL:RETRIES", value_parser = keepalive, allow_hyphen_values = true, help_heading = "Vanished peers")]
    keepalive: Option<Setting<Keepalive>>,

    /// The bound within which a vanished peer is found in every state; at least 5s. Given alone it derives
    /// keepalive. [default: 1.125 x (idle + interval x retries), so 102s]
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, help_heading = "Vanished peers")]
    pub(crate) dead_after: Option<Duration>,

    /// TCP_USER_TIMEOUT as such. It cuts living slow readers, too; dead-after does not. It takes the place of keepalive's
    /// retries, so one above dead-after is refused.
    #[arg(long, value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Vanished peers")]
    pub(crate) user_timeout: Setting<Duration>,
}

impl DetectionArgs {
    /// The keepalive that is meant: as said, or derived from the bound, or the default.
    ///
    /// # Errors
    /// A bound that no keepalive can keep.
    pub(crate) fn keepalive(&self) -> Result<Option<Keepalive>, Failure> {
        Ok(match (self.keepalive, self.dead_after) {
            (Some(Setting::Off), _) => None,
            (Some(Setting::On(keepalive)), _) => Some(keepalive),
            (None, Some(bound)) => Some(Keepalive::within(bound).map_err(standfast::Error::from)?),
            (None, None) => Some(Keepalive::default()),
        })
    }
}

fn keepalive(text: &str) -> Result<Setting<Keepalive>, String> {
    if text == "off" {
        Ok(Setting::Off)
    } else {
        text.parse()
            .map(Setting::On)
            .map_err(|error: ParseError| error.to_string())
    }
}
