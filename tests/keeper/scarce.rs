//! There is too little of something: of memory, of address space, of descriptors, or of those that may be under way.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use rustix::process::{
    PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_getfd, pidfd_open,
    prlimit,
};

use super::{Kept, pid};
use crate::support::home::{Home, text};
use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, children, connect, leave_address_space,
    leave_descriptors, until,
};

/// Clients of a server, each of which has been served.
fn clients(server: &Server, count: usize) -> Vec<TcpStream> {
    let connected = (0..count).map(|_| {
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        client
    });
    connected.collect()
}

/// Ends the server of that keeper, and waits until another one runs.
fn crash(keeper: u32) {
    let former = children(keeper);
    kill_process(former[0], Signal::KILL).unwrap();
    until("another one is started", || {
        let now = children(keeper);
        !now.is_empty() && now != former
    });
}

/// Whether what a client says is echoed.
fn goes_on(mut client: &TcpStream) -> bool {
    let said = client.write_all(b"x");
    matches!(said.and_then(|()| client.read(&mut [0])), Ok(1))
}

/// How many bytes wait in sockets that a keeper has of its server.
fn waiting(keeper: u32) -> u64 {
    let process = pidfd_open(pid(keeper.into()), PidfdFlags::empty()).unwrap();
    let open = std::fs::read_dir(format!("/proc/{keeper}/fd")).unwrap();
    let sockets = open.flatten().filter_map(|one| {
        let is_socket =
            std::fs::read_link(one.path()).is_ok_and(|path| text(&path).starts_with("socket:"));
        let number = one.file_name().to_str()?.parse().ok()?;
        // It may have been closed since.
        let socket = is_socket.then(|| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()));
        // A listening socket says nothing of that.
        rustix::io::ioctl_fionread(socket?.ok()?).ok()
    });
    sockets.sum()
}

/// The kernel counts what waits in sockets against the limit of descriptors of a user who is not root: there is not room for what
/// the former server has there, and beside that for the same of the next one.
#[test]
fn who_lives_goes_on_crash_after_crash_where_few_descriptors_may_be_under_way() {
    const TEST: &str = "who_lives_goes_on_crash_after_crash_where_few_descriptors_may_be_under_way";
    /// What is under way of a user's is counted for all its processes: nobody else here is this one.
    const USER: u32 = 47_114;
    const CLIENTS: usize = 280;
    if !rustix::process::geteuid().is_root() {
        return cannot_run(TEST, "root, to be a user of its own");
    }
    let home = Home::new();
    let run = home.join("run");
    std::fs::create_dir(&run).unwrap();
    chown(&run, Some(USER), Some(USER)).unwrap();
    let control = run.join("control");
    let mut args = vec!["serve", "--keep", "-l", "0", "--workers", "3"];
    args.extend(["--control", text(&control)]);
    let mut command = home.shell(r#"ulimit -n 400; exec "$@""#, &args);
    command.uid(USER).gid(USER);
    let kept = Kept::spawn(home, command, 1);
    let keeper = kept.keeper.pid();
    let mut clients = clients(&kept.keeper, CLIENTS);
    let all = 8 * CLIENTS as u64;
    for _ in 0..3 {
        crash(keeper);
        for client in &mut clients {
            assert_echoes(client, b"goes on");
        }
        // Who comes is let in, where the keeper has had the listening socket.
        assert_echoes(&mut kept.keeper.connect(), b"newcomer");
        until("all are there, and nothing of the former server", || {
            (all..all * 3 / 2).contains(&waiting(keeper))
        });
    }
}

/// With more and more address space it comes to serve; and whoever it has no room for in a vault, it says so.
#[test]
fn in_hardly_any_address_space_it_serves_or_says_why_not_and_who_is_kept_goes_on() {
    let (mut began, mut kept_on) = (false, false);
    for mib in [32, 64, 128, 512] {
        let home = Home::new();
        let script = format!("ulimit -v {}; exec \"$@\"", mib << 10);
        let args = ["serve", "--keep", "-l", "0", "--workers", "2"];
        let mut command = home.shell(&script, &args);
        // Without heaps for each thread, for which the C library reserves address space ahead.
        command.env("MALLOC_ARENA_MAX", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut keeper = Server::launch(command);
        if !keeper.has_said_something() {
            assert!(!began, "it served in less than {mib} MiB");
            keeper.wait();
            let said = keeper.lines.join("\n");
            // Where there is no program yet these are the loader's words.
            let mut lines = keeper.lines.iter();
            let why = lines.any(|line| line.contains("standfast: "));
            assert!(why || said.is_empty(), "{said}");
            continue;
        }
        began = true;
        let address = crate::support::listening(&keeper.stdout_line());
        keeper.addresses = vec![address];
        // With little memory a newcomer may be closed for that.
        let clients: Vec<_> = (0..20).map(|_| keeper.connect()).collect();
        let clients: Vec<_> = clients.iter().filter(|client| goes_on(client)).collect();
        for _ in 0..2 {
            crash(keeper.pid());
            let serves = goes_on(&connect(address));
            assert!(serves || mib < 128, "with {mib} MiB");
        }
        let live = clients.iter().filter(|client| goes_on(client)).count();
        kept_on |= live == 20;
        assert_eq!(keeper.drain().code(), Some(0), "{:?}", keeper.lines);
        let said = |what: &str| keeper.lines.iter().any(|line| line.contains(what));
        assert!(
            live == clients.len()
                || said(" warn a crash would close ")
                || said("cannot go on with"),
            "{live} with {mib} MiB: {:?}",
            keeper.lines
        );
    }
    assert!(began && kept_on);
}

#[test]
fn a_keeper_without_memory_tries_again_and_then_all_go_on() {
    let mut kept = Kept::start(&["--workers", "2"]);
    let mut clients = clients(&kept.keeper, 20);
    let keeper = kept.keeper.pid();
    kept.until_it_knows();
    leave_address_space(&kept.keeper, 0);
    let server = children(keeper);
    kill_process(server[0], Signal::KILL).unwrap();
    kept.keeper.log_line("what it lacks", |line| {
        line.contains("the keeper cannot start a server: ")
    });
    let none = Rlimit {
        current: None,
        maximum: None,
    };
    prlimit(Some(pid(keeper.into())), Resource::As, none).unwrap();
    for client in &mut clients {
        assert_echoes(client, b"goes on");
    }
    kept.assert_drains();
}

#[test]
fn a_keeper_without_descriptors_says_so_and_a_server_serves_again() {
    let mut kept = Kept::start(&["--workers", "1"]);
    let mut first = kept.connect();
    let keeper = kept.keeper.pid();
    kept.until_it_knows();
    let limit = prlimit_of(keeper);
    leave_descriptors(&kept.keeper, 0);
    // Until what waits is sent anew to a socket that the keeper cannot have.
    for _ in 0..1000 {
        drop(kept.connect());
    }
    kept.keeper.log_line("what it lacks", |line| {
        line.contains("the keeper has no descriptor left")
    });
    prlimit(Some(pid(keeper.into())), Resource::Nofile, limit).unwrap();
    crash(keeper);
    // Whether it was among those that the keeper has: it goes on or ends, and does not wait for ever.
    first.set_read_timeout(Some(GUARD)).unwrap();
    let went_on = first.write_all(b"x").and_then(|()| first.read(&mut [0]));
    if let Err(error) = went_on {
        assert_ne!(error.kind(), ErrorKind::WouldBlock);
    }
    let mut next = kept.connect();
    crash(keeper);
    assert_echoes(&mut next, b"and all is as before");
    kept.assert_drains();
}

fn prlimit_of(process: u32) -> Rlimit {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut numbers = line.unwrap().split_ascii_whitespace().skip(3);
    let mut next = || numbers.next().unwrap().parse().ok();
    Rlimit {
        current: next(),
        maximum: next(),
    }
}
