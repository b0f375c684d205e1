//! The keys there are: the flags of `serve`, by the one table that clap has of them.

use std::ffi::OsString;

use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, parser::ValueSource};

use crate::args::{Args, ServiceName};
use crate::settings::file::Value;

/// The words behind a service, as a file calls them: whom it relays to, and what it runs.
const OPERANDS: [(&str, ServiceName); 2] = [
    ("upstream", ServiceName::Forward),
    ("command", ServiceName::Exec),
];

/// What says where to listen: one of them takes the place of all.
const WHERE: [&str; 3] = ["listen", "port", "unix"];

/// The flags of `serve`.
#[derive(Debug)]
pub(super) struct Keys {
    serve: Command,
    /// By their ids, those that belong to the process.
    process: Vec<String>,
}

/// Where a key may stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Above the `[[listen]]` tables alone.
    Top,
    /// There or in one of them.
    Anywhere,
}

impl Keys {
    pub(super) fn new() -> Self {
        let mut all = Args::command();
        all.build();
        let serve = all.find_subcommand("serve").cloned().unwrap_or(all);
        let process = serve
            .get_groups()
            .find(|group| group.get_id() == "ProcessArgs");
        let process = process.map(|group| group.get_args().map(ToString::to_string).collect());
        Self {
            process: process.unwrap_or_default(),
            serve,
        }
    }

    /// The flag that `key` sets.
    pub(super) fn find(&self, key: &str) -> Option<&Arg> {
        if OPERANDS.iter().any(|(name, _)| *name == key) {
            return self.by_id("operands");
        }
        self.named().find(|(name, _)| name == key).map(|it| it.1)
    }

    pub(super) fn by_id(&self, id: &str) -> Option<&Arg> {
        self.serve.get_arguments().find(|arg| arg.get_id() == id)
    }

    /// Every key but those for [`OPERANDS`].
    fn named(&self) -> impl Iterator<Item = (String, &Arg)> {
        let is_setting = |arg: &&Arg| !matches!(arg.get_id().as_str(), "help" | "version");
        let flags = self.serve.get_arguments().filter(is_setting);
        flags.flat_map(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            let names = arg.get_long().into_iter().chain(aliases);
            let service = (arg.get_id() == "service").then_some("service");
            let names: Vec<String> = names.chain(service).map(str::to_owned).collect();
            names.into_iter().map(move |name| (name, arg))
        })
    }

    /// The key that looks most like `key`, and how much: 1 is the same.
    pub(super) fn nearest(&self, key: &str) -> Option<(String, f64)> {
        let names = self.named().map(|(name, _)| name);
        let names = names.chain(OPERANDS.iter().map(|(name, _)| (*name).to_owned()));
        // A file has them in other places.
        let names = names.filter(|name| name != "listen" && name != "config");
        let alike = names.map(|name| {
            let likeness = strsim::jaro_winkler(&name, &key.replace('_', "-"));
            (name, likeness)
        });
        alike.max_by(|one, other| one.1.total_cmp(&other.1))
    }

    pub(super) fn place(&self, arg: &Arg) -> Place {
        let is_process = self.process.iter().any(|id| arg.get_id() == id.as_str());
        if is_process {
            Place::Top
        } else {
            Place::Anywhere
        }
    }

    /// Whether what was said of `higher` leaves nothing of `lower`, which a lower layer says.
    pub(super) fn hides(&self, higher: &Arg, lower: &Arg) -> bool {
        let (one, other) = (higher.get_id(), lower.get_id());
        let conflict = |arg: &Arg, with: &Arg| {
            let conflicts = self.serve.get_arg_conflicts_with(arg);
            conflicts.iter().any(|it| it.get_id() == with.get_id())
        };
        one == other
            || (one == "service" && other == "operands")
            || (Self::is_where(higher) && Self::is_where(lower))
            || conflict(higher, lower)
            || conflict(lower, higher)
    }

    /// Whether it is the process's, or may be: a top that says how many connections means all of them.
    pub(super) fn is_of_process(&self, arg: &Arg) -> bool {
        self.place(arg) == Place::Top || arg.get_id() == "max_conns"
    }

    /// Whether a file may have it: it has `[[listen]]` for the one, and does not name another.
    pub(super) fn is_in_file(arg: &Arg) -> bool {
        arg.get_id() != "config"
    }

    /// Whether it says where to listen.
    pub(super) fn is_where(arg: &Arg) -> bool {
        WHERE.contains(&arg.get_id().as_str())
    }

    /// Whether it says which listener: that of a file with several of them cannot be meant.
    pub(super) fn is_one_listeners(arg: &Arg) -> bool {
        Self::is_where(arg) || arg.get_id() == "service" || arg.get_id() == "operands"
    }

    /// Whether it says who alone is let in, or is believed: without it everybody is, so none is not to be taken for that.
    pub(super) fn is_for_somebody(arg: &Arg) -> bool {
        arg.get_id() == "allow" || arg.get_id() == "accept_proxy_from"
    }

    /// What was typed, and not by default.
    pub(super) fn typed<'a>(
        &'a self,
        matches: &'a ArgMatches,
    ) -> impl Iterator<Item = (&'a Arg, Vec<OsString>)> {
        let arguments = self.serve.get_arguments();
        let known = arguments.filter(|arg| matches.try_contains_id(arg.get_id().as_str()).is_ok());
        let typed = known.filter(|arg| {
            let source = matches.value_source(arg.get_id().as_str());
            source == Some(ValueSource::CommandLine)
        });
        typed.map(|arg| {
            let id = arg.get_id().as_str();
            let values = match arg.get_action() {
                ArgAction::SetTrue => vec![OsString::new()],
                ArgAction::Count => vec![OsString::new(); matches.get_count(id).into()],
                _ => {
                    let raw = matches.get_raw(id).into_iter().flatten();
                    raw.map(ToOwned::to_owned).collect()
                }
            };
            (arg, values)
        })
    }

    /// The words of a command line that set `arg` to `values`, but for what stands behind a `--`.
    pub(super) fn words(arg: &Arg, values: &[OsString]) -> Vec<OsString> {
        let takes_value = !matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::Count);
        let word = |value: &OsString| {
            let mut word = OsString::new();
            match (arg.get_long(), arg.get_short()) {
                (Some(long), _) if takes_value => word.push(format!("--{long}=")),
                (Some(long), _) => word.push(format!("--{long}")),
                (None, Some(short)) => word.push(format!("-{short}")),
                (None, None) => {}
            }
            if takes_value {
                word.push(value);
            }
            word
        };
        values.iter().map(word).collect()
    }
}

/// The service that alone has operands called `key`.
pub(super) fn service_of_operands(key: &str) -> Option<ServiceName> {
    let found = OPERANDS.iter().find(|(name, _)| *name == key);
    found.map(|(_, service)| *service)
}

/// `value`, as [`Keys::words`] has it.
///
/// # Errors
/// In words, what `arg` is not.
pub(super) fn values(arg: &Arg, value: &Value) -> Result<Vec<OsString>, String> {
    let text = |items: &[String]| items.iter().map(OsString::from).collect();
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, Value::Switch(true)) => Ok(vec![OsString::new()]),
        (ArgAction::SetTrue, Value::Switch(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err("expected true or false".to_owned()),
        (ArgAction::Count, Value::One(number)) => match number.parse::<u8>() {
            Ok(times @ 0..=2) => Ok(vec![OsString::new(); times.into()]),
            _ => Err("expected 0, 1 or 2".to_owned()),
        },
        (ArgAction::Count, _) => Err("expected 0, 1 or 2".to_owned()),
        (_, Value::One(one)) => Ok(vec![one.into()]),
        (ArgAction::Append, Value::List(items)) => Ok(text(items)),
        (_, Value::List(_)) => Err("expected one value, not a list".to_owned()),
        (_, Value::Switch(_)) => Err("expected a value, not true or false".to_owned()),
    }
}

/// What the variable of `arg` says: lists are separated by commas.
pub(super) fn of_variable(arg: &Arg, text: &str) -> Value {
    match arg.get_action() {
        ArgAction::SetTrue => match text {
            "true" | "1" => Value::Switch(true),
            "false" | "0" => Value::Switch(false),
            other => Value::One(other.to_owned()),
        },
        ArgAction::Append => Value::List(listed(text)),
        _ => Value::One(text.to_owned()),
    }
}

/// What a list has, which commas separate; those behind the path of a Unix socket belong to it.
fn listed(text: &str) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for item in text.split(',') {
        let is_ownership = ["mode=", "owner=", "group="]
            .iter()
            .any(|it| item.starts_with(it));
        match items.last_mut() {
            Some(last) if is_ownership && last.starts_with("unix:") => {
                last.push(',');
                last.push_str(item);
            }
            _ => items.push(item.to_owned()),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_part_a_list_but_not_an_address() {
        let list = "7000,unix:/x,mode=660,group=7,unix:/y,a";
        let items = ["7000", "unix:/x,mode=660,group=7", "unix:/y", "a"];
        assert_eq!(listed(list), items);
    }

    #[test]
    fn keys_are_the_flags_and_each_has_its_place() {
        let keys = Keys::new();
        for (key, id, place) in [
            ("address", "listen", Place::Anywhere),
            ("service", "service", Place::Anywhere),
            ("upstream", "operands", Place::Anywhere),
            ("command", "operands", Place::Anywhere),
            ("idle-timeout", "read_timeout", Place::Anywhere),
            ("max-conns", "max_conns", Place::Anywhere),
            ("source", "source", Place::Anywhere),
            ("workers", "workers", Place::Top),
            ("drain-timeout", "drain_timeout", Place::Top),
            ("memory", "memory", Place::Top),
        ] {
            let arg = keys.find(key).unwrap();
            assert_eq!(
                (arg.get_id().as_str(), keys.place(arg)),
                (id, place),
                "{key}"
            );
        }
        for key in ["help", "version", "port", "dead_after", "l", ""] {
            assert!(keys.find(key).is_none(), "{key}");
        }
    }

    #[test]
    fn the_nearest_key_is_named() {
        let keys = Keys::new();
        for (typed, meant) in [
            ("dead_after", "dead-after"),
            ("read-timeot", "read-timeout"),
            ("addresz", "address"),
            ("sevrice", "service"),
            ("upstreams", "upstream"),
            ("max-connections", "max-conns"),
        ] {
            assert_eq!(keys.nearest(typed).unwrap().0, meant, "{typed}");
        }
    }
}
