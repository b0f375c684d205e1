//! The command line of standfast: reads what was typed, runs it, and turns the result into an exit code.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(control),
    expect(dead_code, reason = "only a takeover uses it, or who asks a server")
)]

mod args;
mod blocking;
mod check;
mod connect;
#[cfg(control)]
mod ctl;
#[cfg(control)]
mod keeper;
#[cfg(control)]
mod kept;
mod lifecycle;
mod load;
mod logger;
#[cfg(not(control))]
mod no_takeover;
#[cfg(control)]
mod notes;
#[cfg(all(target_os = "linux", not(standfast_portable)))]
mod orphans;
#[cfg(feature = "packaging")]
mod package;
#[cfg(control)]
mod parent;
#[cfg(test)]
#[path = "../../../tests/support/seeded.rs"]
mod seeded;
mod serve;
mod service;
mod settings;
mod signals;
mod stdout;
#[cfg(control)]
mod store;
#[cfg(control)]
mod successor;
mod supervisor;
#[cfg(control)]
mod takeover;
mod text_file;
#[cfg(top)]
mod top;
mod units;
#[cfg(control)]
mod watch;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use standfast::memory::{self, SpareAllocator};
use standfast::process::threads;

use crate::args::{Args, Command, ServeArgs, netcat};
#[cfg(not(control))]
use crate::no_takeover::{keeper, kept, successor, takeover, watch};
use crate::settings::Settings;

#[global_allocator]
static ALLOCATOR: SpareAllocator = SpareAllocator;

/// Keys are in this process's memory, if it has any: no core dump has it, and nobody but root may look at it.
pub(crate) fn keep_keys_from_others(has_keys: bool) {
    #[cfg(target_os = "linux")]
    if has_keys {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            log::warn!(error:% = std::io::Error::from(error); "a core dump would have the keys of TLS in it");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = has_keys;
}

fn main() -> ExitCode {
    memory::end_where_nothing_is_left(true);
    if let Err(error) = standfast::process::inherited::settle() {
        logger::fail(&format!("cannot settle what was inherited: {error}"));
        return ExitCode::FAILURE;
    }
    if let Some(code) = keeper::stay().or_else(successor::pass_on) {
        return code;
    }
    // The main thread's stack grows on (setrlimit(2): RLIMIT_AS), and where it cannot the system ends the process.
    if let Err(error) = threads::make_room_for_one() {
        logger::fail_here(&format!("out of memory: no room to begin in: {error}"));
        return ExitCode::FAILURE;
    }
    if let Err(failure) = kept::settle() {
        return failed(&failure);
    }
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    if let Err(failure) = orphans::reap() {
        logger::fail(&failure.to_string());
        return ExitCode::from(failure.code);
    }
    #[cfg(feature = "packaging")]
    if let Some(code) = package::asked() {
        return code;
    }
    let words = netcat::understood(std::env::args_os());
    let mut command = Args::command();
    let parsed = command
        .try_get_matches_from_mut(&words)
        .and_then(|matches| {
            let args = Args::from_arg_matches(&matches);
            let args = args.map_err(|error| error.format(&mut command))?;
            Ok((args, matches))
        });
    let (args, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return mistyped(&error, &words),
    };
    // Never without one, where it has been parsed.
    let matches = matches
        .subcommand()
        .map_or(&matches, |(_, matches)| matches);
    let settings = |typed: &ServeArgs| Settings::of(typed, matches);
    let result = match args.command {
        Command::Serve(typed) => settings(&typed).and_then(|settings| serve::run(&settings)),
        Command::Check(typed) => settings(&typed).and_then(|settings| check::run(&settings)),
        Command::Connect(connect) => connect::run(&connect),
        Command::Load(load) => load::run(&load),
        #[cfg(control)]
        Command::Control(order) => ctl::run(&order),
        #[cfg(top)]
        Command::Top(args) => top::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failed(&failure),
    }
}

/// Help and version as clap prints them; what is wrong with the arguments as one line.
fn mistyped(error: &clap::Error, words: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        // A reader that has had enough is no fault of anybody's.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let said = in_one_line(error);
    let hint = netcat::hint(error, words).unwrap_or_else(|| "see --help".to_owned());
    failed(&Failure::usage(format!("{said} ({hint})")))
}

/// Says why, to whoever waits for it.
fn failed(failure: &Failure) -> ExitCode {
    successor::give_up(&failure.line);
    kept::give_up(&failure.line);
    logger::fail(&failure.line);
    ExitCode::from(failure.code)
}

/// What clap finds wrong, without how to ask for help.
fn in_one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    let said = said.join(" ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

/// Why a command failed, in one line, and the exit code for it: 1 failed, 2 asked wrongly.
#[derive(Debug)]
struct Failure {
    line: String,
    code: u8,
}

impl Failure {
    fn usage(line: impl Into<String>) -> Self {
        Self {
            line: line.into(),
            code: 2,
        }
    }

    fn failed(line: impl Into<String>) -> Self {
        Self {
            line: line.into(),
            code: 1,
        }
    }
}

impl Failure {
    /// With one more thing that can be done about it.
    fn or(self, what: &str) -> Self {
        let line = format!("{}, or {what}", self.line);
        Self { line, ..self }
    }
}

impl From<standfast::Error> for Failure {
    fn from(error: standfast::Error) -> Self {
        let mut line = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        if let Some(hint) = error.hint() {
            line = format!("{line}; {hint}");
        }
        if error.is_usage() {
            Self::usage(line)
        } else {
            Self::failed(line)
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.line)
    }
}
