//! `serve --watch`: the program's file changes, and what is there runs, or not.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;

use super::Netcat;
use super::restart::{copy, put_script};
use crate::support::home::{Home, text};
use crate::support::{Orphan, Server, assert_echoes, shell, until};

/// A server that watches `program`, as typed.
fn serve(home: &Home, program: &Path, typed: &str) -> Server {
    serve_as(home, program, typed, "echo")
}

/// The same with a service, in the words of a shell.
fn serve_as(home: &Home, program: &Path, typed: &str, service: &str) -> Server {
    copy(program);
    let mut command = home.command("sh");
    command
        .args(["-c", &format!(r#"exec "$@" {service}"#), "sh", typed])
        .args(["serve", "--watch", "-l", "0"])
        .current_dir(&home.path);
    Server::spawn(command, 1)
}

/// Has `replace` put another file there, for which the server is restarted.
#[track_caller]
fn restarts(home: &Home, server: &mut Server, replace: impl Fn()) -> Orphan {
    let former = home.pid(&[]);
    server.restarted_for(replace);
    let mut now = former;
    until("the next one serves", || {
        now = home.pid(&[]);
        now != former
    });
    Orphan::new(now)
}

/// As cargo does: the linker's output, and then a second name of it.
fn link(at: &Path) {
    let made = at.with_extension("linked");
    let _ = fs::remove_file(&made);
    copy(&made);
    let _ = fs::remove_file(at);
    fs::hard_link(&made, at).unwrap();
}

/// As install(1) and rsync do.
fn rename(at: &Path) {
    let made = at.with_extension("made");
    copy(&made);
    fs::rename(&made, at).unwrap();
}

#[test]
fn a_netcat_goes_on_typing_while_builds_replace_the_program() {
    if crate::support::lacks(&["nc.openbsd"]) {
        return;
    }
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, "./standfast-here");
    let port = server.address().port().to_string();
    let mut typing = Netcat::start(&["-N", "127.0.0.1", &port]);
    typing.assert_echoes("before the change");
    let mut generations = Vec::new();
    for replace in [link, rename, link] {
        generations.push(restarts(&home, &mut server, || replace(&program)));
        typing.assert_echoes("after it");
    }
    // `cargo clean`: nothing to be run, and nothing to be said.
    fs::remove_file(&program).unwrap();
    generations.push(restarts(&home, &mut server, || rename(&program)));
    typing.assert_echoes("and after the last one");
    assert!(server.is_running(), "it stays in front");
    server.signal(Signal::INT);
    assert_eq!(server.wait().code(), Some(0));
    assert!(generations.iter().all(Orphan::has_ended));
    assert_eq!(typing.end(), Some(0));
    let drained = server
        .lines
        .iter()
        .filter(|line| line.contains(" info draining"));
    assert_eq!(drained.count(), 1, "the last generation alone");
    let ended = server.lines.iter().filter(|line| line.contains(" ended "));
    assert_eq!(ended.count(), 5, "{}", server.lines.join("\n"));
}

#[test]
fn the_process_in_front_ends_as_the_last_successor_did() {
    let home = Home::new();
    let program = home.join("standfast-here");
    // A build that crashes is no reason to take the one before for a success.
    for (signal, code, said) in [
        (Some(Signal::ABORT), 134, "signal: 6 (SIGABRT)"),
        (Some(Signal::KILL), 137, "signal: 9 (SIGKILL)"),
        (None, 1, "exit status: 1"),
    ] {
        let mut server = serve(&home, &program, text(&program));
        let mut generations = vec![restarts(&home, &mut server, || rename(&program))];
        generations.push(restarts(&home, &mut server, || rename(&program)));
        let mut client = server.connect();
        assert_echoes(&mut client, b"hello");
        until("the one in front waits for it", || {
            waits_for(server.pid(), home.pid(&[]))
        });
        match signal {
            Some(signal) => generations[1].signal(signal),
            // Who is served is cut off.
            None => assert_eq!(home.answer(&["stop"]), "stopping\n"),
        }
        assert_eq!(server.wait().code(), Some(code), "{said}");
        let end = format!("error the last successor ended: {said}");
        let told = server.lines.iter().any(|line| line.contains(&end));
        assert!(told, "{}", server.lines.join("\n"));
    }
}

/// Whether a process has a pidfd of another: `Pid:` of `proc_pid_fdinfo(5)`.
fn waits_for(waiting: u32, other: u32) -> bool {
    let wanted = format!("Pid:\t{other}\n");
    let files = fs::read_dir(format!("/proc/{waiting}/fdinfo")).unwrap();
    let mut files = files.filter_map(|file| fs::read_to_string(file.ok()?.path()).ok());
    files.any(|file| file.contains(&wanted))
}

#[test]
fn a_successor_that_crashes_as_soon_as_it_has_taken_over_is_no_success() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let first = restarts(&home, &mut server, || rename(&program));
    let second = restarts(&home, &mut server, || {
        rename(&program);
    });
    // If it is there yet, the one in front has not heard of the second one.
    first.signal(Signal::STOP);
    second.signal(Signal::KILL);
    until("it has ended", || second.has_ended());
    first.signal(Signal::CONT);
    assert_ne!(server.wait().code(), Some(0));
}

#[test]
fn a_link_to_another_program_is_a_change() {
    let home = Home::new();
    let [one, two, link] = ["one", "two", "standfast-link"].map(|name| home.join(name));
    copy(&two);
    symlink(&one, &link).unwrap();
    let mut server = serve(&home, &one, "./standfast-link");
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let running =
        |home: &Home| -> PathBuf { fs::read_link(format!("/proc/{}/exe", home.pid(&[]))).unwrap() };
    let mut generations = Vec::new();
    for target in [&two, &one] {
        let next = restarts(&home, &mut server, || {
            // The file behind it is another one each time it is tried.
            rename(target);
            let made = home.join("made");
            symlink(target, &made).unwrap();
            fs::rename(&made, &link).unwrap();
        });
        assert_eq!(&running(&home), target);
        assert_echoes(&mut client, b"and on");
        // The next generation looks in turn.
        generations.push(next);
    }
    home.answer(&["stop"]);
    server.wait();
}

#[test]
fn a_build_that_does_not_run_changes_nothing_and_says_so_in_one_line() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let mut client = server.connect();
    let own = server.pid();
    let whole = fs::read(env!("CARGO_BIN_EXE_standfast")).unwrap();
    let mut alien = whole[..4096].to_vec();
    // e_machine of elf(5): a 68000.
    alien[18..20].copy_from_slice(&4_u16.to_ne_bytes());
    let put = |bytes: &[u8], mode: u32| {
        let made = program.with_extension("made");
        fs::write(&made, bytes).unwrap();
        fs::set_permissions(&made, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&made, &program).unwrap();
    };
    let mut refused = |why: &str| {
        let line = server.log_line(why, |line| {
            let busy = line.contains(" stood still");
            line.contains(" warn ") && !busy || line.contains("restarting")
        });
        assert!(
            line.contains(" warn the new program does not run, the server goes on program="),
            "{line}"
        );
        assert!(line.contains(why), "{why}: {line}");
        assert_echoes(&mut client, b"it serves on");
        assert_eq!(home.pid(&[]), own);
    };
    put_script(&program, "#!/bin/sh\nkill -SEGV $$\n");
    refused("signal: 11");
    put_script(&program, "#!/bin/sh\necho no such library >&2; exit 127\n");
    refused("exit status: 127: no such library");
    put_script(&program, "#!/bin/sh\necho other 1.0\n");
    refused("it says");
    put(&alien, 0o755);
    refused("Exec format error");
    put(b"", 0o755);
    refused("Exec format error");
    // A linker that has not come far.
    put(&whole[..65536], 0o755);
    refused("--version ended with signal");
    put(&whole, 0o644);
    refused("ermission denied");
    put_script(&program, "#!/bin/sh\nexec tail -f /dev/null\n");
    refused("no answer to --version within 10 s");
    let next = restarts(&home, &mut server, || rename(&program));
    assert_echoes(&mut client, b"and on");
    drop(next);
    assert_eq!(server.wait().code(), Some(137), "its successor was killed");
    let warned = |line: &&String| line.contains(" does not run");
    assert_eq!(server.lines.iter().filter(warned).count(), 8);
}

#[test]
fn a_program_that_becomes_executable_is_tried_again() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let mut client = server.connect();
    let next = restarts(&home, &mut server, || {
        let made = program.with_extension("made");
        copy(&made);
        fs::set_permissions(&made, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&made, &program).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    });
    assert_echoes(&mut client, b"and on");
    drop(next);
    server.wait();
}

#[test]
fn a_program_that_is_being_written_is_waited_for() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let former = home.pid(&[]);
    // It is open for writing until its stdin ends.
    let mut writer = shell(
        r#"cat "$1" >made && chmod 755 made && exec 3>>made && mv made "$2" && read line"#,
        &[],
    )
    .arg(&program)
    .current_dir(&home.path)
    .stdin(Stdio::piped())
    .spawn()
    .unwrap();
    let line = server.log_line("that it is written", |line| {
        line.contains("open for writing")
    });
    assert!(
        line.contains(" info the new program is still open for writing program="),
        "{line}"
    );
    assert_echoes(&mut client, b"it serves on");
    assert_eq!(home.pid(&[]), former);
    drop(writer.stdin.take());
    writer.wait().unwrap();
    let restarted = server.log_line("the restart", |line| {
        line.contains(" took over ") || line.contains(" warn ")
    });
    if restarted.contains(" warn ") {
        // A busy machine.
        restarts(&home, &mut server, || rename(&program));
    }
    assert_echoes(&mut client, b"and on");
    let said = |line: &&String| line.contains("open for writing");
    assert_eq!(server.lines.iter().filter(said).count(), 1);
    home.answer(&["stop"]);
    server.wait();
}

#[test]
fn a_second_signal_to_the_one_in_front_ends_the_successor_at_once() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let next = restarts(&home, &mut server, || rename(&program));
    let mut client = server.connect();
    crate::support::send_until_stuck(&mut client, &[b'x'; 65536]);
    server.signal(Signal::TERM);
    until("the successor drains", || {
        home.json(&["status"])["draining"] == true
    });
    crate::support::until_another_signal_counts();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(1), "the client was cut off");
    assert!(next.has_ended());
}

#[test]
fn both_open_the_log_anew_when_the_one_in_front_is_told_to() {
    let home = Home::new();
    let (program, path, old) = (
        home.join("standfast-here"),
        home.join("log"),
        home.join("log.1"),
    );
    let mut server = serve_as(&home, &program, text(&program), "--log-file log");
    let mut client = server.connect();
    let former = home.pid(&[]);
    // A busy machine may be too slow for a takeover, and then nothing happens before the next change.
    let says = |path: &Path, what: &str| {
        fs::read_to_string(path)
            .unwrap_or_default()
            .matches(what)
            .count()
    };
    let mut refusals = 0;
    rename(&program);
    until("the next one serves", || {
        let refused = says(&path, " warn not restarted");
        if refused > refusals {
            refusals = refused;
            rename(&program);
        }
        says(&path, " info staying, ") == 1 && home.pid(&[]) != former
    });
    let next = Orphan::new(home.pid(&[]));
    fs::rename(&path, &old).unwrap();
    server.signal(Signal::USR1);
    until("both have", || {
        says(&path, " info log file opened anew ") == 2
    });
    assert_echoes(&mut client, b"and on");
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(next.has_ended());
    assert_eq!(says(&path, " info ended "), 1);
}

#[test]
fn another_terminal_s_server_takes_over_from_one_that_watches_and_it_ends() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let mut server = serve(&home, &program, text(&program));
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let mut next = home.succeed(&mut server, &[]);
    assert_echoes(&mut client, b"and on");
    drop(client);
    assert!(next.drain().success());
}

#[test]
fn programs_that_serve_on_are_waited_for_when_they_end() {
    let home = Home::new();
    let program = home.join("standfast-here");
    let script = "exec -- sh -c 'echo $$; read line'";
    let mut server = serve_as(&home, &program, text(&program), script);
    let mut client = server.connect();
    let pid = crate::exec::line(&mut client);
    let next = restarts(&home, &mut server, || rename(&program));
    let entry = PathBuf::from(format!("/proc/{pid}"));
    assert!(entry.exists());
    client.write_all(b"go\n").unwrap();
    crate::support::read_to_fin(&mut client);
    until("it is no zombie of the one in front", || !entry.exists());
    assert!(server.is_running());
    drop(next);
    server.wait();
}

#[test]
fn watching_wants_the_control_socket() {
    let home = Home::new();
    let (code, line) = home.refusal(&["serve", "-l", "0", "--watch", "--control", "off"]);
    assert_eq!(code, 2, "{line}");
    assert!(
        line.contains("--watch needs the control socket, which is off"),
        "{line}"
    );
}
