//! `--user`, `--group`, and what programs of `exec` may do.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::process::Command;

use crate::support::home::{Home, number, refusal, text};
use crate::support::{
    Orphan, Server, assert_echoes, cannot_run, connect, lacks, output, restarted, standfast, until,
};

const NOBODY: u32 = 65534;
/// A group that nobody is put into.
const EXTRA: u32 = 54321;

fn is_root(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        cannot_run(test, "it takes root to become another user");
    }
    is_root
}

/// A folder for the control socket of a server that becomes nobody.
fn folder_of_nobody(home: &Home) -> PathBuf {
    let folder = home.join("run");
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    folder
}

/// `standfast ARGS...` on a host of whose groups `nobody` is in one more.
fn with_groups(home: &Home, args: &[&str]) -> Command {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let path = home.join("group");
    fs::write(&path, format!("{groups}extra:x:{EXTRA}:nobody\n")).unwrap();
    let mut command = Command::new("unshare");
    let script = "mount --bind \"$1\" /etc/group && shift && exec \"$@\"";
    command.args(["--mount", "sh", "-c", script, "sh", text(&path)]);
    command.arg(standfast().get_program()).args(args);
    command.env_remove("RUST_LOG");
    command
}

/// What every thread of a process says in its lines `keys` of `/proc/PID/task/TID/status`.
#[track_caller]
fn status(pid: u32, keys: &[&str]) -> Vec<String> {
    let mut said: Option<Vec<String>> = None;
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let Ok(status) = fs::read_to_string(task.unwrap().path().join("status")) else {
            continue;
        };
        let line = |key: &&str| {
            let line = status.lines().find_map(|line| line.strip_prefix(*key));
            line.unwrap()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        let lines: Vec<String> = keys.iter().map(line).collect();
        assert_eq!(
            *said.get_or_insert_with(|| lines.clone()),
            lines,
            "all threads alike"
        );
    }
    said.unwrap()
}

#[track_caller]
fn assert_is_nobody(pid: u32) {
    let keys = [
        "Uid:", "Gid:", "Groups:", "CapInh:", "CapPrm:", "CapEff:", "CapAmb:",
    ];
    let id = [NOBODY; 4].map(|id| id.to_string()).join(" ");
    let groups = format!("{EXTRA} {NOBODY}");
    let none = "0".repeat(16);
    assert_eq!(
        status(pid, &keys),
        [&*id, &*id, &*groups, &*none, &*none, &*none, &*none]
    );
}

#[test]
fn a_server_of_root_becomes_who_was_said_and_so_does_its_successor_without_root() {
    if !is_root("--user") || lacks(&["unshare", "mount", "setpriv"]) {
        return;
    }
    let home = Home::new();
    let control = folder_of_nobody(&home).join("c.sock");
    let unix = format!("unix:{},mode=600", text(&home.join("run/s")));
    let flags = [
        "serve",
        "-l",
        "0",
        "-l",
        &unix,
        "--user",
        "nobody",
        "--control",
        text(&control),
    ];
    let log = home.join("run/log");
    let flags = [&flags[..], &["--log-file", text(&log)]].concat();
    let mut server = Server::spawn(with_groups(&home, &flags), 1);
    server.stdout_line();
    assert_is_nobody(server.pid());
    for path in [&control, &home.join("run/s"), &log] {
        let found = fs::metadata(path).unwrap();
        assert_eq!(
            (found.uid(), found.gid()),
            (NOBODY, NOBODY),
            "{}",
            path.display()
        );
    }
    let mut client = connect(server.address());
    assert_echoes(&mut client, b"hello");
    // It is asked as that user.
    let as_nobody = |question: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(standfast().get_program());
        command.args([question, "--json", "--control", text(&control)]);
        command
    };
    let pid_now = || {
        let (code, stdout, stderr) = output(as_nobody("status"));
        assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
        let status: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        u32::try_from(number(&status["pid"])).unwrap()
    };
    assert_eq!(pid_now(), server.pid());
    let (code, stdout, stderr) = restarted(|| as_nobody("restart"));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    until("the predecessor's end", || !server.is_running());
    let next = Orphan::new(pid_now());
    assert_is_nobody(pid_now());
    assert_echoes(&mut client, b"still there");
    drop(client);
    assert_eq!(output(as_nobody("drain")).0, 0);
    until("the end", || next.has_ended());
    assert!(!home.join("run/s").exists() && !control.exists());
}

#[test]
fn a_group_alone_is_the_only_one_that_is_left() {
    if !is_root("--group") {
        return;
    }
    let server = Server::start(&["--group", "54321", "--control", "off"]);
    assert_eq!(
        status(server.pid(), &["Uid:", "Gid:", "Groups:"]),
        ["0 0 0 0", "54321 54321 54321 54321", "54321"]
    );
}

#[test]
fn who_cannot_be_become_is_refused_in_one_line() {
    for command in ["serve", "check"] {
        for (flags, why) in [
            (
                ["--user", "no-such-user"],
                "--user: this host has no user \"no-such-user\"",
            ),
            (
                ["--group", "no-such-group"],
                "--group: this host has no group \"no-such-group\"",
            ),
        ] {
            let mut asked = standfast();
            asked.args([command, "-l", "0"]).args(flags);
            let (code, line) = refusal(asked);
            assert_eq!(code, 2, "{line}");
            assert!(line.contains(why), "{line}");
        }
    }
    if !is_root("--user without root") || lacks(&["setpriv"]) {
        return;
    }
    let as_nobody = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.arg(standfast().get_program());
        command.args(["serve", "-l", "0", "--control", "off", "--user", user]);
        command
    };
    let (code, line) = refusal(as_nobody("daemon"));
    assert_eq!(code, 2, "{line}");
    assert!(line.contains("only root can become another user"), "{line}");
    let mut itself = Server::spawn(as_nobody("nobody"), 1);
    assert!(
        itself.drain().success(),
        "who it is already it need not become"
    );
}

/// What a program prints that `serve exec ARGS...` runs.
fn program(flags: &[&str], script: &str) -> String {
    let mut args = vec!["exec"];
    args.extend(flags);
    args.extend(["-l", "0", "--control", "off", "--", "sh", "-c", script]);
    let server = Server::start(&args);
    let mut said = String::new();
    connect(server.address()).read_to_string(&mut said).unwrap();
    said
}

#[test]
fn a_program_has_the_limits_that_were_said() {
    let limits = [
        "--exec-limit",
        "nofile=17",
        "--exec-limit",
        "cpu=7",
        "--exec-limit",
        "core=0",
        "--exec-limit",
        "fsize=64k",
        "--exec-limit",
        "as=1g",
        "--exec-limit",
        "nproc=9999",
    ];
    let said = program(&limits, "cat /proc/self/limits");
    for (name, most) in [
        ("Max open files", 17_u64),
        ("Max cpu time", 7),
        ("Max core file size", 0),
        ("Max file size", 64 << 10),
        ("Max address space", 1 << 30),
        ("Max processes", 9999),
    ] {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        let mut fields = line
            .unwrap_or_else(|| panic!("{name} in {said}"))
            .split_whitespace();
        let most = most.to_string();
        assert_eq!([fields.next(), fields.next()], [Some(&*most); 2], "{name}");
    }
    for wrong in ["nofile", "files=3", "nofile=1", "cpu=-1"] {
        let line = refused(&["--exec-limit", wrong]);
        assert!(line.contains("--exec-limit"), "{line}");
    }
}

/// Why a server that runs programs is refused with these flags.
fn refused(flags: &[&str]) -> String {
    let mut asked = standfast();
    asked.args(["serve", "exec", "-l", "0"]).args(flags);
    asked.args(["--", "true"]);
    let (code, line) = refusal(asked);
    assert_eq!(code, 2, "{line}");
    line
}

const RIGHTS: &str = "grep -E '^(Uid|NoNewPrivs|CapEff)' /proc/self/status | tr -s '\\t\\n' ' '";

#[test]
fn a_program_gains_no_rights_where_that_was_said() {
    assert!(program(&[], RIGHTS).contains("NoNewPrivs: 0"));
    assert!(program(&["--exec-no-new-privs"], RIGHTS).contains("NoNewPrivs: 1"));
}

#[test]
fn a_program_runs_as_who_was_said() {
    if !is_root("--exec-user") {
        return;
    }
    let said = program(&["--exec-user", "nobody"], RIGHTS);
    assert!(said.contains("Uid: 65534 65534 65534 65534 "), "{said}");
    assert!(
        said.contains("CapEff: 0000000000000000 NoNewPrivs: 1"),
        "{said}"
    );
    assert_eq!(program(&["--exec-user", "nobody"], "id -G"), "65534\n");
    assert!(program(&["--user", "nobody"], RIGHTS).contains("NoNewPrivs: 1"));
    let line = refused(&["--user", "nobody", "--exec-user", "daemon"]);
    assert!(line.contains("which --user and --group give up"), "{line}");
}
