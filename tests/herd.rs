//! The keepalive probes of many connections, which must not leave at once.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::home::Home;
use crate::support::loading::Loading;
use crate::support::{Server, now, until};

/// Connections of each kind here: they are many from 500 on.
const COUNT: usize = 1200;

/// Which end of a connection has the port.
#[derive(Clone, Copy, Debug)]
enum End {
    Ours,
    Theirs,
}

/// How long it is to the next probe on each connection that has the port of `address` at that end.
fn probes(end: End, address: SocketAddr) -> Vec<Duration> {
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table
        .lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|row| {
        let at = match end {
            End::Ours => row[1],
            End::Theirs => row[2],
        };
        at.ends_with(&port) && row[3] == "01"
    });
    let timers = rows.filter_map(|row| {
        let (kind, when) = row[5].split_once(':')?;
        let hundredths = u64::from_str_radix(when, 16).unwrap();
        (kind == "02").then(|| Duration::from_millis(hundredths * 10))
    });
    timers.collect()
}

/// Waits until the probes of all connections are spread over a quarter of `idle`, and none comes later than that.
#[track_caller]
fn assert_spread(end: End, address: SocketAddr, idle: u64) {
    let idle = Duration::from_secs(idle);
    until("the probes are spread", || {
        let mut probes = probes(end, address);
        probes.sort();
        if probes.len() < COUNT {
            return false;
        }
        let longest = *probes.last().unwrap();
        let range = *probes.last().unwrap() - probes[0];
        let dense = probes
            .windows(COUNT / 3)
            .filter(|some| some[some.len() - 1] - some[0] < Duration::from_secs(1));
        assert!(longest <= idle + Duration::from_millis(20), "{probes:?}");
        range > idle / 8 && dense.count() == 0
    });
}

#[test]
fn many_connections_are_probed_at_times_of_their_own_on_both_sides_of_a_relay() {
    let upstream = Server::start(&["echo", "-q", "--keepalive", "80:10:3"]);
    let to = upstream.address().to_string();
    let relay = Server::start(&["forward", &to, "-q", "--keepalive", "80:10:3"]);
    let count = COUNT.to_string();
    let args = ["-c", &count, "--idle", "-T", "5m", "--keepalive", "80:10:3"];
    let mut load = Loading::start(relay.address(), &args);
    load.goes_on_with(COUNT);
    for address in [upstream.address(), relay.address()] {
        // Those who accepted, and those who dialled.
        assert_spread(End::Ours, address, 80);
        assert_spread(End::Theirs, address, 80);
    }
}

#[test]
fn many_connections_that_were_taken_over_are_probed_at_times_of_their_own() {
    let home = Home::new();
    let mut server = home.serve(&["echo", "-q"]);
    let count = COUNT.to_string();
    let mut load = Loading::start(
        server.address(),
        &["-c", &count, "--idle", "-T", "5m", "--keepalive", "off"],
    );
    load.goes_on_with(COUNT);
    assert_spread(End::Ours, server.address(), 60);
    let at = server.address().to_string();
    let next = server.replaced_by(1, || {
        let words = ["serve", "echo", "-q", "--replace", "-l", &at];
        let mut command = home.standfast(&words);
        command.args(["--keepalive", "160:10:3"]);
        command
    });
    until("the settings of the new process hold", || {
        probes(End::Ours, next.address())
            .iter()
            .all(|probe| *probe > Duration::from_secs(100))
    });
    assert_spread(End::Ours, next.address(), 160);
    load.goes_on_with(COUNT);
}

#[test]
fn many_connections_that_came_while_the_server_stood_still_are_probed_at_times_of_their_own() {
    let server = Server::start(&["echo", "-q", "--keepalive", "80:10:3"]);
    server.suspend();
    // They wait in the listener's queue, all with what it had then.
    let clients = (0..COUNT).map(|_| TcpStream::connect(server.address()).unwrap());
    let _clients: Vec<TcpStream> = clients.collect();
    server.resume();
    assert_spread(End::Ours, server.address(), 80);
}

#[test]
fn many_connections_of_a_short_idle_time_are_probed_where_timers_are_exact() {
    let server = Server::start(&["echo", "-q", "--keepalive", "6:1:3"]);
    let count = COUNT.to_string();
    let args = ["-c", &count, "--idle", "-T", "5m", "--keepalive", "off"];
    let mut load = Loading::start(server.address(), &args);
    load.goes_on_with(COUNT);
    let mut since = None;
    until(
        "none of them is far from its next probe, for longer than the whole idle time",
        || {
            let mut probes = probes(End::Ours, server.address());
            probes.sort();
            // Some that waited while these became many have the whole idle time.
            if probes.len() < COUNT || probes[COUNT - 201] > Duration::from_millis(2100) {
                since = None;
                return false;
            }
            let since = since.get_or_insert_with(now);
            now() - *since > Duration::from_secs(7)
        },
    );
}
