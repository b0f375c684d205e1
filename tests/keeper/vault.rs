//! Connections outlive a crash: byte for byte, wherever the server dies, and time and again.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::LazyLock;

use rustix::process::{Pid, Signal};

use super::{Kept, children};
use crate::support::home::{Home, number, text};
use crate::support::{GUARD, assert_echoes, read_to_fin, restarted, until};

/// A client that sends without end and reads now and then, and knows what is to come back.
pub(super) struct Stream {
    client: TcpStream,
    sent: u64,
    back: u64,
}

/// So often what is sent is the same: no part of it is another's by accident.
const PERIOD: usize = 65_521;
const PIECE: usize = 16 * 1024;

/// The most that is read in a step.
const STEP: u64 = 256 * 1024;

/// What is sent from that place on.
pub(super) fn piece(at: u64) -> &'static [u8] {
    static SENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let byte = |at: usize| (at % PERIOD).wrapping_mul(0x9e37_79b9).to_le_bytes()[2];
        (0..PERIOD + PIECE).map(byte).collect()
    });
    let from = usize::try_from(at % PERIOD as u64).unwrap();
    &SENT[from..from + PIECE]
}

impl Stream {
    pub(super) fn of(client: TcpStream) -> Self {
        client.set_nonblocking(true).unwrap();
        Self {
            client,
            sent: 0,
            back: 0,
        }
    }

    /// Sends until nobody takes any more.
    pub(super) fn push(&mut self) {
        loop {
            match self.client.write(piece(self.sent)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("after {} bytes: {error}", self.sent),
            }
        }
    }

    /// Reads what there is: all of it is what was sent, in order.
    pub(super) fn pull(&mut self) {
        let mut bytes = [0; PIECE];
        while self.back < self.sent {
            match self.client.read(&mut bytes) {
                Ok(0) => panic!("it ended after {} of {} bytes", self.back, self.sent),
                Ok(count) => {
                    let is_next = bytes[..count] == piece(self.back)[..count];
                    assert!(is_next, "what comes at {} is something else", self.back);
                    self.back += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("after {} of {} bytes: {error}", self.back, self.sent),
            }
        }
    }

    /// Until so much more has come back.
    pub(super) fn go_on(&mut self, bytes: u64) {
        let goal = self.back + bytes;
        until("it goes on", || {
            self.push();
            self.pull();
            self.back >= goal
        });
    }

    /// Until the server that runs now has read of it in several steps: what comes back may have waited on the way.
    pub(super) fn go_on_over_steps(&mut self, kept: &Kept) {
        let mut first = None;
        until("it goes on", || {
            self.push();
            self.pull();
            let list = kept.home.standfast(&["list", "--json"]).output().unwrap();
            let Ok(list) = serde_json::from_slice::<serde_json::Value>(&list.stdout) else {
                return false;
            };
            let read = number(&crate::support::home::entry(&list, &self.client)["read"]);
            read > 2 * STEP + *first.get_or_insert(read)
        });
    }

    /// Everything comes back, and then the end.
    pub(super) fn finish(mut self) {
        self.client.shutdown(Shutdown::Write).unwrap();
        until("all has come back", || {
            self.pull();
            self.back == self.sent
        });
        self.client.set_nonblocking(false).unwrap();
        assert_eq!(read_to_fin(&mut self.client), b"");
    }
}

/// A keeper whose servers die at `place`, once for each time that the file is put there.
pub(super) fn mortal(place: &str, args: &[&str]) -> (Kept, PathBuf) {
    faulty(&format!("die-{place}"), args)
}

/// A keeper, with that fault in each of its servers as soon as there is a file.
pub(super) fn faulty(fault: &str, args: &[&str]) -> (Kept, PathBuf) {
    let home = Home::new();
    let file = home.join("die");
    let mut command = home.standfast(&["serve", "--keep", "-l", "0"]);
    command
        .args(args)
        .stdin(Stdio::null())
        .env("STANDFAST_FAULT", fault)
        .env("STANDFAST_FAULT_FILE", &file);
    (Kept::spawn(home, command, 1), file)
}

fn dies_at(place: &str) {
    let (kept, file) = mortal(place, &["--workers", "2"]);
    dies_three_times(&kept, &file);
}

/// A server dies three times under two streams, as soon as `file` is there; nothing of them is lost, nor who is silent.
#[track_caller]
pub(super) fn dies_three_times(kept: &Kept, file: &Path) {
    let mut quiet = kept.connect();
    let mut busy = [
        Stream::of(kept.keeper.connect()),
        Stream::of(kept.keeper.connect()),
    ];
    for _ in 0..3 {
        for stream in &mut busy {
            stream.go_on_over_steps(kept);
        }
        fs::write(file, "").unwrap();
        until("a server dies", || {
            for stream in &mut busy {
                stream.push();
                stream.pull();
            }
            !file.exists()
        });
    }
    for mut stream in busy {
        stream.go_on(1 << 20);
        stream.finish();
    }
    assert_echoes(&mut quiet, b"who said nothing meanwhile");
    assert_eq!(number(&kept.status()["crashes"]), 3);
}

#[test]
fn nothing_is_lost_where_a_server_dies_before_it_reads() {
    dies_at("vault-begun");
}

#[test]
fn nothing_is_lost_where_a_server_dies_with_what_it_has_read() {
    dies_at("read");
}

#[test]
fn nothing_is_lost_where_a_server_dies_with_what_it_has_served() {
    dies_at("served");
}

#[test]
fn nothing_is_lost_where_a_server_dies_before_it_notes_what_waits() {
    dies_at("vault-output");
}

#[test]
fn nothing_is_lost_where_a_server_dies_in_the_midst_of_what_waits() {
    dies_at("vault-block");
}

#[test]
fn nothing_is_lost_where_a_server_dies_with_a_record_that_does_not_count_yet() {
    dies_at("vault-record");
}

#[test]
fn nothing_is_lost_where_a_server_dies_with_a_record_that_counts() {
    dies_at("vault-chain");
}

#[test]
fn nothing_is_lost_where_a_server_dies_before_it_notes_how_far_it_has_come() {
    dies_at("vault-settled");
}

#[test]
fn nothing_is_lost_where_a_server_dies_just_after_a_step() {
    dies_at("vault-noted");
}

#[test]
fn who_was_let_in_is_served_where_a_server_dies_as_soon_as_that_is_noted() {
    let (kept, file) = mortal("vault-sent", &[]);
    let mut first = kept.connect();
    fs::write(&file, "").unwrap();
    let mut client = kept.keeper.connect();
    until("a server dies", || !file.exists());
    assert_echoes(&mut client, b"who has just come");
    assert_echoes(&mut first, b"who was there");
}

#[test]
fn who_came_alone_goes_on_where_a_server_dies_while_it_puts_such_together() {
    for place in ["vault-gathered", "vault-gathered-given-up"] {
        let (kept, file) = mortal(place, &["--workers", "1"]);
        fs::write(&file, "").unwrap();
        let mut clients = Vec::new();
        // Nobody ends: what waits of each by itself is much, and so it does not for long.
        while file.exists() {
            assert!(clients.len() < 300, "nothing was put together");
            clients.push(kept.connect());
        }
        for client in &mut clients {
            assert_echoes(client, b"who came alone");
        }
    }
}

#[test]
fn who_lives_goes_on_where_a_server_dies_while_it_forgets_who_does_not() {
    for place in ["vault-renewed", "vault-given-up"] {
        let (kept, file) = mortal(place, &["--workers", "1"]);
        let mut clients: Vec<_> = (0..20).map(|_| kept.connect()).collect();
        for _ in 0..2 {
            fs::write(&file, "").unwrap();
            until("a server dies", || {
                // As long as they live they have been put together with others.
                let passing = (0..500).map(|_| {
                    let mut passing = kept.keeper.connect();
                    // It may be one of those that come in the very turn of the crash.
                    let _ = passing.write_all(b"x");
                    let _ = passing.read(&mut [0]);
                    passing
                });
                drop(passing.collect::<Vec<_>>());
                !file.exists()
            });
            for client in &mut clients {
                assert_echoes(client, b"who stays");
            }
        }
    }
}

#[test]
fn a_client_whose_input_crashes_two_servers_is_reset_and_the_others_go_on() {
    let (mut kept, file) = mortal("read", &[]);
    let mut other = kept.connect();
    let mut poison = kept.connect();
    let peer = poison.local_addr().unwrap().to_string();
    fs::write(&file, "").unwrap();
    poison.write_all(b"one").unwrap();
    let mut back = [0; 3];
    poison.read_exact(&mut back).unwrap();
    assert_eq!((&back, file.exists()), (b"one", false));
    // It answers between two steps.
    kept.home.json(&["list"]);
    fs::write(&file, "").unwrap();
    poison.write_all(b"two").unwrap();
    let ended = poison.read(&mut back).unwrap_err();
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
    assert_echoes(&mut other, b"and the others");
    let line = kept.keeper.log_line("its end", |line| {
        line.contains("reason=crash") && line.contains("crashed the server twice")
    });
    assert!(line.contains(&format!("peer={peer}")), "{line}");
}

#[test]
fn nobody_is_poison_who_has_got_over_what_it_said() {
    let (kept, file) = mortal("read", &[]);
    let mut client = kept.connect();
    for _ in 0..3 {
        fs::write(&file, "").unwrap();
        assert_echoes(&mut client, b"the server dies of this");
        assert!(!file.exists());
        assert_echoes(&mut client, b"and not of this");
        // An echo comes before the step is over in which it was written; an answer between two.
        kept.home.json(&["list"]);
    }
}

pub(super) fn restart(kept: &Kept) {
    let (code, stdout, stderr) = restarted(|| kept.home.standfast(&["restart"]));
    assert_eq!((code, &*stderr), (0, ""), "{stdout}");
}

fn descriptors(of: Pid) -> usize {
    let of = of.as_raw_nonzero();
    fs::read_dir(format!("/proc/{of}/fd")).unwrap().count()
}

#[test]
fn crashes_and_restarts_by_turns_lose_nobody_and_leave_nothing_open() {
    let kept = Kept::start(&["--workers", "2"]);
    let keeper = super::pid(kept.keeper.pid().into());
    let mut quiet = kept.connect();
    let mut stream = Stream::of(kept.keeper.connect());
    let mut seen = Vec::new();
    for round in 0..8 {
        stream.go_on(1 << 20);
        let former = kept.server();
        if round % 2 == 0 {
            kept.crash(Signal::KILL);
        } else {
            restart(&kept);
        }
        kept.until_another_serves(former);
        assert_echoes(&mut quiet, b"by turns");
        until("one server is left", || {
            children(kept.keeper.pid()) == [kept.server()]
        });
        if round % 2 == 0 {
            until("the former's is given up", || {
                let now = (descriptors(keeper), descriptors(kept.server()));
                seen.last().is_none_or(|before| *before == now) && {
                    seen.push(now);
                    true
                }
            });
        }
    }
    stream.finish();
    assert_echoes(&mut quiet, b"to the end");
}

#[test]
fn no_two_connections_have_the_same_number_over_crashes() {
    let kept = Kept::start(&["--workers", "3"]);
    let ids = || -> Vec<u64> {
        let list = kept.home.json(&["list"]);
        let all = list.as_array().unwrap().iter();
        all.map(|one| number(&one["id"])).collect()
    };
    let mut first = kept.connect();
    let mut passing = kept.connect();
    let highest = ids().into_iter().max().unwrap();
    passing.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut passing), b"");
    // The second one has it from a server to which nobody came.
    for _ in 0..2 {
        kept.until_another_serves(kept.crash(Signal::KILL));
        assert_echoes(&mut first, b"goes on");
    }
    let mut next = kept.connect();
    let id = number(&crate::support::home::entry(&kept.home.json(&["list"]), &next)["id"]);
    assert!(id > highest, "{id} is not above {highest}");
    restart(&kept);
    for client in [&mut first, &mut next] {
        assert_echoes(client, b"and over a takeover");
    }
}

#[test]
fn more_memory_than_there_are_addresses_for_is_no_reason_to_end() {
    let kept = Kept::start(&["--memory", "9000000000g"]);
    let mut client = kept.connect();
    kept.until_another_serves(kept.crash(Signal::KILL));
    assert_echoes(&mut client, b"goes on");
}

#[test]
fn a_server_serves_where_files_may_not_be_as_long_as_a_vault() {
    let home = Home::new();
    let args = ["serve", "--keep", "-l", "0"];
    let command = home.shell(r#"ulimit -f 100; exec "$@""#, &args);
    let mut kept = Kept::spawn(home, command, 1);
    kept.connect();
    kept.keeper.log_line("that there is no vault", |line| {
        line.contains("the size of a file is too low")
    });
    kept.until_another_serves(kept.crash(Signal::KILL));
    kept.connect();
    kept.assert_drains();
}

/// The kernel counts what waits in sockets against the limit of descriptors of a user who is not root.
#[test]
fn who_comes_after_many_that_went_goes_on_too_where_few_descriptors_are_to_be_had() {
    const DESCRIPTORS: u32 = 300;
    let home = Home::new();
    let run = home.join("run");
    fs::create_dir(&run).unwrap();
    let control = run.join("control");
    let mut args = vec!["serve", "--keep", "-l", "0", "--workers", "4"];
    args.extend(["--control", text(&control)]);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&run, Some(65534), Some(65534)).unwrap();
        args.extend(["--user", "nobody"]);
    }
    let script = format!("ulimit -n {DESCRIPTORS}; exec \"$@\"");
    let command = home.shell(&script, &args);
    let kept = Kept::spawn(home, command, 1);
    // Together, so that each worker has some of them.
    let some = || -> Vec<TcpStream> { (0..20).map(|_| kept.connect()).collect() };
    for _ in 0..3 * DESCRIPTORS / 20 {
        for mut passing in some() {
            passing.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_fin(&mut passing), b"");
        }
    }
    let mut clients = some();
    let server = children(kept.keeper.pid());
    rustix::process::kill_process(server[0], Signal::KILL).unwrap();
    for client in &mut clients {
        assert_echoes(client, b"goes on");
    }
}

#[test]
fn an_end_reaches_the_client_though_the_keeper_has_a_copy_of_its_socket() {
    let kept = Kept::start(&["-i", "8s"]);
    for crash in [false, true] {
        let mut silent = kept.connect();
        let mut closes = kept.connect();
        let mut killed = kept.connect();
        if crash {
            kept.until_another_serves(kept.crash(Signal::KILL));
        }
        let list = kept.home.json(&["list"]);
        let id = number(&crate::support::home::entry(&list, &killed)["id"]);
        kept.home.answer(&["kill", &id.to_string()]);
        let ended = killed.read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
        closes.write_all(b"last words").unwrap();
        closes.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_fin(&mut closes), b"last words");
        assert_eq!(read_to_fin(&mut silent), b"", "by its read timeout");
    }
    let mut drained = kept.connect();
    let mut kept = kept;
    assert_eq!(
        kept.keeper.drain().code(),
        Some(0),
        "{:?}",
        kept.keeper.lines
    );
    assert_eq!(read_to_fin(&mut drained), b"");
}

#[test]
fn what_the_kernel_holds_for_a_client_that_ended_is_let_go_after_a_while() {
    let kept = Kept::start(&["--workers", "1"]);
    let _stays = kept.connect();
    // The kernel's sockets: those that are no client's any more go once enough of them are such.
    for _ in 0..4 {
        for _ in 0..300 {
            drop(kept.connect());
        }
        assert_echoes(&mut kept.keeper.connect(), b"and on");
    }
    let held = fs::read_to_string("/proc/net/sockstat").unwrap();
    assert!(held.contains("TCP:"), "{held}");
    let port = kept.keeper.address().port();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let ours = format!(":{port:04X} ");
    let open = table
        .lines()
        .filter(|line| line.contains(&ours) && line.contains(" 01 "));
    // Both ends of one, and perhaps the last few.
    assert!(open.count() <= 8, "{table}");
    assert!(descriptors(super::pid(kept.keeper.pid().into())) < 64);
}

#[test]
fn what_is_discarded_and_what_is_local_goes_on_too() {
    let home = Home::new();
    let path = home.join("s");
    let listen = format!("unix:{}", text(&path));
    let mut command = home.standfast(&["serve", "--keep", "-l", &listen]);
    command.stdin(Stdio::null());
    let kept = Kept::spawn(home, command, 1);
    let control = fs::read_dir(kept.home.join("standfast")).unwrap();
    let control = control.flatten().map(|one| one.path());
    let control = control.filter(|path| path.extension().is_some_and(|it| it == "sock"));
    let control = control.last().unwrap();
    let status = || kept.home.json(&["status", "--control", text(&control)]);
    let mut local = UnixStream::connect(&path).unwrap();
    local.set_read_timeout(Some(GUARD)).unwrap();
    let mut echoes = |said: &[u8]| {
        local.write_all(said).unwrap();
        let mut back = vec![0; said.len()];
        local.read_exact(&mut back).unwrap();
        assert_eq!(back, said);
    };
    echoes(b"local");
    let former = number(&status()["pid"]);
    until("its step is over", || number(&status()["written"]) == 5);
    rustix::process::kill_process(super::pid(former), Signal::KILL).unwrap();
    echoes(b"and after a crash");

    let kept = Kept::start(&["discard"]);
    let mut client = kept.keeper.connect();
    client.write_all(b"12345").unwrap();
    until("it was read", || number(&kept.status()["read"]) == 5);
    let former = kept.crash(Signal::KILL);
    kept.until_another_serves(former);
    client.write_all(b"678").unwrap();
    until("it goes on", || {
        let list = kept.home.json(&["list"]);
        number(&crate::support::home::entry(&list, &client)["read"]) == 8
    });
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
}

/// The keeper's copy of a worker's memory.
fn arena(kept: &Kept) -> fs::File {
    let held = || {
        let held = fs::read_dir(format!("/proc/{}/fd", kept.keeper.pid())).unwrap();
        let mut held = held.flatten().map(|one| one.path());
        held.find(|path| {
            fs::read_link(path).is_ok_and(|path| text(&path).starts_with("/memfd:standfast-vault"))
        })
    };
    // It was said before anybody was served, and may not have been heard yet.
    until("the keeper has it", || held().is_some());
    let path = held().unwrap();
    fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

#[test]
fn what_another_build_has_left_or_something_has_damaged_is_refused_and_never_misread() {
    // The form of it, its checksum, the words of the first slots: at a time one.
    for (at, what, line) in [
        (8, 0x99_u64, "no vault, or one that was not complete"),
        (0, 7, "no vault, or one that was not complete"),
    ] {
        let mut kept = Kept::start(&["--workers", "1"]);
        let mut client = kept.connect();
        arena(&kept).write_all_at(&what.to_le_bytes(), at).unwrap();
        kept.until_another_serves(kept.crash(Signal::KILL));
        let ended = client.read(&mut [0]);
        assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        kept.keeper.log_line("why", |said| said.contains(line));
        drop(kept.connect());
    }
}
