//! Child processes, told from those that became this process's without being started by it.
//!
//! A process that is the first of its PID namespace, as in a container, or a subreaper (prctl(2)) gets every orphan of
//! its descendants; one that a shell started by `exec` has the shell's children. Nobody waits for those, and each would
//! stay a zombie. [`reap_others`] waits for them, and for no child of [`spawn`]'s, whose end is its owner's to learn.

use std::collections::HashSet;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::os::sys;

/// Held while a process is started and not yet known as ours, and while others are reaped.
static STARTING: Mutex<()> = Mutex::new(());

/// The processes that somebody here waits for. Held while one of them is reaped: its number may be another's then.
static OWNED: LazyLock<Mutex<HashSet<Pid>>> = LazyLock::new(Mutex::default);

/// A child process that this process waits for, in its own time.
#[derive(Debug)]
pub struct Owned {
    child: Child,
    reaped: bool,
}

/// Starts `command`.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn(command: &mut Command) -> io::Result<Owned> {
    let _starting = lock(&STARTING);
    let child = command.spawn()?;
    lock(&OWNED).insert(Pid::from_child(&child));
    Ok(Owned {
        child,
        reaped: false,
    })
}

/// Whether that process ignores a signal, as far as proc(5) tells (`SigIgn`).
pub(crate) fn ignores(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let ignored = status.ok().and_then(|status| {
        let mut lines = status.lines();
        let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    ignored.is_some_and(|mask| mask & 1 << (signal.as_raw() - 1) != 0)
}

impl Owned {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// As [`Child::try_wait`].
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut owned = lock(&OWNED);
        let status = self.child.try_wait()?;
        if status.is_some() && !std::mem::replace(&mut self.reaped, true) {
            owned.remove(&self.pid());
        }
        Ok(status)
    }

    /// As [`Child::wait`].
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let waited = rustix::process::waitid(WaitId::Pid(self.pid()), ended);
            if let Err(error) = waited
                && error != Errno::INTR
            {
                return Err(error.into());
            }
        }
    }

    /// As [`Child::kill`].
    ///
    /// # Errors
    /// As [`Child::kill`].
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Owned {
    /// Nobody waits for it any more.
    fn drop(&mut self) {
        // Once it was reaped, its number may be that of another one.
        if !self.reaped {
            lock(&OWNED).remove(&self.pid());
        }
    }
}

/// A process that this one has not started, and that may become its child: [`reap_others`] leaves it alone.
#[derive(Debug)]
pub struct Adopted {
    pid: Pid,
    reaped: bool,
}

/// Awaits the end of process `pid`, for a process that gets the orphans of its descendants. `None`: that is no process.
#[must_use]
pub fn adopt(pid: u32) -> Option<Adopted> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    lock(&OWNED).insert(pid);
    Some(Adopted { pid, reaped: false })
}

impl Adopted {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// How it has ended, once: if it has, and was this process's child by then.
    pub fn status(&mut self) -> Option<ExitStatus> {
        let mut owned = lock(&OWNED);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = rustix::process::waitid(WaitId::Pid(self.pid), ended).ok()??;
        self.reaped = true;
        owned.remove(&self.pid);
        // As wait(2) has it.
        let code = status.exit_status().map(|code| (code & 0xff) << 8);
        let raw = code.or_else(|| status.terminating_signal())?;
        let dumped = if status.dumped() { 0x80 } else { 0 };
        Some(ExitStatus::from_raw(raw | dumped))
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        if !self.reaped {
            lock(&OWNED).remove(&self.pid);
        }
    }
}

/// Whether this process has children that it did not start, or may get some.
#[must_use]
pub fn has_others() -> bool {
    let adopts = rustix::process::getpid() == Pid::INIT
        || rustix::process::child_subreaper().is_ok_and(|set| set.is_some());
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    adopts || rustix::process::waitid(WaitId::All, ended).err() != Some(Errno::CHILD)
}

/// Reaps those that have ended and that nobody here waits for. Answers whether that was all: behind one that its owner
/// has not waited for yet, no other is seen.
#[must_use]
pub fn reap_others() -> bool {
    loop {
        let _starting = lock(&STARTING);
        let Some(ended) = sys::first_ended() else {
            return true;
        };
        if lock(&OWNED).contains(&ended) {
            return false;
        }
        let reaped = rustix::process::waitid(
            WaitId::Pid(ended),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        match reaped {
            Ok(_) => {
                log::debug!(pid = ended.as_raw_nonzero().get(); "reaped a process of somebody else's");
            }
            // Somebody waits for it who did not start it by `spawn`.
            Err(error) => {
                log::debug!(error:% = io::Error::from(error); "cannot reap a process");
                return true;
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child of this process's that nobody waits for, as one that it was given. It has ended.
    #[expect(clippy::zombie_processes, reason = "it is to be one")]
    fn orphan() -> Pid {
        let child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), ended).unwrap();
        pid
    }

    fn is_there(pid: Pid) -> bool {
        rustix::process::test_kill_process(pid).is_ok()
    }

    /// In a process of its own: other tests have children that they wait for.
    #[test]
    fn others_are_reaped_and_nobody_who_is_waited_for() {
        const ALONE: &str = "STANDFAST_TEST_ALONE";
        if std::env::var_os(ALONE).is_none() {
            let name = "os::children::tests::others_are_reaped_and_nobody_who_is_waited_for";
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.contains("1 passed"),
                "{output:?}"
            );
            return;
        }
        assert!(!has_others());
        let others = [orphan(), orphan()];
        assert!(has_others());
        assert!(reap_others());
        assert!(others.iter().all(|&pid| !is_there(pid)));

        let mut owned = spawn(Command::new("sh").args(["-c", "exit 3"])).unwrap();
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(owned.pid()), ended).unwrap();
        assert!(!reap_others(), "its owner is to wait for it");
        assert_eq!(owned.wait().unwrap().code(), Some(3));
        assert!(reap_others());

        let adopted = |script| {
            let mut command = Command::new("sh");
            #[expect(clippy::zombie_processes, reason = "it is waited for below")]
            let child = command.args(["-c", script]).spawn().unwrap();
            let adopted = adopt(child.id()).unwrap();
            rustix::process::waitid(WaitId::Pid(adopted.pid()), ended).unwrap();
            adopted
        };
        for (script, code, signal) in [("exit 7", Some(7), None), ("kill -9 $$", None, Some(9))] {
            let mut adopted = adopted(script);
            assert!(!reap_others(), "its end is to be learnt");
            let status = adopted.status().unwrap();
            assert_eq!((status.code(), status.signal()), (code, signal));
            assert!(adopted.status().is_none(), "once");
        }
        let others = adopt(1).unwrap().status();
        assert!(others.is_none(), "no child of this process");
        drop(adopted("exit 7"));
        assert!(reap_others());

        let forgotten = spawn(&mut Command::new("true")).unwrap();
        let pid = forgotten.pid();
        rustix::process::waitid(WaitId::Pid(pid), ended).unwrap();
        drop(forgotten);
        assert!(reap_others());
        assert!(!is_there(pid));
    }
}
