//! Crashes and planned takeovers by turns, of an embedder's service: its keeper starts the process that takes over, too.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Signal, kill_process};
use standfast::control::{ControlSocket, Replace};
use standfast::{Config, Listen, Server, Survive};

use super::survive::{Client, MOST, Numbers, end, example, servers};
use crate::support::home::Home;
use crate::support::{connect, until};

/// Which part in a test this process has: the keeper's, or a server's. And where all of them meet.
const PART: &str = "CHAINED_PART";
const FOLDER: &str = "CHAINED_FOLDER";

/// Files there: where a server listens; and that another one is to take over, until it has.
const ADDRESSES: &str = "addresses";
const WANTED: &str = "wanted";

/// Not a test of its own: what a keeper and its servers do when they are started by one.
#[test]
fn plays_its_part_if_it_has_one() {
    let Ok(part) = env::var(PART) else { return };
    let folder = env::var(FOLDER).unwrap();
    let folder = Path::new(&folder);
    if part == "keeper" {
        return keep(folder);
    }
    let said = fs::read_to_string(folder.join(ADDRESSES));
    let said = said.unwrap_or_else(|_| "127.0.0.1:0 127.0.0.1:0".to_owned());
    let services = [Survive::Fresh, Survive::State].map(Numbers);
    let listen = said.split(' ').zip(services);
    let listen = listen.map(|(address, service)| Listen::new(address.parse().unwrap(), service));
    let replace = if part == "successor" {
        Replace::Always
    } else {
        Replace::Never
    };
    let config = example::kept(Config {
        listen: listen.collect(),
        workers: NonZeroUsize::new(2),
        control: Some(ControlSocket {
            path: Some(folder.join("c.sock")),
            replace,
            ..ControlSocket::default()
        }),
        ..Config::default()
    });
    let server = Server::bind(config.unwrap()).unwrap();
    let addresses = server.addresses();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    fs::write(folder.join(ADDRESSES), addresses.join(" ")).unwrap();
    server.run().unwrap();
}

fn itself() -> [&'static str; 4] {
    let name = "keeper::chained::plays_its_part_if_it_has_one";
    ["--exact", name, "--nocapture", "--test-threads=1"]
}

type Held = (String, Vec<OwnedFd>);

/// A server, and what it has said to be kept.
struct Running {
    process: Child,
    line: OwnedFd,
    listens: Vec<Held>,
    stored: Vec<Held>,
    owns: bool,
}

impl Running {
    /// As `part`, with what one before it has left.
    fn start(folder: &Path, part: &str, left: &[(&str, &[Held])]) -> Self {
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (line, theirs) = pair.unwrap();
        let mut said = format!("{} {} 0", std::process::id(), theirs.as_raw_fd());
        let mut lent = vec![theirs.as_fd()];
        for (kind, held) in left {
            for (name, descriptors) in *held {
                let numbers = descriptors.iter().map(|one| one.as_raw_fd().to_string());
                let numbers: Vec<_> = numbers.collect();
                said.push_str(&format!(" {kind}:{name}:{}", numbers.join("+")));
                lent.extend(descriptors.iter().map(AsFd::as_fd));
            }
        }
        let lend = |flags| {
            for one in &lent {
                fcntl_setfd(one, flags).unwrap();
            }
        };
        lend(FdFlags::empty());
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(itself()).env("KEPT", said).env(PART, part);
        let process = command.env(FOLDER, folder).spawn().unwrap();
        lend(FdFlags::CLOEXEC);
        Self {
            process,
            line,
            listens: Vec::new(),
            stored: Vec::new(),
            owns: false,
        }
    }

    /// What it says next, if it has said something; `None` in that: it has ended.
    fn hear(&self) -> Option<Option<(String, String, Vec<OwnedFd>)>> {
        let ready = poll(
            &mut [PollFd::new(&self.line, PollFlags::IN)],
            Some(&Timespec::default()),
        );
        // A reset is told once, and then the end.
        (ready == Ok(1)).then(|| example::hear(&self.line).ok())?
    }
}

/// Stays: has a server, and while somebody wants that another one that takes over from it.
fn keep(folder: &Path) {
    let (mut listening, mut stored) = (Vec::new(), Vec::new());
    let mut running: Vec<Running> = Vec::new();
    let wanted = folder.join(WANTED);
    loop {
        if running.is_empty() {
            let left = [("listens", &listening[..]), ("stores", &stored[..])];
            running.push(Running::start(folder, "server", &left));
        }
        if running.len() == 1 && running[0].owns && wanted.exists() {
            running.push(Running::start(folder, "successor", &[]));
        }
        let lines = running.iter();
        let mut polled: Vec<_> = lines
            .map(|one| PollFd::new(&one.line, PollFlags::IN))
            .collect();
        let soon = Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        poll(&mut polled, Some(&soon)).unwrap();
        drop(polled);
        for at in (0..running.len()).rev() {
            while let Some(said) = running[at].hear() {
                let Some((what, name, along)) = said else {
                    let mut ended = running.remove(at);
                    // One that was taken over from, or that could not take over, is nothing to go on with.
                    ended.process.wait().unwrap();
                    if ended.owns {
                        stored = ended.stored;
                    }
                    break;
                };
                match what.as_str() {
                    "listens" => running[at].listens.push((name, along)),
                    "all" => listening = std::mem::take(&mut running[at].listens),
                    "stores" => running[at].stored.push((name, along)),
                    "gives-up" => running[at].stored.retain(|(one, _)| *one != name),
                    _ => {
                        stored.clear();
                        for (of, one) in running.iter_mut().enumerate() {
                            one.owns = of == at;
                            if of != at {
                                one.stored.clear();
                            }
                        }
                        if at > 0 {
                            fs::remove_file(&wanted).unwrap();
                        }
                    }
                }
            }
        }
    }
}

/// A keeper; it and its servers are ended when it is dropped.
struct Chain(Child);

impl Drop for Chain {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

#[test]
fn nothing_is_lost_or_said_twice_over_crashes_and_takeovers_by_turns() {
    let home = Home::new();
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(itself())
        .env(PART, "keeper")
        .env(FOLDER, &home.path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let chain = Chain(command.spawn().unwrap());
    let mut addresses: Vec<SocketAddr> = Vec::new();
    until("it listens", || {
        let said = fs::read_to_string(home.join(ADDRESSES)).unwrap_or_default();
        addresses = said.split(' ').flat_map(str::parse).collect();
        addresses.len() == 2
    });
    let mut clients = [Survive::Fresh, Survive::State].map(|survive| {
        let at = usize::from(survive == Survive::State);
        (Client::new(connect(addresses[at]), survive), 0)
    });
    for round in 0..8 {
        for (client, next) in &mut clients {
            // Each has been served something new: who was just being served twice, and nothing in between, is reset.
            client.go_on(next, MOST + 37 * round % 150);
        }
        let mut one = None;
        until("one server is left", || {
            let mut each = servers(chain.0.id());
            one = each.next().filter(|_| each.next().is_none());
            one.is_some()
        });
        if round % 2 == 0 {
            kill_process(one.unwrap(), Signal::KILL).unwrap();
        } else {
            fs::write(home.join(WANTED), "").unwrap();
            until("another one has taken over", || {
                for (client, next) in &mut clients {
                    client.push(next);
                    client.pull();
                }
                !home.join(WANTED).exists()
            });
        }
    }
    for (client, next) in clients {
        client.finish(next);
    }
}
