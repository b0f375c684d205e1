//! Relays outlive a crash: both sides of each, byte for byte both ways, wherever the server dies.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;

use super::Kept;
use super::vault::{Stream, dies_three_times, mortal, piece, restart};
use crate::forward::{assert_pair, pair};
use crate::support::connecting::{Peer, assert_gets};
use crate::support::home::{Home, entry, number};
use crate::support::peers::refusing;
use crate::support::{Server, assert_echoes, read_to_fin, until};

/// A relay whose servers die at `place`, to a server that echoes.
fn mortal_relay(place: &str, args: &[&str]) -> (Kept, PathBuf, Server) {
    let echo = Server::start(&[]);
    let upstream = echo.address().to_string();
    let (kept, file) = mortal(place, &[&["forward", &upstream], args].concat());
    (kept, file, echo)
}

/// A relay to that upstream.
fn relay(upstream: &Peer, args: &[&str]) -> Kept {
    let upstream = upstream.address().to_string();
    Kept::start(&[&["forward", &upstream], args].concat())
}

fn crash(kept: &Kept) {
    kept.until_another_serves(kept.crash(Signal::KILL));
}

fn dies_at(place: &str) {
    let (kept, file, _echo) = mortal_relay(place, &["--workers", "2"]);
    dies_three_times(&kept, &file);
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_before_it_reads() {
    dies_at("vault-begun");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_what_it_has_read_of_the_client() {
    dies_at("read");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_what_it_has_passed_on() {
    dies_at("served");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_what_it_has_read_of_the_upstream() {
    dies_at("far-read");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_what_it_has_passed_back() {
    dies_at("far-served");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_before_it_notes_what_waits() {
    dies_at("vault-output");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_in_the_midst_of_what_waits() {
    dies_at("vault-block");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_a_record_that_does_not_count_yet() {
    dies_at("vault-record");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_a_record_that_counts() {
    dies_at("vault-chain");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_before_it_notes_how_far_it_has_come() {
    dies_at("vault-settled");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_with_one_side_noted() {
    dies_at("vault-noted");
}

#[test]
fn nothing_of_a_relay_is_lost_where_a_server_dies_just_after_a_step() {
    dies_at("vault-far-noted");
}

#[test]
fn nothing_of_a_relay_is_lost_where_servers_are_killed_at_any_time_and_restarted_in_between() {
    let (kept, _file, _echo) = mortal_relay("nowhere", &["--workers", "2"]);
    let mut quiet = kept.connect();
    let mut busy = [
        Stream::of(kept.keeper.connect()),
        Stream::of(kept.keeper.connect()),
    ];
    for round in 0..10_u64 {
        for stream in &mut busy {
            stream.go_on(1 + round * 77_777);
        }
        let former = kept.server();
        if round % 3 == 2 {
            restart(&kept);
        } else {
            kept.crash(Signal::KILL);
        }
        kept.until_another_serves(former);
        assert_echoes(&mut quiet, b"by turns");
    }
    for stream in busy {
        stream.finish();
    }
}

/// Bytes that wait for a reader that does not read, in either direction, and the end behind them.
#[test]
fn what_waits_for_either_side_of_a_relay_is_delivered_after_a_crash_and_so_is_the_end() {
    for from_client in [true, false] {
        let upstream = Peer::start();
        let kept = relay(&upstream, &[]);
        let (client, served) = pair(&kept.keeper, &upstream);
        let (mut writer, mut reader) = match from_client {
            true => (client, served),
            false => (served, client),
        };
        writer.set_nonblocking(true).unwrap();
        let (mut sent, mut stuck) = (0_u64, 0);
        until("nobody takes any more", || {
            match writer.write(piece(sent)) {
                Ok(count) => (sent, stuck) = (sent + count as u64, 0),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    crate::support::settle();
                    stuck += 1;
                }
                Err(error) => panic!("{error}"),
            }
            stuck == 3
        });
        writer.shutdown(Shutdown::Write).unwrap();
        crash(&kept);
        crash(&kept);
        reader.set_nonblocking(false).unwrap();
        let got = read_to_fin(&mut reader);
        assert_eq!(got.len() as u64, sent);
        for (at, bytes) in got.chunks(4096).enumerate() {
            assert_eq!(bytes, &piece(at as u64 * 4096)[..bytes.len()]);
        }
        // Half-closed, it goes on the other way.
        crash(&kept);
        writer.set_nonblocking(false).unwrap();
        reader.write_all(b"the other way").unwrap();
        reader.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut writer), b"the other way");
        until("it has ended well", || {
            let list = kept.home.json(&["list"]);
            list.as_array().unwrap().is_empty()
        });
    }
}

#[test]
fn a_half_closed_relay_stays_so_over_a_crash_whichever_side_has_ended() {
    for client_ends in [true, false] {
        let upstream = Peer::start();
        let kept = relay(&upstream, &[]);
        let (mut client, mut served) = pair(&kept.keeper, &upstream);
        let (ended, open) = match client_ends {
            true => (&mut client, &mut served),
            false => (&mut served, &mut client),
        };
        ended.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(open), b"", "before the crash");
        for said in [b"one", b"two"] {
            crash(&kept);
            open.write_all(said).unwrap();
            assert_gets(ended, said);
        }
        open.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(ended), b"");
        until("it has ended well", || {
            kept.status()["closed"] == json!([["peer-closed", 1]])
        });
    }
}

#[test]
fn the_deadline_of_a_half_closed_relay_goes_on_over_a_crash() {
    let upstream = Peer::start();
    let kept = relay(&upstream, &["--half-close-timeout", "3s"]);
    let (mut client, mut served) = pair(&kept.keeper, &upstream);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut served), b"");
    crash(&kept);
    let ended = client.read(&mut [0]).map_err(|error| error.kind());
    assert!(
        matches!(ended, Ok(0) | Err(ErrorKind::ConnectionReset)),
        "{ended:?}"
    );
    until("it is counted", || {
        kept.status()["closed"] == json!([["half-close-timeout", 1]])
    });
}

#[test]
fn an_upstream_that_ends_while_no_server_runs_is_heard_out_by_the_next_one() {
    for resets in [false, true] {
        let upstream = Peer::start();
        let kept = relay(&upstream, &[]);
        let (mut client, mut served) = pair(&kept.keeper, &upstream);
        let former = kept.crash(Signal::KILL);
        served.write_all(b"last words").unwrap();
        if resets {
            socket2::SockRef::from(&served)
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
        }
        drop(served);
        kept.until_another_serves(former);
        if resets {
            let mut all = Vec::new();
            let ended = client.read_to_end(&mut all).map_err(|error| error.kind());
            assert_eq!(ended, Err(ErrorKind::ConnectionReset));
        } else {
            assert_gets(&mut client, b"last words");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_fin(&mut client), b"");
        }
    }
}

#[test]
fn a_client_that_ends_while_no_server_runs_is_heard_out_by_the_next_one() {
    let upstream = Peer::start();
    let kept = relay(&upstream, &[]);
    let (mut client, mut served) = pair(&kept.keeper, &upstream);
    let former = kept.crash(Signal::KILL);
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    kept.until_another_serves(former);
    assert_eq!(read_to_fin(&mut served), b"last words");
    served.write_all(b"an answer").unwrap();
    drop(served);
    assert_eq!(read_to_fin(&mut client), b"an answer");
}

#[test]
fn a_client_that_waits_for_its_upstream_over_a_crash_is_connected_by_the_next_server() {
    let (socket, address) = refusing();
    let kept = Kept::start(&["forward", &address.to_string()]);
    let mut client = kept.keeper.connect();
    client.write_all(b"early words").unwrap();
    until("it is there", || number(&kept.status()["open"]) == 1);
    let former = kept.server();
    crash(&kept);
    crash(&kept);
    assert_ne!(former, kept.server());
    let id = |list: &serde_json::Value| number(&entry(list, &client)["id"]);
    assert_eq!(id(&kept.home.json(&["list"])), 1);
    socket.listen(1).unwrap();
    let (served, _) = socket.accept().unwrap();
    let mut served = TcpStream::from(served);
    assert_gets(&mut served, b"early words");
    assert_pair(&mut client, &mut served);
    crash(&kept);
    assert_pair(&mut client, &mut served);
}

/// Wherever between the dialling and the first byte.
#[test]
fn a_client_is_connected_where_a_server_dies_as_its_upstream_is_reached() {
    for (place, told) in [("vault-begun", 0), ("vault-sent", 0), ("vault-chain", 1)] {
        let (kept, file, _echo) = mortal_relay(place, &["--workers", "1"]);
        let mut first = kept.connect();
        let mut clients = Vec::new();
        for _ in 0..4 + told {
            fs::write(&file, "").unwrap();
            let mut client = kept.keeper.connect();
            until("a server dies", || !file.exists());
            // In the very turn in which it came it may be lost.
            if client.write_all(b"x").is_ok() && client.read_exact(&mut [0]).is_ok() {
                clients.push(client);
            }
            assert_echoes(&mut first, b"who was there");
        }
        for client in &mut clients {
            assert_echoes(client, b"and goes on");
        }
    }
}

#[test]
fn a_client_goes_on_where_a_server_dies_as_it_goes_from_one_worker_to_another() {
    for place in ["vault-moved", "vault-coming"] {
        let (kept, file, _echo) = mortal_relay(place, &["--workers", "2"]);
        let mut clients = Vec::new();
        for _ in 0..3 {
            // It goes to the other one as soon as that has fewer.
            fs::write(&file, "").unwrap();
            until("a server dies", || {
                clients.push(kept.keeper.connect());
                assert_echoes(clients.last_mut().unwrap(), b"who has just come");
                !file.exists()
            });
        }
        for client in &mut clients {
            assert_echoes(client, b"and goes on");
        }
    }
}

#[test]
fn an_upstream_hears_a_header_once_and_whole_over_crashes() {
    let upstream = Peer::start();
    let kept = relay(&upstream, &["--send-proxy", "v1"]);
    let mut client = kept.keeper.connect();
    let mut served = upstream.accept();
    let (peer, local) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
    let header = format!(
        "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
        peer.port(),
        local.port()
    );
    client.write_all(b"first").unwrap();
    assert_gets(&mut served, format!("{header}first").as_bytes());
    for _ in 0..2 {
        crash(&kept);
        assert_pair(&mut client, &mut served);
    }
    // What it said is in its account; what the header was is in none.
    let list = kept.home.json(&["list"]);
    let shown = entry(&list, &client);
    assert_eq!(number(&shown["read"]), 5 + 2 * 10);
    assert_eq!(number(&shown["written"]), 2 * 10);
    assert_eq!(shown["upstream"], upstream.address().to_string().as_str());
}

#[test]
fn a_header_goes_first_where_a_server_dies_with_much_behind_it() {
    let echo = Server::start(&[]);
    let upstream = echo.address().to_string();
    for place in ["read", "far-read", "vault-far-noted"] {
        let args = ["forward", &upstream, "--send-proxy", "v1", "--workers", "1"];
        let (kept, file) = mortal(place, &args);
        let mut client = kept.keeper.connect();
        let header = format!(
            "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n",
            client.local_addr().unwrap().port(),
            client.peer_addr().unwrap().port()
        );
        assert_gets(&mut client, header.as_bytes());
        let mut stream = Stream::of(client);
        for _ in 0..3 {
            stream.go_on_over_steps(&kept);
            fs::write(&file, "").unwrap();
            until("a server dies", || {
                stream.push();
                stream.pull();
                !file.exists()
            });
        }
        stream.go_on(1 << 20);
        stream.finish();
    }
}

#[test]
fn a_relay_to_a_local_socket_goes_on_and_is_reset_where_it_was_just_being_served() {
    let home = Home::new();
    let path = home.join("up");
    let local = format!("unix:{}", path.to_str().unwrap());
    let mut command = crate::support::standfast();
    command.args(["serve", "-l", &local]).stdin(Stdio::null());
    let _echo = Server::launch(command);
    until("it listens", || path.exists());
    let (mut kept, file) = mortal("read", &["forward", &local]);
    let mut quiet = kept.connect();
    let mut served = kept.connect();
    until("its step is over", || {
        let list = kept.home.json(&["list"]);
        number(&entry(&list, &served)["written"]) == 5
    });
    fs::write(&file, "").unwrap();
    served.write_all(b"now").unwrap();
    let ended = served.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    kept.keeper.log_line("why", |line| {
        line.contains("reason=crash") && line.contains("no account of it")
    });
    assert_echoes(&mut quiet, b"who was at rest");
}

#[test]
fn a_relay_whose_upstream_crashes_two_servers_is_reset_on_both_sides() {
    let upstream = Peer::start();
    let args = ["forward", &upstream.address().to_string()];
    let (mut kept, file) = mortal("far-read", &args);
    let (mut other, mut others) = pair(&kept.keeper, &upstream);
    let (mut client, mut poison) = pair(&kept.keeper, &upstream);
    kept.home.json(&["list"]);
    for said in [b"one", b"two"] {
        fs::write(&file, "").unwrap();
        poison.write_all(said).unwrap();
        until("a server dies", || !file.exists());
        if said == b"one" {
            assert_gets(&mut client, said);
            kept.home.json(&["list"]);
        }
    }
    for side in [&mut client, &mut poison] {
        let ended = side.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    }
    kept.keeper.log_line("its end", |line| {
        line.contains("reason=crash") && line.contains("crashed the server twice")
    });
    assert_pair(&mut other, &mut others);
}
