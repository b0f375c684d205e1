//! Where the settings of a listener come from: for who asks, and for who hears that something is wrong with them.

use super::{Origin, Said};
use crate::Failure;

/// Where the settings of a listener come from.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// The `[[listen]]`.
    table: Option<Origin>,
    each: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    /// As it is called there, and as a flag.
    names: [String; 2],
    values: Vec<String>,
    origin: Origin,
}

impl Sources {
    pub(super) fn new(said: &[Said<'_>], table: Option<Origin>) -> Self {
        let each = said.iter().map(|one| Source {
            names: [
                one.key.clone(),
                one.arg.get_long().unwrap_or_default().to_owned(),
            ],
            values: one
                .values
                .iter()
                // The name of a service is a word that stands in many lines.
                .filter(|_| one.arg.get_id() != "service")
                .map(|value| value.to_string_lossy().into_owned())
                .collect(),
            origin: one.origin.clone(),
        });
        Self {
            table,
            each: each.collect(),
        }
    }

    /// The `[[listen]]` that they are, if they are one.
    pub(crate) fn table(&self) -> Option<&Origin> {
        self.table.as_ref()
    }

    /// Where what the flag `name` says comes from, if anybody said it.
    pub(crate) fn of(&self, name: &str) -> Option<&Origin> {
        let mut each = self.each.iter();
        let found = each.find(|it| it.names.iter().any(|one| one == name));
        found.map(|it| &it.origin)
    }

    /// The same, to be shown: where all was typed that needs no word.
    pub(crate) fn shown(&self, name: &str) -> Option<&Origin> {
        let typed = self.each.iter().all(|it| it.origin == Origin::Flag);
        self.of(name).filter(|_| self.table.is_some() || !typed)
    }

    /// Each flag that was given, by its name, and what it was set to.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, String)> {
        let flags = self.each.iter().filter(|it| !it.names[1].is_empty());
        flags.map(|it| (&*it.names[1], it.values.join(" ").trim().to_owned()))
    }

    /// The failure with where it stands: the settings that it names, by their names or by what they were set to; else
    /// the `[[listen]]`.
    pub(crate) fn locate(&self, failure: &Failure) -> Failure {
        let line = &failure.line;
        let named = self.each.iter().filter_map(|source| {
            let places = source.names.iter().filter_map(|name| mention(line, name));
            Some((places.min()?, source))
        });
        let mut found: Vec<_> = named.collect();
        found.sort_by_key(|(at, _)| *at);
        // Beside a flag, a word such as "address" is none.
        let is_flag = |at: usize| line[..at].ends_with("--");
        if found.iter().any(|(at, _)| is_flag(*at)) {
            found.retain(|(at, source)| is_flag(*at) || source.names[0].contains('-'));
        }
        if found.is_empty() {
            let values = self.each.iter().flat_map(|source| {
                let values = source.values.iter().map(String::as_str);
                values.map(move |value| (value, source))
            });
            let shown =
                values.filter_map(|(value, source)| Some((value, mention(line, value)?, source)));
            // A short one may stand there by chance.
            let longest = shown.max_by_key(|(value, _, _)| value.len());
            found.extend(longest.map(|(_, at, source)| (at, source)));
        }
        let first = found.first().map(|(_, source)| &source.origin);
        let first = first.or(self.table.as_ref());
        let mut located = match first {
            None | Some(Origin::Flag) => line.clone(),
            Some(origin) => format!("{origin}: {line}"),
        };
        for (_, Source { names, origin, .. }) in found.iter().skip(1) {
            if *origin != Origin::Flag {
                located = format!("{located} ({} from {origin})", names[0]);
            }
        }
        Failure {
            line: located,
            code: failure.code,
        }
    }
}

/// Where `text` has `name`, as a word or as a flag; or in words, as the library calls a setting.
fn mention(text: &str, name: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    let in_words = name.replace('-', " ");
    let places = |name| text.match_indices(name).map(|(at, _)| at);
    let mut found = places(name)
        .chain(places(&in_words))
        .filter(|_| !name.is_empty());
    found.find(|&at| {
        let (before, behind) = (&text[..at], &text[at + name.len()..]);
        let before = before.strip_suffix("--").unwrap_or(before);
        !before.ends_with(is_part) && !behind.starts_with(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, value: &str, origin: Origin) -> Source {
        Source {
            names: [name.to_owned(), name.to_owned()],
            values: vec![value.to_owned()],
            origin,
        }
    }

    fn line(line: usize) -> Origin {
        let file = "x.toml".into();
        Origin::Line { file, line }
    }

    #[test]
    fn a_failure_is_located_by_what_it_names() {
        let sources = Sources {
            table: Some(line(3)),
            each: vec![
                source("max-conns", "5", line(1)),
                source("max-conns-per-ip", "9", line(4)),
                source("buffer", "4k", Origin::Flag),
                source("upstream", "db:x", line(6)),
            ],
        };
        for (text, located) in [
            (
                "--max-conns-per-ip 9 is above --max-conns 5",
                "x.toml:4: --max-conns-per-ip 9 is above --max-conns 5 (max-conns from x.toml:1)",
            ),
            (
                "cannot forward to \"db:x\"",
                "x.toml:6: cannot forward to \"db:x\"",
            ),
            ("--buffer is too small", "--buffer is too small"),
            (
                "--buffer is below max-conns",
                "--buffer is below max-conns (max-conns from x.toml:1)",
            ),
            ("max conns of 0", "x.toml:1: max conns of 0"),
            (
                "what --max-conns says, for an upstream",
                "x.toml:1: what --max-conns says, for an upstream",
            ),
            ("something else", "x.toml:3: something else"),
        ] {
            let failure = sources.locate(&Failure::usage(text));
            assert_eq!((&*failure.line, failure.code), (located, 2));
        }
    }
}
