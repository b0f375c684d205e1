//! What the command line refuses: one clear line, and exit code 2 where it was asked wrongly, 1 where the system said no.

use std::net::TcpListener;
use std::process::Command;

use crate::support::{Server, assert_echoes, cannot_run, output, standfast, until};

/// The only line in `stderr`, which names the program.
pub(super) fn one_line(stderr: &str) -> String {
    let line = stderr.trim_end_matches('\n');
    assert!(
        line.starts_with("standfast: ") && !line.contains('\n'),
        "one clear line:\n{stderr}"
    );
    line.to_owned()
}

/// What `standfast serve ARGS...` says when it refuses to run, and its exit code.
fn refused(args: &[&str]) -> (i32, String) {
    let mut command = standfast();
    command.arg("serve").args(args);
    let (code, stdout, stderr) = output(command);
    assert_eq!(stdout, "", "{args:?}: nothing was listening");
    (code, one_line(&stderr))
}

/// `standfast serve` and `standfast check` refuse `args` as asked wrongly, with `hint`.
#[track_caller]
pub(crate) fn assert_usage(args: &[&str], hint: &str) {
    for subcommand in ["serve", "check"] {
        let mut command = standfast();
        command.arg(subcommand).args(args);
        let (code, stdout, stderr) = output(command);
        assert_eq!(
            (code, stdout.as_str()),
            (2, ""),
            "{subcommand} {args:?}: {stderr}"
        );
        assert!(
            stderr.contains(hint),
            "{subcommand} {args:?}: {hint:?} in:\n{stderr}"
        );
        one_line(&stderr);
    }
}

#[test]
fn an_address_that_does_not_parse_is_refused_with_a_hint() {
    for (address, hint) in [
        ("", "expected PORT"),
        ("localhost", "expected PORT"),
        ("localhost:", "is not a port"),
        ("localhost:http", "is not a port"),
        ("localhost:65536", "is not a port"),
        ("70000", "is not a port"),
        (":", "is not a port"),
        ("::1:7000", "brackets"),
        ("[::1]", "[IPV6]:PORT"),
        ("[nope]:7000", "is not an IPv6 address"),
        ("[127.0.0.1]:7000", "is not an IPv6 address"),
        ("fd:", "is not a descriptor"),
        ("fd:x", "is not a descriptor"),
        ("fd:-1", "is not a descriptor"),
    ] {
        assert_usage(&["-l", address], hint);
    }
}

#[test]
fn a_duration_of_zero_or_less_or_garbage_is_refused_with_a_hint() {
    const FLAGS: [&str; 5] = [
        "--read-timeout",
        "--write-timeout",
        "--half-close-timeout",
        "--drain-timeout",
        "--user-timeout",
    ];
    assert_usage(&["--dead-after", "0"], "0 would be at once");
    for flag in FLAGS {
        assert_usage(&[flag, "0"], "say off");
    }
    for (value, hint) in [
        ("0ms", "say off"),
        ("-5", "say off"),
        ("-5s", "say off"),
        ("", "expected a number"),
        ("soon", "expected a number"),
        ("5w", "use ms, s, m, h or d"),
        ("1.5x", "use ms, s, m, h or d"),
        ("0.0001", "finer than a millisecond"),
        ("99999999999999999999", "expected a number"),
        ("99999999d", "hundred years"),
    ] {
        assert_usage(&["-i", value], hint);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused_with_both_values() {
    assert_usage(
        &["echo", "-m", "10", "--max-conns-per-ip", "11"],
        "--max-conns-per-ip 11 is above --max-conns 10",
    );
    let forward = |args: &[&'static str]| [&["forward", "127.0.0.1:9"], args].concat();
    assert_usage(
        &forward(&["--connect-timeout", "30s", "--upstream-wait", "5s"]),
        "--connect-timeout 30s is longer than --upstream-wait 5s",
    );
    // Refused by the library, for an embedder is told the same.
    for (bound, user_timeout, needed) in [("10s", "60s", "69 s"), ("10s", "8s", "11 s")] {
        let args = ["--dead-after", bound, "--user-timeout", user_timeout];
        for words in [&["check"][..], &["serve", "-l", "0"], &["connect", "9"]] {
            let mut command = standfast();
            command.args(words).args(args);
            let (code, _, stderr) = output(command);
            assert_ne!(code, 0, "{words:?}");
            assert!(stderr.contains("longer than dead-after 10 s"), "{stderr}");
            assert!(stderr.contains(needed), "{stderr}");
        }
    }
}

#[test]
fn a_size_or_a_count_of_nothing_is_refused_with_a_hint() {
    for (value, hint) in [
        ("0", "0 bytes"),
        ("-1", "such as 256k"),
        ("k", "such as 256k"),
        ("1t", "such as 256k"),
        ("99999999999999g", "more bytes than memory"),
    ] {
        assert_usage(&["--buffer", value], hint);
    }
    for flag in [
        "--max-conns",
        "--max-conns-per-ip",
        "--backlog",
        "--workers",
    ] {
        for value in ["0", "-1", "many"] {
            assert_usage(&[flag, value], flag);
        }
    }
}

#[test]
fn keepalive_values_that_make_no_sense_or_that_the_kernel_refuses_are_refused() {
    for (value, hint) in [
        ("60", "IDLE:INTERVAL:RETRIES"),
        ("60:10:3:1", "IDLE:INTERVAL:RETRIES"),
        ("0:10:3", "idle is 0"),
        ("60:-1:3", "interval"),
        ("60:10:x", "retries"),
        ("99999:10:3", "99999:10:3 (the kernel takes 1 to 32767 s"),
        ("60:99999:3", "60:99999:3 (the kernel takes 1 to 32767 s"),
        ("60:10:128", "60:10:128 (the kernel takes"),
    ] {
        assert_usage(&["--keepalive", value], hint);
    }
}

#[test]
fn a_dead_after_that_cannot_be_kept_is_refused() {
    assert_usage(&["--dead-after", "4s"], "at least 5 s");
    assert_usage(
        &["--dead-after", "60s", "--keepalive", "60:10:3"],
        "takes up to 102 s",
    );
    assert_usage(
        &["--dead-after", "60s", "--keepalive", "off"],
        "needs keepalive, which is off",
    );
}

#[test]
fn what_does_not_exist_or_fit_together_is_refused() {
    assert_usage(&["nosuch"], "echo, discard, print");
    assert_usage(&["--nosuch"], "--nosuch");
    assert_usage(&["--prefix", "echo"], "--prefix is for the service print");
    assert_usage(
        &["echo", "--send-proxy", "v1"],
        "--send-proxy is for the service forward",
    );
    assert_usage(&["echo", "80"], "80: the service echo works on nothing");
    assert_usage(&["forward", "80", "--send-proxy", "v3"], "v1 or v2");
    assert_usage(&["-q", "-v"], "--quiet");
    assert_usage(&["--log-format", "xml"], "text, json, logfmt");
    assert_usage(&["--when-full", "maybe"], "close, wait");
    assert_usage(&["-l"], "--listen");
    let mut command = standfast();
    command.arg("nosuch");
    let (code, _, stderr) = output(command);
    assert_eq!(code, 2, "{stderr}");
    assert!(one_line(&stderr).contains("nosuch"), "{stderr}");
    let (code, stdout, _) = output(standfast());
    assert_eq!((code, stdout.as_str()), (2, ""), "no command");
}

#[test]
fn a_port_in_use_names_its_holder() {
    let server = Server::start(&["-l", ":0"]);
    let port = server.address().port().to_string();
    let holder = format!("pid {} (standfast)", server.pid());
    for (form, address) in [
        (format!(":{port}"), format!("[::]:{port}")),
        (port.clone(), format!("127.0.0.1:{port}")),
        (format!("[::1]:{port}"), format!("[::1]:{port}")),
    ] {
        let (code, line) = refused(&["-l", &form]);
        assert_eq!(code, 1, "{line}");
        assert!(
            line.contains(&format!("cannot listen on {address}, held by {holder}")),
            "{line}"
        );
    }
    assert_echoes(&mut server.connect(), b"the holder goes on");
}

#[test]
fn a_port_in_use_by_another_address_of_the_same_number_names_the_right_holder() {
    let server = Server::start(&["-l", "127.0.0.1:0"]);
    let port = server.address().port();
    // Where no other test has that port.
    let ours = TcpListener::bind(("127.0.119.3", port)).unwrap();
    for (address, pid) in [
        (server.address(), server.pid()),
        (ours.local_addr().unwrap(), std::process::id()),
    ] {
        // What another test has just forked holds all that this process does, until it is another program.
        until("the holder is named", || {
            let (code, line) = refused(&["-l", &address.to_string()]);
            assert_eq!(code, 1, "{line}");
            assert!(line.contains("held by pid "), "{line}");
            line.contains(&format!("held by pid {pid} "))
        });
    }
}

#[test]
fn one_address_that_fails_fails_all() {
    let holder = Server::start(&[]);
    let taken = holder.address().to_string();
    let (code, line) = refused(&["-l", "0", "-l", &taken]);
    assert_eq!(code, 1, "{line}");
    assert!(line.contains(&taken), "{line}");
}

#[test]
fn an_address_that_is_not_on_this_host_is_refused() {
    // Reserved for documentation (RFC 5737, RFC 3849): on no host.
    for address in ["192.0.2.1:7000", "[2001:db8::1]:7000"] {
        let (code, line) = refused(&["-l", address]);
        assert_eq!(code, 1, "{line}");
        assert!(
            line.contains(&format!("cannot listen on {address}")),
            "{line}"
        );
        assert!(line.contains("no address of this host"), "{line}");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_refused() {
    for subcommand in ["serve", "check"] {
        let mut command = standfast();
        command.args([subcommand, "-l", "nosuchhost.invalid:7000"]);
        let (code, stdout, stderr) = output(command);
        let line = one_line(&stderr);
        assert_eq!((code, stdout.as_str()), (1, ""), "{line}");
        assert!(
            line.contains("cannot resolve nosuchhost.invalid:7000"),
            "{line}"
        );
    }
}

#[test]
fn a_privileged_port_without_the_right_is_refused() {
    const TEST: &str = "a_privileged_port_without_the_right_is_refused";
    let first_free = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first_free: u16 = first_free.map_or(1024, |port| port.trim().parse().unwrap());
    if first_free <= 1 {
        return cannot_run(
            TEST,
            "net.ipv4.ip_unprivileged_port_start leaves no port privileged",
        );
    }
    let address = format!("127.0.0.1:{}", first_free - 1);
    let mut command = standfast();
    if rustix::process::geteuid().is_root() {
        if Command::new("setpriv").arg("--version").output().is_err() {
            return cannot_run(TEST, "setpriv");
        }
        // Another user need not be able to reach the binary; root without the capability is as powerless.
        let binary = command.get_program().to_owned();
        command = Command::new("setpriv");
        command
            .arg("--bounding-set=-net_bind_service")
            .arg("--inh-caps=-net_bind_service")
            .arg(binary);
    }
    command.args(["serve", "-l", &address]);
    let (code, stdout, stderr) = output(command);
    let line = one_line(&stderr);
    assert_eq!((code, stdout.as_str()), (1, ""), "{line}");
    assert!(
        line.contains(&format!("cannot listen on {address}")),
        "{line}"
    );
    assert!(
        line.contains("ip_unprivileged_port_start"),
        "says what to do: {line}"
    );
}
