//! The command line of `connect` as typed. What it means is for `connect.rs` to say.

use std::time::Duration;

use clap::{ArgAction, ValueEnum};

use crate::args::dial::DialArgs;
use crate::units::{Setting, duration, duration_or_off, duration_or_zero, size};

/// When to connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reconnect {
    /// After a loss; but the first attempt must succeed.
    OnLoss,
    /// After a loss, and when the first attempt fails.
    Always,
    /// Never: one attempt, one connection.
    Never,
}

/// What to do when the server was silent for the read timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReadTimeout {
    /// The connection is given up, as one that is lost.
    Reconnect,
    /// Say so and wait on.
    Wait,
    /// Say so and exit with code 4.
    Exit,
}

/// What to do with bytes from stdin for which the buffer has no room while there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BufferPolicy {
    /// They wait: stdin is not read.
    Block,
    /// Whole lines are dropped, the oldest first.
    DropOldest,
    /// Whole lines are dropped as they come.
    DropNew,
}

/// A line that is sent when nothing else was sent for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    pub(crate) every: Duration,
    /// Without its line end.
    pub(crate) text: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
stdin goes to the server, what the server sends goes to stdout, byte for byte; what there is to say is on stderr. \
While stdin is open, a connection that is lost or that the server closes (FIN) is made anew. At the end of stdin \
everything is sent, then half-closed; then the server's FIN is the end (code 0), and a loss is a failure (code 1). \
A stdin that ends without a byte (/dev/null) means: only receive, and reconnect.

A server's FIN ends only what it says: what stdin gives is still sent, and a server that takes it is not left. It is a \
goodbye if it resets that, or if stdin gives nothing: at once at a terminal, or at a line's end on a connection 2 s old; \
else after 2 s of silence (--reconnect never: not before stdin ends). Bytes of stdin that were not delivered are counted, and make it code 1.

What TCP does not promise: bytes that the kernel took before a connection was lost may not have arrived, and nothing \
says which. They are not sent again; what the kernel did not take yet goes to the next connection.

Durations: a plain number is seconds; suffixes ms s m h d; off disables. Sizes take k m g.

Signals: the first SIGINT, SIGTERM or SIGHUP stops reading stdin, sends what was read, if connected, and ends within \
2 s; a second one, half a second later or more, ends at once. Under nohup a SIGHUP is ignored.
Exit codes: 0 done, 1 failed, 2 asked wrongly, 3 gave up reconnecting (max-retries), 4 read timeout.")]
pub(crate) struct ConnectArgs {
    #[command(flatten)]
    pub(crate) dial: DialArgs,

    /// When to connect again. [default: always; with -z never]
    #[arg(long, value_enum, help_heading = "Reconnecting")]
    pub(crate) reconnect: Option<Reconnect>,

    /// Give up, with code 3, after so many retries without a connection that lasted for stable-after.
    #[arg(
        long,
        value_name = "N",
        allow_hyphen_values = true,
        help_heading = "Reconnecting"
    )]
    pub(crate) max_retries: Option<u32>,

    /// A connection that lasted so long makes backoff and max-retries begin anew. [default: 10s]
    #[arg(long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, help_heading = "Reconnecting")]
    pub(crate) stable_after: Option<Duration>,

    /// The read deadline: what to do when the server was silent for this long is for on-read-timeout to say.
    #[arg(short = 'i', long, alias = "idle-timeout", value_name = "DUR", value_parser = duration_or_off, allow_hyphen_values = true, default_value = "off", help_heading = "Deadlines")]
    pub(crate) read_timeout: Setting<Duration>,

    /// What to do at the read timeout. [default: reconnect]
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Deadlines")]
    pub(crate) on_read_timeout: Option<OnReadTimeout>,

    /// As netcat's: the connect timeout; and when nothing moved for so long in either direction, the end, with code 4.
    #[arg(short, long, value_name = "DUR", value_parser = duration, allow_hyphen_values = true, conflicts_with_all = ["connect_timeout", "read_timeout", "on_read_timeout"], help_heading = "Deadlines")]
    pub(crate) wait: Option<Duration>,

    /// When nothing was sent for DUR, send TEXT as a line (default an empty one), never in the middle of another.
    #[arg(long, value_name = "DUR[:TEXT]", value_parser = heartbeat, allow_hyphen_values = true, default_value = "off", help_heading = "Deadlines")]
    pub(crate) heartbeat: Setting<Heartbeat>,

    /// Leave so long after the end of stdin, once everything has arrived; 0 is at once. A server that does not close as
    /// well is given one second more. [default: wait for the server]
    #[arg(short, long, value_name = "DUR", value_parser = quit_after, allow_hyphen_values = true, help_heading = "Deadlines")]
    pub(crate) quit_after: Option<Setting<Duration>>,

    /// How much may wait for the server, and how much for stdout.
    #[arg(long, value_name = "SIZE", value_parser = size, allow_hyphen_values = true, default_value = "256k", help_heading = "Bytes")]
    pub(crate) buffer: usize,

    /// What to do when the buffer is full while there is no connection.
    #[arg(
        long,
        value_enum,
        value_name = "POLICY",
        default_value = "block",
        help_heading = "Bytes"
    )]
    pub(crate) buffer_policy: BufferPolicy,

    /// Do not half-close at the end of stdin.
    #[arg(long, help_heading = "Bytes")]
    pub(crate) no_half_close: bool,

    /// As netcat's: half-close at the end of stdin, as it does in any case.
    #[arg(short = 'N', conflicts_with = "no_half_close", help_heading = "Bytes")]
    pub(crate) half_close: bool,

    /// Do not read stdin.
    #[arg(long = "recv-only", conflicts_with_all = ["send_only", "heartbeat"], help_heading = "Bytes")]
    pub(crate) receive_only: bool,

    /// Forget what the server sends, and leave as soon as everything is delivered, unless -q says later.
    #[arg(long, help_heading = "Bytes")]
    pub(crate) send_only: bool,

    /// Only connect, and leave: code 0 if that was possible. With --reconnect always it is waited for.
    #[arg(short = 'z', conflicts_with_all = ["receive_only", "send_only", "quit_after", "heartbeat"])]
    pub(crate) leaves_at_once: bool,

    /// Send CR LF where stdin has LF.
    #[arg(short = 'C', long, help_heading = "Bytes")]
    pub(crate) crlf: bool,

    /// Say more: when, the local address, and what finds a vanished server.
    #[arg(short, long, action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Say when, in each line on stderr.
    #[arg(long)]
    pub(crate) timestamps: bool,
}

/// `DUR`, `DUR:TEXT` or `off`.
fn heartbeat(text: &str) -> Result<Setting<Heartbeat>, String> {
    let (every, text) = text.split_once(':').unwrap_or((text, ""));
    if text.contains('\n') {
        return Err("the text is one line, so it has no line end of its own".to_owned());
    }
    match duration_or_off(every)? {
        Setting::On(every) => Ok(Setting::On(Heartbeat {
            every,
            text: text.to_owned(),
        })),
        Setting::Off if text.is_empty() => Ok(Setting::Off),
        Setting::Off => Err("off has no text".to_owned()),
    }
}

/// A duration, which may be none at all, or `off`.
fn quit_after(text: &str) -> Result<Setting<Duration>, String> {
    match duration_or_zero(text) {
        Ok(wait) => Ok(Setting::On(wait)),
        Err(_) => duration_or_off(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_may_have_colons_in_its_text() {
        let read = |text: &str| heartbeat(text).unwrap().into_option().unwrap();
        assert_eq!(read("30s").text, "");
        assert_eq!(read("30s:").text, "");
        assert_eq!(read("500ms:PING a:b").text, "PING a:b");
        assert_eq!(read("500ms:PING").every, Duration::from_millis(500));
        assert_eq!(heartbeat("off"), Ok(Setting::Off));
        for wrong in ["", "0", ":PING", "PING", "off:PING", "1s:a\nb"] {
            assert!(heartbeat(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn to_leave_at_once_is_allowed() {
        for zero in ["0", "0s", "0ms"] {
            assert_eq!(quit_after(zero), Ok(Setting::On(Duration::ZERO)));
        }
        assert_eq!(quit_after("3"), Ok(Setting::On(Duration::from_secs(3))));
        assert_eq!(quit_after("off"), Ok(Setting::Off));
        assert!(quit_after("-1").is_err());
    }
}
