//! A server that a [keeper](crate::keeper) has started: what it has from there, and what it says to it.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use rustix::process::getppid;
use standfast::control::{Keeper, Kept, Stored, Successor, make_room_for};
use standfast::process::{inherited, threads};
use standfast::{Handle, Server};

use crate::Failure;
use crate::args::ProcessArgs;
use crate::blocking::wait;
use crate::notes::{Notes, noted};
use crate::store::{self, Store};

/// What a keeper and its servers know one another by. To a server: the keeper's number, the number of the socket between the
/// two, how many servers have crashed, and of each thing that is kept its name and its numbers.
pub(crate) const KEEPER: &str = "STANDFAST_KEEPER";

/// To a server: what became of the one before it.
pub(crate) const CRASHED: &str = "STANDFAST_CRASHED";

/// What the names begin with of event queues.
const EVENTS: &str = "events";

/// Before the name of what a server has stored of its connections.
pub(crate) const STORED: &str = "stored-";

/// The name of what is noted there of a server's counters, and how often that is done.
pub(crate) const REMAINS: &str = "remains";
pub(crate) const OFTEN: Duration = Duration::from_secs(1);

/// How long the keeper may take to start a process.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often it is tried to send what too many descriptors are under way for (of the user's, where that is not root), and how
/// soon again.
const TRIES: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(10);

/// An answer of the keeper's is no longer.
const ANSWER: usize = 1024;

/// The way to the keeper.
#[derive(Debug)]
struct Line {
    keeper: u32,
    socket: OwnedFd,
    crashes: u64,
    /// What the server before this one has left there: its sockets, and its counters.
    kept: Vec<Arc<Kept>>,
    /// The same, of its connections, until they are asked for.
    stored: Mutex<Vec<Arc<Stored>>>,
    remains: Option<Vec<u8>>,
    /// Where those of this one are noted.
    notes: OnceLock<Notes>,
    /// It has ended.
    is_gone: AtomicBool,
    /// Held while it is asked; what it answers.
    answers: Mutex<Option<Receiver<String>>>,
}

static LINE: OnceLock<Option<Line>> = OnceLock::new();

/// Takes what a keeper has left open for this process, if one has started it.
///
/// # Errors
/// What it has left is not what it says.
pub(crate) fn settle() -> Result<(), Failure> {
    let said = env::var(KEEPER).ok();
    // What a server starts has the variable, too.
    let is_for_us = |said: &String| {
        let keeper = said.split(' ').next().and_then(|pid| pid.parse().ok());
        keeper.is_some() && keeper == getppid().map(|pid| pid.as_raw_nonzero().get())
    };
    let line = said.filter(is_for_us).map(|said| taken(&said)).transpose();
    let line = line.map_err(|error| {
        Failure::failed(format!(
            "{KEEPER} is set, and is not what a keeper says: {error}"
        ))
    })?;
    if let Some(line) = &line {
        inherited::passed_to(line.keeper);
        make_room_for(&line.stored.lock().unwrap_or_else(PoisonError::into_inner));
    }
    // Once, at the start.
    let _ = LINE.set(line);
    Ok(())
}

fn taken(said: &str) -> io::Result<Line> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let number = |text: &str| text.parse::<RawFd>().map_err(|_| wrong());
    let mut said = said.split(' ');
    let keeper = said
        .next()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(wrong)?;
    let mut next = || said.next().ok_or_else(wrong);
    let socket = inherited::claim(number(next()?)?)?;
    let crashes = next()?.parse().map_err(|_| wrong())?;
    let (mut kept, mut stored, mut remains) = (Vec::new(), Vec::new(), None);
    for one in said {
        let (name, numbers) = one.split_once(':').ok_or_else(wrong)?;
        let numbers = numbers.split('+');
        let descriptors = numbers.map(|one| inherited::claim(number(one)?));
        let descriptors = descriptors.collect::<io::Result<Vec<_>>>()?;
        if name == REMAINS {
            // The last that says something.
            remains = noted(descriptors).or(remains);
        } else if let Some(name) = name.strip_prefix(STORED) {
            let name = name.to_owned();
            stored.push(Arc::new(Stored { name, descriptors }));
        } else {
            kept.push(Arc::new(Kept::from_parts(descriptors, name)?));
        }
    }
    Ok(Line {
        keeper,
        socket,
        crashes,
        kept,
        stored: Mutex::new(stored),
        remains,
        notes: OnceLock::new(),
        is_gone: AtomicBool::new(false),
        answers: Mutex::default(),
    })
}

fn get() -> Option<&'static Line> {
    LINE.get()?.as_ref()
}

/// The number of the keeper that this process has.
pub(crate) fn by() -> Option<u32> {
    let line = get()?;
    (!line.is_gone.load(Ordering::Acquire)).then_some(line.keeper)
}

/// A socket to the keeper, if this process was started by one.
pub(crate) fn line() -> Option<Option<OwnedFd>> {
    Some(get()?.socket.try_clone().ok())
}

/// The keeper, as the server is to know it.
pub(crate) fn keeper() -> Option<Keeper> {
    if let Some(store) = store::get() {
        return Some(store.keeper());
    }
    let line = get()?;
    let mut stored = line.stored.lock().unwrap_or_else(PoisonError::into_inner);
    Some(Keeper {
        pid: line.keeper,
        stored: std::mem::take(&mut stored),
        kept: line.kept.clone(),
        crashes: line.crashes,
        remains: line.remains.clone(),
    })
}

/// As [`settle`], of what systemd has stored in a keeper's place.
///
/// # Errors
/// What it has passed is not what it says.
pub(crate) fn settle_store(args: &ProcessArgs) -> Result<(), Failure> {
    store::settle(args)
}

/// Leaves the connections to the next server, if systemd has them meanwhile and they can go on there: this process ends then.
pub(crate) fn leave(handle: &Handle, signal: &'static str) -> bool {
    store::get().is_some_and(|store| store.leave(handle, signal))
}

/// Says what became of the server before this one, if it crashed.
pub(crate) fn say_crashed() {
    let what = store::get().map_or_else(|| env::var(CRASHED).ok(), Store::crashed);
    if let Some(what) = what {
        log::error!(former = what.as_str(); "the former server crashed, this one goes on listening");
    }
}

/// Hears the keeper from now on. Once that has ended the server is as any other, or ends in order if that was asked for.
///
/// # Errors
/// No thread to wait with.
pub(crate) fn attend(server: &Server, args: &ProcessArgs) -> Result<(), Failure> {
    if let Some(store) = store::get() {
        let attending = store.attend(&server.handle());
        return attending
            .map_err(|error| Failure::failed(format!("cannot note counters: {error}")));
    }
    let Some(line) = get() else { return Ok(()) };
    let (handle, ends) = (server.handle(), args.keep_or_end);
    let (answer, answers) = mpsc::channel();
    *line.answers.lock().unwrap_or_else(PoisonError::into_inner) = Some(answers);
    let started = threads::start("keeper", move || {
        hear(line, &handle, &answer);
        line.is_gone.store(true, Ordering::Release);
        handle.keeper_ended();
        if handle.is_ending() {
            return;
        }
        if ends {
            log::error!(keeper = line.keeper; "the keeper has ended: draining");
            handle.drain();
        } else {
            log::error!(keeper = line.keeper; "the keeper has ended: serving on as an ordinary server");
        }
    });
    let started = started.map(drop);
    started.map_err(|error| Failure::failed(format!("cannot wait for the keeper: {error}")))
}

/// Passes its answers on until it ends, and notes meanwhile what the next server needs to know.
fn hear(line: &Line, handle: &Handle, answer: &Sender<String>) {
    let mut text = [0; ANSWER];
    loop {
        match wait(&line.socket, PollFlags::IN, OFTEN) {
            Ok(true) => {}
            Ok(false) => {
                note_now(handle);
                continue;
            }
            // Of memory, most likely.
            Err(_) => {
                thread::park_timeout(OFTEN);
                continue;
            }
        }
        match retry_on_intr(|| recv(&line.socket, &mut text[..], RecvFlags::empty())) {
            Ok((_, count)) if count > 0 => {
                let text = String::from_utf8_lossy(&text[..count.min(ANSWER)]);
                // Who asked has given up, else it waits.
                let _ = answer.send(text.into_owned());
            }
            _ => return,
        }
    }
}

/// Notes what the next server needs to know, if a keeper has where.
pub(crate) fn note_now(handle: &Handle) {
    let notes = store::get().map_or_else(|| get()?.notes.get(), Store::notes);
    if let Some(notes) = notes {
        // Without it the next server counts from the last one that was noted.
        let _ = notes.note(&handle.remains());
    }
}

/// Has the keeper keep these.
pub(crate) fn keep(listening: &[Kept]) {
    if let Some(store) = store::get() {
        return store.keep(listening);
    }
    let Some(line) = get() else { return };
    for kept in listening {
        let descriptors: Vec<_> = kept.descriptors().collect();
        let text = format!("FDSTORE=1\nFDNAME={}", kept.name());
        if let Err(error) = line.say(&text, &descriptors) {
            log::error!(error:%; "the keeper does not get a listening socket: a crash would close it");
        }
    }
    let noting = Notes::new().and_then(|notes| {
        line.say(
            &format!("FDSTORE=1\nFDNAME={REMAINS}"),
            &notes.descriptors(),
        )?;
        // Once, when it begins to serve.
        let _ = line.notes.set(notes);
        Ok(())
    });
    if let Err(error) = noting {
        log::warn!(error:%; "counters would begin anew after a crash");
    }
}

/// Has the keeper hold these, of this server's connections, from now on.
pub(crate) fn store(name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if let Some(store) = store::get() {
        // There is little room in that, for what is but quicker.
        let has_room = !name.starts_with(EVENTS);
        return if has_room {
            store.store(name, descriptors)
        } else {
            Ok(())
        };
    }
    say_at_once(&format!("X_STORE={name}"), descriptors)
}

/// Has it hold them no more.
pub(crate) fn give_back(name: &str) -> io::Result<()> {
    if let Some(store) = store::get() {
        store.give_back(name);
        return Ok(());
    }
    say_at_once(&format!("X_GIVE_UP={name}"), &[])
}

/// The connections are this server's: what the keeper holds of another's is of no use any more.
pub(crate) fn owns() -> io::Result<()> {
    if let Some(store) = store::get() {
        return store.owns();
    }
    say_at_once("X_OWNS=1", &[])
}

/// Clients have TLS: nobody may look at what the keeper holds of them, as at this process.
pub(crate) fn is_secret() {
    if let Err(error) = say_at_once("X_SECRET=1", &[])
        && error.kind() != io::ErrorKind::NotConnected
    {
        log::warn!(error:%; "cannot have the keeper hide what it keeps");
    }
}

/// A worker says it: a keeper that stands still is not waited for.
fn say_at_once(text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let line = get().ok_or(io::ErrorKind::NotConnected)?;
    line.send(text, descriptors, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

/// Has the keeper start a process that takes over at `control`. `None`: there is none.
pub(crate) fn successor(control: &Path) -> Option<io::Result<Successor>> {
    by()?;
    let line = get()?;
    Some(line.successor(control))
}

/// Tells the keeper why this process ends before it serves.
pub(crate) fn give_up(why: &str) {
    if let Some(line) = get() {
        let why: String = why.chars().take(800).collect();
        let why = why.replace(char::is_control, " ");
        // It may have ended itself.
        let _ = line.say(&format!("STATUS={why}"), &[]);
    }
}

impl Line {
    fn say(&self, text: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(text, descriptors, SendFlags::NOSIGNAL)
    }

    fn send(&self, text: &str, descriptors: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let text = [IoSlice::new(text.as_bytes())];
        let waits = !flags.contains(SendFlags::DONTWAIT);
        for _ in 0..TRIES {
            match retry_on_intr(|| sendmsg(&self.socket, &text, &mut control, flags)) {
                // The keeper is just giving up what it has of the former server.
                Err(Errno::TOOMANYREFS) if waits => thread::park_timeout(BETWEEN),
                sent => {
                    sent?;
                    return Ok(());
                }
            }
        }
        Err(Errno::TOOMANYREFS.into())
    }

    fn successor(&self, control: &Path) -> io::Result<Successor> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answers = answers.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // What was answered to one who did not wait for it.
        while answers.try_recv().is_ok() {}
        let control = control.to_str().filter(|path| !path.contains('\n'));
        let control =
            control.ok_or_else(|| io::Error::other("the control socket's path is no text"))?;
        // The successor's stdin, which it does not read.
        let (life, theirs) = io::pipe()?;
        self.say(&format!("X_SUCCESSOR={control}"), &[theirs.as_fd()])?;
        drop(theirs);
        let answer = answers.recv_timeout(PATIENCE).map_err(|_| {
            let bound = PATIENCE.as_secs();
            io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "the keeper (pid {}) does not answer within {bound} s",
                    self.keeper
                ),
            )
        })?;
        match answer.split_once('=') {
            Some(("PID", pid)) => Ok(Successor {
                pid: pid.parse().map_err(|_| io::ErrorKind::InvalidData)?,
                life,
                said: Vec::new(),
            }),
            Some((_, why)) => Err(io::Error::other(why.to_owned())),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}
