//! The services: echo, discard, print.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use socket2::SockRef;

use crate::support::clients::{unacknowledged, vanish};
use crate::support::home::{Home, entry, number};
use crate::support::seeded::Seeded;
use crate::support::{
    GUARD, Server, assert_echoes, cannot_run, connect, listening, now, pass, read_to_fin,
    send_until_stuck, standfast, undeafen, until, until_another_signal_counts,
};

#[test]
fn echo_sends_every_byte_back_before_its_fin() {
    let mut server = Server::start(&["echo"]);
    let mut client = server.connect();
    client.write_all(b"hello").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut echoed = Vec::new();
    client.read_to_end(&mut echoed).unwrap();
    assert_eq!(echoed, b"hello");
    let closed = server.closed();
    assert_eq!(
        (closed.reason(), closed.get("read"), closed.get("written")),
        ("peer-closed", "5", "5")
    );
}

/// Bytes without a pattern that could hide a mistake, the same for the same `seed`.
fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Seeded::new(seed);
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn echo_of_many_megabytes_is_byte_exact() {
    let mut server = Server::start(&["echo"]);
    let bytes = noise(1, 8 << 20);
    let mut client = server.connect();
    let mut sender = client.try_clone().unwrap();
    let echoed = thread::scope(|scope| {
        scope.spawn(|| {
            sender.write_all(&bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        read_to_fin(&mut client)
    });
    assert!(echoed == bytes, "{} bytes back", echoed.len());
    let closed = server.closed();
    assert_eq!(closed.reason(), "peer-closed");
    assert_eq!(closed.get("read"), bytes.len().to_string());
    assert_eq!(closed.get("written"), bytes.len().to_string());
}

#[test]
fn discard_reads_everything_and_answers_nothing() {
    let mut server = Server::start(&["discard"]);
    let mut client = server.connect();
    let chunk = [b'x'; 1 << 20];
    for _ in 0..64 {
        client.write_all(&chunk).unwrap();
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    let closed = server.closed();
    assert_eq!(
        (closed.reason(), closed.get("read"), closed.get("written")),
        ("peer-closed", "67108864", "0")
    );
}

// Print.

/// What `client` number `at` has to say: lines of many lengths, the last one without an end.
fn lines_of(at: usize) -> String {
    let mut text = String::new();
    for line in 0..1_000 {
        let filler = "=".repeat((at * 7_919 + line * 104_729) % 300);
        text.push_str(&format!("client {at} line {line} {filler}\n"));
    }
    text
}

/// Sends `bytes` in pieces that end anywhere, then FIN, and waits for the server's.
fn tell(mut client: TcpStream, bytes: &[u8], seed: u64) {
    client.set_nodelay(true).unwrap();
    let mut sizes = noise(seed, 4096).into_iter().cycle();
    let mut rest = bytes;
    while !rest.is_empty() {
        let size = 1 + usize::from(sizes.next().unwrap()) * 4;
        let (piece, more) = rest.split_at(size.min(rest.len()));
        client.write_all(piece).unwrap();
        rest = more;
    }
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"", "print answers nothing");
}

/// Its last words are on their way when the server ends it, at its read deadline or in a drain: it has not heard yet.
#[test]
fn print_shows_what_comes_between_its_end_and_the_client_s() {
    for (args, reason) in [(&["-i", "1s"][..], "read-timeout"), (&[], "drain")] {
        let home = Home::new();
        let mut server = home.serve(&[&["print"], args].concat());
        let mut client = server.connect();
        client.write_all(b"first\nbegun, ").unwrap();
        assert_eq!(server.stdout_bytes(6), b"first\n");
        vanish(&client);
        if reason == "drain" {
            server.signal(Signal::TERM);
        }
        // Nothing else waits for an acknowledgement than our FIN.
        until("our FIN", || {
            number(&entry(&home.json(&["list"]), &client)["unacknowledged"]) == 1
        });
        client.write_all(b"ended\nlast").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.stdout_bytes(17), b"begun, ended\nlast", "{reason}");
        undeafen(&client);
        let closed = server.closed();
        assert_eq!(closed.reason(), reason, "{}", closed.line);
        assert_eq!(closed.get("read"), "23");
        if reason != "drain" {
            server.signal(Signal::TERM);
        }
        assert_eq!(server.wait().code(), Some(0));
        assert_eq!(server.stdout_rest(), b"");
    }
}

/// It is heard until it has said all, or for a second.
#[test]
fn print_waits_only_so_long_for_the_client_s_end() {
    let mut server = Server::start(&["print", "--drain-timeout", "off"]);
    let mut client = server.connect();
    client.write_all(b"first\nwithout an end").unwrap();
    assert_eq!(server.stdout_bytes(6), b"first\n");
    assert_eq!(server.drain().code(), Some(0));
    assert_eq!(server.stdout_rest(), b"without an end");
    assert_eq!(read_to_fin(&mut client), b"");
}

#[test]
fn print_is_byte_exact_per_client_and_never_interleaves_lines() {
    const CLIENTS: usize = 16;
    let mut server = Server::start(&["print", "--workers", "3"]);
    let address = server.address();
    thread::scope(|scope| {
        for at in 0..CLIENTS {
            scope.spawn(move || {
                let client = connect(address);
                tell(client, lines_of(at).as_bytes(), at as u64);
            });
        }
    });
    assert_eq!(server.drain().code(), Some(0));
    let mut printed: HashMap<String, String> = HashMap::new();
    for line in String::from_utf8(server.stdout_rest()).unwrap().lines() {
        let client = line.split(' ').nth(1).unwrap_or(line).to_owned();
        *printed.entry(client).or_default() += &format!("{line}\n");
    }
    assert_eq!(printed.len(), CLIENTS, "no line but whole ones");
    for at in 0..CLIENTS {
        assert!(printed[&at.to_string()] == lines_of(at), "client {at}");
    }
}

#[test]
fn print_shows_any_byte_as_it_came() {
    let mut server = Server::start(&["print"]);
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    tell(server.connect(), &bytes, 1);
    assert!(server.stdout_bytes(bytes.len()) == bytes);
}

#[test]
fn print_shows_a_last_line_without_an_end() {
    let mut server = Server::start(&["print"]);
    tell(server.connect(), b"one\ntwo", 1);
    assert_eq!(server.stdout_bytes(7), b"one\ntwo");
    // Without --prefix nothing is added: what follows stands right behind.
    tell(server.connect(), b"three\n", 1);
    assert_eq!(server.stdout_bytes(6), b"three\n");
    assert_eq!(server.drain().code(), Some(0));
    assert_eq!(server.stdout_rest(), b"");
}

#[test]
fn print_shows_a_line_as_soon_as_it_ends() {
    let mut server = Server::start(&["print"]);
    let mut client = server.connect();
    client.write_all(b"one\ntw").unwrap();
    assert_eq!(server.stdout_line(), "one");
    client.write_all(b"o\n").unwrap();
    assert_eq!(server.stdout_line(), "two");
}

#[test]
fn print_shows_what_came_before_a_reset() {
    let mut server = Server::start(&["print"]);
    let mut client = server.connect();
    client.write_all(b"one\ntwo").unwrap();
    assert_eq!(server.stdout_line(), "one");
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
    assert_eq!(server.stdout_bytes(3), b"two");
    assert_eq!(server.closed().reason(), "peer-reset");
}

#[test]
fn print_shows_a_line_longer_than_the_buffer_in_pieces() {
    let mut server = Server::start(&["print", "--buffer", "4k"]);
    let clients: Vec<_> = (0..4_u8).map(|at| (b'a' + at, server.connect())).collect();
    thread::scope(|scope| {
        for (letter, client) in clients {
            scope.spawn(move || {
                let mut line = vec![letter; 300_000];
                line.push(b'\n');
                tell(client, &line, u64::from(letter));
            });
        }
    });
    let printed = server.stdout_bytes(4 * 300_001);
    for letter in b'a'..=b'd' {
        let count = printed.iter().filter(|&&byte| byte == letter).count();
        assert_eq!(count, 300_000, "{}", char::from(letter));
    }
    // A piece is not torn into smaller ones by other clients.
    let pieces = printed.chunk_by(|one, other| one == other);
    assert!(pieces.count() <= 4 * (300_001 / 4096 + 2));
}

#[test]
fn print_tells_who_said_it() {
    let mut server = Server::start(&["print", "--prefix"]);
    let mut clients = [server.connect(), server.connect()];
    let [one, two] = [0, 1].map(|at| clients[at].local_addr().unwrap());
    clients[0].write_all(b"first\n\nthird\n").unwrap();
    for text in ["first", "", "third"] {
        assert_eq!(server.stdout_line(), format!("{one}: {text}").trim_end());
    }
    clients[1].write_all(b"hello\nno end").unwrap();
    assert_eq!(server.stdout_line(), format!("{two}: hello"));
    clients[1].shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut clients[1]), b"");
    clients[0].write_all(b"fourth\n").unwrap();
    assert_eq!(
        server.stdout_line(),
        format!("{two}: no end"),
        "gets an end"
    );
    assert_eq!(server.stdout_line(), format!("{one}: fourth"));
}

/// `serve print ARGS...` with a stdout that is a pipe of ours, read up to behind the line of its listener.
fn printing_into_a_pipe(args: &[&str]) -> (Server, BufReader<PipeReader>) {
    let (stdout, theirs) = std::io::pipe().unwrap();
    let mut command = standfast();
    command.args(["serve", "print", "-l", "0"]).args(args);
    command.stdin(Stdio::null()).stdout(theirs);
    let mut server = Server::launch(command);
    // A buffer of one byte: it takes nothing out of the pipe that was not asked for.
    let mut stdout = BufReader::with_capacity(1, stdout);
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    server.addresses.push(listening(line.trim_end()));
    (server, stdout)
}

/// Deadlines and a drain come while nothing can be printed: what clients sent by then is printed all the same, and
/// waiting for that costs nothing.
#[test]
fn what_clients_left_while_stdout_blocks_is_printed_whatever_ends_them() {
    let flags = ["--half-close-timeout", "1s", "--read-timeout", "1s"];
    let (mut server, stdout) = printing_into_a_pipe(&flags);
    let mut filler = server.connect();
    let sent = send_until_stuck(&mut filler, b"=======\n");
    let mut gone = server.connect();
    gone.write_all(b"left without an end").unwrap();
    gone.shutdown(Shutdown::Write).unwrap();
    let mut silent = server.connect();
    silent.write_all(b"silent without an end").unwrap();
    pass(Duration::from_millis(2500));
    let cpu = server.cpu();
    pass(Duration::from_secs(1));
    let spent = server.cpu() - cpu;
    assert!(spent < Duration::from_millis(200), "{spent:?} of waiting");

    server.signal(Signal::TERM);
    let mut printed = Vec::new();
    BufReader::new(stdout).read_to_end(&mut printed).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    let printed = String::from_utf8(printed).unwrap();
    for words in ["left without an end", "silent without an end"] {
        assert!(printed.contains(words), "{words} is missing");
    }
    assert!(printed.len() <= sent + 40, "{} of {sent}", printed.len());
}

#[test]
fn a_stdout_that_blocks_slows_the_clients_and_not_the_program() {
    const CLIENTS: usize = 8;
    // A client that is slowed by us is not silent: its read deadline stands still.
    let flags = ["--read-timeout", "2s", "--workers", "2"];
    let (mut server, stdout) = printing_into_a_pipe(&flags);
    let before = server.resident();
    let texts: Vec<Vec<u8>> = (0..CLIENTS)
        .map(|at| format!("{at} {}\n", "=".repeat(97)).into_bytes())
        .collect();
    let mut clients: Vec<_> = texts.iter().map(|_| server.connect()).collect();
    let sent: Vec<usize> = thread::scope(|scope| {
        let sends: Vec<_> = clients
            .iter_mut()
            .zip(&texts)
            .map(|(client, text)| scope.spawn(move || send_until_stuck(client, text)))
            .collect();
        sends.into_iter().map(|send| send.join().unwrap()).collect()
    });
    // The kernel's buffers took megabytes; the program has its queue and a buffer for each client.
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 12 << 20, "{grown} bytes more for {sent:?}");
    pass(Duration::from_millis(1500));
    let cpu = server.cpu();
    pass(Duration::from_secs(1));
    let spent = server.cpu() - cpu;
    assert!(spent < Duration::from_millis(200), "{spent:?} of waiting");
    // New clients are let in, and those that leave are let go.
    let mut other = server.connect();
    other.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut other), b"");
    let closed = server.closed();
    let near = other.local_addr().unwrap().to_string();
    assert_eq!(closed.get("peer"), near, "{}", closed.line);

    for client in &clients {
        client.shutdown(Shutdown::Write).unwrap();
    }
    let reading = thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut printed = Vec::new();
        stdout.read_to_end(&mut printed).unwrap();
        printed
    });
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"");
    }
    for _ in 0..CLIENTS {
        assert_eq!(server.closed().reason(), "peer-closed");
    }
    assert_eq!(server.drain().code(), Some(0));
    let printed = reading.join().unwrap();
    let mut counts = [0; CLIENTS];
    // The last line of a client may have no end.
    for line in printed.split_inclusive(|&byte| byte == b'\n') {
        let mut line = line;
        while let Some(digit) = line.first() {
            let at = usize::from(digit - b'0');
            let part = line.iter().skip(1).position(u8::is_ascii_digit);
            let (own, more) = line.split_at(part.map_or(line.len(), |part| part + 1));
            assert!(
                texts[at].starts_with(own),
                "{:?}",
                String::from_utf8_lossy(own)
            );
            counts[at] += own.len();
            line = more;
        }
    }
    assert_eq!(counts.as_slice(), sent);
}

#[test]
fn a_stdout_that_blocks_cannot_hold_up_the_end() {
    for second in [None, Some(Signal::TERM)] {
        let timeout = if second.is_some() { "off" } else { "1s" };
        let (mut server, _stdout) = printing_into_a_pipe(&["--drain-timeout", timeout]);
        let mut client = server.connect();
        send_until_stuck(&mut client, b"a line for nobody to read\n");
        let start = now();
        server.signal(Signal::TERM);
        server.log_line("the drain", |line| line.contains(" info draining "));
        if let Some(second) = second {
            until_another_signal_counts();
            server.signal(second);
        }
        assert_eq!(server.wait().code(), Some(1), "not everything was printed");
        assert!(second.is_some() || start.elapsed() >= Duration::from_secs(1));
    }
}

#[test]
fn a_drain_waits_for_a_slow_stdout() {
    let (mut server, stdout) = printing_into_a_pipe(&["--drain-timeout", "off"]);
    let mut clients = [server.connect(), server.connect()];
    // More than the pipe holds, less than the queue.
    for (client, letter) in clients.iter_mut().zip([b'a', b'b']) {
        client
            .write_all(&[&[letter; 199_999][..], b"\n"].concat())
            .unwrap();
        until("bytes are acknowledged", || unacknowledged(client) == 0);
    }
    server.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"");
    }
    drop(clients);
    assert!(server.is_running(), "stdout has not taken everything");
    let mut printed = Vec::new();
    BufReader::new(stdout).read_to_end(&mut printed).unwrap();
    assert_eq!(server.wait().code(), Some(0));
    for letter in [b'a', b'b'] {
        let count = printed.iter().filter(|&&byte| byte == letter).count();
        assert_eq!(count, 199_999, "{}", char::from(letter));
    }
}

#[test]
fn a_closed_stdout_drains_the_server() {
    let (mut server, stdout) = printing_into_a_pipe(&[]);
    let mut clients = [server.connect(), server.connect()];
    drop(stdout);
    clients[0].write_all(b"for nobody\n").unwrap();
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"", "FIN, no reset");
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
    // Whoever finds out first, it that watches or it that writes.
    let mut warned = server.lines.iter().filter(|line| line.contains(" warn "));
    assert!(
        warned.any(|line| line.contains("draining")),
        "{}",
        server.lines.join("\n")
    );
    assert_eq!(server.summary()["drain"], "2");
}

#[test]
fn a_closed_stdout_drains_the_server_though_there_is_nothing_to_print() {
    let (mut server, stdout) = printing_into_a_pipe(&[]);
    let mut client = server.connect();
    drop(stdout);
    assert_eq!(read_to_fin(&mut client), b"");
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_stdout_closed_while_clients_wait_for_it_drains_the_server() {
    let (mut server, stdout) = printing_into_a_pipe(&[]);
    let mut clients = [server.connect(), server.connect()];
    for client in &mut clients {
        send_until_stuck(client, b"for nobody\n");
    }
    drop(stdout);
    for client in &mut clients {
        assert_eq!(read_to_fin(client), b"");
    }
    drop(clients);
    assert_eq!(server.wait().code(), Some(0));
}

// Netcat.

/// Netcat commands that half-close at the end of their input and wait for the server's FIN; not for ever.
fn netcats() -> Vec<Command> {
    let runs = |program: &str, arg: &str| {
        let mut command = Command::new(program);
        let run = command.arg(arg).stdin(Stdio::null()).output();
        run.map(|run| [run.stdout, run.stderr].concat())
    };
    let mut found = Vec::new();
    for program in ["nc", "nc.openbsd"] {
        if let Ok(help) = runs(program, "-h")
            && String::from_utf8_lossy(&help).contains("OpenBSD")
        {
            found.push(bounded(&[program, "-N"]));
            break;
        }
    }
    if runs("ncat", "--version").is_ok() {
        found.push(bounded(&["ncat"]));
    }
    found
}

/// A command that timeout(1) ends if nothing else does.
fn bounded(command: &[&str]) -> Command {
    let mut bounded = Command::new("timeout");
    bounded.arg(GUARD.as_secs().to_string()).args(command);
    bounded
}

/// Runs each netcat there is against `address` with `input` on its stdin: what it answers.
fn through_netcat(test: &str, address: SocketAddr, input: &[u8]) -> Vec<Vec<u8>> {
    let netcats = netcats();
    if netcats.is_empty() {
        cannot_run(test, "nc.openbsd or ncat");
    }
    let run = |mut netcat: Command| {
        netcat.args([address.ip().to_string(), address.port().to_string()]);
        netcat.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut netcat = netcat.spawn().unwrap();
        let mut stdin = netcat.stdin.take().unwrap();
        let output = thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(input).unwrap());
            netcat.wait_with_output().unwrap()
        });
        assert!(output.status.success());
        output.stdout
    };
    netcats.into_iter().map(run).collect()
}

#[test]
fn netcat_gets_its_echo() {
    let mut server = Server::start(&["echo"]);
    let input = noise(1, 1 << 20);
    for answer in through_netcat("netcat_gets_its_echo", server.address(), &input) {
        assert!(answer == input, "{} bytes back", answer.len());
        let closed = server.closed();
        assert_eq!(
            (closed.reason(), closed.get("read")),
            ("peer-closed", "1048576")
        );
    }
}

#[test]
fn netcat_gets_nothing_from_discard() {
    let mut server = Server::start(&["discard"]);
    let input = noise(1, 1 << 20);
    for answer in through_netcat("netcat_gets_nothing_from_discard", server.address(), &input) {
        assert_eq!(answer, b"");
        let closed = server.closed();
        assert_eq!(
            (closed.reason(), closed.get("read")),
            ("peer-closed", "1048576")
        );
    }
}

#[test]
fn netcat_is_printed() {
    let mut server = Server::start(&["print"]);
    let input = lines_of(1);
    for answer in through_netcat("netcat_is_printed", server.address(), input.as_bytes()) {
        assert_eq!(answer, b"");
        assert!(server.stdout_bytes(input.len()) == input.as_bytes());
    }
}

#[test]
fn an_interactive_netcat_gets_each_line_back_at_once() {
    let server = Server::start(&["echo"]);
    let Some(mut netcat) = netcats().into_iter().next() else {
        return cannot_run(
            "an_interactive_netcat_gets_each_line_back_at_once",
            "nc.openbsd or ncat",
        );
    };
    let address = server.address();
    netcat.args([address.ip().to_string(), address.port().to_string()]);
    let mut netcat = netcat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = netcat.stdin.take().unwrap();
    let mut stdout = BufReader::new(netcat.stdout.take().unwrap());
    for line in ["one\n", "two\n", "three\n"] {
        stdin.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        assert_eq!(answer, line);
    }
    drop(stdin);
    assert!(netcat.wait().unwrap().success());
    assert_echoes(&mut server.connect(), b"and others");
}
