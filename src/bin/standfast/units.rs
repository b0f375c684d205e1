//! Durations and sizes, as people write them.

use std::fmt;
use std::time::Duration;

/// A setting that can be turned off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    Off,
    On(T),
}

impl<T> Setting<T> {
    pub(crate) fn into_option(self) -> Option<T> {
        match self {
            Self::Off => None,
            Self::On(value) => Some(value),
        }
    }
}

/// A duration: a plain number is seconds; suffixes `ms s m h d`, also `sec` and `min`; fractions down to a millisecond.
/// Zero is no duration.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    not_zero(text, "")
}

/// What cannot be is refused with a `hint`.
fn not_zero(text: &str, hint: &str) -> Result<Duration, String> {
    match whole(text, hint)? {
        Duration::ZERO => Err(format!("0 would be at once{hint}")),
        duration => Ok(duration),
    }
}

/// A duration, which may be none at all.
pub(crate) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    whole(text, "")
}

fn whole(text: &str, hint: &str) -> Result<Duration, String> {
    if text.starts_with("-") && text[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("negative{hint}"));
    }
    let expected = || "expected a number with ms, s, m, h or d, such as 30s".to_owned();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let millis_a_unit: u64 = match unit {
        "ms" => 1,
        "" | "s" | "sec" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ if number.is_empty() => return Err(expected()),
        _ => {
            return Err(format!("unknown unit {unit:?}: use ms, s, m, h or d"));
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole: u64 = whole.parse().map_err(|_| expected())?;
    let places = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
    let parts = 10_u64.checked_pow(places);
    let fraction: u64 = fraction.parse().map_err(|_| expected())?;
    let (Some(parts), Some(fraction)) = (parts, fraction.checked_mul(millis_a_unit)) else {
        return Err(expected());
    };
    if fraction % parts > 0 {
        return Err("finer than a millisecond".to_owned());
    }
    whole
        .checked_mul(millis_a_unit)
        .and_then(|millis| millis.checked_add(fraction / parts))
        .filter(|&millis| millis <= 100 * 365 * 86_400_000)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("longer than a hundred years{hint}"))
}

/// A duration, or `off`.
pub(crate) fn duration_or_off(text: &str) -> Result<Setting<Duration>, String> {
    if text == "off" {
        Ok(Setting::Off)
    } else {
        not_zero(text, "; to turn it off say off").map(Setting::On)
    }
}

/// Bytes; suffixes `k m g` (1024).
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err("expected bytes, with k, m or g, such as 256k".to_owned()),
    };
    let number: usize = number
        .parse()
        .map_err(|_| "expected bytes, with k, m or g, such as 256k".to_owned())?;
    match number.checked_mul(1 << shift) {
        Some(0) => Err("0 bytes would let nothing through".to_owned()),
        Some(bytes) => Ok(bytes),
        None => Err("more bytes than memory can have".to_owned()),
    }
}

/// Bytes as people read them, in the units that they write: `512k`, `23.6g`.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..1024 => return write!(f, "{}", self.0),
            1024..0x10_0000 => (10, "k"),
            0x10_0000..0x4000_0000 => (20, "m"),
            _ => (30, "g"),
        };
        // Rounded down: what is left is less than a tenth.
        let tenths = (u128::from(self.0) * 10) >> unit;
        match tenths % 10 {
            0 => write!(f, "{}{name}", tenths / 10),
            tenth => write!(f, "{}.{tenth}{name}", tenths / 10),
        }
    }
}

/// A duration as people read it: `102s`, `1.5s`, `10m`.
pub(crate) struct Shown(pub(crate) Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => write!(f, "0s"),
            _ if !millis.is_multiple_of(1000) => write!(f, "{millis}ms"),
            _ if millis.is_multiple_of(86_400_000) => write!(f, "{}d", millis / 86_400_000),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}m", millis / 60_000),
            _ => write!(f, "{}s", millis / 1000),
        }
    }
}

/// A duration, or the word for none.
pub(crate) fn shown_or(wait: Option<Duration>, none: &str) -> String {
    wait.map_or_else(|| none.to_owned(), |wait| Shown(wait).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_as_they_are_written() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (256 << 10, "256k"),
            (1 << 20, "1m"),
            (5 << 29, "2.5g"),
            ((1 << 30) - 1, "1023.9m"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations_are_read_and_shown() {
        for (text, millis, shown) in [
            ("10", 10_000, "10s"),
            ("500ms", 500, "500ms"),
            ("102s", 102_000, "102s"),
            ("10m", 600_000, "10m"),
            ("90m", 5_400_000, "90m"),
            ("2h", 7_200_000, "2h"),
            ("1d", 86_400_000, "1d"),
            ("0.2", 200, "200ms"),
            ("1.5s", 1500, "1500ms"),
            ("2.50h", 9_000_000, "150m"),
            ("5min", 300_000, "5m"),
            ("10sec", 10_000, "10s"),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(Shown(Duration::from_millis(millis)).to_string(), shown);
        }
        assert_eq!(duration_or_off("off"), Ok(Setting::Off));
    }

    #[test]
    fn what_is_no_duration_is_refused_with_a_hint() {
        for (text, hint) in [
            ("0", "at once"),
            ("0ms", "at once"),
            ("-5", "negative"),
            ("", "expected a number"),
            ("s", "expected a number"),
            ("5 s", "unknown unit"),
            ("5w", "unknown unit"),
            (".5", "expected a number"),
            ("5.", "expected a number"),
            ("1.2.3", "expected a number"),
            ("1.5x", "unknown unit"),
            ("0.0005", "finer than a millisecond"),
            ("0.0", "at once"),
            ("0.99999999999999999999", "expected a number"),
            ("99999999999999999999", "expected a number"),
            ("99999999999d", "hundred years"),
            ("99999999d", "hundred years"),
        ] {
            let error = duration(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
        assert!(duration("off").is_err());
        // Nor is what cannot be turned off said to be.
        assert!(!duration("0").unwrap_err().contains("off"));
        for text in ["0", "-5", "99999999d"] {
            let error = duration_or_off(text).unwrap_err();
            assert!(error.ends_with("; to turn it off say off"), "{error}");
        }
    }

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("256k"), Ok(262_144));
        assert_eq!(size("1M"), Ok(1 << 20));
        assert_eq!(size("7"), Ok(7));
        for text in ["0", "", "k", "-1", "1t", "99999999999999g"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
