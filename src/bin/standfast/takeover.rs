//! How one server succeeds another: its control socket, `--replace`, and the successor that `restart` starts.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use standfast::control::{self, Client, Successor};
use standfast::control::{ControlSocket, Replace};
use standfast::inspect::ListenerInfo;
use standfast::process::threads;
use standfast::{Config, Effective, Error, Server};

use crate::Failure;
use crate::args::ProcessArgs;
use crate::args::control::ControlPath;
use crate::settings::Settings;
use crate::successor::SUCCESSOR;
use crate::{kept, parent, successor};

/// A server by `config`, in the place of the running one if that is asked for, with its control socket.
pub(crate) fn bind(
    args: &ProcessArgs,
    config: Config,
    effective: &[Effective],
) -> Result<Server, Failure> {
    let is_successor = is_successor();
    let keepers = kept::by().and_then(|_| env::var_os(SUCCESSOR));
    let path = match &args.control {
        Some(ControlPath::At(path)) => Some(path.clone()),
        Some(ControlPath::Off) | None => keepers.clone().map(PathBuf::from),
    };
    let replace = match (args.replace || keepers.is_some(), is_successor) {
        (false, false) => Replace::Never,
        (true, false) => Replace::IfRunning,
        (true, true) => Replace::Always,
        (false, true) => return Err(left_alone()),
    };
    if args.replace {
        path_to_replace(args, effective)?;
    }
    let control = ControlSocket {
        path,
        replace,
        // A file says all that there is to be.
        reload: args.config.is_some(),
    };
    let control = (args.control != Some(ControlPath::Off)).then_some(control);
    let keeper = kept::keeper();
    let config = Config {
        control,
        keeper,
        ..config
    };
    Server::bind(config).map_err(|error| match &error {
        Error::TakeOver { source, .. }
            if is_successor && source.kind() == io::ErrorKind::NotFound =>
        {
            left_alone()
        }
        _ => not_bound(error, args, effective),
    })
}

/// Whether this process was started by a server, to succeed it.
pub(crate) fn is_successor() -> bool {
    env::var_os(SUCCESSOR).is_some()
}

fn left_alone() -> Failure {
    Failure::failed("cannot take over: the server that started this one for that has ended")
}

/// How long it is waited for a server that has the address, to hear whether it can be taken over from.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why there is no server; with the hint at `--replace` where that would find one which can be taken over from.
fn not_bound(error: Error, args: &ProcessArgs, effective: &[Effective]) -> Failure {
    let Error::Bind { source, .. } = &error else {
        return Failure::from(error);
    };
    if args.replace || source.kind() != io::ErrorKind::AddrInUse {
        return Failure::from(error);
    }
    let running = path_to_replace(args, effective).ok();
    let running = running.and_then(|path| Client::at(path).within(PATIENCE).status().ok());
    // All that it listens on has to be asked for; with process 1 everything in there would end.
    let can_be_replaced = running.is_some_and(|running| {
        let mut theirs = running.listeners.iter();
        let ours = |theirs: &ListenerInfo| {
            let mut ours = effective.iter().flat_map(|one| &one.addresses);
            ours.any(|address| *address == theirs.address)
        };
        !running.draining && running.pid != 1 && theirs.all(ours)
    });
    if can_be_replaced {
        Failure::from(error).or("take over from it with --replace")
    } else {
        Failure::from(error)
    }
}

/// The control socket of the server that is to be taken over from.
fn path_to_replace(args: &ProcessArgs, effective: &[Effective]) -> Result<PathBuf, Failure> {
    match &args.control {
        Some(ControlPath::Off) => Err(Failure::usage(
            "--replace needs the control socket, which is off",
        )),
        Some(ControlPath::At(path)) => Ok(path.clone()),
        None => match effective.first().and_then(|first| first.addresses.first()) {
            None => Err(Failure::usage(
                "--replace of an inherited socket needs --control: which server is meant?",
            )),
            Some(first) if first.tcp().is_some_and(|first| first.port() == 0) => Err(
                Failure::usage("--replace with port 0 needs --control: which server is meant?"),
            ),
            Some(first) => Ok(control::path::of(first)),
        },
    }
}

/// How this server is restarted.
#[derive(Debug)]
pub(crate) struct Restart {
    replaces: bool,
    prints: bool,
    program: io::Result<PathBuf>,
}

impl Restart {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            replaces: settings.whole.args.process.replace,
            prints: settings.prints(),
            program: program(),
        }
    }

    /// Why process `pid` may not take over from this one, if it may not.
    pub(crate) fn objection(&self, pid: u32) -> Option<String> {
        // Of a process that asks by itself its starter knows, and its stdout is its own.
        let is_restart = pid == process::id();
        if kept::by().is_some_and(|keeper| is_restart || parent::is_child_of(keeper, pid)) {
            // The keeper is what its starter knows, and stays.
            return None;
        }
        parent::objection(pid)
            .or_else(|| (is_restart && !self.replaces).then(parent::would_start_another)?)
            .or_else(|| (is_restart && self.prints).then(parent::would_close_stdout)?)
    }

    /// Starts this program anew, to take over from this process: the same arguments, the program's path opened again.
    pub(crate) fn successor(&self, control: &Path) -> io::Result<Successor> {
        if let Some(successor) = kept::successor(control) {
            return successor;
        }
        let program = self.program.as_ref();
        let program = program.map_err(|error| io::Error::from(error.kind()))?;
        let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
        for (flag, value) in [
            ("--replace", None),
            ("--control", Some(control.as_os_str())),
        ] {
            let equals = format!("{flag}=");
            let is_flag = |argument: &OsString| {
                let argument = argument.to_string_lossy();
                argument == flag || argument.starts_with(&equals)
            };
            // What stands behind `--` is a command's, and none of ours.
            let ours = arguments.iter().take_while(|argument| *argument != "--");
            if !ours.clone().any(is_flag) {
                let added = [Some(flag.into()), value.map(OsString::from)];
                // Behind the name of the subcommand.
                let at = arguments.len().min(1);
                arguments.splice(at..at, added.into_iter().flatten());
            }
        }
        let mut command = Command::new(program);
        command.args(&arguments).env(SUCCESSOR, "1");
        successor::start(command).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", program.display()))
        })
    }
}

/// What SIGUSR2 brings about: the same as `standfast restart`, which is asked on the server's own control socket. What
/// comes of it is in the log.
pub(crate) fn restart(server: &Server) -> impl Fn(&'static str) + Clone + Send + use<> {
    let path = server.control().map(Path::to_owned);
    move |signal| {
        let Some(path) = path.clone() else {
            log::warn!(signal; "not restarted: there is no control socket");
            return;
        };
        log::info!(signal; "restarting");
        // The next signal is heard meanwhile.
        let asking = threads::start("restart", move || {
            if let Err(error) = restart_at(&path) {
                log::warn!(error:%; "not restarted, the server goes on");
            }
        });
        if let Err(error) = asking {
            log::warn!(error:%; "not restarted: cannot start a thread");
        }
    }
}

/// Asks this process's server for a restart at its control socket, and waits for what comes of it.
pub(crate) fn restart_at(control: &Path) -> io::Result<()> {
    let client = Client::at(control.to_owned());
    // Where the path was cleaned away, another server may have it by now.
    match client.status()?.pid {
        pid if pid == process::id() => client.restart().map(drop),
        pid => Err(io::Error::other(format!(
            "the control socket {} is another server's by now (pid {pid})",
            control.display()
        ))),
    }
}

/// What is to be run as this program: as it was typed, for a path may lead through a link to the newest release, and a
/// bare name is looked up in PATH; else as the system names it. Asked at the start: once the file has been replaced, the
/// system names the old one. A successor was started by what it finds typed, though another build may stand there already.
pub(crate) fn program() -> io::Result<PathBuf> {
    let program = env::current_exe()?;
    let Some(typed) = env::args_os().next().map(PathBuf::from) else {
        return Ok(program);
    };
    let (found, to_run) = if typed.components().count() > 1 {
        let path = folder()?.join(&typed);
        (Some(path.clone()), path)
    } else {
        (look_up(&typed), typed)
    };
    let is_this = found.is_some_and(|found| is_same(&found, &program));
    Ok(if is_this || is_successor() {
        to_run
    } else {
        program
    })
}

/// The working directory, by the name that the shell has for it (`pwd -L`): that may lead through a link.
fn folder() -> io::Result<PathBuf> {
    let named = env::var_os("PWD").map(PathBuf::from);
    let named = named.filter(|path| path.is_absolute() && is_same(path, Path::new(".")));
    named.map_or_else(env::current_dir, Ok)
}

/// The file that is run as `program`.
pub(crate) fn found(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    look_up(program)
}

/// Where exec(3) finds the program `name`.
fn look_up(name: &Path) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    let mut found = env::split_paths(&folders).map(|folder| folder.join(name));
    found.find(|path| path.is_file())
}

fn is_same(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) else {
        return false;
    };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
