//! What people type at a netcat that listens, put as it is said here; and what to say where that cannot be.
//!
//! netcat's `-l` is a flag, and the port a word of its own: `-lk 7000`, `-l -p 7000`, `-l 127.0.0.1 7000`. Here `-l` has
//! the address for its value.
#![expect(clippy::doc_markdown, reason = "these comments are the text of --help")]

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, ToSocketAddrs};

use clap::ValueEnum;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use standfast::{Address, ParseError};

use crate::Failure;
use crate::args::service::ServiceName;

/// The flags of a netcat that listens.
#[derive(Debug, clap::Args)]
pub(crate) struct NetcatArgs {
    /// Listen there, too: the same as -l.
    #[arg(short = 'p', value_name = "PORT", help_heading = "As netcat's")]
    port: Vec<Address>,

    /// Listen on a Unix socket: the same as -l unix:PATH.
    #[arg(short = 'U', value_name = "PATH", value_parser = unix, help_heading = "As netcat's")]
    unix: Vec<Address>,

    /// IPv4 only.
    #[arg(short = '4', conflicts_with = "v6", help_heading = "As netcat's")]
    v4: bool,

    /// IPv6 only: PORT is [::1]:PORT.
    #[arg(short = '6', help_heading = "As netcat's")]
    v6: bool,

    /// Go on listening after a client, as it does in any case.
    #[arg(short = 'k', help_heading = "As netcat's")]
    keeps_listening: bool,

    /// Look no names of clients up, as it never does.
    #[arg(short = 'n', help_heading = "As netcat's")]
    numeric: bool,
}

impl NetcatArgs {
    /// Where these say to listen.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.port.iter().chain(&self.unix).cloned()
    }

    /// What of `addresses` is of the family asked for.
    ///
    /// # Errors
    /// An address that has none of it.
    pub(super) fn of_family(&self, addresses: Vec<Address>) -> Result<Vec<Address>, Failure> {
        if !self.v4 && !self.v6 {
            return Ok(addresses);
        }
        let (flag, any, local) = if self.v4 {
            ("-4", "0.0.0.0", "127.0.0.1")
        } else {
            ("-6", "::", "::1")
        };
        let mut chosen = Vec::new();
        for address in addresses {
            match address {
                Address::Loopback(port) => chosen.push(Address::Host(local.to_owned(), port)),
                Address::Any(port) => chosen.push(Address::Host(any.to_owned(), port)),
                Address::Host(host, port) => {
                    let found = of_name(&host, port, self.v6);
                    if found.is_empty() {
                        return Err(Failure::usage(format!("{flag} does not go with {host}")));
                    }
                    chosen.extend(found);
                }
                other => chosen.push(other),
            }
        }
        Ok(chosen)
    }
}

/// The addresses of `host` that are IPv6, or those that are not. One that is a number stays as it was typed.
fn of_name(host: &str, port: u16, v6: bool) -> Vec<Address> {
    let is_number = host.parse::<IpAddr>().is_ok() || host.contains(':');
    let resolved = (host, port).to_socket_addrs();
    let resolved = resolved.into_iter().flatten();
    let fitting = resolved.filter(|address| address.is_ipv6() == v6);
    if is_number {
        let typed = Address::Host(host.to_owned(), port);
        return fitting.take(1).map(|_| typed.clone()).collect();
    }
    fitting.map(Address::from).collect()
}

fn unix(path: &str) -> Result<Address, ParseError> {
    format!("unix:{path}").parse()
}

/// netcat's flags that may stand between its `-l` and the port.
const FLAGS: [&str; 5] = ["-4", "-6", "-k", "-n", "-v"];

/// Their flags, and those of ncat, for a program to run.
const RUNS: [&str; 4] = ["-e", "-c", "--exec", "--sh-exec"];

/// The command line as clap is to read it.
pub(crate) fn understood(typed: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut typed = typed.into_iter();
    let mut words: Vec<OsString> = typed.by_ref().take(2).collect();
    let listens = |command: &OsString| command == "serve" || command == "check";
    if !words.get(1).is_some_and(listens) {
        words.extend(typed);
        return words;
    }
    // Behind -- stands somebody else's command line.
    let mut is_ours = true;
    let mut typed = typed
        .flat_map(|word| {
            is_ours &= word != "--";
            if is_ours { apart(word) } else { vec![word] }
        })
        .peekable();
    // A -l that has no value yet.
    let mut bare = false;
    while let Some(word) = typed.next() {
        let text = word.to_str().unwrap_or_default();
        if text == "--" {
            words.push(word);
            words.extend(typed);
            return words;
        } else if text == "-l" {
            bare = true;
        } else if bare && FLAGS.contains(&text) {
            words.push(word);
        } else if bare && (text == "-p" || text == "-U") {
            bare = false;
            words.push(word);
        } else {
            if std::mem::take(&mut bare) {
                words.push("-l".into());
                let joined = typed.peek().and_then(|port| joined(text, port));
                if let Some(joined) = joined {
                    typed.next();
                    words.push(joined.into());
                    continue;
                }
            }
            words.push(word);
        }
    }
    if bare {
        words.push("-l".into());
    }
    words
}

/// `-lvnp` as `-l -v -n -p`; any other word as it is.
fn apart(word: OsString) -> Vec<OsString> {
    let letters = word.to_str().and_then(|text| text.strip_prefix('-'));
    let letters = letters.unwrap_or_default();
    let is_netcats = letters.contains('l')
        && letters.contains(|c| "knvpU".contains(c))
        && letters.chars().all(|c| "lknvpU46".contains(c));
    if !is_netcats {
        return vec![word];
    }
    // The one with a value last.
    let last = letters.chars().find(|c| "pU".contains(*c)).unwrap_or('l');
    let others = letters.chars().filter(|c| !"lpU".contains(*c));
    others
        .chain([last])
        .map(|letter| format!("-{letter}").into())
        .collect()
}

/// `HOST:PORT`, if those are a host and a port.
fn joined(host: &str, port: &OsStr) -> Option<String> {
    let port = port.to_str()?;
    if port.parse::<u16>().is_err() || host.starts_with('-') || host.parse::<Address>().is_ok() {
        return None;
    }
    let joined = match host.parse() {
        Ok(IpAddr::V6(_)) => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    };
    joined.parse::<Address>().ok().map(|_| joined)
}

/// What may have been meant by what clap refused.
pub(crate) fn hint(error: &clap::Error, words: &[OsString]) -> Option<String> {
    let said = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let is_address = |text: &str| text.parse::<Address>().is_ok();
    let command = words.get(1)?.to_str()?;
    let typed = words.iter().skip(2).filter_map(|word| word.to_str());
    let typed = typed.rev().find(|word| is_address(word));
    let listening = |address: &str| format!("standfast serve -l {address}");
    let there = || listening(typed.unwrap_or("7000"));
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = said(ContextKind::InvalidArg)?;
            if (command.starts_with('-') || command == "connect") && flag.starts_with("-l") {
                Some(format!("to listen: {}", there()))
            } else if command == "serve" && RUNS.contains(&flag) {
                Some(format!("to run a program: {} exec PROGRAM", there()))
            } else {
                None
            }
        }
        ErrorKind::InvalidValue if said(ContextKind::InvalidArg)?.contains("SERVICE") => {
            let address = said(ContextKind::InvalidValue).filter(|value| is_address(value))?;
            Some(format!("to listen there: standfast {command} -l {address}"))
        }
        ErrorKind::InvalidSubcommand if command == "listen" => {
            Some(format!("to listen: {}", there()))
        }
        ErrorKind::InvalidSubcommand if ServiceName::from_str(command, false).is_ok() => {
            Some(format!(
                "that is a service: {} {command}",
                if command == "forward" {
                    listening("7000")
                } else {
                    there()
                }
            ))
        }
        ErrorKind::InvalidSubcommand => {
            let joined = words.get(2).and_then(|port| joined(command, port));
            let address = joined.or_else(|| is_address(command).then(|| command.to_owned()))?;
            Some(format!(
                "to connect: standfast connect {address}; to listen: {}",
                listening(&address)
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_asked_for_with_every_form_of_address() {
        let chosen = |flag: &str, typed: &[&str]| {
            let args = NetcatArgs {
                port: typed.iter().map(|typed| typed.parse().unwrap()).collect(),
                unix: Vec::new(),
                v4: flag == "-4",
                v6: flag == "-6",
                keeps_listening: false,
                numeric: false,
            };
            let chosen = args.of_family(args.addresses().collect());
            let shown = |chosen: Vec<Address>| chosen.iter().map(Address::to_string).collect();
            chosen.map(shown).map_err(|failure| failure.code)
        };
        let shown = |texts: &[&str]| Ok::<Vec<_>, _>(texts.iter().map(|&it| it.into()).collect());
        let forms = ["7000", ":7000", "unix:/x"];
        let v4 = shown(&["127.0.0.1:7000", "0.0.0.0:7000", "unix:/x"]);
        assert_eq!(chosen("-4", &forms), v4);
        let v6 = shown(&["[::1]:7000", "[::]:7000", "unix:/x"]);
        assert_eq!(chosen("-6", &forms), v6);
        assert_eq!(
            chosen("", &forms),
            shown(&["127.0.0.1:7000", ":7000", "unix:/x"])
        );
        assert_eq!(chosen("-6", &["[::1]:1"]), shown(&["[::1]:1"]));
        assert_eq!(chosen("-4", &["localhost:1"]), shown(&["127.0.0.1:1"]));
        assert_eq!(chosen("-4", &["[::1]:1"]), Err(2));
        assert_eq!(chosen("-6", &["10.0.0.1:1"]), Err(2));
    }

    fn line(typed: &str) -> String {
        let words = understood(typed.split(' ').map(OsString::from));
        let words: Vec<_> = words.iter().filter_map(|word| word.to_str()).collect();
        words.join(" ")
    }

    #[test]
    fn netcats_that_listen_are_understood() {
        for (typed, meant) in [
            ("x serve -lk 7000", "x serve -k -l 7000"),
            ("x serve -lvnp 7000", "x serve -v -n -p 7000"),
            (
                "x serve print -nlvk4 7000",
                "x serve print -n -v -k -4 -l 7000",
            ),
            ("x serve -l -p 7000", "x serve -p 7000"),
            ("x serve -l -k -v 7000", "x serve -k -v -l 7000"),
            ("x serve -lU /x", "x serve -U /x"),
            ("x serve -lkU /x", "x serve -k -U /x"),
            ("x serve -l 127.0.0.1 7000", "x serve -l 127.0.0.1:7000"),
            (
                "x serve -lk ::1 7000 print",
                "x serve -k -l [::1]:7000 print",
            ),
            ("x check -l localhost 7000", "x check -l localhost:7000"),
        ] {
            assert_eq!(line(typed), meant, "{typed}");
        }
    }

    #[test]
    fn all_else_is_left_as_it_is() {
        for typed in [
            "x",
            "x serve",
            "x serve -l",
            "x serve -l7000 -l :7001 print -v",
            "x serve -l4",
            "x serve -l 7000 forward 80",
            "x serve -l --buffer 4k",
            "x serve exec -l 7000 -- ls -lk 7",
            "x connect -lk 7",
            "x -lk 7000",
        ] {
            assert_eq!(line(typed), typed);
        }
    }
}
