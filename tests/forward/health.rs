//! Upstreams that are down beside others: remembered for a while, said once, shown.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;

use crate::forward::{assert_pair, pair};
use crate::support::connecting::{Peer, Port, assert_gets};
use crate::support::home::{Home, entry, text};
use crate::support::peers::silent;
use crate::support::{Server, read_to_fin, until};

/// How many lines so far say `what`.
fn said(server: &Server, what: &str) -> usize {
    let lines = server.lines.iter();
    lines.filter(|line| line.contains(what)).count()
}

/// `serve forward ONE TWO`, of which the first one cannot be reached.
fn relay(home: &Home, one: &str, two: &Peer, args: &[&str]) -> Server {
    let two = two.address().to_string();
    home.serve(&[&["forward", one, &two], args].concat())
}

#[test]
fn only_the_first_client_waits_for_an_upstream_that_does_not_answer() {
    let home = Home::new();
    let ((_silent, one), two) = (silent(), Peer::start());
    let args = ["--connect-timeout", "700ms", "--fail-timeout", "10m", "-v"];
    let mut relay = relay(&home, &one.to_string(), &two, &args);
    for _ in 0..4 {
        let (client, served) = pair(&relay, &two);
        drop((client, served));
        relay.closed();
    }
    assert_eq!(said(&relay, "upstream not reached"), 1);
    assert_eq!(said(&relay, "upstream is down"), 1);
    relay.drain();
}

#[test]
fn an_upstream_is_said_to_be_down_and_to_be_up_once_each() {
    let home = Home::new();
    let (one, two) = (Port::new(), Peer::start());
    let address = one.address().to_string();
    let args = ["--fail-timeout", "1s", "--drain-timeout", "1ms"];
    let mut relay = relay(&home, &address, &two, &args);
    let shown = |at: usize| home.json(&["status"])["upstreams"][at].clone();
    assert_eq!(shown(0)["address"], address);
    assert_eq!(shown(0)["up"], true, "nobody has tried it");
    for _ in 0..3 {
        pair(&relay, &two);
    }
    let down = relay.log_line("one down", |line| line.contains("upstream is down"));
    assert!(down.contains(" warn ") && down.contains(&address), "{down}");
    assert!(down.contains("refused"), "{down}");
    assert_eq!(
        (&shown(0)["up"], &shown(1)["up"]),
        (&false.into(), &true.into())
    );
    let table = home.answer(&["status"]);
    assert!(table.contains(&format!("{address} down for ")), "{table}");
    assert!(table.contains(&format!("{} up", two.address())), "{table}");

    let one = one.listen();
    std::thread::spawn(move || {
        loop {
            let _ = one.accept();
        }
    });
    until("somebody tries it again", || {
        drop(relay.connect());
        shown(0)["up"] == true
    });
    let up = relay.log_line("one up", |line| line.contains("upstream is up"));
    assert!(up.contains(" info ") && up.contains(&address), "{up}");
    assert!(up.contains("down_for="), "{up}");
    relay.drain();
    assert_eq!(said(&relay, "upstream is down"), 1, "{:#?}", relay.lines);
    assert_eq!(said(&relay, "upstream is up"), 1, "{:#?}", relay.lines);
}

#[test]
fn the_only_upstream_is_tried_though_it_counts_as_down() {
    let home = Home::new();
    let port = Port::new();
    let to = port.address().to_string();
    let relay = home.serve(&["forward", &to, "--fail-timeout", "10m"]);
    let mut client = relay.connect();
    until("it counts as down", || {
        home.json(&["status"])["upstreams"][0]["up"] == false
    });
    let mut served = port.listen().accept();
    assert_pair(&mut client, &mut served);
}

#[test]
fn those_that_are_up_share_the_clients_of_one_that_is_down() {
    let home = Home::new();
    let (down, two, three) = (Port::new(), Peer::start(), Peer::start());
    let [one, two_at, three_at] =
        [down.address(), two.address(), three.address()].map(|at| at.to_string());
    let args = ["--balance", "round-robin", "--fail-timeout", "10m"];
    let relay = home.serve(&[&["forward", &one, &two_at, &three_at], &args[..]].concat());
    // The first finds out, and goes to the second; the next two are for the second and the third.
    let mut pairs = vec![pair(&relay, &two), pair(&relay, &two), pair(&relay, &three)];
    for _ in 0..4 {
        pairs.push(pair(&relay, &two));
        pairs.push(pair(&relay, &three));
    }
}

#[test]
fn what_is_down_stays_known_over_a_takeover() {
    let home = Home::new();
    let ((_silent, one), two) = (silent(), Peer::start());
    let (one, to) = (one.to_string(), two.address().to_string());
    let args = ["--connect-timeout", "700ms", "--fail-timeout", "10m", "-v"];
    let mut relay = relay(&home, &one, &two, &args);
    let _kept = pair(&relay, &two);
    let at = relay.address().to_string();
    let mut next = relay.replaced_by(1, || {
        let mut command = home.standfast(&["serve", "forward", &one, &to, "--replace", "-l", &at]);
        command.args(args);
        command
    });
    drop(pair(&next, &two));
    next.closed();
    assert_eq!(said(&next, "upstream not reached"), 0, "{:#?}", next.lines);
    let shown = &home.json(&["status"])["upstreams"][0];
    assert_eq!(shown["up"], false);
    assert!(shown["down_for"].as_f64().unwrap() > 0.0, "{shown}");
}

#[test]
fn the_list_and_the_log_name_the_upstream_of_a_connection() {
    let home = Home::new();
    let back = home.join("back");
    let unix = UnixListener::bind(&back).unwrap();
    let to = format!("unix:{}", text(&back));
    let mut relay = home.serve(&["forward", &to]);
    let mut client = relay.connect();
    let (mut served, _) = unix.accept().unwrap();
    served.write_all(b"hello").unwrap();
    assert_gets(&mut client, b"hello");
    assert_eq!(entry(&home.json(&["list"]), &client)["upstream"], to);
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"");
    client.shutdown(Shutdown::Write).unwrap();
    let closed = relay.closed();
    assert_eq!(closed.get("upstream"), to, "{}", closed.line);
    drop(relay);

    let upstream = Peer::start();
    let to = upstream.address().to_string();
    let mut relay = home.serve(&["forward", &to]);
    let (client, served) = pair(&relay, &upstream);
    assert_eq!(entry(&home.json(&["list"]), &client)["upstream"], to);
    let table = home.answer(&["list"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].ends_with("UPSTREAM") && lines[1].ends_with(&to),
        "{table}"
    );
    drop(served);
    drop(client);
    let closed = relay.closed();
    assert_eq!(closed.get("upstream"), to, "{}", closed.line);
}
