//! The terminal: taken for as long as something is drawn on it, and given back as it was at every end.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write};
use std::os::fd::AsFd as _;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use ratatui::backend::{Backend as _, TermionBackend};
use ratatui::layout::Rect;
use ratatui::termion::input::TermRead as _;
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};
use rustix::event::PollFlags;
use rustix::process::{Signal, getpgrp, kill_current_process_group};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr};
use standfast::process::threads;

use crate::top::{Event, may_panic};
use crate::{Failure, blocking, stdout};

/// The other screen, cleared, without a cursor; and the way back. As xterm has them (ctlseqs), and all since.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[2J\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// The size of a terminal that does not know its own.
const UNKNOWN: Rect = Rect::new(0, 0, 80, 24);

/// How often it is looked whether the terminal is ours again.
const LOOK: Duration = Duration::from_millis(100);

/// How the terminal was, while something is drawn on it: whoever ends the process gives it back.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// stdout, also where somebody made it non-blocking.
#[derive(Debug)]
struct Tty(File);

impl Write for Tty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocking::write_whole(&self.0, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Refuses what cannot be drawn on, before anything else is asked.
pub(super) fn check() -> Result<(), Failure> {
    let hint = "standfast status and list tell the same once";
    for (what, is_terminal) in [
        ("stdin", io::stdin().is_terminal()),
        ("stdout", io::stdout().is_terminal()),
    ] {
        if !is_terminal {
            return Err(Failure::usage(format!(
                "top needs a terminal, and {what} is none; {hint}"
            )));
        }
    }
    match std::env::var("TERM").as_deref() {
        Err(_) | Ok("" | "dumb") => Err(Failure::usage(format!(
            "top needs a terminal that can be written to anywhere, and TERM says that this one cannot; {hint}"
        ))),
        Ok(_) => Ok(()),
    }
}

/// The terminal, taken.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: Terminal<TermionBackend<Tty>>,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn open() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::failed(format!("cannot draw: {error}"));
        let backend = TermionBackend::new(Tty(stdout::open().map_err(failed)?));
        let size = backend.size().map_err(failed)?;
        let viewport = if size.width == 0 || size.height == 0 {
            Viewport::Fixed(UNKNOWN)
        } else {
            Viewport::Fullscreen
        };
        let options = TerminalOptions { viewport };
        let terminal = Terminal::with_options(backend, options).map_err(failed)?;
        enter().map_err(failed)?;
        Ok(Self { terminal })
    }

    /// Shows what `drawn` draws; nothing while the terminal is another job's.
    pub(super) fn draw(&mut self, drawn: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        if is_ours() {
            self.terminal.draw(drawn)?;
        }
        Ok(())
    }

    /// Takes the terminal again, which was somebody else's.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        if !is_ours() {
            return Ok(());
        }
        // The other screen is entered from the one that it is left to, never twice.
        leave();
        enter()?;
        self.redraw()
    }

    /// Has all of it drawn the next time: it has another size, or somebody wrote there.
    pub(super) fn redraw(&mut self) -> io::Result<()> {
        if !is_ours() {
            return Ok(());
        }
        let size = self.terminal.size()?;
        let area = if size.width == 0 || size.height == 0 {
            self.terminal.get_frame().area()
        } else {
            Rect::new(0, 0, size.width, size.height)
        };
        self.terminal.resize(area)
    }

    /// Stops this job, as Ctrl-Z does where the terminal sees to that, until the shell has it run again.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        leave();
        kill_current_process_group(Signal::TSTP)?;
        // Another thread may be the one that takes the signal. Where nobody would wake this job there is no stop.
        thread::park_timeout(LOOK);
        self.take_again()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

/// Whether this job has the terminal: what another one does to it stops it by SIGTTOU or SIGTTIN. Where the system does not
/// tell, such as from within another process namespace, it does.
fn is_ours() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |foreground| foreground == getpgrp())
}

fn enter() -> io::Result<()> {
    let stdin = io::stdin();
    let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if before.is_none() {
        *before = Some(tcgetattr(&stdin)?);
    }
    if let Some(before) = &*before {
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
    }
    blocking::write_whole(&stdout::open()?, ENTER)
}

/// Gives the terminal back, if it was taken.
pub(super) fn leave() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(before) = before else {
        return;
    };
    // Of another job it is no more ours to do so; and nobody is there to be told of what fails.
    if is_ours() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
        if takes_more() {
            let _ = stdout::open().and_then(|stdout| blocking::write_whole(&stdout, LEAVE));
        }
    }
}

/// Whether the terminal takes something, rather than hanging.
fn takes_more() -> bool {
    blocking::wait(&io::stdout(), PollFlags::OUT, LOOK).unwrap_or(false)
}

/// Tells of every key from now on, and of the end of the terminal.
pub(super) fn listen(events: Sender<Event>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::failed(format!("cannot hear keys: {error}"));
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
    threads::start("keys", move || {
        may_panic("keys");
        for key in Keyboard(stdin.into()).keys() {
            // What it cannot read is no key.
            if let Ok(key) = key
                && events.send(Event::Key(key)).is_err()
            {
                return;
            }
        }
        let _ = events.send(Event::NoTerminal);
    })
    .map_err(failed)?;
    Ok(())
}

/// stdin, which is read only while the terminal is this job's: to read it then stops the job, by SIGTTIN.
struct Keyboard(File);

impl Read for Keyboard {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            blocking::until(&self.0, PollFlags::IN)?;
            if !is_ours() {
                thread::park_timeout(LOOK);
                continue;
            }
            match self.0.read(bytes) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) => {}
                // The terminal is gone.
                Err(_) => return Ok(0),
                read => return read,
            }
        }
    }
}
