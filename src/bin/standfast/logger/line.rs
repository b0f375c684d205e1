//! How a line of the log looks: text, JSON or logfmt; and what the journal is told by it.

use std::borrow::Cow;
use std::io::{self, Write};

use jiff::Timestamp;
use log::kv::{Error as KvError, Key, Value, VisitSource};
use log::{Level, Record};
use rustix::fs::fstat;
use serde_json::{Map, Value as Json};

use crate::args::LogFormat;

/// How every line looks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) format: LogFormat,
    /// Each line begins with its priority, which the journal takes off.
    pub(super) for_journal: bool,
}

impl Style {
    /// The line of `record`, with its end.
    pub(super) fn write(&self, out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
        match self.format {
            LogFormat::Text => {
                if self.for_journal {
                    write!(out, "{}", priority(record.level()))?;
                }
                text(out, record)
            }
            LogFormat::Json => json(out, record),
            LogFormat::Logfmt => logfmt(out, record),
        }
    }
}

/// Whether stderr is the journal: it is the very stream that the manager made for this process's output (`JOURNAL_STREAM`
/// of systemd.exec(5)). A variable alone is inherited by programs whose stderr goes elsewhere.
pub(super) fn stderr_is_journal() -> bool {
    let stream = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let is_same = |of: rustix::fs::Stat| stream == format!("{}:{}", of.st_dev, of.st_ino);
    fstat(io::stderr()).is_ok_and(is_same)
}

/// As sd-daemon(3) has it, by the numbers of syslog(3). A line has one, and so a record has to be one line.
pub(super) fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// To the millisecond.
pub(super) fn time() -> String {
    format!("{:.3}", Timestamp::now())
}

fn level(record: &Record<'_>) -> &'static str {
    match record.level() {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

fn text(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    let message = match record.args().as_str() {
        Some(constant) => Cow::from(constant),
        None => one_line(record.args().to_string()),
    };
    write!(out, "{:.3} {} {message}", Timestamp::now(), level(record))?;
    pairs(out, record)
}

/// What could begin a line of its own, or move a terminal's cursor, is shown by its name.
fn one_line(text: String) -> Cow<'static, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let shown = text.chars().map(|c| match c {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    });
    shown.collect()
}

fn logfmt(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    write!(
        out,
        "time={:.3} level={} msg={}",
        Timestamp::now(),
        level(record),
        quoted(&record.args().to_string())
    )?;
    pairs(out, record)
}

/// ` key=value` for each fact, and the line's end.
fn pairs(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    struct Pairs<'a, W>(&'a mut W);
    impl<'kvs, W: Write> VisitSource<'kvs> for Pairs<'_, W> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
            if is_none(&value) {
                return Ok(());
            }
            write!(self.0, " {key}={}", quoted(&value.to_string())).map_err(KvError::from)
        }
    }
    record
        .key_values()
        .visit(&mut Pairs(out))
        .map_err(io::Error::other)?;
    writeln!(out)
}

fn json(out: &mut impl Write, record: &Record<'_>) -> io::Result<()> {
    struct Facts<'a>(&'a mut Map<String, Json>);
    impl<'kvs> VisitSource<'kvs> for Facts<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), KvError> {
            if is_none(&value) {
                return Ok(());
            }
            let json = if let Some(number) = value.to_u64() {
                number.into()
            } else if let Some(number) = value.to_f64() {
                number.into()
            } else {
                value.to_string().into()
            };
            self.0.insert(key.to_string(), json);
            Ok(())
        }
    }
    let mut object = Map::new();
    object.insert("time".to_owned(), time().into());
    object.insert("level".to_owned(), level(record).into());
    object.insert("message".to_owned(), record.args().to_string().into());
    record
        .key_values()
        .visit(&mut Facts(&mut object))
        .map_err(io::Error::other)?;
    writeln!(out, "{}", Json::Object(object))
}

/// A fact that is not there: an `Option` without a value.
fn is_none(value: &Value<'_>) -> bool {
    value.to_borrowed_str().is_none() && value.to_u64().is_none() && value.to_string() == "None"
}

/// A value as logfmt has it: in quotes if it would not stand alone.
fn quoted(value: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && c != '"' && c != '=';
    if !value.is_empty() && value.chars().all(plain) {
        value.to_owned()
    } else {
        Json::from(value).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(style: Style, level: Level, message: &str) -> String {
        let mut out = Vec::new();
        let args = format_args!("{message}");
        let facts = [("said", Value::from("two\nlines"))];
        let facts = facts.as_slice();
        let record = Record::builder()
            .level(level)
            .args(args)
            .key_values(&facts)
            .build();
        style.write(&mut out, &record).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        for format in [LogFormat::Text, LogFormat::Json, LogFormat::Logfmt] {
            for for_journal in [false, true] {
                let style = Style {
                    format,
                    for_journal,
                };
                let line = written(style, Level::Error, "panicked: one\n<0>two\x1b[2J");
                assert_eq!(line.matches('\n').count(), 1, "{line}");
                assert!(line.ends_with('\n') && !line.contains('\x1b'), "{line}");
            }
        }
    }

    #[test]
    fn the_journal_is_told_the_priority_of_text_alone() {
        let of = |format, level| {
            let style = Style {
                format,
                for_journal: true,
            };
            written(style, level, "x")
                .chars()
                .take(3)
                .collect::<String>()
        };
        for (level, priority) in [
            (Level::Error, "<3>"),
            (Level::Warn, "<4>"),
            (Level::Info, "<6>"),
            (Level::Debug, "<7>"),
            (Level::Trace, "<7>"),
        ] {
            assert_eq!(of(LogFormat::Text, level), priority);
            assert_eq!(of(LogFormat::Json, level), "{\"t");
            assert_eq!(of(LogFormat::Logfmt, level), "tim");
        }
    }
}
