//! `--mptcp`: clients over several paths. What happens when one of the paths is cut shows `scripts/labs/mptcp`.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use socket2::{Domain, Protocol, Socket, Type};

use crate::support::home::Home;
use crate::support::{Server, assert_echoes, cannot_run, lacks, read_to_fin, standfast};

/// A client that speaks MPTCP; none where the kernel does not.
fn connect(to: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).ok()?;
    socket.connect(&to.into()).unwrap();
    Some(socket.into())
}

#[test]
fn clients_over_mptcp_and_over_tcp_are_served_side_by_side_and_taken_over() {
    let home = Home::new();
    let server = home.serve(&["--mptcp", "--dead-after", "10s"]);
    let Some(mut client) = connect(server.address()) else {
        let test = "clients_over_mptcp_and_over_tcp_are_served_side_by_side_and_taken_over";
        return cannot_run(test, "MPTCP in the kernel");
    };
    assert_echoes(&mut client, b"over several paths");
    let mut plain = server.connect();
    assert_echoes(&mut plain, b"over one");
    // Both are looked after: the deadline of the one is this process's own.
    let _successor = home.restart(&[]);
    for one in [&mut client, &mut plain] {
        assert_echoes(one, b"again");
        // A FIN is answered with one, behind everything.
        one.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(one), b"");
    }
    let mut another = connect(server.address()).unwrap();
    assert_echoes(&mut another, b"a newcomer");
}

/// A write takes the error that says so, and a read hears only that it is over.
#[test]
fn one_that_resets_with_output_on_its_way_is_no_vanished_one() {
    // A reset that a busy host drops comes anew as the answer to a probe.
    let mut server = Server::start(&["--mptcp", "--keepalive", "5:1:5"]);
    const COUNT: usize = 300;
    // One after the other without a pause: some are accepted in the moment of their reset.
    for _ in 0..COUNT {
        let Some(mut client) = connect(server.address()) else {
            let test = "one_that_resets_with_output_on_its_way_is_no_vanished_one";
            return cannot_run(test, "MPTCP in the kernel");
        };
        client.write_all(&[b'x'; 100_000]).unwrap();
        let socket = socket2::SockRef::from(&client);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    for _ in 0..COUNT {
        let closed = server.closed();
        closed.assert_error("peer-reset", "ECONNRESET");
    }
}

/// In a network of its own, whose kernel has it switched off.
#[test]
fn without_mptcp_in_the_kernel_one_line_says_so_and_tcp_is_served() {
    if lacks(&["unshare", "ip"]) {
        return;
    }
    let script = r#"ip link set lo up && echo 0 >/proc/sys/net/mptcp/enabled && exec "$@""#;
    let apart = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]);
        command.arg(standfast().get_program()).args(args);
        command
    };
    let shown = apart(&["check", "-l", "127.0.0.1:0", "--mptcp"])
        .output()
        .unwrap();
    let (told, said) = (
        String::from_utf8(shown.stdout).unwrap(),
        String::from_utf8(shown.stderr).unwrap(),
    );
    if said.contains("unshare") || said.contains("/proc/sys") {
        let test = "without_mptcp_in_the_kernel_one_line_says_so_and_tcp_is_served";
        return cannot_run(test, "root, for namespaces, and MPTCP in the kernel");
    }
    assert!(
        told.contains("mptcp                off              Protocol not available"),
        "{told}{said}"
    );
    let mut command = apart(&["serve", "-l", "127.0.0.1:0", "--mptcp", "--control", "off"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = Server::launch(command);
    server.log_line("what is lacking", |line| {
        line.contains("no MPTCP here, listening over TCP alone address=127.0.0.1:0 error=")
    });
    assert!(server.stdout_line().starts_with("listening on 127.0.0.1:"));
    assert!(server.drain().success());
}

#[test]
fn exec_which_gives_its_sockets_away_is_not_served_over_mptcp() {
    let mut command = standfast();
    command.args(["serve", "exec", "-l", "0", "--mptcp", "--", "cat"]);
    let (code, said) = crate::support::home::refusal(command);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--mptcp is not for exec"), "{said}");
}
