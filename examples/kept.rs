//! Numbers the lines of each client, and goes on counting where the process that serves is killed: `kill -9` costs nobody their
//! connection, nor a byte.
//!
//! Run it, connect with `nc 127.0.0.1 7001`, type some lines, kill the process whose number it says, and go on typing.
//!
//! ```text
//! cargo run --example kept --no-default-features --features control
//! ```
//!
//! The process that is started first stays, as the keeper: it starts itself once more to serve, holds the descriptors that this
//! one gives it, and gives them to the next one when it crashes. `standfast serve --keep` does the same, with more care: it
//! ends one that hangs, waits longer each time, and gives up.

use std::env;
use std::error::Error;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::{self, Command};
use std::sync::Arc;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use standfast::control::{Keeper, Kept, Stored};
use standfast::process::inherited;
use standfast::{Config, Context, Exported, Lifecycle, Listen, Server, Service, Survive};

/// Set for the process that serves: the keeper's number, that of the socket between the two, how many have crashed, and of each
/// thing that is kept its kind, its name and its numbers.
const KEPT: &str = "KEPT";

/// Counts the lines of a connection. What is to be written reaches the client once, whenever the process dies.
struct LineNumbers;

impl Service for LineNumbers {
    type State = u64;

    fn open(&self, _: &mut Context<'_>) -> u64 {
        0
    }

    fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            // Half a line comes again with its rest, unless it fills the buffer alone.
            if !line.ends_with(b"\n") && (used > 0 || bytes.len() < conn.buffer()) {
                break;
            }
            *lines += 1;
            conn.write(format!("{lines}: ").as_bytes());
            conn.write(line);
            used += line.len();
        }
        used
    }

    fn survive(&self) -> Survive {
        Survive::State
    }

    fn export(&self, lines: &u64) -> Option<Exported> {
        Some(Exported {
            schema: 1,
            bytes: lines.to_be_bytes().to_vec(),
        })
    }

    fn import(&self, exported: &Exported) -> Result<u64, String> {
        match (exported.schema, exported.bytes.as_slice().try_into()) {
            (1, Ok(bytes)) => Ok(u64::from_be_bytes(bytes)),
            (schema, _) => Err(format!("a count of schema {schema}, this one reads 1")),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let address = env::args().nth(1).unwrap_or_else(|| "7001".to_owned());
    if env::var_os(KEPT).is_none() {
        return Ok(keep(|| {
            let mut command = Command::new(env::current_exe()?);
            command.args(env::args_os().skip(1));
            Ok(command)
        })?);
    }
    let listen = vec![Listen::new(address.parse()?, LineNumbers)];
    let server = Server::bind(kept(Config {
        listen,
        ..Config::default()
    })?)?;
    println!("pid {}, {}", process::id(), server.addresses()[0]);
    println!("ended: {}", server.run()?);
    Ok(())
}

/// The settings of a server that [`keep`] has started. To be called before the process opens anything.
pub(crate) fn kept(config: Config) -> Result<Config, Box<dyn Error>> {
    inherited::settle()?;
    let said = env::var(KEPT)?;
    let mut said = said.split(' ');
    let mut next = || said.next().ok_or("the keeper said too little");
    let (pid, line, crashes) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    let mut keeper = Keeper {
        pid,
        crashes,
        ..Keeper::default()
    };
    for one in said {
        let mut parts = one.split(':');
        let mut next = || parts.next().ok_or("the keeper said too little");
        let (kind, name) = (next()?, next()?.to_owned());
        let numbers = next()?.split('+').map(str::parse);
        let descriptors = numbers.map(|number| Ok(inherited::claim(number?)?));
        let descriptors = descriptors.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
        match kind {
            LISTENS => {
                let kept = Kept::from_parts(descriptors, &name)?;
                keeper.kept.push(Arc::new(kept));
            }
            _ => keeper.stored.push(Arc::new(Stored { name, descriptors })),
        }
    }
    Ok(Config {
        keeper: Some(keeper),
        lifecycle: Arc::new(Told(inherited::claim(line)?)),
        ..config
    })
}

/// What a server says to its keeper: a word and a name.
const LISTENS: &str = "listens";
const ALL: &str = "all";
const STORES: &str = "stores";
const GIVES_UP: &str = "gives-up";
const OWNS: &str = "owns";

/// The way to the keeper.
#[derive(Debug)]
struct Told(OwnedFd);

impl Told {
    fn say(&self, what: &str, name: &str, along: &[BorrowedFd<'_>]) -> io::Result<()> {
        let text = format!("{what} {name}");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !along.is_empty() && !control.push(SendAncillaryMessage::ScmRights(along)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let text = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.0, &text, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

impl Lifecycle for Told {
    fn keep(&self, listening: Vec<Kept>) {
        for kept in listening {
            let along: Vec<_> = kept.descriptors().collect();
            // Without it a crash closes that address.
            let _ = self.say(LISTENS, &kept.name(), &along);
        }
        let _ = self.say(ALL, LISTENS, &[]);
    }

    fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.say(STORES, name, descriptors)
    }

    fn give_up(&self, name: &str) -> io::Result<()> {
        self.say(GIVES_UP, name, &[])
    }

    fn owns(&self) -> io::Result<()> {
        self.say(OWNS, "all", &[])
    }
}

type Held = (String, Vec<OwnedFd>);

/// Stays: starts a server by `command`, and another one where that crashes, until one ends well.
///
/// A process with threads had better not do this: what it starts meanwhile gets the descriptors, too.
pub(crate) fn keep(mut command: impl FnMut() -> io::Result<Command>) -> io::Result<()> {
    let (mut listening, mut left) = (Vec::<Held>::new(), Vec::<Held>::new());
    for crashes in 0_u64.. {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let mut said = format!("{} {} {crashes}", process::id(), theirs.as_raw_fd());
        let mut lent = vec![theirs.as_fd()];
        let held = [(LISTENS, &listening), (STORES, &left)];
        for (kind, (name, descriptors)) in held
            .into_iter()
            .flat_map(|(kind, held)| held.iter().map(move |one| (kind, one)))
        {
            let numbers = descriptors.iter().map(|one| one.as_raw_fd().to_string());
            let numbers: Vec<_> = numbers.collect();
            said.push_str(&format!(" {kind}:{name}:{}", numbers.join("+")));
            lent.extend(descriptors.iter().map(AsFd::as_fd));
        }
        for one in &lent {
            fcntl_setfd(one, FdFlags::empty())?;
        }
        let mut server = command()?.env(KEPT, said).spawn()?;
        for one in &lent {
            fcntl_setfd(one, FdFlags::CLOEXEC)?;
        }
        drop(theirs);
        // Until it has ended: what it listens with is all there is then, and what it has stored, once the connections are its own.
        let (mut listens, mut stored, mut owns) = (Vec::<Held>::new(), Vec::<Held>::new(), false);
        while let Some((what, name, along)) = hear(&ours)? {
            match what.as_str() {
                LISTENS => listens.push((name, along)),
                // One that dies before has said only some.
                ALL => listening = std::mem::take(&mut listens),
                STORES => stored.push((name, along)),
                GIVES_UP => stored.retain(|(one, _)| *one != name),
                _ => {
                    owns = true;
                    left.clear();
                }
            }
        }
        if server.wait()?.success() {
            break;
        }
        if owns {
            left = stored;
        }
    }
    Ok(())
}

/// What a server says next. `None`: it has ended.
pub(crate) fn hear(line: &OwnedFd) -> io::Result<Option<(String, String, Vec<OwnedFd>)>> {
    let mut text = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(line, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
    let along = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(along) => Some(along),
        _ => None,
    });
    let along = along.flatten().collect();
    let text = String::from_utf8_lossy(&text[..got.bytes]).into_owned();
    let said = text.split_once(' ');
    Ok(said.map(|(what, name)| (what.to_owned(), name.to_owned(), along)))
}
