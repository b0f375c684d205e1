//! What `serve hub` is told, as typed and as meant.

use std::time::Duration;

use clap::ValueEnum;
use standfast::Network;
use standfast::services::hub::{HubOptions, Slow};

use crate::Failure;
#[cfg(feature = "nats")]
use crate::args::nats::NatsArgs;
use crate::units::{duration_or_zero, size};

/// What becomes of a client that is too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SlowName {
    /// It loses the oldest lines it has not got, never a part of one; counted in the log.
    DropOldest,
    /// It is reset, with reason service.
    Disconnect,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HubArgs {
    /// Who may speak, repeatable: an address, or a range such as 10.0.0.0/8. What others send is read and forgotten.
    /// [default: everybody]
    #[arg(long, value_name = "CIDR", help_heading = "Hub")]
    pub(crate) source: Vec<Network>,

    /// Who connects gets the last N lines, as far as they are in the buffer. [default: 0]
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Hub"
    )]
    pub(crate) history: Option<usize>,

    /// What becomes of a client that is further behind than --buffer, which all of them share. [default: drop-oldest]
    #[arg(long, value_enum, value_name = "HOW", help_heading = "Hub")]
    pub(crate) slow: Option<SlowName>,

    /// How long lines gather into one write for each client; 0 sends each at once. [default: 20ms]
    #[arg(long, value_name = "DUR", value_parser = duration_or_zero, allow_hyphen_values = true, help_heading = "Hub")]
    pub(crate) flush: Option<Duration>,

    /// The longest line, its end included; who sends a longer one is closed. At most half the buffer. [default: 64k, at
    /// most a quarter of the buffer]
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, conflicts_with = "raw", help_heading = "Hub")]
    pub(crate) max_line: Option<usize>,

    /// Pass on what is read as it comes, line or not. Without it a last line without an end gets one.
    #[arg(long, help_heading = "Hub")]
    pub(crate) raw: bool,

    /// Who speaks hears it, too.
    #[arg(long, help_heading = "Hub")]
    pub(crate) echo_self: bool,

    #[cfg(feature = "nats")]
    #[command(flatten)]
    pub(crate) nats: NatsArgs,
}

impl HubArgs {
    /// Which flags were given.
    pub(crate) fn given(&self) -> impl Iterator<Item = (bool, &'static str)> {
        #[cfg(feature = "nats")]
        let beyond = self.nats.given();
        #[cfg(not(feature = "nats"))]
        let beyond = [];
        let own = [
            (!self.source.is_empty(), "--source"),
            (self.history.is_some(), "--history"),
            (self.slow.is_some(), "--slow"),
            (self.flush.is_some(), "--flush"),
            (self.max_line.is_some(), "--max-line"),
            (self.raw, "--raw"),
            (self.echo_self, "--echo-self"),
        ];
        own.into_iter().chain(beyond)
    }

    /// What the hub does, with a `buffer` of that many bytes.
    ///
    /// # Errors
    /// A line longer than the buffer has room for.
    pub(crate) fn options(&self, buffer: usize) -> Result<HubOptions, Failure> {
        if let Some(line) = self.max_line
            && line > buffer / 2
        {
            return Err(Failure::usage(format!(
                "--max-line {line} is more than half of the buffer of {buffer} bytes: raise --buffer"
            )));
        }
        let defaults = HubOptions::default();
        Ok(HubOptions {
            buffer,
            echo_self: self.echo_self,
            flush: self.flush.unwrap_or(defaults.flush),
            history: self.history.unwrap_or(defaults.history),
            max_line: self.max_line,
            raw: self.raw,
            slow: match self.slow {
                Some(SlowName::Disconnect) => Slow::Disconnect,
                Some(SlowName::DropOldest) | None => Slow::DropOldest,
            },
            sources: self.source.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::typed;

    fn meant(line: &str) -> Result<HubOptions, Failure> {
        typed::<HubArgs>(line).unwrap().options(4096)
    }

    #[test]
    fn flags_change_what_they_name() {
        let options = meant("--source 10.0.0.0/8 --source ::1 --history 7 --slow disconnect --flush 0 --max-line 2k --echo-self").unwrap();
        let sources: Vec<_> = options.sources.iter().map(Network::to_string).collect();
        assert_eq!(sources, ["10.0.0.0/8", "::1/128"]);
        assert_eq!(
            (options.history, options.slow, options.flush),
            (7, Slow::Disconnect, Duration::ZERO)
        );
        assert_eq!((options.max_line, options.buffer), (Some(2048), 4096));
        assert!(options.echo_self && !options.raw);
        assert!(meant("--raw").unwrap().raw);

        let plain = meant("").unwrap();
        assert_eq!(
            (plain.history, plain.slow, plain.flush),
            (0, Slow::DropOldest, Duration::from_millis(20))
        );
        assert!(plain.sources.is_empty() && plain.max_line.is_none());
    }

    #[test]
    fn a_line_must_fit_the_buffer() {
        let refused = meant("--max-line 3k").unwrap_err();
        assert_eq!(refused.code, 2);
        assert!(refused.line.contains("--buffer"), "{refused}");
    }
}
