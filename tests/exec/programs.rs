//! What a program gets and says: the socket, its environment, its stderr.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use super::{exec, line, netcat, script};
use crate::support::home::Home;
use crate::support::{Server, output, pass, read_to_fin, standfast};

#[test]
fn what_netcat_sends_comes_back_from_cat() {
    if crate::support::lacks(&["nc.openbsd"]) {
        return;
    }
    let mut server = exec(&[], &["cat"]);
    assert_eq!(
        netcat(&server, "one\ntwo\n"),
        (true, "one\ntwo\n".to_owned())
    );
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!((closed.get("read"), closed.get("written")), ("8", "8"));
    assert!(server.drain().success());
}

#[test]
fn a_script_talks_with_netcat_and_knows_who_it_is() {
    if crate::support::lacks(&["nc.openbsd"]) {
        return;
    }
    let mut server = script(
        &[],
        "echo hello $TCPREMOTEIP; read x; echo you said $x; cat",
    );
    assert_eq!(
        netcat(&server, "something\n"),
        (true, "hello 127.0.0.1\nyou said something\n".to_owned())
    );
    assert_eq!(server.closed().reason(), "peer-closed");
}

#[test]
fn a_program_that_ends_first_ends_the_connection_with_reason_service() {
    let mut server = script(&[], "echo bye");
    let mut client = server.connect();
    assert_eq!(read_to_fin(&mut client), b"bye\n");
    let closed = server.closed();
    assert_eq!((closed.reason(), closed.get("written")), ("service", "4"));
}

#[test]
fn a_program_that_reads_nothing_loses_nothing_of_its_answer() {
    let mut server = script(&[], "sleep 0.2; head -c 1000000 /dev/zero");
    let mut client = server.connect();
    client.write_all(&[b'x'; 10_000]).unwrap();
    // A reader that takes its time: what the process has left behind is the kernel's to deliver.
    let mut begun = [0; 1000];
    client.read_exact(&mut begun).unwrap();
    pass(std::time::Duration::from_millis(500));
    assert_eq!(
        read_to_fin(&mut client).len(),
        999_000,
        "no reset before that"
    );
    assert_eq!(server.closed().reason(), "service");
}

#[test]
fn the_socket_blocks_as_programs_expect() {
    // dd(1) fails at the first EAGAIN.
    let server = exec(
        &[],
        &["dd", "if=/dev/zero", "bs=1M", "count=20", "status=none"],
    );
    let mut client = server.connect();
    pass(std::time::Duration::from_millis(300));
    let mut count = 0;
    let mut buffer = vec![0; 65536];
    while let Ok(more @ 1..) = client.read(&mut buffer) {
        count += more;
    }
    assert_eq!(count, 20 << 20);
}

/// What `env` tells a client of `server`.
fn environment(mut client: impl Read) -> Vec<String> {
    let mut text = String::new();
    client.read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_told(environment: &[String], expected: &[String]) {
    for one in expected {
        assert!(environment.contains(one), "{one} in {environment:#?}");
    }
}

#[test]
fn the_environment_is_that_of_ucspi_tcp_ncat_and_systemd() {
    let mut command = standfast();
    command
        .args(["serve", "exec", "-l", "0", "--", "env"])
        .env("TCPREMOTEHOST", "of.somebody.else")
        .env("LISTEN_FDNAMES", "not-theirs")
        .env("SSL_CLIENT_VERIFY", "SUCCESS")
        .env("KEPT", "as it is");
    let server = Server::spawn(command, 1);
    let client = server.connect();
    let (near, far) = (client.local_addr().unwrap(), server.address());
    let told = environment(client);
    let mut expected = vec!["PROTO=TCP".to_owned(), "NCAT_PROTO=TCP".to_owned()];
    for (name, value) in [
        ("TCPREMOTEIP", near.ip().to_string()),
        ("TCPREMOTEPORT", near.port().to_string()),
        ("TCPLOCALIP", far.ip().to_string()),
        ("TCPLOCALPORT", far.port().to_string()),
        ("NCAT_REMOTE_ADDR", near.ip().to_string()),
        ("NCAT_REMOTE_PORT", near.port().to_string()),
        ("NCAT_LOCAL_ADDR", far.ip().to_string()),
        ("NCAT_LOCAL_PORT", far.port().to_string()),
        ("REMOTE_ADDR", near.ip().to_string()),
        ("REMOTE_PORT", near.port().to_string()),
        ("KEPT", "as it is".to_owned()),
    ] {
        expected.push(format!("{name}={value}"));
    }
    assert_told(&told, &expected);
    for stale in ["TCPREMOTEHOST=", "LISTEN_FDNAMES=", "SSL_CLIENT_VERIFY="] {
        assert!(!told.iter().any(|one| one.starts_with(stale)), "{told:#?}");
    }
}

#[test]
fn an_ipv6_client_and_one_of_a_unix_socket_are_told_as_such() {
    let server = Server::start(&["exec", "-l", "[::1]:0", "--", "env"]);
    let told = environment(server.connect());
    let expected = ["PROTO=TCP6", "TCPREMOTEIP=::1", "TCP6REMOTEIP=::1"];
    assert_told(&told, &expected.map(str::to_owned));

    let home = Home::new();
    let path = home.join("exec.sock");
    let at = format!("unix:{}", path.display());
    let mut server = Server::start(&["exec", "-l", &at, "--", "env"]);
    let told = environment(UnixStream::connect(&path).unwrap());
    let expected = [
        "PROTO=UNIX".to_owned(),
        format!("UNIXREMOTEPID={}", std::process::id()),
    ];
    assert_told(&told, &expected);
    assert_eq!(server.closed().reason(), "service");
}

#[test]
fn nothing_of_the_client_gets_into_a_shell() {
    let server = exec(
        &[],
        &[
            "sh",
            "-c",
            "read x; echo \"<$x>\"",
            "$(touch /tmp/never)",
            "; exit",
        ],
    );
    let mut client = server.connect();
    client.write_all(b"$(echo broken)\n").unwrap();
    assert_eq!(line(&mut client), "<$(echo broken)>");
}

#[test]
fn stderr_goes_to_the_log_line_by_line_with_the_connection_it_is_of() {
    let mut server = script(
        &[],
        "read x; printf 'of %s\\nand \\033[2J the rest' $x >&2; echo done",
    );
    let mut clients: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        writeln!(client, "{at}").unwrap();
        assert_eq!(line(client), "done");
    }
    for _ in 0..3 {
        server.closed();
    }
    for at in 0..3 {
        let of = |line: &&String| line.contains(&format!("line=\"of {at}\""));
        let first = server.lines.iter().find(of);
        let first = first.unwrap_or_else(|| panic!("{:#?}", server.lines));
        let id = crate::support::facts(first)["id"].clone();
        let rest = format!("stderr id={id} line=\"and \\\\u{{1b}}[2J the rest\"");
        assert!(
            server.lines.iter().any(|line| line.contains(&rest)),
            "{rest} in {:#?}",
            server.lines
        );
    }
}

#[test]
fn a_flood_on_stderr_stops_nobody() {
    let mut server = script(&[], "yes flood | head -c 3000000 >&2; echo done");
    let mut other = {
        let mut client = server.connect();
        assert_eq!(line(&mut client), "done");
        client
    };
    assert_eq!(read_to_fin(&mut other), b"");
    assert_eq!(server.closed().reason(), "service");
}

/// Lines that are empty cost a program one byte each, and a log a hundred.
#[test]
fn a_flood_of_empty_lines_is_counted_and_not_logged() {
    let mut server = script(
        &[],
        "echo first >&2; yes '' | head -n 300000 >&2; echo done; read x; sleep 1.1; echo last >&2",
    );
    let mut client = server.connect();
    assert_eq!(line(&mut client), "done");
    drop(client);
    let closed = server.closed();
    let of = |what: &str| -> Vec<&String> {
        let lines = server.lines.iter();
        lines.filter(|line| line.contains(what)).collect()
    };
    let (logged, left_out) = (
        of(" info stderr id=1 line="),
        of(" info stderr left out id=1 "),
    );
    let counted: usize = left_out
        .iter()
        .map(|line| {
            crate::support::facts(line)["lines"]
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(logged.len() + counted, 300_002, "{}", closed.line);
    // However long that took: 500 of a second, and one for the rest.
    let seconds = usize::try_from(closed.age().as_secs()).unwrap() + 2;
    assert!(
        logged.len() <= 500 * seconds,
        "{} in {}",
        logged.len(),
        closed.line
    );
    assert!(left_out.len() <= seconds, "{left_out:#?}");
    assert!(logged.last().unwrap().ends_with("line=last"), "{logged:#?}");
}

#[test]
fn stderr_goes_where_it_is_told_to() {
    let server = script(&["--stderr", "socket"], "echo to the client >&2");
    assert_eq!(read_to_fin(&mut server.connect()), b"to the client\n");

    let mut server = script(&["--stderr", "null"], "echo lost >&2; echo found");
    assert_eq!(read_to_fin(&mut server.connect()), b"found\n");
    server.closed();
    assert!(!server.lines.iter().any(|line| line.contains("lost")));

    let mut server = script(&["--stderr", "inherit"], "echo as it is >&2");
    assert_eq!(read_to_fin(&mut server.connect()), b"");
    server.log_line("the very line", |line| line == "as it is");
}

#[test]
fn a_program_that_cannot_be_run_is_said_at_the_start() {
    for (args, said) in [
        (&["exec"][..], "exec needs a program"),
        (
            &["exec", "--", "no-such-program"],
            "cannot run no-such-program: no such program in PATH",
        ),
        (
            &["exec", "--", "/no/such"],
            "cannot run /no/such: no such file",
        ),
        (
            &["exec", "--", "/etc/passwd"],
            "/etc/passwd is not executable",
        ),
        (&["exec", "--", "/tmp"], "/tmp is no file"),
        (
            &["exec", "--max-children", "0", "--", "cat"],
            "0 would let nobody in",
        ),
        (
            &["echo", "--max-children", "3"],
            "--max-children is for the service exec, not echo",
        ),
        (
            &["echo", "--exec-timeout", "3"],
            "--exec-timeout is for the service exec, not echo",
        ),
    ] {
        let mut command = standfast();
        command
            .args(["serve", "-l", "0", "--control", "off"])
            .args(args);
        let (code, stdout, stderr) = output(command);
        assert_eq!((code, &*stdout), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(said), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// It would be refused to each client.
#[test]
fn what_the_kernel_cannot_run_is_said_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    let ran = home.join("ran");
    // A program for a machine that this is not: s390x, with nothing else in its header amiss.
    let mut foreign = std::fs::read("/bin/true").unwrap();
    foreign[18..20].copy_from_slice(&22_u16.to_be_bytes());
    foreign[5] = 2;
    let script = format!("echo ran >{}\n", ran.display());
    let missing = format!("#!/no/such/interpreter -x\n{script}");
    for (content, said) in [
        (
            script.as_bytes(),
            "is nothing that this system runs: a script begins with #!",
        ),
        (&foreign, "is nothing that this system runs: "),
        (missing.as_bytes(), "/no/such/interpreter, is missing"),
        (b"", "is nothing that this system runs: "),
    ] {
        let program = home.join("program");
        std::fs::write(&program, content).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = standfast();
        command.args(["serve", "exec", "-l", "0", "--control", "off", "--"]);
        let (code, stdout, stderr) = output({
            command.arg(&program);
            command
        });
        assert_eq!((code, &*stdout), (2, ""), "{stderr}");
        assert!(stderr.contains(said), "{said}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    // And to see that costs not even an instruction of what it can run.
    let program = home.join("program");
    std::fs::write(&program, format!("#!/bin/sh\n{script}")).unwrap();
    let server = exec(&[], &[program.to_str().unwrap()]);
    assert!(!ran.exists());
    read_to_fin(&mut server.connect());
    assert!(ran.exists());
}

#[test]
fn a_program_that_is_gone_later_ends_the_connection_and_nothing_else() {
    let home = Home::new();
    let program = home.join("program");
    std::os::unix::fs::symlink("/bin/cat", &program).unwrap();
    let mut server = exec(&[], &[program.to_str().unwrap()]);
    let mut first = server.connect();
    first.write_all(b"before\n").unwrap();
    assert_eq!(line(&mut first), "before");
    std::fs::remove_file(&program).unwrap();
    let mut second = server.connect();
    second.write_all(b"unread").unwrap();
    assert_eq!(read_to_fin(&mut second), b"");
    server.log_line("a warning", |line| {
        line.contains(" warn cannot start a process ") && line.contains("No such file")
    });
    second.shutdown(Shutdown::Both).unwrap();
    assert_eq!(server.closed().reason(), "service");
    first.write_all(b"after\n").unwrap();
    assert_eq!(line(&mut first), "after");
}
