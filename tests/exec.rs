//! `standfast serve exec`: one process per connection, the socket as its stdin and stdout.

/// What is delivered after a program's end.
mod delivery;
/// What a program is given, and what it is not: descriptors, signals.
mod descriptors;
/// How a process and its connection end, each by the other or by a limit.
mod ends;
/// Processes that became the server's without being started by it.
mod orphans;
/// What a program gets and says: the socket, its environment, its stderr.
mod programs;
/// Processes and their connections in another process's hands.
mod takeover;

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::home::Home;
use crate::support::{GUARD, Server, now, until};

/// `serve exec FLAGS... -- PROGRAM...`, on a free port.
fn exec(flags: &[&str], program: &[&str]) -> Server {
    Server::start(&[&["exec", "-l", "0"], flags, &["--"], program].concat())
}

/// The same with `sh -c SCRIPT`.
fn script(flags: &[&str], script: &str) -> Server {
    exec(flags, &["sh", "-c", script])
}

/// A server on a Unix socket, and where that is.
fn local(home: &Home, flags: &[&str], what: &str) -> (Server, PathBuf) {
    let path = home.join("exec.sock");
    let at = format!("unix:{}", path.display());
    let args = [&["exec", "-l", &at], flags, &["--", "sh", "-c", what]];
    (Server::start(&args.concat()), path)
}

/// One line of what a process sends.
#[track_caller]
pub(crate) fn line(client: &mut TcpStream) -> String {
    use std::io::Read;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        client.read_exact(&mut byte).unwrap();
        if byte[0] == b'\n' {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte[0]);
    }
}

/// What `nc -N` prints that is given `input`, and whether it ended well.
fn netcat(server: &Server, input: &str) -> (bool, String) {
    let port = server.address().port().to_string();
    let mut nc = Command::new("nc.openbsd")
        .args(["-N", "127.0.0.1", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = nc.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    let end = now() + GUARD;
    until("nc ended", || {
        if now() + GUARD / 10 > end {
            let _ = nc.kill();
        }
        nc.try_wait().unwrap().is_some()
    });
    let output = nc.wait_with_output().unwrap();
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

/// The processes that `server` has started and that are there yet, with the letter of their state.
fn children(server: &Server) -> Vec<(i32, char)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_server = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        let parent: u32 = fields.next()?.parse().ok()?;
        (parent == server.pid()).then_some((pid, state))
    };
    processes.filter_map(of_server).collect()
}

/// Whether process `pid` is there, and no zombie.
pub(crate) fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
