//! Clients that come through a proxy which says who they are, by the PROXY protocol.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{FRIEND, STRANGER, v4};
use crate::support::clients::{connect_from, reset};
use crate::support::connecting::{Peer, assert_gets};
use crate::support::home::{Home, entry, number, refusal};
use crate::support::{Server, assert_echoes, now, pass, read_to_fin, standfast, until};

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\n";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn v2(command: u8, family: u8, behind: &[u8]) -> Vec<u8> {
    let length = u16::try_from(behind.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, behind].concat()
}

/// Of `192.0.2.7:56324`, or of `[2001:db8::7]:56324`, with TLVs behind that.
fn binary(family: u8) -> Vec<u8> {
    let mut behind = match family {
        0x11 => vec![192, 0, 2, 7, 192, 0, 2, 1],
        _ => {
            let mut ends = vec![0; 32];
            ends[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
            ends[15] = 7;
            ends
        }
    };
    behind.extend([0xdc, 4, 1, 0xbb]);
    behind.extend([4, 0, 3, 1, 2, 3, 0xe0, 0, 1, b'x']);
    v2(0x21, family, &behind)
}

/// Every kind of header, and whom it names.
fn headers() -> Vec<(Vec<u8>, Option<&'static str>)> {
    vec![
        (LINE.to_vec(), Some("192.0.2.7:56324")),
        (
            b"PROXY TCP6 2001:db8::7 ::1 56324 443\r\n".to_vec(),
            Some("[2001:db8::7]:56324"),
        ),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN 1.2.3.4 1.2.3.4 1 2\r\n".to_vec(), None),
        (binary(0x11), Some("192.0.2.7:56324")),
        (binary(0x21), Some("[2001:db8::7]:56324")),
        (v2(0x20, 0, b""), None),
        (v2(0x21, 0, b"tlvs"), None),
        (v2(0x20, 0, &[0; 4080]), None),
    ]
}

fn trickle(client: &mut TcpStream, bytes: &[u8]) {
    client.set_nodelay(true).unwrap();
    for (at, byte) in bytes.chunks(1 + bytes.len() / 50).enumerate() {
        client.write_all(byte).unwrap();
        if at % 7 == 0 {
            pass(Duration::from_millis(2));
        }
    }
}

#[track_caller]
fn assert_refused(server: &mut Server, bytes: &[u8], what: &str) {
    let mut client = server.connect();
    client.write_all(bytes).unwrap();
    assert_ends(&mut client);
    let closed = server.closed();
    assert_eq!(closed.reason(), "bad-proxy-header", "{}", closed.line);
    assert_eq!(closed.get("header"), what, "{}", closed.line);
    assert_eq!(
        closed.get("peer"),
        client.local_addr().unwrap().to_string(),
        "{}",
        closed.line
    );
}

/// Not a byte comes, and then the end.
#[track_caller]
fn assert_ends(client: &mut TcpStream) {
    match client.read(&mut [0; 64]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_a_header_names_is_the_peer_however_it_is_torn_and_what_is_behind_it_the_input() {
    let mut server = Server::start(&["--accept-proxy"]);
    for (header, named) in headers() {
        for torn in [false, true] {
            let mut client = server.connect();
            let own = client.local_addr().unwrap().to_string();
            let all = [&header[..], b"PROXY is what I say\r\n"].concat();
            match torn {
                false => client.write_all(&all).unwrap(),
                true => trickle(&mut client, &all),
            }
            assert_gets(&mut client, b"PROXY is what I say\r\n");
            assert_echoes(&mut client, b"and more");
            drop(client);
            let closed = server.closed();
            assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
            assert_eq!(closed.get("peer"), named.unwrap_or(&own), "{}", closed.line);
            let via = closed.facts.get("via").map(String::as_str);
            assert_eq!(via, named.map(|_| &*own), "{}", closed.line);
        }
    }
}

#[test]
fn what_is_no_header_ends_at_once_and_says_what_is_wrong_with_it() {
    let mut server = Server::start(&["--accept-proxy"]);
    let line = [&b"PROXY UNKNOWN "[..], &[b'x'; 120], b"\r\n"].concat();
    for (bytes, what) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "none"),
        (b"\x16\x03\x01", "none"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n", "invalid"),
        (&line, "too-long"),
        (&v2(0x20, 0, &[0; 5000]), "too-long"),
        (&v2(0x22, 0x11, &[0; 12]), "invalid"),
        (&v2(0x21, 0x11, &[0; 11]), "invalid"),
    ] {
        assert_refused(&mut server, bytes, what);
    }
    // The end in the middle of one.
    let mut client = server.connect();
    client.write_all(&LINE[..20]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_ends(&mut client);
    let closed = server.closed();
    assert_eq!(closed.get("header"), "torn", "{}", closed.line);
    assert!(server.drain().success());
    assert_eq!(server.summary()["bad-proxy-header"], "8");
}

#[test]
fn who_takes_too_long_over_a_header_is_late_and_who_says_nothing_too() {
    let mut server = Server::start(&["--accept-proxy", "--proxy-timeout", "3s"]);
    let began = now();
    let mut silent = server.connect();
    let mut slow = server.connect();
    slow.write_all(&LINE[..20]).unwrap();
    for client in [&mut silent, &mut slow] {
        assert_ends(client);
        assert!(now() - began >= Duration::from_secs(3));
    }
    for _ in 0..2 {
        let closed = server.closed();
        assert_eq!(closed.reason(), "bad-proxy-header", "{}", closed.line);
        assert_eq!(closed.get("header"), "late", "{}", closed.line);
    }
}

#[test]
fn a_proxy_gets_three_seconds_and_a_list_of_nobody_is_refused() {
    let mut command = standfast();
    command.args([
        "serve",
        "-l",
        "0",
        "--accept-proxy",
        "--proxy-timeout",
        "2s",
    ]);
    let (code, said) = refusal(command);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("below 3 s"), "{said}");
    let mut command = standfast();
    command.args(["serve", "-l", "0", "--accept-proxy-from", "@/dev/null"]);
    assert_ne!(refusal(command).0, 0);
}

#[test]
fn who_looks_whether_the_port_is_open_is_told_at_debug_alone() {
    let mut server = Server::start(&["--accept-proxy"]);
    drop(server.connect());
    reset(server.connect());
    let mut client = server.connect();
    client.write_all(LINE).unwrap();
    assert_echoes(&mut client, b"hello");
    drop(client);
    // The first line of all.
    let closed = server.closed();
    assert_eq!(closed.get("peer"), "192.0.2.7:56324", "{}", closed.line);
    assert!(server.drain().success());
    let ended = server.summary();
    assert_eq!(ended["accepted"], "3");
    assert_eq!(ended["peer-closed"], "2", "{ended:?}");
    assert_eq!(ended["peer-reset"], "1", "{ended:?}");
    let told = server.lines.iter().filter(|line| line.contains(" closed "));
    assert_eq!(told.count(), 1, "{:?}", server.lines);
}

#[test]
fn who_is_no_proxy_is_not_heard_header_or_not() {
    let mut server = Server::start(&["--accept-proxy-from", "127.0.0.1"]);
    for header in [LINE, b""] {
        let mut client = connect_from(STRANGER, v4(&server));
        let _ = client.write_all(header);
        assert_ends(&mut client);
        let closed = server.closed();
        assert_eq!(closed.reason(), "bad-proxy-header", "{}", closed.line);
        assert_eq!(closed.get("header"), "untrusted", "{}", closed.line);
    }
    // And it is implied that a header is wanted from the others.
    assert_refused(&mut server, b"hello", "none");
    let mut client = connect_from(FRIEND, v4(&server));
    client.write_all(LINE).unwrap();
    assert_echoes(&mut client, b"hello");
}

#[test]
fn rules_and_limits_are_for_the_client_and_not_for_its_proxy() {
    let flags = [
        "--accept-proxy",
        "--deny",
        "127.0.0.0/8",
        "--deny",
        "192.0.2.66",
        "--max-conns-per-ip",
        "1",
    ];
    let mut server = Server::start(&flags);
    let come = |address: &str| {
        let mut client = server.connect();
        let line = format!("PROXY TCP4 {address} 192.0.2.1 5 6\r\n");
        client.write_all(line.as_bytes()).unwrap();
        client
    };
    let mut one = come("192.0.2.1");
    assert_echoes(&mut one, b"hello");
    let mut other = come("192.0.2.2");
    assert_echoes(&mut other, b"hello");
    assert_ends(&mut come("192.0.2.1"));
    assert_ends(&mut come("192.0.2.66"));
    // A proxy's own connection is from the proxy.
    let mut own = server.connect();
    own.write_all(b"PROXY UNKNOWN\r\n").unwrap();
    assert_ends(&mut own);
    let reasons = [(); 3].map(|()| {
        let closed = server.closed();
        (closed.reason().to_owned(), closed.get("peer").to_owned())
    });
    assert_eq!(reasons[0], ("limit".to_owned(), "192.0.2.1:5".to_owned()));
    assert_eq!(reasons[1], ("denied".to_owned(), "192.0.2.66:5".to_owned()));
    assert_eq!(reasons[2].0, "denied");
    drop(one);
    assert_eq!(server.closed().reason(), "peer-closed");
    let mut again = server.connect();
    again
        .write_all(b"PROXY TCP4 192.0.2.1 192.0.2.1 5 6\r\n")
        .unwrap();
    assert_echoes(&mut again, b"there is room");
}

/// What has a program run for each client, behind a proxy.
fn runs(script: &str) -> [&str; 8] {
    let [exec, listen, any, proxy] = ["exec", "-l", "0", "--accept-proxy"];
    [exec, listen, any, proxy, "--", "sh", "-c", script]
}

#[test]
fn a_program_is_told_of_the_client_and_gets_what_is_behind_the_header() {
    let script = "echo $TCPREMOTEIP $TCPREMOTEPORT $TCPLOCALPORT; cat";
    let mut server = Server::start(&runs(script));
    for (header, named) in headers() {
        let mut client = server.connect();
        trickle(&mut client, &[&header[..], b"exactly this"].concat());
        client.shutdown(Shutdown::Write).unwrap();
        let own = client.local_addr().unwrap().to_string();
        let (ip, port) = named.unwrap_or(&own).rsplit_once(':').unwrap();
        let ip = ip.trim_matches(['[', ']']);
        let said = String::from_utf8(read_to_fin(&mut client)).unwrap();
        // The proxy's own address, where that says whom the client had dialled.
        let dialled = named.map_or_else(|| server.address().port(), |_| 443);
        assert_eq!(said, format!("{ip} {port} {dialled}\nexactly this"));
        let closed = server.closed();
        let read = header.len() + "exactly this".len();
        assert_eq!(closed.get("read"), read.to_string(), "{}", closed.line);
    }
}

#[test]
fn a_relay_tells_its_upstream_of_the_client_and_not_of_the_proxy() {
    let upstream = Peer::start();
    let to = upstream.address().to_string();
    let relay = Server::start(&["forward", &to, "--accept-proxy", "--send-proxy", "v1"]);
    let mut client = relay.connect();
    trickle(&mut client, &[&binary(0x11)[..], b"hello"].concat());
    let mut served = upstream.accept();
    let expected = b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\nhello";
    assert_gets(&mut served, expected);
    served.write_all(b"its answer").unwrap();
    assert_gets(&mut client, b"its answer");
}

#[test]
fn a_hub_hears_the_sources_that_proxies_speak_for() {
    let server = Server::start(&["hub", "--accept-proxy", "--source", "192.0.2.7"]);
    let mut listener = server.connect();
    listener
        .write_all(b"PROXY TCP4 192.0.2.9 192.0.2.1 5 6\r\nnot a source\n")
        .unwrap();
    let mut source = server.connect();
    source.write_all(LINE).unwrap();
    // Nobody has told us when the listener is in.
    until("the listener", || {
        source.write_all(b"a line\n").unwrap();
        listener
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let mut line = [0; 7];
        listener
            .read_exact(&mut line)
            .is_ok_and(|()| line == *b"a line\n")
    });
    source
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    assert!(
        source.read(&mut [0; 8]).is_err(),
        "who is no source was heard"
    );
}

#[test]
fn a_header_is_taken_over_in_its_middle_and_its_client_is_known_from_then_on() {
    let home = Home::new();
    let flags = ["--accept-proxy", "--max-conns-per-ip", "5", "-i", "off"];
    let mut server = home.serve(&flags);
    let mut known = server.connect();
    known.write_all(LINE).unwrap();
    assert_echoes(&mut known, b"hello");
    let mut clients: Vec<_> = headers()
        .into_iter()
        .enumerate()
        .map(|(at, (header, named))| {
            let mut client = server.connect();
            // From nothing of it to all but its last byte.
            let part = header.len() * at / 9;
            client.write_all(&header[..part]).unwrap();
            (client, header[part..].to_vec(), named)
        })
        .collect();
    let port = server.address().port().to_string();
    until("all at the door", || {
        number(&home.json(&["status", &port])["at_door"]) == 9
    });
    let mut server = home.succeed(&mut server, &flags);
    assert_echoes(&mut known, b"still here");
    for (client, rest, _) in &mut clients {
        client.write_all(rest).unwrap();
        assert_echoes(client, b"hello");
    }
    // He himself, and two that came in the meantime: there is room for two more.
    let mut more: Vec<_> = (0..3).map(|_| server.connect()).collect();
    for (at, client) in more.iter_mut().enumerate() {
        client.write_all(LINE).unwrap();
        match at {
            2 => assert_ends(client),
            _ => assert_echoes(client, b"hello"),
        }
    }
    let closed = server.closed();
    assert_eq!(closed.get("limit"), "max-conns-per-ip", "{}", closed.line);
    for client in more.drain(..2) {
        drop(client);
        assert_eq!(server.closed().reason(), "peer-closed");
    }
    let mut server = home.succeed(&mut server, &flags);
    let list = home.json(&["list", &port]);
    let shown: Vec<_> = list.as_array().unwrap().iter().collect();
    let own = known.local_addr().unwrap().to_string();
    let known_row = shown.iter().find(|row| row["via"] == own.as_str()).unwrap();
    assert_eq!(known_row["peer"], "192.0.2.7:56324");
    assert_echoes(&mut known, b"and still");
    drop(known);
    let closed = server.closed();
    assert_eq!(
        (closed.get("peer"), closed.get("via")),
        ("192.0.2.7:56324", &*own)
    );
    assert_eq!(closed.get("dialled"), "192.0.2.1:443", "{}", closed.line);
    for (client, _, named) in &mut clients {
        assert_echoes(client, b"and so are they");
        if named.is_none() {
            entry(&list, client);
        }
    }
}

#[test]
fn a_program_is_started_for_a_header_that_a_takeover_crossed() {
    let home = Home::new();
    let script = "echo $TCPREMOTEIP; cat";
    let flags = ["--accept-proxy"];
    let mut server = home.serve(&runs(script));
    let mut client = server.connect();
    client.write_all(&LINE[..11]).unwrap();
    let port = server.address().port().to_string();
    until("it is at the door", || {
        number(&home.json(&["status", &port])["at_door"]) == 1
    });
    let next = ["exec", flags[0], "--", "sh", "-c", script];
    let addresses = server.addresses.clone();
    let next = server.replaced_by(1, || {
        let mut command = home.standfast(&["serve", "--replace", "exec", "-l"]);
        command.arg(addresses[0].to_string()).args(&next[1..]);
        command
    });
    client
        .write_all(&[&LINE[11..], b"exactly this"].concat())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"192.0.2.7\nexactly this");
    drop(next);
}

#[test]
fn a_drain_hears_out_who_has_begun_and_not_who_has_not() {
    let mut server = Server::start(&["--accept-proxy", "--drain-timeout", "off"]);
    let mut silent = server.connect();
    let mut begun = server.connect();
    begun.write_all(&LINE[..20]).unwrap();
    let mut whole = server.connect();
    whole.write_all(&[LINE, b"hello"].concat()).unwrap();
    assert_gets(&mut whole, b"hello");
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(read_to_fin(&mut silent), b"");
    begun
        .write_all(&[&LINE[20..], b"last words"].concat())
        .unwrap();
    assert_eq!(read_to_fin(&mut begun), b"last words");
    assert!(server.wait().success());
    assert_eq!(server.summary()["drain"], "3", "{:?}", server.lines);
}

#[test]
fn who_waits_at_the_door_is_seen_and_can_be_killed() {
    let home = Home::new();
    let mut server = home.serve(&["--accept-proxy"]);
    let mut client = server.connect();
    let port = server.address().port().to_string();
    let mut row = serde_json::Value::Null;
    until("it is listed", || {
        let list = home.json(&["list", &port]);
        row = list
            .as_array()
            .unwrap()
            .first()
            .cloned()
            .unwrap_or_default();
        !row.is_null()
    });
    assert_eq!(row["next_deadline"]["kind"], "proxy-header", "{row}");
    home.answer(&["kill", &row["id"].to_string(), &port]);
    assert_ends(&mut client);
    assert_eq!(server.closed().reason(), "killed");
    let status = home.json(&["status", &port]);
    assert_eq!(number(&status["at_door"]), 0);
}
