//! Figures and names in few letters.

use std::time::Duration;

use standfast::CloseReason;
use standfast::inspect::EndedInfo;

use crate::ctl::short;
use crate::units::Bytes;

/// How bad it is; the page of `--metrics` judges alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    Plain,
    Good,
    Warn,
    Bad,
}

/// How bad it is that connections ended so.
pub(super) fn weight(reason: CloseReason) -> Weight {
    match reason.as_str() {
        "peer-closed" | "drain" | "handed-off" | "max-age" | "killed" | "service" => Weight::Plain,
        "peer-reset" | "read-timeout" | "half-close-timeout" | "limit" | "denied" => Weight::Warn,
        _ => Weight::Bad,
    }
}

/// What is known of an end beside its reason, as the page has it.
pub(super) fn evidence(end: &EndedInfo) -> String {
    let some = |count: Option<u8>| count.filter(|count| *count > 0);
    let known = [
        end.limit.as_ref().map(|which| format!("limit: {which}")),
        end.header.as_ref().map(|what| format!("header: {what}")),
        end.errno.clone(),
        some(end.probes).map(|count| format!("{count} probes unanswered")),
        some(end.retransmits).map(|count| format!("{count} retransmits unacknowledged")),
        end.silent_for
            .filter(|time| time.as_secs() > 0)
            .map(|time| format!("silent for {}", short(time))),
        end.late.as_ref().map(|what| format!("{what} came late")),
        end.upstream.as_ref().map(|at| format!("upstream {at}")),
    ];
    known.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// A name as it may stand on a terminal: what could move the cursor, turn the direction of the text, or not be seen, is
/// shown by its number.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Control characters, line separators, and what Unicode calls formatting.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A whole number with its thousands apart; from ten millions on in short.
pub(super) fn count(value: u64) -> String {
    if value >= 10_000_000 {
        let (unit, name) = if value < 10_000_000_000 {
            (1e6, "M")
        } else {
            (1e9, "G")
        };
        return format!("{:.1}{name}", value as f64 / unit);
    }
    let digits = value.to_string();
    let mut apart = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart
}

/// So many a second: with a tenth where there are few.
pub(super) fn rate(value: f64) -> String {
    match whole(value) {
        0..10 if value > 0.0 => format!("{value:.1}"),
        value => count(value),
    }
}

/// Bytes, or bytes a second.
pub(super) fn bytes(value: f64) -> String {
    Bytes(whole(value)).to_string()
}

/// Rounded; what is no number is none.
pub(super) fn whole(value: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "`as` takes the nearest there is"
    )]
    let whole = value.round() as u64;
    whole
}

/// How long ago.
pub(super) fn ago(time: Duration) -> String {
    format!("{} ago", short(time))
}

/// What pictures are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Glyphs {
    /// From nothing to all of it.
    pub(super) levels: &'static [&'static str],
    pub(super) bar: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    /// Here a text was cut.
    pub(super) cut: &'static str,
}

impl Glyphs {
    pub(super) const UNICODE: Self = Self {
        levels: &["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"],
        bar: "█",
        up: "▲",
        down: "▼",
        cut: "…",
    };
    pub(super) const ASCII: Self = Self {
        levels: &["_", ".", "-", "=", "+", "*", "%", "#"],
        bar: "#",
        up: "^",
        down: "v",
        cut: "~",
    };

    /// A line of columns, the highest of them as high as `most`.
    pub(super) fn line(&self, columns: &[Option<f64>], most: f64) -> String {
        let top = self.levels.len() - 1;
        let level = |value: f64| match whole(value / most * top as f64) {
            // Something is more than nothing.
            0 if value > 0.0 && most > 0.0 => 1,
            level => usize::try_from(level).unwrap_or(top).min(top),
        };
        let glyph = |column: &Option<f64>| match column {
            Some(value) => self.levels.get(level(*value)).copied().unwrap_or(" "),
            None => " ",
        };
        columns.iter().map(glyph).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::told;

    #[test]
    fn counts_and_rates_are_short() {
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (18_000, "18,000"),
            (9_999_999, "9,999,999"),
            (12_345_678, "12.3M"),
            (12_345_678_901, "12.3G"),
        ] {
            assert_eq!(count(value), text);
        }
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.2"),
            (9.4, "9.4"),
            (12.6, "13"),
            (1234.0, "1,234"),
            (f64::NAN, "0"),
            (f64::INFINITY, "18446744073.7G"),
        ] {
            assert_eq!(rate(value), text);
        }
        assert_eq!(bytes(2560.4), "2.5k");
    }

    #[test]
    fn nothing_of_a_name_moves_the_cursor_or_turns_the_text() {
        let hostile = "a\x1b[2J\x07\u{9b}31m\r\n\u{202e}b\u{200b}\u{2028}ü漢";
        let shown = printable(hostile);
        assert_eq!(
            shown,
            "a\\u{1b}[2J\\u{7}\\u{9b}31m\\r\\n\\u{202e}b\\u{200b}\\u{2028}ü漢"
        );
        assert!(!shown.chars().any(is_invisible));
    }

    #[test]
    fn a_line_is_as_high_as_its_highest_column() {
        let line = |columns: &[Option<f64>], most| Glyphs::UNICODE.line(columns, most);
        let columns = [None, Some(0.0), Some(0.1), Some(50.0), Some(100.0)];
        assert_eq!(line(&columns, 100.0), " ▁▂▅█");
        assert_eq!(line(&[Some(0.0), None], 0.0), "▁ ");
        assert_eq!(line(&[Some(5.0)], 4.0), "█");
        assert_eq!(Glyphs::ASCII.line(&columns, 100.0), " _.+#");
    }

    #[test]
    fn the_evidence_is_told_as_the_page_tells_it() {
        let mut end = told::ended(7, CloseReason::KeepaliveDead);
        assert_eq!(evidence(&end), "");
        end.errno = Some("ETIMEDOUT".to_owned());
        end.probes = Some(4);
        end.retransmits = Some(0);
        end.silent_for = Some(Duration::from_secs(30));
        assert_eq!(
            evidence(&end),
            "ETIMEDOUT, 4 probes unanswered, silent for 30s"
        );
        assert_eq!(weight(CloseReason::KeepaliveDead), Weight::Bad);
        assert_eq!(weight(CloseReason::PeerReset), Weight::Warn);
        assert_eq!(weight(CloseReason::Killed), Weight::Plain);
    }
}
