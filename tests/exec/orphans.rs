//! Processes that became the server's without being started by it: orphans in a container, children of an entrypoint.

use std::process::Command;

use super::{line, script};
use crate::support::{Server, cannot_run, read_to_fin, shell, until};

/// The processes whose parent is `parent`, with the letter of their state.
fn children_of(parent: u32) -> Vec<(u32, char)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_parent = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        (fields.next()?.parse::<u32>().ok()? == parent).then_some((pid, state))
    };
    processes.filter_map(of_parent).collect()
}

/// `standfast serve ARGS...` as the first process of a PID namespace, and its number outside; or why that cannot be.
fn first_process(args: &[&str]) -> Result<(Server, u32), String> {
    let unshare = || {
        let mut unshare = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        unshare
    };
    let tried = unshare().arg("true").output();
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => return Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => return Err(format!("unshare: {error}")),
    }
    let mut command = unshare();
    command.arg(env!("CARGO_BIN_EXE_standfast")).arg("serve");
    command.args(args).env_remove("RUST_LOG");
    let server = Server::spawn(command, 1);
    let first = children_of(server.pid());
    let &[(first, _)] = &first[..] else {
        return Err(format!("children of unshare: {first:?}"));
    };
    Ok((server, first))
}

#[test]
fn the_first_process_of_a_container_leaves_no_zombie_and_no_exit_status_out() {
    let script = "(sleep 0.1 <&- >&- 2>&- &); setsid sleep 0.1 <&- >&- 2>&- & echo hi; exit 3";
    let args = [
        "exec",
        "-l",
        "0",
        "--control",
        "off",
        "--",
        "sh",
        "-c",
        script,
    ];
    let (mut server, first) = match first_process(&args) {
        Ok(started) => started,
        Err(why) => return cannot_run("orphans in a PID namespace", &why),
    };
    for _ in 0..20 {
        assert_eq!(read_to_fin(&mut server.connect()), b"hi\n");
    }
    for _ in 0..20 {
        server.log_line("the exit status", |line| {
            line.contains(" info a process has failed ") && line.ends_with(" status=3")
        });
    }
    until("no orphan is left", || children_of(first).is_empty());
}

#[test]
fn the_children_of_an_entrypoint_leave_no_zombie() {
    let mut command = shell(
        r#"sleep 0.1 & true & exec "$@""#,
        &["serve", "echo", "-l", "0", "--control", "off"],
    );
    command.env_remove("RUST_LOG");
    let server = Server::spawn(command, 1);
    until("no child is left", || children_of(server.pid()).is_empty());
}

#[test]
fn who_is_no_first_process_has_no_thread_for_it() {
    let server = script(&[], "echo hi");
    assert_eq!(line(&mut server.connect()), "hi");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap();
    let mut names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    assert!(!names.any(|name| name.trim_end() == "orphans"));
}
