//! Starts the process that is to take over from this one.
//!
//! It has to be an orphan, which the service manager adopts, before it is the service: systemd takes a main process
//! that is another's child for one it cannot wait for, and kills it at once where it should drain (seen in systemd
//! 252). So a process between the two starts it, says its number, and ends.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::event::PollFlags;
use standfast::control::Successor;
use standfast::process::children::{self, Owned};

use crate::logger;
use crate::supervisor::{self, wait};

/// Set for the process between.
const BETWEEN: &str = "STANDFAST_BETWEEN";

/// How long the process between may take: it starts another one and ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the successor by `command`, its output where this process's goes.
pub(crate) fn start(mut command: Command) -> io::Result<Successor> {
    // The successor's stdin, which it does not read.
    let (life, theirs) = io::pipe()?;
    command.env(BETWEEN, "1").stdin(theirs);
    supervisor::succeed(&mut command);
    let mut between = children::spawn(&mut command)?;
    // `theirs` is the new processes' alone from here on.
    drop(command);
    let pid = number_said(&life, &mut between);
    let status = between.wait();
    match pid? {
        Some(pid) => Ok(Successor { pid, life }),
        None => Err(io::Error::other(format!("it ended with {}", status?))),
    }
}

/// The first line of the pipe; a process between that does not say it in time is ended.
fn number_said(pipe: &PipeReader, between: &mut Owned) -> io::Result<Option<u32>> {
    if !wait(pipe, PollFlags::IN, PATIENCE)? {
        between.kill()?;
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it said nothing for {} s", PATIENCE.as_secs()),
        ));
    }
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line)?;
    Ok(line.trim_end().parse().ok())
}

/// Does its part and answers the exit code, if this is the process between.
pub(crate) fn pass_on() -> Option<ExitCode> {
    env::var_os(BETWEEN)?;
    // A session of its own: where the former process leads one its end hangs up on all others in it, by SIGHUP. This
    // process is nobody's leader, so it cannot fail.
    let _ = rustix::process::setsid();
    let mut args = env::args_os();
    let program = args.next().unwrap_or_default();
    let started = Command::new(&program)
        .args(args)
        .env_remove(BETWEEN)
        .spawn()
        .and_then(|successor| {
            let said = io::stdin().as_fd().try_clone_to_owned()?;
            writeln!(File::from(said), "{}", successor.id())
        });
    Some(match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logger::say(&format!("cannot start {}: {error}", program.display()));
            ExitCode::FAILURE
        }
    })
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    /// A shell in the place of the process between.
    fn begin(script: &str) -> io::Result<Successor> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        start(command)
    }

    #[test]
    fn it_outlives_who_started_it_and_its_end_is_seen() {
        let successor = begin("exec 3<&0; sleep 1000 <&3 >&3 2>&3 & echo $! >&3").unwrap();
        let ends_within = |bound| wait(&successor.life, PollFlags::empty(), bound).unwrap();
        assert!(!ends_within(Duration::from_millis(1)));
        let pid = Pid::from_raw(successor.pid.cast_signed()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        assert!(ends_within(PATIENCE));
    }

    #[test]
    fn what_does_not_start_is_said() {
        let error = start(Command::new("/nosuch")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = begin("exit 3").unwrap_err();
        assert_eq!(error.to_string(), "it ended with exit status: 3");
    }
}
