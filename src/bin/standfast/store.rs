//! systemd's descriptor store in the place of a [keeper](crate::keeper): what a server would give to that it stores with the
//! manager that has started it, and the process that this starts next has it among `LISTEN_FDS` (systemd.service(5):
//! `FileDescriptorStoreMax=`; `sd_notify(3)`: `FDSTORE=1`).
//!
//! Each descriptor has a name of its own, `standfast/GENERATION/PART/NAME`: in which order those of one name come back is not
//! said. Of whose generation the connections are is one byte of memory among them, so that a process may be killed between any two
//! messages; and what finds no room there is counted here, for a store that is full says nothing.

use std::collections::BTreeMap;
use std::env;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};
use standfast::Handle;
use standfast::control::{Keeper, Kept, Stored};
use standfast::process::inherited::{self, STORED};
use standfast::process::threads;

use crate::Failure;
use crate::args::ProcessArgs;
use crate::kept::{self, OFTEN, REMAINS};
use crate::notes::{Notes, noted};
use crate::supervisor::Supervisor;
use crate::takeover;

/// How many descriptors the store takes: set by systemd 254 and later, and by the units for those before.
const MOST: &str = "FDSTORE";

/// The systemd of a user, to its services.
const MANAGER: &str = "MANAGERPID";

/// More names than that are too long together for the environment of the next process (execve(2): `MAX_ARG_STRLEN`).
const NAMED_MOST: usize = 2048;

/// Which generation has the connections, and what the names of listening sockets begin with.
const OWNER: &str = "owner";
const LISTENING: &str = "kept-";

/// How long workers may take to stand still.
const REST: Duration = Duration::from_secs(1);

/// What the owner's byte says: another's, this one's, and this one's that has left them in order.
const NOT: u8 = b'0';
const OWNS: u8 = b'1';
const LEFT: u8 = b'2';

#[derive(Debug)]
pub(crate) struct Store {
    manager: Supervisor,
    most: usize,
    generation: u64,
    /// One byte, and how many servers have crashed.
    owner: File,
    notes: OnceLock<Notes>,
    crashes: u64,
    /// What of the former one there is, until it is asked for.
    found: Mutex<Found>,
    state: Mutex<State>,
}

/// What a server before this one has stored.
#[derive(Debug, Default)]
struct Found {
    kept: Vec<Arc<Kept>>,
    stored: Vec<Arc<Stored>>,
    remains: Option<Vec<u8>>,
    crashed: Option<String>,
    /// Whose they were.
    owners: Vec<File>,
}

#[derive(Debug, Default)]
struct State {
    /// What is there, by name, in so many parts.
    names: BTreeMap<String, usize>,
    /// What is to go there once the manager listens to this process.
    later: Option<Vec<(String, Vec<OwnedFd>)>>,
    /// Whole names of what others have left, and of what is to be taken away as soon as the manager has room to hear it.
    former: Vec<String>,
    gone: Vec<String>,
    /// Clients wait for whoever says something.
    serves: bool,
    is_over: bool,
}

static STORE: OnceLock<Option<Store>> = OnceLock::new();

/// Takes what a server before this one has stored, if the service manager stores something for this process.
///
/// # Errors
/// What it has passed is not what it says.
pub(crate) fn settle(args: &ProcessArgs) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        Failure::failed(format!(
            "cannot go on with what systemd has stored: {error}"
        ))
    };
    let most = env::var(MOST).ok().and_then(|most| most.parse().ok());
    let most = most.filter(|most| *most > 0 && kept::line().is_none());
    // In front of servers that are watched stays a process which is none.
    let is_main = takeover::is_successor() || is_started_by_systemd();
    let most = most.filter(|_| is_main && !args.watch);
    let store = most.map(|most: usize| Store::new(most.min(NAMED_MOST)));
    let store = store.transpose().map_err(failed)?;
    // Once, at the start.
    let _ = STORE.set(store);
    Ok(())
}

/// Has nothing there that a server has stored.
pub(crate) fn clear() {
    for (fd, name) in inherited::stored_by_systemd().unwrap_or_default() {
        drop(inherited::claim(fd));
        let gone = format!("FDSTOREREMOVE=1\nFDNAME={name}");
        let _ = Supervisor::from_env().store(&gone, None, true);
    }
}

/// Whether this process is the one that systemd executed (systemd.exec(5)); where it does not tell, it is.
fn is_started_by_systemd() -> bool {
    let told = env::var("SYSTEMD_EXEC_PID").ok();
    told.is_none_or(|pid| pid.parse() == Ok(process::id()))
}

pub(crate) fn get() -> Option<&'static Store> {
    STORE.get()?.as_ref()
}

impl Store {
    fn new(most: usize) -> io::Result<Self> {
        let mut former = Vec::new();
        let mut generations: BTreeMap<u64, BTreeMap<String, BTreeMap<usize, OwnedFd>>> =
            BTreeMap::new();
        for (fd, whole) in inherited::stored_by_systemd()? {
            let one = inherited::claim(fd)?;
            if let Some((generation, part, name)) = parsed(&whole) {
                let named = generations.entry(generation).or_default();
                named.entry(name.to_owned()).or_default().insert(part, one);
            }
            former.push(whole);
        }
        let (found, crashes) = Found::of(generations);
        let is_successor = takeover::is_successor();
        let now = clock_gettime(ClockId::Monotonic);
        let owner = File::from(memfd_create("standfast-owner", MemfdFlags::CLOEXEC)?);
        owner.write_all_at(format!("0{crashes}").as_bytes(), 0)?;
        let store = Self {
            manager: Supervisor::from_env(),
            most,
            generation: now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned(),
            notes: OnceLock::new(),
            crashes,
            found: Mutex::new(found),
            state: Mutex::new(State {
                later: is_successor.then(Vec::new),
                former,
                ..State::default()
            }),
            owner,
        };
        store.store(OWNER, &[store.owner.as_fd()])?;
        Ok(store)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn whole(&self, part: usize, name: &str) -> String {
        format!("{STORED}{:x}/{part}/{name}", self.generation)
    }

    /// Has the manager hold these, too.
    pub(crate) fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut state = self.state();
        if state.is_over {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if state.count() + descriptors.len() > self.most {
            return Err(io::Error::other(format!(
                "systemd's store is full (FileDescriptorStoreMax=, {})",
                self.most
            )));
        }
        match &mut state.later {
            Some(later) => {
                let copies = descriptors.iter().map(BorrowedFd::try_clone_to_owned);
                later.push((name.to_owned(), copies.collect::<io::Result<_>>()?));
            }
            None => self.send(&mut state, name, descriptors)?,
        }
        state.names.insert(name.to_owned(), descriptors.len());
        Ok(())
    }

    fn send(
        &self,
        state: &mut State,
        name: &str,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        for (part, descriptor) in descriptors.iter().enumerate() {
            let whole = self.whole(part, name);
            // What waits in a queue is nobody's end.
            let text = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={whole}");
            if let Err(error) = self.manager.store(&text, Some(*descriptor), !state.serves) {
                state
                    .gone
                    .extend((0..part).map(|part| self.whole(part, name)));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has it hold them no more.
    pub(crate) fn give_back(&self, name: &str) {
        let mut state = self.state();
        let parts = state.names.remove(name).unwrap_or(0);
        match &mut state.later {
            Some(later) => later.retain(|(one, _)| one != name),
            None => state
                .gone
                .extend((0..parts).map(|part| self.whole(part, name))),
        }
        self.say_gone(&mut state);
    }

    fn say_gone(&self, state: &mut State) {
        while let Some(whole) = state.gone.last() {
            let text = format!("FDSTOREREMOVE=1\nFDNAME={whole}");
            if self.manager.store(&text, None, !state.serves).is_err() {
                return;
            }
            state.gone.pop();
        }
    }

    /// The connections are this generation's from here on.
    pub(crate) fn owns(&self) -> io::Result<()> {
        self.say(OWNS)?;
        let owners = std::mem::take(&mut self.found().owners);
        for owner in owners {
            owner.write_all_at(&[NOT], 0)?;
        }
        let mut state = self.state();
        let former = std::mem::take(&mut state.former);
        state.gone.extend(former);
        self.say_gone(&mut state);
        Ok(())
    }

    /// They are just becoming another process's, or have not.
    pub(crate) fn gives(&self, gives: bool) {
        if let Err(error) = self.say(if gives { NOT } else { OWNS }) {
            log::error!(error:%; "a crash would close all connections");
        }
    }

    fn say(&self, owns: u8) -> io::Result<()> {
        self.owner.write_all_at(&[owns], 0)
    }

    /// The manager listens to this process from here on; clients wait for it.
    pub(crate) fn settled(&self) {
        let mut state = self.state();
        for (name, descriptors) in state.later.take().unwrap_or_default() {
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            if let Err(error) = self.send(&mut state, &name, &descriptors) {
                log::warn!(error:%; "a crash would close some of the connections");
            }
        }
        state.serves = true;
    }

    /// Nothing of this process is to be there any more.
    pub(crate) fn over(&self) {
        let mut state = self.state();
        let was_over = std::mem::replace(&mut state.is_over, true);
        if was_over || state.later.is_some() {
            return;
        }
        let names = std::mem::take(&mut state.names).into_iter();
        let wholes =
            names.flat_map(|(name, parts)| (0..parts).map(move |part| self.whole(part, &name)));
        let wholes: Vec<_> = wholes.collect();
        state.gone.extend(wholes);
        let former = std::mem::take(&mut state.former);
        state.gone.extend(former);
        // It ends: nobody is served by it meanwhile.
        state.serves = false;
        self.say_gone(&mut state);
    }

    /// All that the server listens with is to be there, and its counters.
    pub(crate) fn keep(&self, listening: &[Kept]) {
        for (at, kept) in listening.iter().enumerate() {
            let descriptors: Vec<_> = kept.descriptors().collect();
            if let Err(error) =
                self.store(&format!("{LISTENING}{at}-{}", kept.name()), &descriptors)
            {
                log::warn!(error:%; "systemd does not get a listening socket: a crash would close it");
            }
        }
        let noting = Notes::new().and_then(|notes| {
            self.store(REMAINS, &notes.descriptors())?;
            // Once, when it begins to serve.
            let _ = self.notes.set(notes);
            Ok(())
        });
        if let Err(error) = noting {
            log::warn!(error:%; "counters would begin anew after a crash");
        }
    }

    pub(crate) fn notes(&self) -> Option<&Notes> {
        self.notes.get()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a server is to go on with, once.
    pub(crate) fn keeper(&self) -> Keeper {
        let mut found = self.found();
        // The systemd of a user says who it is (systemd.exec(5)); the system's is the first process. The parent is another one
        // for as long as a successor is the child of whoever started it.
        let systemd = env::var(MANAGER).ok().and_then(|pid| pid.parse().ok());
        Keeper {
            pid: systemd.unwrap_or(1),
            kept: std::mem::take(&mut found.kept),
            crashes: self.crashes,
            remains: found.remains.take(),
            stored: std::mem::take(&mut found.stored),
        }
    }

    /// What has crashed before this.
    pub(crate) fn crashed(&self) -> Option<String> {
        self.found().crashed.clone()
    }

    /// From now on what the next server needs to know is noted, and said again where it was not heard.
    pub(crate) fn attend(&'static self, handle: &Handle) -> io::Result<()> {
        let handle = handle.clone();
        let started = threads::start("store", move || {
            while !self.state().is_over {
                std::thread::park_timeout(OFTEN);
                kept::note_now(&handle);
                self.say_gone(&mut self.state());
            }
        });
        started.map(drop)
    }

    /// Leaves the connections to the process that systemd starts next, if they can go on there: this one ends then.
    pub(crate) fn leave(&self, handle: &Handle, signal: &'static str) -> bool {
        let Some(is_whole) = handle.leave(REST) else {
            return false;
        };
        if !is_whole {
            log::warn!("some of the connections are not left to the next server");
        }
        kept::note_now(handle);
        let connections = handle.status().open;
        // It counts as a crash, then.
        let _ = self.say(LEFT);
        log::info!(signal, connections; "leaving the connections to the next server");
        true
    }
}

impl State {
    fn count(&self) -> usize {
        self.names.values().sum::<usize>() + self.former.len() + self.gone.len()
    }
}

impl Found {
    /// What the last owner has stored, and how many have crashed.
    fn of(generations: BTreeMap<u64, BTreeMap<String, BTreeMap<usize, OwnedFd>>>) -> (Self, u64) {
        let (mut found, mut crashes) = (Self::default(), 0);
        let mut has_owner = false;
        for (_, mut names) in generations.into_iter().rev() {
            let owner = names.remove(OWNER).and_then(|mut parts| parts.remove(&0));
            let Some(owner) = owner.map(File::from) else {
                continue;
            };
            let mut said = [0; 21];
            let count = owner.read_at(&mut said, 0).unwrap_or(0);
            found.owners.push(owner);
            let said = said.get(..count).and_then(|said| said.split_first());
            let Some((&owns, before)) = said.filter(|(owns, _)| [OWNS, LEFT].contains(*owns))
            else {
                continue;
            };
            if std::mem::replace(&mut has_owner, true) {
                continue;
            }
            let before = str::from_utf8(before).ok().and_then(|it| it.parse().ok());
            crashes = before.unwrap_or(0) + u64::from(owns == OWNS);
            found.crashed = (owns == OWNS).then(|| "ended, systemd knows how".to_owned());
            for (name, parts) in names {
                found.add(name, parts.into_values().collect());
            }
        }
        (found, crashes)
    }

    fn add(&mut self, name: String, descriptors: Vec<OwnedFd>) {
        if name == REMAINS {
            self.remains = noted(descriptors);
        } else if let Some(listening) = name.strip_prefix(LISTENING) {
            let place = listening.split_once('-').map_or("", |(_, place)| place);
            match Kept::from_parts(descriptors, place) {
                Ok(kept) => self.kept.push(Arc::new(kept)),
                Err(error) => log::warn!(name, error:%; "not what a server listens with"),
            }
        } else {
            self.stored.push(Arc::new(Stored { name, descriptors }));
        }
    }
}

/// Generation, part and name of what was stored.
fn parsed(whole: &str) -> Option<(u64, usize, &str)> {
    let mut parts = whole.strip_prefix(STORED)?.splitn(3, '/');
    let generation = u64::from_str_radix(parts.next()?, 16).ok()?;
    Some((generation, parts.next()?.parse().ok()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each generation says of itself: its owner's byte and count, and a name of what it has.
    fn found(generations: &[(u64, &str, &str)]) -> (Found, u64) {
        let memory = |text: &str| {
            let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
            file.write_all_at(text.as_bytes(), 0).unwrap();
            BTreeMap::from([(0, OwnedFd::from(file))])
        };
        let generations = generations.iter().map(|(generation, owner, name)| {
            let names = [(OWNER, *owner), (*name, "")];
            let names = names.map(|(name, text)| (name.to_owned(), memory(text)));
            (*generation, BTreeMap::from(names))
        });
        Found::of(generations.collect())
    }

    fn names(found: &Found) -> Vec<&str> {
        found.stored.iter().map(|one| &*one.name).collect()
    }

    #[test]
    fn only_what_the_last_owner_has_stored_is_gone_on_with() {
        let (mine, crashes) = found(&[(7, "13", "old"), (9, "03", "young")]);
        assert_eq!(
            (names(&mine), crashes),
            (vec!["old"], 4),
            "the young one did not come to own"
        );
        let (mine, _) = found(&[(7, "13", "old"), (9, "14", "young")]);
        assert_eq!(
            names(&mine),
            ["young"],
            "killed before it could say that the old one owns nothing"
        );
        let (none, _) = found(&[(7, "03", "old"), (9, "04", "young")]);
        assert!(none.stored.is_empty(), "another process had them by then");
        assert_eq!(none.owners.len(), 2);
        let (left, crashes) = found(&[(7, "22", "old")]);
        assert_eq!(
            (names(&left), crashes, left.crashed.as_deref()),
            (vec!["old"], 2, None)
        );
        let (odd, _) = found(&[(7, "", "old"), (8, "x", "older")]);
        assert!(odd.stored.is_empty());
    }

    #[test]
    fn a_name_has_its_generation_and_part() {
        assert_eq!(
            parsed("standfast/ff/1/vault-0-3"),
            Some((255, 1, "vault-0-3"))
        );
        for other in [
            "standfast.socket",
            "standfast/",
            "standfast/x/1/a",
            "standfast/f/-1/a",
            "standfast/f/1",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
    }
}
