//! The file of `--config`, as it was written: which keys stand where. What they mean is for the table of flags to say.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use standfast::Address;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::Failure;
use crate::settings::origin::Origin;
use crate::text_file;

/// More than that is no configuration, bytes.
const MOST: u64 = 1 << 20;

/// What was written.
#[derive(Debug)]
pub(super) struct File {
    /// What stands above the `[[listen]]` tables.
    pub(super) top: Vec<Entry>,
    pub(super) listen: Vec<Table>,
}

/// One `[[listen]]`.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) origin: Origin,
    pub(super) entries: Vec<Entry>,
}

/// A key and what it is set to.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// What a key is set to, its numbers as they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    One(String),
    Switch(bool),
    List(Vec<String>),
}

impl File {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// In one line: a file that cannot be read, or is no such file; where it is no TOML.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let name: Arc<str> = path.display().to_string().into();
        let text = text_file::read(path, MOST).map_err(|error| {
            Failure::usage(format!("cannot read the configuration {name}: {error}"))
        })?;
        if text.trim_ascii().is_empty() {
            // As while somebody writes it, or where the disk was full: not to be taken for a wish for all defaults.
            return Err(Failure::usage(format!(
                "the configuration {name} is empty: a comment is enough where all is to be as usual"
            )));
        }
        Self::parse(&name, &text)
    }

    fn parse(name: &Arc<str>, text: &str) -> Result<Self, Failure> {
        let source = Source { name, text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or(0..0);
            source.refused(&at, error.message())
        })?;
        let mut file = Self {
            top: Vec::new(),
            listen: Vec::new(),
        };
        for (key, value) in table.get_ref() {
            if &**key.get_ref() == "listen" {
                file.listen = source.listeners(value)?;
            } else {
                file.top.push(source.entry(key, value)?);
            }
        }
        file.top.sort_by_key(|entry| entry.origin.line());
        give_mode(&mut file.top)?;
        for table in &mut file.listen {
            give_mode(&mut table.entries)?;
        }
        Ok(file)
    }
}

/// The text, to say where something stands in it.
struct Source<'a> {
    name: &'a Arc<str>,
    text: &'a str,
}

impl Source<'_> {
    fn origin(&self, at: &Range<usize>) -> Origin {
        let before = self.text.as_bytes().get(..at.start).unwrap_or_default();
        let ends = before.iter().filter(|&&byte| byte == b'\n');
        Origin::Line {
            file: Arc::clone(self.name),
            line: ends.count() + 1,
        }
    }

    fn refused(&self, at: &Range<usize>, why: &str) -> Failure {
        Failure::usage(format!("{}: {why}", self.origin(at)))
    }

    fn listeners(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<Table>, Failure> {
        let expected =
            "listen is a table for each listener: [[listen]], and below it address = \"...\"";
        let tables = value.get_ref().as_array();
        let tables = tables.ok_or_else(|| self.refused(&value.span(), expected))?;
        let each = tables.iter().map(|table| {
            let entries = table.get_ref().as_table();
            let entries = entries.ok_or_else(|| self.refused(&table.span(), expected))?;
            let entries: Result<Vec<_>, _> = entries
                .iter()
                .map(|(key, value)| self.entry(key, value))
                .collect();
            let mut entries = entries?;
            entries.sort_by_key(|entry| entry.origin.line());
            Ok(Table {
                origin: self.origin(&table.span()),
                entries,
            })
        });
        each.collect()
    }

    fn entry(
        &self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Entry, Failure> {
        let name = key.get_ref().to_string();
        let no_value = || {
            let expected =
                format!("{name}: expected text, a number, true or false, or a list of those");
            // Tables are the listeners'.
            let is_table = match value.get_ref() {
                DeValue::Table(_) => true,
                DeValue::Array(items) => items.iter().any(|item| item.get_ref().is_table()),
                _ => false,
            };
            let hint = if is_table {
                "; the only tables are [[listen]]"
            } else {
                ""
            };
            self.refused(&key.span(), &format!("{expected}{hint}"))
        };
        let value = match value.get_ref() {
            DeValue::Boolean(on) => Value::Switch(*on),
            DeValue::Array(items) => {
                let items = items.iter().map(|item| scalar(item.get_ref()));
                Value::List(items.collect::<Option<_>>().ok_or_else(no_value)?)
            }
            one => Value::One(scalar(one).ok_or_else(no_value)?),
        };
        Ok(Entry {
            key: name,
            value,
            origin: self.origin(&key.span()),
        })
    }
}

/// A key `mode` is short for what an address may have behind the path of a Unix socket: for each of them there.
fn give_mode(entries: &mut Vec<Entry>) -> Result<(), Failure> {
    let Some(at) = entries.iter().position(|entry| entry.key == "mode") else {
        return Ok(());
    };
    let mode = entries.remove(at);
    let refused = |why: &str| Failure::usage(format!("{}: mode: {why}", mode.origin));
    let Value::One(bits) = &mode.value else {
        return Err(refused("expected the bits of chmod, such as 660"));
    };
    let mut given = false;
    let addresses = entries.iter_mut().filter(|entry| entry.key == "address");
    let values = addresses.flat_map(|entry| match &mut entry.value {
        Value::One(one) => std::slice::from_mut(one),
        Value::List(all) => all.as_mut_slice(),
        Value::Switch(_) => &mut [],
    });
    for address in values.filter(|address| address.starts_with("unix:")) {
        address.push_str(",mode=");
        address.push_str(bits);
        let parsed = address.parse::<Address>();
        parsed.map_err(|error| refused(&error.to_string()))?;
        given = true;
    }
    if given {
        return Ok(());
    }
    Err(refused("there is no address unix:PATH beside it"))
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}

impl Origin {
    fn line(&self) -> usize {
        match self {
            Self::Line { line, .. } => *line,
            Self::Flag | Self::Variable(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<File, String> {
        File::parse(&"x.toml".into(), text).map_err(|failure| {
            assert_eq!(failure.code, 2);
            failure.line
        })
    }

    #[test]
    fn every_key_is_known_by_its_line() {
        let file = parsed(
            "# first\nmemory = \"64m\"\nworkers = 2\n\n[[listen]]\naddress = [\"7000\", 7001]\nraw = true\n\n\
             [[listen]]\nbuffer = 1.5\n",
        )
        .unwrap();
        let shown = |entries: &[Entry]| -> Vec<_> {
            let each = entries.iter();
            each.map(|it| (it.key.clone(), it.value.clone(), it.origin.to_string()))
                .collect()
        };
        let one = |text: &str| Value::One(text.to_owned());
        assert_eq!(
            shown(&file.top),
            [
                ("memory".into(), one("64m"), "x.toml:2".into()),
                ("workers".into(), one("2"), "x.toml:3".into()),
            ]
        );
        let [first, second] = &file.listen[..] else {
            panic!("{file:?}");
        };
        let list = Value::List(vec!["7000".into(), "7001".into()]);
        assert_eq!(first.origin.to_string(), "x.toml:5");
        assert_eq!(
            shown(&first.entries),
            [
                ("address".into(), list, "x.toml:6".into()),
                ("raw".into(), Value::Switch(true), "x.toml:7".into()),
            ]
        );
        assert_eq!(second.origin.to_string(), "x.toml:9");
        assert_eq!(shown(&second.entries)[0].1, one("1.5"));
    }

    #[test]
    fn a_mode_is_that_of_the_unix_sockets_beside_it() {
        let file = parsed("[[listen]]\nmode = 660\naddress = [\"unix:/x\", \"7000\"]\n").unwrap();
        let [address] = &file.listen[0].entries[..] else {
            panic!("{file:?}");
        };
        let meant = Value::List(vec!["unix:/x,mode=660".into(), "7000".into()]);
        assert_eq!((&*address.key, &address.value), ("address", &meant));
        for (text, line) in [
            ("address = \"7000\"\nmode = 660\n", 2),
            ("mode = 660\n[[listen]]\naddress = \"unix:/x\"\n", 1),
            ("address = \"unix:/x\"\nmode = 999\n", 2),
            ("address = \"unix:/x\"\nmode = true\n", 2),
        ] {
            let refused = parsed(text).unwrap_err();
            let begins = format!("x.toml:{line}: mode: ");
            assert!(refused.starts_with(&begins), "{text}: {refused}");
        }
    }

    #[test]
    fn what_is_no_setting_is_refused_with_its_line() {
        for (text, line, hint) in [
            ("a = 1\nb = \n", 2, ""),
            ("a = 1\na = 2\n", 2, "duplicate key"),
            ("\n[listen]\naddress = 1\n", 2, "[[listen]]"),
            ("listen = \"7000\"\n", 1, "[[listen]]"),
            ("listen = [1]\n", 1, "[[listen]]"),
            ("\n\nmemory = 2026-01-01\n", 3, "memory: expected text"),
            ("memory = {a = 1}\n", 1, "memory: expected text"),
            ("memory = [[1]]\n", 1, "memory: expected text"),
            ("memory = 0x10\n", 1, "memory: expected text"),
        ] {
            let refused = parsed(text).unwrap_err();
            let at = format!("x.toml:{line}: ");
            assert!(
                refused.starts_with(&at) && refused.contains(hint),
                "{text}: {refused}"
            );
        }
    }
}
