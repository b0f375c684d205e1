//! Whose a path is: foreign sockets at it, pipes in the place of locks, and who cleans up.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::strangers::seqpacket;
use crate::support::home::{Home, text};
use crate::support::{Orphan, Server, lacks};

/// A server on `unix:PATH` with its control socket beside it.
struct Pair {
    home: Home,
    path: PathBuf,
    control: PathBuf,
    server: Server,
}

impl Pair {
    fn start() -> Self {
        let home = Home::new();
        let (path, control) = (home.join("x.sock"), home.join("c.sock"));
        let server = serve(&home, &path, &control);
        Self {
            home,
            path,
            control,
            server,
        }
    }

    fn restart(&self) -> Orphan {
        self.home.restart(&[text(&self.control)]).0
    }

    fn pid(&self) -> u32 {
        self.home.pid(&[text(&self.control)])
    }
}

fn serve(home: &Home, path: &Path, control: &Path) -> Server {
    let address = format!("unix:{}", path.display());
    let mut command = home.standfast(&["serve", "-l", &address, "--control", text(control)]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Server::launch(command);
    assert_eq!(server.stdout_line(), format!("listening on {address}"));
    server
}

fn lock_of(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.lock", path.display()))
}

/// What whoever cleans up a folder does.
fn clean(path: &Path) {
    fs::remove_file(path).unwrap();
    fs::remove_file(lock_of(path)).unwrap();
}

#[test]
fn another_programs_socket_in_our_place_outlives_the_server() {
    for restarts in [0, 2] {
        let mut pair = Pair::start();
        let generations: Vec<_> = (0..restarts).map(|_| pair.restart()).collect();
        clean(&pair.path);
        let theirs = UnixListener::bind(&pair.path).unwrap();
        pair.home.answer(&["drain", text(&pair.control)]);
        assert!(pair.server.wait().success(), "with {restarts} restarts");
        UnixStream::connect(&pair.path).unwrap();
        theirs.accept().unwrap();
        assert!(!pair.control.exists(), "what was ours is gone");
        drop(generations);
    }
}

#[test]
fn another_programs_control_socket_outlives_the_server_too() {
    let mut pair = Pair::start();
    clean(&pair.control);
    let _theirs = seqpacket::listen(&pair.control);
    assert!(pair.server.drain().success());
    assert!(seqpacket::connect(&pair.control).is_some());
    assert!(!pair.path.exists(), "what was ours is gone");
}

#[test]
fn a_server_that_came_when_all_was_cleaned_up_stays_to_be_found() {
    for restarts in [0, 1] {
        let mut first = Pair::start();
        let generations: Vec<_> = (0..restarts).map(|_| first.restart()).collect();
        let pid = first.pid();
        clean(&first.path);
        clean(&first.control);
        let second = serve(&first.home, &first.path, &first.control);
        match generations.first() {
            None => first.server.signal(rustix::process::Signal::TERM),
            Some(next) => next.signal(rustix::process::Signal::TERM),
        }
        assert!(first.server.wait().success(), "pid {pid} has ended");
        assert_eq!(first.pid(), second.pid());
        UnixStream::connect(&first.path).unwrap();
        let address = format!("unix:{}", first.path.display());
        for control in [text(&first.control), "off"] {
            let third = ["serve", "-l", &address, "--control", control];
            let (code, line) = first.home.refusal(&third);
            assert_eq!(code, 1, "{line}");
        }
    }
}

#[test]
fn the_socket_stays_the_same_over_takeovers() {
    let pair = Pair::start();
    let inodes = || [&pair.path, &pair.control].map(|path| fs::metadata(path).unwrap().ino());
    let before = inodes();
    let _generations = [pair.restart(), pair.restart()];
    assert_eq!(inodes(), before);
}

#[test]
fn systemd_tmpfiles_spares_the_sockets_of_a_server_that_lives() {
    if lacks(&["systemd-tmpfiles"]) {
        return;
    }
    let pair = Pair::start();
    let _next = pair.restart();
    let config = pair.home.join("tmpfiles.conf");
    let rubbish = pair.home.join("rubbish");
    let clean_up = || {
        fs::write(&config, format!("e {} - - - 0\n", text(&pair.home.path))).unwrap();
        fs::write(&rubbish, "").unwrap();
        let mut command = Command::new("systemd-tmpfiles");
        let status = command.arg("--clean").arg(&config).status().unwrap();
        assert!(status.success() && !rubbish.exists(), "it cleans up");
    };
    clean_up();
    for path in [&pair.path, &pair.control] {
        assert!(
            path.exists() && lock_of(path).exists(),
            "{}",
            path.display()
        );
    }
    let _next = pair.restart();
    UnixStream::connect(&pair.path).unwrap();
}

/// Neither clients nor orders can be heard at `path`, which `why` tells.
#[track_caller]
fn assert_refused_at(home: &Home, path: &Path, why: &str) {
    let address = format!("unix:{}", path.display());
    for args in [
        ["-l", &*address, "--control", "off"],
        ["-l", "0", "--control", text(path)],
    ] {
        let (code, line) = home.refusal(&[&["serve"][..], &args].concat());
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn a_pipe_in_the_place_of_a_lock_is_refused_at_once() {
    let home = Home::new();
    let path = home.join("x.sock");
    let made = Command::new("mkfifo").arg(lock_of(&path)).status();
    assert!(made.unwrap().success());
    assert_refused_at(&home, &path, "x.sock.lock");
    assert!(lock_of(&path).exists());
}

#[test]
fn who_listens_at_a_path_and_accepts_nobody_is_not_waited_for() {
    let home = Home::new();
    let path = home.join("x.sock");
    let _theirs = seqpacket::listen(&path);
    let callers: Vec<_> = std::iter::from_fn(|| seqpacket::connect(&path)).collect();
    assert!(!callers.is_empty(), "until its queue is full");
    assert_refused_at(&home, &path, "another program listens there");
}
