//! Where the control socket stands, who may be there before it, and what is left of it.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::SocketFlags;
use rustix::process::{Signal, geteuid};

use super::strangers::{User, seqpacket};
use super::stuck;
use crate::support::home::{Home, refusal, text};
use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, facts, output, until, until_another_signal_counts,
};

/// A control socket of this user's alone.
#[track_caller]
fn assert_private_socket(path: &Path, owner: u32) {
    let found = fs::symlink_metadata(path).unwrap();
    assert!(found.file_type().is_socket(), "{}", path.display());
    assert_eq!(found.mode() & 0o7777, 0o600, "{}", path.display());
    assert_eq!(found.uid(), owner, "{}", path.display());
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// The names in a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// What a server started as `command` says when it goes without a control socket, and serves all the same.
#[track_caller]
fn serves_without_control(command: Command) -> String {
    let mut server = Server::spawn(command, 1);
    let line = server.log_line("why there is no control socket", |line| {
        line.contains(" warn ") && line.contains("control socket")
    });
    assert_echoes(&mut server.connect(), b"it serves all the same");
    assert!(server.drain().success());
    line
}

// The default.

#[test]
fn it_stands_in_the_runtime_folder_and_is_this_users_alone() {
    let home = Home::new();
    let command = home.shell(r#"umask 000; exec "$@""#, &["serve", "-l", "0"]);
    let server = Server::spawn(command, 1);
    let folder = home.join("standfast");
    assert_eq!(mode(&folder), 0o700, "whatever the umask");
    let port = server.address().port();
    let socket = folder.join(format!("127.0.0.1-{port}.sock"));
    assert_private_socket(&socket, geteuid().as_raw());
    let lock = folder.join(format!("127.0.0.1-{port}.sock.lock"));
    assert_eq!(mode(&lock) & 0o077, 0, "the lock is this user's, too");
    assert_eq!(names(&folder).len(), 2, "{:?}", names(&folder));
}

#[test]
fn the_first_listener_gives_it_its_name() {
    for listen in ["[::1]:0", "127.0.0.2:0", ":0"] {
        let home = Home::new();
        let command = home.standfast(&["serve", "-l", listen, "-l", "0"]);
        let server = Server::spawn(command, 2);
        let socket = home.socket_of(&server);
        assert_private_socket(&socket, geteuid().as_raw());
        assert_eq!(names(socket.parent().unwrap()).len(), 2, "one of them");
    }
}

#[test]
fn a_runtime_folder_that_others_can_enter_is_not_used() {
    let home = Home::new();
    let folder = home.join("standfast");
    let refused = |why: &str| {
        let line = serves_without_control(home.standfast(&["serve", "-l", "0"]));
        assert!(line.contains(text(&folder)), "{why}: {line}");
    };
    fs::create_dir(&folder).unwrap();
    for open in [0o755, 0o770, 0o701, 0o707] {
        fs::set_permissions(&folder, Permissions::from_mode(open)).unwrap();
        refused("too open");
        assert!(names(&folder).is_empty());
        assert_eq!(mode(&folder), open, "nothing is changed behind one's back");
    }
    fs::remove_dir(&folder).unwrap();
    let elsewhere = home.join("elsewhere");
    DirBuilder::new().mode(0o700).create(&elsewhere).unwrap();
    symlink(&elsewhere, &folder).unwrap();
    refused("a link");
    assert!(names(&elsewhere).is_empty());
    fs::remove_file(&folder).unwrap();
    fs::write(&folder, "no folder").unwrap();
    refused("a file");
    assert_eq!(fs::read(&folder).unwrap(), b"no folder");
}

#[test]
fn a_default_path_too_long_for_a_socket_leaves_the_server_without_one() {
    let home = Home::new();
    let deep = home.join(&"d".repeat(100));
    fs::create_dir(&deep).unwrap();
    let mut command = home.standfast(&["serve", "-l", "0"]);
    command.env("XDG_RUNTIME_DIR", &deep);
    serves_without_control(command);
    assert!(names(&deep.join("standfast")).is_empty());
}

/// What stands at a path and is removed with the test.
struct Placed(PathBuf);

impl Placed {
    fn clear(&self) {
        let _ = fs::remove_file(&self.0);
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        self.clear();
    }
}

#[test]
fn without_a_runtime_folder_it_stands_in_a_folder_of_the_users_own_in_tmp() {
    const TEST: &str = "without_a_runtime_folder_it_stands_in_a_folder_of_the_users_own_in_tmp";
    let home = Home::new();
    let Some(user) = User::unused(&home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let folder = Placed(PathBuf::from(format!("/tmp/standfast-{}", user.uid)));
    let serve = || user.standfast(&["serve", "-l", "0"]);
    let mut server = Server::spawn(serve(), 1);
    let port = server.address().port().to_string();
    assert_eq!(mode(&folder.0), 0o700);
    let socket = folder.0.join(format!("127.0.0.1-{port}.sock"));
    assert_private_socket(&socket, user.uid);
    let (code, stdout, stderr) = output(user.standfast(&["status", &port]));
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(server.drain().success());
    assert!(names(&folder.0).is_empty());
    folder.clear();

    let refused = |why: &str| {
        let line = serves_without_control(serve());
        assert!(line.contains(text(&folder.0)), "{why}: {line}");
        let (code, line) = refusal(user.standfast(&["status", &port]));
        assert_eq!(code, 1, "{why}: {line}");
    };
    for (owner, mode, why) in [
        (geteuid().as_raw(), 0o777, "another user's"),
        (geteuid().as_raw(), 0o700, "another user's, and closed"),
        (user.uid, 0o755, "open to others"),
    ] {
        fs::create_dir(&folder.0).unwrap();
        fs::set_permissions(&folder.0, Permissions::from_mode(mode)).unwrap();
        chown(&folder.0, Some(owner), Some(owner)).unwrap();
        refused(why);
        assert!(names(&folder.0).is_empty(), "{why}");
        folder.clear();
    }
    let elsewhere = home.join("elsewhere");
    DirBuilder::new().mode(0o700).create(&elsewhere).unwrap();
    chown(&elsewhere, Some(user.uid), Some(user.uid)).unwrap();
    symlink(&elsewhere, &folder.0).unwrap();
    refused("a link");
    assert!(names(&elsewhere).is_empty());
}

#[test]
fn a_folder_in_tmp_that_another_user_made_is_not_looked_into() {
    const TEST: &str = "a_folder_in_tmp_that_another_user_made_is_not_looked_into";
    let home = Home::new();
    let Some(user) = User::unused(&home) else {
        return cannot_run(TEST, "root, to be another user");
    };
    let folder = Placed(PathBuf::from(format!("/tmp/standfast-{}", user.uid)));
    fs::create_dir(&folder.0).unwrap();
    fs::set_permissions(&folder.0, Permissions::from_mode(0o755)).unwrap();
    let socket = folder.0.join("127.0.0.1-7000.sock");
    let impostor = seqpacket::listen(&socket);
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    for named in [&[][..], &["7000"], &["127.0.0.1:7000"]] {
        let mut command = user.standfast(&[&["status"], named].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut asked = false;
        until("the answer", || {
            // Hung up on, so that nobody waits for an impostor's answer.
            if let Ok(caller) = rustix::net::accept_with(&impostor, SocketFlags::CLOEXEC) {
                let mut caller = UnixStream::from(caller);
                caller.set_read_timeout(Some(GUARD)).unwrap();
                asked |= caller.read(&mut [0; 4096]).unwrap() > 0;
            }
            child.try_wait().unwrap().is_some()
        });
        assert_eq!(child.wait().unwrap().code(), Some(1), "{named:?}");
        assert!(!asked, "{named:?}: the impostor was asked");
    }
}

#[test]
fn without_xdg_runtime_dir_it_stands_in_the_systems_runtime_folder() {
    const TEST: &str = "without_xdg_runtime_dir_it_stands_in_the_systems_runtime_folder";
    // A /run/user of its own, which goes away with the process.
    let mount = r#"mount -t tmpfs none /run/user && mkdir -m 700 "/run/user/$(id -u)" && "#;
    let private = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", &format!("{mount}{script}"), "sh"]);
        command.env_remove("XDG_RUNTIME_DIR");
        command
    };
    let possible = private("true").stderr(Stdio::null()).status();
    if !possible.is_ok_and(|status| status.success()) {
        return cannot_run(TEST, "root and /run/user, for a mount of its own");
    }
    let mut command = private(r#"exec "$@""#);
    command
        .arg(env!("CARGO_BIN_EXE_standfast"))
        .args(["serve", "-l", "0"]);
    let server = Server::spawn(command, 1);
    let uid = geteuid().as_raw();
    let folder = format!("/proc/{}/root/run/user/{uid}/standfast", server.pid());
    let folder = Path::new(&folder);
    assert_eq!(mode(folder), 0o700);
    let socket = folder.join(format!("127.0.0.1-{}.sock", server.address().port()));
    assert_private_socket(&socket, uid);
}

// A path that was asked for.

#[test]
fn a_path_that_was_asked_for_is_taken_relative_or_not() {
    let home = Home::new();
    let mut command = home.shell(
        r#"umask 000; exec "$@""#,
        &["serve", "-l", "0", "--control", "here.sock"],
    );
    command.current_dir(&home.path);
    let mut server = Server::spawn(command, 1);
    let socket = home.join("here.sock");
    assert_private_socket(&socket, geteuid().as_raw());
    let here = |args: &[&str]| {
        let mut command = home.standfast(args);
        command.current_dir(&home.path);
        output(command).0
    };
    for named in [
        &["--control", "here.sock"][..],
        &["./here.sock"],
        &[text(&socket)],
    ] {
        assert_eq!(here(&[&["status"], named].concat()), 0, "{named:?}");
    }
    // Under its port it is not found: it is not among the default ones.
    assert_eq!(here(&["status", &server.address().port().to_string()]), 1);
    assert!(server.drain().success());
    assert!(names(&home.path).is_empty(), "{:?}", names(&home.path));
}

#[test]
fn off_is_off() {
    let home = Home::new();
    let mut server = home.serve(&["--control", "off"]);
    assert!(names(&home.path).is_empty());
    let port = server.address().port().to_string();
    assert_eq!(home.refusal(&["status", &port]).0, 1);
    assert_echoes(&mut server.connect(), b"hello");
    assert!(server.drain().success());
    let warned = server.lines.iter().any(|line| line.contains(" warn "));
    assert!(!warned, "{:?}", server.lines);
}

#[test]
fn a_second_server_at_the_same_path_is_refused_and_the_first_goes_on() {
    let home = Home::new();
    let path = home.join("one.sock");
    let control = ["--control", text(&path)];
    let mut first = home.serve(&control);
    let mut client = first.connect();
    assert_echoes(&mut client, b"hello");
    let inode = fs::metadata(&path).unwrap().ino();
    let second = ["serve", "-l", "0", control[0], control[1]];
    for _ in 0..3 {
        let (code, line) = home.refusal(&second);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(text(&path)), "{line}");
        assert!(line.contains("another server"), "{line}");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        let status = home.json(&["status", text(&path)]);
        assert_eq!(status["pid"], first.pid());
        assert_echoes(&mut client, b"the first goes on");
    }
    drop(client);
    assert!(first.drain().success());
    let third = home.serve(&control);
    let status = home.json(&["status", text(&path)]);
    assert_eq!(status["pid"], third.pid());
}

#[test]
fn of_servers_that_start_together_at_one_path_one_has_it() {
    let home = Home::new();
    let path = home.join("one.sock");
    for _ in 0..5 {
        let start = || {
            let mut command = home.standfast(&["serve", "-q", "-l", "0", "--control", text(&path)]);
            command.stdout(Stdio::null());
            Server::launch(command)
        };
        let mut servers: Vec<_> = (0..6).map(|_| start()).collect();
        until("one is left", || {
            let running = servers.iter_mut().map(Server::is_running);
            running.filter(|running| *running).count() == 1
        });
        let at = servers.iter_mut().position(Server::is_running).unwrap();
        let mut winner = servers.remove(at);
        until("it answers", || {
            output(home.standfast(&["status", text(&path)])).0 == 0
        });
        let status = home.json(&["status", text(&path)]);
        assert_eq!(status["pid"], winner.pid());
        for loser in &mut servers {
            assert_eq!(loser.wait().code(), Some(1));
            assert_eq!(loser.lines.len(), 1, "{:?}", loser.lines);
        }
        assert!(winner.drain().success());
        assert!(names(&home.path).is_empty(), "{:?}", names(&home.path));
    }
}

#[test]
fn what_a_killed_server_left_is_no_obstacle() {
    let home = Home::new();
    let path = home.join("asked.sock");
    for asked in [false, true] {
        let control: &[&str] = if asked {
            &["--control", text(&path)]
        } else {
            &[]
        };
        // Where nobody else gets its port when it is free.
        let mut killed = home.serve(&[control, &["-l", "127.0.119.32:0"]].concat());
        let path = if asked {
            path.clone()
        } else {
            home.socket_of(&killed)
        };
        killed.signal(Signal::KILL);
        killed.wait();
        assert!(path.exists(), "nobody could take it away");
        let at = killed.address().to_string();
        let mut next = home.serve(&[control, &["-l", &at]].concat());
        assert_private_socket(&path, geteuid().as_raw());
        let status = home.json(&["status", text(&path)]);
        assert_eq!(status["pid"], next.pid());
        assert!(next.drain().success());
        assert!(!path.exists());
        let warned = next.lines.iter().any(|line| line.contains(" warn "));
        assert!(!warned, "{:?}", next.lines);
    }
}

#[test]
fn what_is_no_socket_is_left_as_it_is() {
    let home = Home::new();
    let file = home.join("file");
    fs::write(&file, "of somebody's").unwrap();
    fs::create_dir(home.join("folder")).unwrap();
    symlink(&file, home.join("link")).unwrap();
    symlink(home.join("nowhere"), home.join("dangling")).unwrap();
    let before = names(&home.path);
    for name in ["file", "folder", "link", "dangling"] {
        let path = home.join(name);
        let (code, line) = home.refusal(&["serve", "-l", "0", "--control", text(&path)]);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(text(&path)), "{line}");
    }
    assert_eq!(fs::read(&file).unwrap(), b"of somebody's");
    assert!(
        fs::symlink_metadata(home.join("link"))
            .unwrap()
            .is_symlink()
    );
    assert!(names(&home.join("folder")).is_empty());
    assert_eq!(names(&home.path), before, "and nothing is left beside it");
}

#[test]
fn a_path_that_cannot_be_had_is_one_line() {
    let home = Home::new();
    let missing = home.join("missing").join("x.sock");
    let in_file = home.join("file").join("x.sock");
    fs::write(home.join("file"), "").unwrap();
    let long = home.join(&"x".repeat(120));
    let locked = home.join("locked.sock");
    fs::create_dir(home.join("locked.sock.lock")).unwrap();
    let before = names(&home.path);
    for path in [missing, in_file, long, locked] {
        let (code, line) = home.refusal(&["serve", "-l", "0", "--control", text(&path)]);
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(text(&path)), "{line}");
    }
    assert_eq!(home.refusal(&["serve", "-l", "0", "--control", ""]).0, 2);
    assert_eq!(names(&home.path), before, "nothing is left");
}

// The end.

#[test]
fn after_a_normal_end_nothing_of_it_is_left() {
    let home = Home::new();
    let folder = home.join("standfast");
    for end in ["SIGTERM", "drain", "stop", "two signals"] {
        let mut server = home.serve(&["--drain-timeout", "off"]);
        assert_eq!(names(&folder).len(), 2, "the socket and its lock");
        let _slow = (end == "two signals").then(|| stuck(&home, &server));
        match end {
            "drain" | "stop" => drop(home.answer(&[end])),
            "SIGTERM" => server.signal(Signal::TERM),
            _ => {
                server.signal(Signal::TERM);
                server.log_line("the drain", |line| line.contains(" draining "));
                until_another_signal_counts();
                server.signal(Signal::TERM);
            }
        }
        server.wait();
        let left = names(&folder);
        assert!(left.is_empty(), "{end}: {left:?}");
    }
}

#[test]
fn what_somebody_else_put_in_its_place_stays() {
    let home = Home::new();
    let mut server = home.serve(&[]);
    let socket = home.socket_of(&server);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "of somebody's").unwrap();
    assert!(server.drain().success());
    assert_eq!(fs::read(&socket).unwrap(), b"of somebody's");
    let warned: Vec<_> = server.lines.iter().map(|line| facts(line)).collect();
    assert!(warned.iter().all(|facts| !facts.contains_key("error")));
}
