//! Starts the process that is to take over from this one.
//!
//! It has to be an orphan, which the service manager adopts, before it is the service: systemd takes a main process
//! that is another's child for one it cannot wait for, and kills it at once where it should drain (seen in systemd
//! 252). So a process between the two starts it, says its number, and ends.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::{FileType, fstat};
use standfast::control::Successor;
use standfast::process::children::{self, Owned};

use crate::blocking::wait;
use crate::kept::{CRASHED, KEEPER};
use crate::logger;
use crate::supervisor;

/// Set for a process that a server starts as its successor: it takes over, or ends.
pub(crate) const SUCCESSOR: &str = "STANDFAST_SUCCESSOR";

/// Set for the process between.
const BETWEEN: &str = "STANDFAST_BETWEEN";

/// How long the process between may take: it starts another one and ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// Starts the successor by `command`, its output where this process's goes.
pub(crate) fn start(mut command: Command) -> io::Result<Successor> {
    // The successor's stdin, which it does not read.
    let (life, theirs) = io::pipe()?;
    command.env(BETWEEN, "1").stdin(theirs);
    command.env_remove(KEEPER).env_remove(CRASHED);
    supervisor::succeed(&mut command);
    let mut between = children::spawn(&mut command)?;
    // `theirs` is the new processes' alone from here on.
    drop(command);
    let number = number_said(&life, &mut between);
    let status = between.wait();
    match number? {
        (Some(pid), said) => Ok(Successor { pid, life, said }),
        (None, _) => Err(io::Error::other(format!("it ended with {}", status?))),
    }
}

/// The number that the process between says, and what else was said: a successor that fails may be quicker. A process
/// between that does not say it in time is ended.
fn number_said(pipe: &PipeReader, between: &mut Owned) -> io::Result<(Option<u32>, Vec<u8>)> {
    let mut lines = BufReader::new(pipe);
    let mut said = Vec::new();
    loop {
        if lines.buffer().is_empty() && !wait(pipe, PollFlags::IN, PATIENCE)? {
            between.kill()?;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it said nothing for {} s", PATIENCE.as_secs()),
            ));
        }
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok((None, said));
        }
        let number = str::from_utf8(&line).ok();
        if let Some(pid) = number.and_then(|number| number.trim_end().parse().ok()) {
            said.extend_from_slice(lines.buffer());
            return Ok((Some(pid), said));
        }
        said.append(&mut line);
    }
}

/// Tells the server that started this process to take over, if one did, why that comes to nothing.
pub(crate) fn give_up(why: &str) {
    // A pipe of that server's own; a program that inherited no more than the variable has something else there.
    let stdin = io::stdin();
    let is_pipe = fstat(&stdin).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
    if env::var_os(SUCCESSOR).is_none() || !is_pipe {
        return;
    }
    let line: String = why.chars().take(800).collect();
    // Nobody may read it any more.
    let _ = say(stdin.as_fd(), &line);
}

/// Writes a line in one piece, so that what another process says at the same time stands before or after it (pipe(7)).
fn say(pipe: BorrowedFd<'_>, line: &str) -> io::Result<()> {
    File::from(pipe.try_clone_to_owned()?).write_all(format!("{line}\n").as_bytes())
}

/// What a process in front of a server ends with that has ended so: as a shell says it, for a signal.
pub(crate) fn exit_code(ended: ExitStatus) -> u8 {
    let signal = ended.signal().map(|signal| signal + 128);
    let code = ended.code().or(signal);
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
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
        .and_then(|successor| say(io::stdin().as_fd(), &successor.id().to_string()));
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
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

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
    fn a_line_is_said_in_one_piece() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        say(theirs.as_fd(), "4711").unwrap();
        let mut piece = [0; 16];
        let length = ours.recv(&mut piece).unwrap();
        assert_eq!(&piece[..length], b"4711\n");
    }

    #[test]
    fn what_does_not_start_is_said() {
        let error = start(Command::new("/nosuch")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let early = begin("echo 'too soon' >&0; echo 77 >&0; echo 'and too late' >&0").unwrap();
        assert!(wait(&early.life, PollFlags::empty(), PATIENCE).unwrap());
        let mut said = early.said;
        (&early.life).read_to_end(&mut said).unwrap();
        assert_eq!((early.pid, &*said), (77, &b"too soon\nand too late\n"[..]));
        let error = begin("exit 3").unwrap_err();
        assert_eq!(error.to_string(), "it ended with exit status: 3");
    }
}
