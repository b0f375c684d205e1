//! The lines on stderr: one for each change of state.

use std::fmt;
use std::time::Duration;

use standfast::client::End;
use standfast::inspect::TlsInfo;
use standfast::{CloseReason, Endpoint};

use crate::args::dial_tls::OURS;
use crate::connect::outgoing::Dropped;

/// Seconds as people read them: `0.04 s`, `1.3 s`, `5 s`, `90 s`; and what is longer: `12 min`, `5 h 30 min`, `3 d 4 h`.
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0..95 => write!(f, "0.0{} s", (millis + 5) / 10),
            ..9950 if !millis.is_multiple_of(1000) => {
                let tenths = (millis + 50) / 100;
                write!(f, "{}.{} s", tenths / 10, tenths % 10)
            }
            _ if millis < 599_500 => write!(f, "{} s", (millis + 500) / 1000),
            _ => {
                let minutes = (millis + 500) / 60_000;
                match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
                    (0, 0, minutes) => write!(f, "{minutes} min"),
                    (0, hours, minutes) => write!(f, "{hours} h {minutes} min"),
                    (days, hours, _) => write!(f, "{days} d {hours} h"),
                }
            }
        }
    }
}

/// A connection that was made, and what of TLS it has: in full if there is more to say.
pub(crate) fn connected(server: &Endpoint, tls: Option<&TlsInfo>, in_full: bool) -> String {
    let tls = match tls {
        None => String::new(),
        Some(tls) if in_full => {
            let name = tls.name.as_deref().unwrap_or_default();
            format!(", TLS {} with {name}, {}", tls.version, tls.cipher)
        }
        Some(tls) => format!(", TLS {}", tls.version),
    };
    format!("connected to {server}{tls}")
}

/// A connection that was lost for that `reason`: for how long the server had been silent then, how long it had been
/// connected, and the error of the system.
pub(crate) fn lost(end: &End, reason: CloseReason) -> String {
    let (silent, up) = (Seconds(end.noticed), Seconds(end.age));
    let errno = end.errno().or_else(|| end.tls.map(str::to_owned));
    let errno = errno.filter(|_| reason == end.reason);
    let errno = errno.map_or_else(String::new, |errno| format!(", {errno}"));
    let hint = if reason == end.reason && end.refuses_certificate() {
        OURS
    } else {
        ""
    };
    format!(
        "lost {}: {reason} (silent {silent}, up {up}{errno}){hint}",
        end.server
    )
}

/// What was dropped so far.
pub(crate) fn dropped(dropped: Dropped) -> String {
    let Dropped { lines, bytes } = dropped;
    format!(
        "dropped {}, {} while disconnected",
        counted(lines, "line"),
        counted(bytes, "byte")
    )
}

/// What becomes of the last bytes when the program has to end.
pub(crate) fn undelivered(count: u64) -> String {
    let (count, were) = (
        counted(count, "byte"),
        if count == 1 { "was" } else { "were" },
    );
    format!("{count} {were} not delivered")
}

/// `1 line`, `2 lines`.
pub(crate) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short_and_right() {
        for (millis, shown) in [
            (0, "0.00 s"),
            (4, "0.00 s"),
            (37, "0.04 s"),
            (94, "0.09 s"),
            (95, "0.1 s"),
            (620, "0.6 s"),
            (994, "1.0 s"),
            (1000, "1 s"),
            (1349, "1.3 s"),
            (5000, "5 s"),
            (9949, "9.9 s"),
            (9950, "10 s"),
            (10_499, "10 s"),
            (90_700, "91 s"),
            (599_499, "599 s"),
            (599_500, "10 min"),
            (719_000, "11 min"),
            (19_800_000, "5 h 30 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(Seconds(Duration::from_millis(millis)).to_string(), shown);
        }
    }

    #[test]
    fn what_was_dropped_is_counted() {
        let lines = |lines, bytes| dropped(Dropped { lines, bytes });
        assert_eq!(
            lines(12, 345),
            "dropped 12 lines, 345 bytes while disconnected"
        );
        assert_eq!(lines(1, 1), "dropped 1 line, 1 byte while disconnected");
        assert_eq!(undelivered(1), "1 byte was not delivered");
        assert_eq!(undelivered(2), "2 bytes were not delivered");
    }
}
