//! Clients that come, wait and are connected while a takeover is under way, however long that takes.

use std::io::Write;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::Signal;

use crate::forward::{assert_pair, assert_reset, pair};
use crate::support::clients::until_acknowledged;
use crate::support::connecting::{Peer, Port, assert_gets};
use crate::support::home::{Home, number, text};
use crate::support::{Server, connect, until};
use crate::takeover::relay::{CONNECTIONS, KIND, Relay, Side};

/// Why a takeover fails that took too long: in the freeze, or for what is done meanwhile.
const TOO_SLOW: [&str; 2] = [" within 50 ms", "took nothing in for 5 s"];

/// Has another process, with `args`, take over from `relay`, which has a connection. That gets the first one once
/// `meanwhile` is over: the takeover is under way then, and cannot end.
#[track_caller]
fn succeed_after(
    home: &Home,
    relay: &mut Server,
    args: &[&str],
    meanwhile: impl Fn() + Send + Sync + 'static,
) -> Server {
    let meanwhile = Arc::new(meanwhile);
    let (path, real) = (home.join("relay.sock"), home.socket_of(relay));
    for _ in 0..4 {
        let meanwhile = Arc::clone(&meanwhile);
        let is_held = Mutex::new(false);
        let between = Relay::start(&path, &real, move |side, _, message| {
            let kind = message.get(KIND).copied();
            if (side, kind) == (Side::Old, Some(CONNECTIONS)) {
                let mut is_held = is_held.lock().unwrap();
                if !std::mem::replace(&mut *is_held, true) {
                    meanwhile();
                }
            }
            Some(vec![message])
        });
        let mut command = home.successor(&relay.addresses, args);
        command.args(["--control", text(&path)]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut next = Server::launch(command);
        if next.has_said_something() {
            next.addresses.clone_from(&relay.addresses);
            assert_eq!(relay.wait().code(), Some(0), "{:?}", relay.lines);
            return next;
        }
        drop(between);
        assert_eq!(next.wait().code(), Some(1), "{:?}", next.lines);
        let why = relay.log_line("why", |line| line.contains(" warn takeover "));
        assert!(TOO_SLOW.iter().any(|slow| why.contains(slow)), "{why}");
    }
    panic!("too slow, or nothing is done while a takeover is under way");
}

/// Clients, and what their upstream has accepted for them.
type Pairs = Arc<Mutex<Vec<(TcpStream, TcpStream)>>>;

fn forward<'a>(to: &'a [String], args: &[&'a str]) -> Vec<&'a str> {
    let to = to.iter().map(String::as_str);
    ["forward"]
        .into_iter()
        .chain(to)
        .chain(args.iter().copied())
        .collect()
}

/// The relay has ended, and all of its connections have changed hands.
#[track_caller]
fn assert_nobody_stayed(relay: &Server) {
    let said = relay.lines.iter().find(|line| line.contains(" staying="));
    assert!(said.unwrap().contains(" staying=0 "), "{said:?}");
}

/// Whoever was accepted is open, or has ended once. Answers how many are open.
#[track_caller]
fn open_of_all(home: &Home) -> u64 {
    let status = home.json(&["status"]);
    let open = number(&status["open"]);
    let closed = status["closed"].as_array().unwrap();
    let ended: u64 = closed.iter().map(|reason| number(&reason[1])).sum();
    assert_eq!(number(&status["accepted"]), open + ended, "{status}");
    open
}

#[test]
fn a_client_that_comes_during_a_takeover_is_connected_at_once_and_goes_along() {
    let home = Home::new();
    let upstream = Arc::new(Peer::start());
    let to = [upstream.address().to_string()];
    let mut relay = home.serve(&forward(&to, &["--workers", "2"]));
    let pairs = Pairs::default();
    pairs.lock().unwrap().push(pair(&relay, &upstream));
    let address = relay.address();
    let (come, accepts) = (Arc::clone(&pairs), Arc::clone(&upstream));
    let _next = succeed_after(&home, &mut relay, &forward(&to, &[]), move || {
        for _ in 0..3 {
            let (mut client, mut served) = (connect(address), accepts.accept());
            assert_pair(&mut client, &mut served);
            come.lock().unwrap().push((client, served));
        }
    });
    assert_nobody_stayed(&relay);
    let mut pairs = std::mem::take(&mut *pairs.lock().unwrap());
    for (client, served) in &mut pairs {
        assert_pair(client, served);
    }
    assert_eq!(open_of_all(&home), pairs.len() as u64);
}

#[test]
fn a_client_that_waits_is_connected_during_a_takeover_once_its_upstream_is_there() {
    let home = Home::new();
    let port = Port::new();
    let to = [port.address().to_string()];
    let args = forward(&to, &["--upstream-wait", "1m"]);
    let mut relay = home.serve(&args);
    let mut client = relay.connect();
    client.write_all(b"early words").unwrap();
    until_acknowledged(&client);
    let (port, served) = (Mutex::new(Some(port)), Arc::new(Mutex::new(None)));
    let accepted = Arc::clone(&served);
    let _next = succeed_after(&home, &mut relay, &args, move || {
        let Some(port) = port.lock().unwrap().take() else {
            panic!("too slow, or nobody is dialled for while a takeover is under way");
        };
        let mut served = port.listen().accept();
        assert_gets(&mut served, b"early words");
        *accepted.lock().unwrap() = Some(served);
    });
    assert_nobody_stayed(&relay);
    assert_pair(&mut client, &mut served.lock().unwrap().take().unwrap());
}

#[test]
fn a_client_that_waits_is_given_up_during_a_takeover_when_its_time_is_over() {
    // On a busy machine the third one's time is over before it changes hands: then once more.
    let has_changed_hands = (0..10).any(|_| is_given_up_by_the_next());
    assert!(has_changed_hands);
}

/// A client that has its 500 ms is given up by the old process, another that came meanwhile, too, and a third, which changes
/// hands, by the new one. Answers whether it did change hands.
fn is_given_up_by_the_next() -> bool {
    let home = Home::new();
    let port = Port::new();
    let to = [port.address().to_string()];
    let args = forward(&to, &["--upstream-wait", "500ms"]);
    let mut relay = home.serve(&args);
    let address = relay.address();
    let waiting = Arc::new(Mutex::new(relay.connect()));
    let last = Arc::clone(&waiting);
    let mut next = succeed_after(&home, &mut relay, &args, move || {
        let mut waiting = last.lock().unwrap();
        assert_reset(&mut waiting);
        assert_reset(&mut connect(address));
        *waiting = connect(address);
    });
    assert_nobody_stayed(&relay);
    assert_reset(&mut waiting.lock().unwrap());
    let is_given_up = |line: &&String| line.contains("reason=upstream-failed");
    let by_the_old = relay.lines.iter().filter(is_given_up).count();
    if by_the_old < 3 {
        assert_eq!(next.closed().reason(), "upstream-failed");
    }
    assert_eq!(open_of_all(&home), 0);
    by_the_old < 3
}

/// As [`succeed_after`], but the new process has `fault`, and hangs. Answers whether `meanwhile` was over before the
/// server had given it up.
#[track_caller]
fn fail_after(
    home: &Home,
    relay: &mut Server,
    args: &[&str],
    fault: &str,
    meanwhile: impl FnOnce(&Server),
) -> bool {
    let mut hung = home.faulty(relay, args, fault);
    match fault {
        "hang-pre-copy" => {
            relay.log_line("the question", |line| line.contains(" takeover asked for "));
            until("it holds connections", || hung.descriptors() > 50);
        }
        _ => {
            relay.log_line("the freeze", |line| line.contains(" late in the freeze"));
        }
    }
    meanwhile(relay);
    relay.closed_so_far();
    let failed = |line: &str| line.contains(" warn takeover failed");
    let in_time = !relay.lines.iter().any(|line| failed(line));
    hung.signal(Signal::KILL);
    hung.wait();
    if in_time {
        relay.log_line("that it failed", failed);
    }
    // The next try has its own.
    relay.lines.clear();
    in_time
}

#[test]
fn a_new_process_that_hangs_keeps_no_client_from_its_upstream() {
    let home = Home::new();
    let upstream = Peer::start();
    let to = [upstream.address().to_string()];
    let args = forward(&to, &[]);
    let mut relay = home.serve(&args);
    let mut pairs: Vec<_> = (0..40).map(|_| pair(&relay, &upstream)).collect();
    for fault in ["hang-pre-copy", "hang-freeze"] {
        let in_time = (0..8).any(|_| {
            fail_after(&home, &mut relay, &args, fault, |relay| {
                pairs.push(pair(relay, &upstream));
            })
        });
        assert!(in_time, "{fault}: too slow, or nobody is dialled for");
    }
    let _next = home.succeed(&mut relay, &args);
    for (client, served) in &mut pairs {
        assert_pair(client, served);
    }
}
