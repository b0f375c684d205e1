//! Clients of every kind: what they are answered, and that bad ones harm nobody.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::{Answer, ask, get, metrics, serve, value};
use crate::support::home::{Home, refusal};
use crate::support::{GUARD, Server, assert_echoes, connect, lacks, now, read_to_fin, until};

#[test]
fn what_is_counted_is_told_by_listener_and_reason() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &["-l", "[::1]:0", "-l", "127.0.0.1:0"]);
    let ours = server.address();
    let mut stays = server.connect();
    assert_echoes(&mut stays, b"hello");
    let mut leaves = server.connect();
    assert_echoes(&mut leaves, b"good");
    drop(leaves);
    assert_eq!(server.closed().reason(), "peer-closed");
    let told = metrics(at);
    let of = |name: &str, labels: &str| {
        value(
            &told,
            &format!("standfast_{name}{{listener=\"{ours}\"{labels}}}"),
        )
    };
    assert_eq!(of("connections", ""), 1.0);
    assert_eq!(of("accepted_total", ""), 2.0);
    assert_eq!(of("closed_total", ",reason=\"peer-closed\""), 1.0);
    // One that has not occurred yet is there, too: its first time is a rise.
    assert_eq!(of("closed_total", ",reason=\"write-stall\""), 0.0);
    for direction in ["read", "written"] {
        let name = format!("standfast_bytes_total{{direction=\"{direction}\"}}");
        assert_eq!(value(&told, &name), 9.0);
    }
    assert!(value(&told, "standfast_descriptors_used") > 5.0);
    assert_eq!(value(&told, "standfast_accept_paused"), 0.0);
}

#[test]
fn those_who_ask_are_in_no_counter_and_no_line() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    for _ in 0..5 {
        assert_eq!(get(at, "/readyz").body, "ready\n");
    }
    let told = metrics(at);
    assert!(
        told.lines()
            .all(|line| !line.starts_with("standfast_accepted_total") || line.ends_with(" 0")),
        "{told}"
    );
    assert!(server.drain().success());
    assert_eq!(server.summary()["accepted"], "0");
    assert!(server.closed_so_far().is_empty());
    assert_eq!(
        server.stdout_rest(),
        b"",
        "and none but the one line on stdout"
    );
}

#[test]
fn requests_are_answered_as_http_has_it() {
    let home = Home::new();
    let (_server, at) = serve(&home, &["--metrics-host", "metrics.example"]);
    let answer = |method: &str, path: &str, host: &str, more: &str| {
        ask(
            at,
            &format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"),
        )
    };
    let text = answer("GET", "/metrics", "localhost", "");
    assert!(
        text.head
            .contains("Content-Type: text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(!text.body.contains("# EOF"));
    let open = answer(
        "GET",
        "/metrics",
        "[::1]:1",
        "Accept: application/openmetrics-text\r\n",
    );
    assert!(
        open.head
            .contains("Content-Type: application/openmetrics-text; version=1.0.0")
    );
    assert!(open.body.ends_with("# EOF\n"));
    let head = answer("HEAD", "/metrics", "Metrics.Example", "");
    assert_eq!((head.status, &*head.body), (200, ""));
    assert!(!head.head.contains("Content-Length: 0"));
    for (method, path, host, status) in [
        ("GET", "/nothing", "localhost", 404),
        ("POST", "/metrics", "localhost", 405),
        ("GET", "/metrics", "evil.example", 421),
        ("GET", "/metrics", "", 421),
        ("garbage", "", "", 400),
    ] {
        let answer = answer(method, path, host, "");
        assert_eq!(answer.status, status, "{method} {path} {host}");
    }
    let json: serde_json::Value = serde_json::from_str(&get(at, "/status.json").body).unwrap();
    assert_eq!(json["metrics"][0], at.to_string());
}

#[test]
fn curl_gets_an_answer() {
    if lacks(&["curl"]) {
        return;
    }
    let home = Home::new();
    let (_server, at) = serve(&home, &[]);
    let curl = Command::new("curl")
        .args(["-sS", "-i", &format!("http://{at}/healthz")])
        .output();
    let curl = curl.unwrap();
    assert!(curl.status.success(), "{curl:?}");
    assert_eq!(Answer::parse(&curl.stdout).body, "the workers turn\n");
}

#[test]
fn one_that_sends_a_megabyte_is_refused_and_read_to_its_end() {
    let home = Home::new();
    let (_server, at) = serve(&home, &[]);
    let mut client = connect(at);
    client.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    // What it sends after the answer is thrown away, or the answer would be lost to a reset.
    let sent = client.write_all(&vec![b'x'; 1024 * 1024]);
    assert!(sent.is_ok(), "{sent:?}");
    assert_eq!(Answer::to(&mut client).status, 431);
    assert_eq!(get(at, "/readyz").status, 200);
}

#[test]
fn one_more_than_64_hears_that_there_are_too_many_and_none_stays_for_longer_than_10_s() {
    let home = Home::new();
    let (server, at) = serve(&home, &[]);
    let began = now();
    let mut silent: Vec<TcpStream> = (0..63).map(|_| connect(at)).collect();
    // One of them says something now and then.
    silent.push(connect(at));
    let mut drips = silent.remove(0);
    until("the places to be taken", || {
        get(at, "/readyz").status == 503
    });
    assert_eq!(get(at, "/metrics").body, "too many clients\n");
    assert_echoes(&mut server.connect(), b"the server does not mind");
    let mut dripped = 0;
    until("the places to be free", || {
        dripped += u32::from(drips.write_all(b"G").is_ok());
        get(at, "/readyz").status == 200
    });
    assert!(dripped > 0);
    let took = now() - began;
    assert!(took.as_secs() >= 9 && took < GUARD, "{took:?}");
    for client in &mut silent {
        match std::io::Read::read(client, &mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_thousand_connections_and_readers_that_never_read_hurt_nobody() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    let mut client = server.connect();
    let mut crowd = Vec::new();
    for _ in 0..1000 {
        // Beyond the backlog the system lets nobody in for a while.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&at.into());
        let mut socket = TcpStream::from(socket);
        let _ = socket.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        crowd.push(socket);
    }
    assert_echoes(&mut client, b"served as ever");
    let descriptors = server.descriptors();
    assert!(descriptors < 150, "{descriptors}");
    drop(crowd);
    until("an answer", || {
        let mut client = connect(at);
        let asked = client.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        asked.is_ok() && read_to_fin_if(&mut client).ends_with(b"ready\n")
    });
    assert!(server.drain().success());
}

fn read_to_fin_if(client: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = std::io::Read::read_to_end(client, &mut bytes);
    bytes
}

#[test]
fn an_address_that_cannot_be_had_is_one_clear_line() {
    let home = Home::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let command = home.standfast(&["serve", "-l", "0", "--metrics", &at.to_string()]);
    let (code, said) = refusal(command);
    assert_eq!(code, 1);
    assert!(said.contains(&format!("cannot listen on {at}")), "{said}");
    let command = home.standfast(&["serve", "-l", "0", "--metrics", "unix:/tmp/x"]);
    let (code, said) = refusal(command);
    assert_eq!(code, 2);
    assert!(
        said.contains("unix:/tmp/x is no address for metrics"),
        "{said}"
    );
}

/// Its end waits for nobody who asks.
#[test]
fn a_client_that_says_nothing_does_not_hold_up_the_end() {
    let home = Home::new();
    let (mut server, at) = serve(&home, &[]);
    let mut silent = connect(at);
    assert_eq!(get(at, "/readyz").status, 200);
    let began = now();
    assert!(server.drain().success());
    assert!((now() - began).as_secs() < 9);
    assert!(read_to_fin(&mut silent).is_empty());
    let _: Server = server;
}

#[test]
fn the_page_runs_and_asks_nothing_but_its_own() {
    let home = Home::new();
    let (_server, at) = serve(&home, &[]);
    let page = get(at, "/");
    assert_eq!(page.status, 200);
    let mut head = page.head.lines();
    let policy = head.find_map(|field| field.strip_prefix("Content-Security-Policy: "));
    let policy = policy.unwrap_or_else(|| panic!("{}", page.head));
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(
        !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    for elsewhere in ["https:", "src=", "@import", "url("] {
        assert!(!page.body.contains(elsewhere), "{elsewhere}");
    }
    assert!(page.body.contains("fetch(\"/status.json\""));
}

#[test]
fn a_browser_may_use_the_style_and_the_script_as_they_are() {
    if lacks(&["openssl"]) {
        return;
    }
    let home = Home::new();
    let (_server, at) = serve(&home, &[]);
    let page = get(at, "/");
    for element in ["style", "script"] {
        let (begin, end) = (format!("<{element}>"), format!("</{element}>"));
        let text = page.body.split_once(&begin).unwrap().1;
        let text = text.split_once(&end).unwrap().0;
        let allowed = format!("{element}-src 'sha256-{}'", sha256(text));
        assert!(page.head.contains(&allowed), "{allowed}: {}", page.head);
    }
}

/// As a content security policy has it.
fn sha256(text: &str) -> String {
    let mut openssl = Command::new("sh")
        .args(["-c", "openssl dgst -sha256 -binary | openssl base64 -A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = openssl.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = openssl.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}
