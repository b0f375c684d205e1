//! What an embedder's service has chosen for its connections where the server is killed, with the keeper of `examples/kept.rs`.

#[expect(dead_code, reason = "the example's own service and beginning")]
#[path = "../../examples/kept.rs"]
pub(super) mod example;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::num::NonZeroUsize;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process};
use standfast::{Config, Context, Exported, Listen, Ready, Server, Service, Survive};

use super::pid;
use crate::support::home::Home;
use crate::support::{connect, until};

/// Which part in a test this process has: the keeper's, or the server's. And where the server says its addresses.
const PART: &str = "SURVIVE_PART";
const ADDRESSES: &str = "SURVIVE_ADDRESSES";
const WORKERS: &str = "SURVIVE_WORKERS";

/// So many lines at the most wait for their answers: more than buffers have room for where nobody reads.
pub(super) const MOST: u64 = 1000;

/// Where it is to have little room: what it may hold in all, bytes, and how many connections.
const SMALL: &str = "SURVIVE_SMALL";
const MEMORY: usize = 1 << 20;
const CONNECTIONS: usize = 200;

/// A line whose connection is given away, to nobody; it is taken back once [`BACK`] is there. [`GIVEN`] says that it was given.
const AWAY: &[u8] = b"away\n";
const GIVEN: &str = "given";
const LOG: &str = "log";
const BACK: &str = "back";

/// How soon it is looked again.
const SOON: Duration = Duration::from_millis(5);

/// A number beyond all others.
const FAR: u64 = 1 << 32;

/// A line after which the state takes very many bytes.
const HUGE: &[u8] = b"huge\n";

/// A line that kills the server that serves it.
const POISON: &[u8] = b"poison\n";

/// Answers each line with its number among those of its connection, what it says, and which process says so: the second time
/// it is another answer. Greets.
pub(super) struct Numbers(pub(super) Survive);

impl Service for Numbers {
    type State = u64;

    fn open(&self, conn: &mut Context<'_>) -> u64 {
        conn.write(b"hello\n");
        0
    }

    fn reopen(&self, conn: &mut Context<'_>) -> u64 {
        conn.write(b"again\n");
        0
    }

    fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        let mut used = 0;
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            if !line.ends_with(b"\n") {
                break;
            }
            if line == POISON {
                let _ = kill_process(getpid(), Signal::KILL);
            }
            if line == AWAY {
                drop(conn.give_away().unwrap());
                conn.set_alarm(Some(SOON));
                fs::write(beside(GIVEN), "").unwrap();
                return used + line.len();
            }
            if line == HUGE {
                *lines += FAR;
            }
            *lines += 1;
            conn.write(format!("{lines} {} ", std::process::id()).as_bytes());
            conn.write(line);
            used += line.len();
        }
        used
    }

    fn ready(&self, _: &mut u64, conn: &mut Context<'_>, what: Ready) {
        if what == Ready::Watched {
            // What has come is read in the same step, then.
            return conn.take_back().unwrap();
        }
        conn.set_alarm(Some(SOON));
        if beside(BACK).exists() {
            conn.again();
        }
    }

    fn survive(&self) -> Survive {
        self.0
    }

    fn export(&self, lines: &u64) -> Option<Exported> {
        // More than goes into a block or two.
        let mut bytes = lines.to_le_bytes().to_vec();
        bytes.resize(if *lines < FAR { 3000 } else { 30_000 }, 7);
        Some(Exported { schema: 1, bytes })
    }

    fn import(&self, exported: &Exported) -> Result<u64, String> {
        let bytes = exported
            .bytes
            .first_chunk()
            .filter(|_| [3000, 30_000].contains(&exported.bytes.len()));
        bytes
            .map(|bytes| u64::from_le_bytes(*bytes))
            .ok_or_else(|| "no number".to_owned())
    }
}

/// What servers log, without the facts, in a file that all of them write to.
struct LogFile;

impl log::Log for LogFile {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut file = fs::File::options();
        let file = file.append(true).create(true).open(beside(LOG));
        let mut file = file.unwrap();
        file.write_all(format!("{}\n", record.args()).as_bytes())
            .unwrap();
    }

    fn flush(&self) {}
}

/// A file where the addresses are.
fn beside(name: &str) -> PathBuf {
    PathBuf::from(env::var(ADDRESSES).unwrap()).with_file_name(name)
}

/// Not a test of its own: what a keeper and its servers do when they are started by one.
#[test]
fn plays_its_part_if_it_has_one() {
    let Ok(part) = env::var(PART) else { return };
    if part == "keeper" {
        return example::keep(|| {
            let mut command = Command::new(env::current_exe()?);
            command.args(itself()).env(PART, "server");
            Ok(command)
        })
        .unwrap();
    }
    log::set_logger(&LogFile).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    let small = env::var_os(SMALL);
    let services = [Survive::Close, Survive::Fresh, Survive::State];
    let listen =
        services.map(|survive| Listen::new("127.0.0.1:0".parse().unwrap(), Numbers(survive)));
    // Each listener has an address of its own, by which the next server knows it.
    let config = example::kept(Config {
        listen: listen.into(),
        workers: env::var(WORKERS).unwrap().parse().ok(),
        memory: small.as_ref().and(NonZeroUsize::new(MEMORY)),
        max_conns: small.as_ref().and(NonZeroUsize::new(CONNECTIONS)),
        ..Config::default()
    });
    let server = Server::bind(config.unwrap()).unwrap();
    let addresses = server.addresses();
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    fs::write(env::var(ADDRESSES).unwrap(), addresses.join(" ")).unwrap();
    server.run().unwrap();
}

fn itself() -> [&'static str; 4] {
    let name = "keeper::survive::plays_its_part_if_it_has_one";
    ["--exact", name, "--nocapture", "--test-threads=1"]
}

/// A keeper with its server; both ended when dropped.
struct Kept {
    keeper: Child,
    addresses: [SocketAddr; 3],
    file: PathBuf,
    home: Home,
}

impl Kept {
    /// Its servers die at `place`, once for each time that [`dies`](Self::dies) is said.
    fn mortal(place: &str) -> Self {
        Self::with_workers(2, place)
    }

    fn with_workers(workers: usize, place: &str) -> Self {
        Self::start(workers, place, false)
    }

    fn start(workers: usize, place: &str, is_small: bool) -> Self {
        let home = Home::new();
        let (said, file) = (home.join("addresses"), home.join("die"));
        let fault = match place {
            "wait-unready" => {
                fs::write(&file, "").unwrap();
                place.to_owned()
            }
            place => format!("die-{place}"),
        };
        let mut command = Command::new(env::current_exe().unwrap());
        let keeper = command
            .args(itself())
            .env(PART, "keeper")
            .env(ADDRESSES, &said)
            .env(WORKERS, workers.to_string())
            .env("STANDFAST_FAULT", fault)
            .env("STANDFAST_FAULT_FILE", &file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0);
        if is_small {
            keeper.env(SMALL, "");
        }
        let keeper = keeper.spawn().unwrap();
        let mut addresses = Vec::new();
        until("it listens", || {
            let said = fs::read_to_string(&said).unwrap_or_default();
            addresses = said.split(' ').flat_map(str::parse).collect();
            addresses.len() == 3
        });
        Self {
            keeper,
            addresses: addresses.try_into().unwrap(),
            file,
            home,
        }
    }

    fn server(&self) -> Option<Pid> {
        servers(self.keeper.id()).next()
    }

    /// The server is killed, now.
    fn crash(&self) -> Pid {
        let mut server = None;
        until("a server runs", || {
            server = self.server();
            server.is_some()
        });
        kill_process(server.unwrap(), Signal::KILL).unwrap();
        server.unwrap()
    }

    fn dies(&self) {
        fs::write(&self.file, "").unwrap();
    }

    fn has_died(&self) -> bool {
        !self.file.exists()
    }

    fn client(&self, survive: Survive) -> Client {
        let at = match survive {
            Survive::Fresh => 1,
            Survive::State => 2,
            _ => 0,
        };
        Client::new(connect(self.addresses[at]), survive)
    }
}

/// The children of any of its threads.
pub(super) fn servers(keeper: u32) -> impl Iterator<Item = Pid> {
    let tasks = fs::read_dir(format!("/proc/{keeper}/task"));
    let tasks = tasks.into_iter().flatten().flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    let children: Vec<String> = children.flatten().collect();
    let children = children.join(" ");
    let children = children.split_whitespace().flat_map(str::parse).map(pid);
    children.collect::<Vec<_>>().into_iter()
}

/// Ends a keeper and its servers.
pub(super) fn end(keeper: &mut Child) {
    let whole = std::iter::once(pid(keeper.id().into())).chain(servers(keeper.id()));
    for one in whole {
        // It may have ended.
        let _ = kill_process(one, Signal::KILL);
    }
    let _ = keeper.wait();
}

impl Drop for Kept {
    fn drop(&mut self) {
        end(&mut self.keeper);
    }
}

/// A client that sends lines without end, in pieces, and knows what is to come back.
pub(super) struct Client {
    client: TcpStream,
    survive: Survive,
    /// What nobody has taken yet.
    sent: Vec<u8>,
    /// What has come, but for whole lines.
    came: Vec<u8>,
    /// Lines answered, and by what number the last one was.
    lines: u64,
    number: u64,
    greeted: bool,
    has_ended: bool,
}

/// The line of that number: as long as no other one near it.
fn line(number: u64) -> String {
    let length = usize::try_from(number * 7919 % 3001).unwrap();
    format!("{number} {}\n", "x".repeat(length))
}

impl Client {
    pub(super) fn new(client: TcpStream, survive: Survive) -> Self {
        client.set_nonblocking(true).unwrap();
        Self {
            client,
            survive,
            sent: Vec::new(),
            came: Vec::new(),
            lines: 0,
            number: 0,
            greeted: false,
            has_ended: false,
        }
    }

    /// Sends lines from `next` on, as many as are taken, and not too many.
    pub(super) fn push(&mut self, next: &mut u64) {
        while *next < self.lines + MOST {
            while self.sent.len() < 20_000 {
                self.sent.extend_from_slice(line(*next).as_bytes());
                *next += 1;
            }
            match self.client.write(&self.sent) {
                Ok(count) => drop(self.sent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("after {} lines: {error}", self.lines),
            }
        }
    }

    /// Reads what there is: each line is answered once and whole, in order, by what its service is to know.
    pub(super) fn pull(&mut self) {
        let mut bytes = [0; 16 * 1024];
        loop {
            match self.client.read(&mut bytes) {
                Ok(0) => {
                    self.has_ended = true;
                    break;
                }
                Ok(count) => self.came.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {} lines: {error}", self.lines),
            }
        }
        let came = std::mem::take(&mut self.came);
        for said in came.split_inclusive(|&byte| byte == b'\n') {
            if said.ends_with(b"\n") {
                self.hears(std::str::from_utf8(said).unwrap());
            } else {
                self.came = said.to_vec();
            }
        }
    }

    fn hears(&mut self, said: &str) {
        if !self.greeted {
            assert_eq!(said, "hello\n");
            self.greeted = true;
            return;
        }
        if said == "again\n" {
            assert_eq!(self.survive, Survive::Fresh);
            self.number = 0;
            return;
        }
        let mut parts = said.splitn(3, ' ');
        let number: u64 = parts.next().unwrap().parse().unwrap();
        assert_eq!(number, self.number + 1, "{said}");
        assert_eq!(parts.nth(1), Some(&*line(self.lines)), "{said}");
        (self.number, self.lines) = (number, self.lines + 1);
    }

    /// Until so many more lines were answered.
    pub(super) fn go_on(&mut self, next: &mut u64, lines: u64) {
        let goal = self.lines + lines;
        until("it goes on", || {
            self.push(next);
            self.pull();
            assert!(!self.has_ended, "it ended after {} lines", self.lines);
            self.lines >= goal
        });
    }

    /// All that was sent is answered, and then the end comes.
    pub(super) fn finish(mut self, next: u64) {
        until("all was sent", || {
            let sent = self.client.write(&self.sent);
            let sent = sent.unwrap_or_else(|error| {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                0
            });
            self.sent.drain(..sent);
            self.pull();
            self.sent.is_empty()
        });
        self.client.shutdown(Shutdown::Write).unwrap();
        until("all was answered, and it ended", || {
            self.pull();
            self.has_ended
        });
        assert_eq!((self.lines, &*self.came), (next, &b""[..]));
    }
}

/// Wherever a server dies between two instructions: each line is answered once, and whole.
fn dies_at(place: &str) {
    let kept = Kept::mortal(place);
    let mut clients = [Survive::Fresh, Survive::State].map(|survive| (kept.client(survive), 0));
    for _ in 0..3 {
        for (client, next) in &mut clients {
            client.go_on(next, 100);
        }
        kept.dies();
        until("it has died", || {
            for (client, next) in &mut clients {
                client.push(next);
                client.pull();
            }
            kept.has_died()
        });
        for (client, next) in &mut clients {
            client.go_on(next, 200);
        }
    }
    for (client, next) in clients {
        client.finish(next);
    }
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_before_it_reads() {
    dies_at("vault-begun");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_with_what_it_has_read() {
    dies_at("read");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_with_what_it_has_served() {
    dies_at("served");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_in_the_midst_of_what_waits() {
    dies_at("vault-block");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_with_a_record_that_does_not_count_yet() {
    dies_at("vault-record");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_with_a_record_that_counts() {
    dies_at("vault-chain");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_as_it_notes_how_far_it_has_come() {
    dies_at("vault-noted");
}

#[test]
fn nothing_is_lost_or_said_twice_where_a_server_dies_just_before_it_sends() {
    dies_at("vault-settled");
}

#[test]
fn nothing_is_lost_or_said_twice_where_servers_die_at_random_moments() {
    let kept = Kept::mortal("nowhere");
    let mut clients = [Survive::Fresh, Survive::State].map(|survive| (kept.client(survive), 0));
    for round in 0..12 {
        for (client, next) in &mut clients {
            // Each has been served something new: who was just being served twice, and nothing in between, is reset.
            client.go_on(next, MOST + 37 * round % 150);
        }
        let former = kept.crash();
        until("another one runs", || {
            kept.server().is_some_and(|server| server != former)
        });
    }
    for (client, next) in clients {
        client.finish(next);
    }
}

#[test]
fn half_a_line_is_there_after_a_crash_and_a_connection_that_may_close_is_closed() {
    let kept = Kept::mortal("nowhere");
    let mut clients = [Survive::Close, Survive::Fresh, Survive::State].map(|it| kept.client(it));
    for client in &mut clients {
        client.client.write_all(line(0).as_bytes()).unwrap();
        client.client.write_all(b"1 xx").unwrap();
        until("it is answered", || {
            client.pull();
            client.lines == 1
        });
    }
    kept.crash();
    let [mut closed, fresh, state] = clients;
    closed.client.set_nonblocking(false).unwrap();
    let ended = closed.client.read(&mut [0]);
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    for mut client in [fresh, state] {
        let rest = &line(1)[4..];
        client.client.write_all(rest.as_bytes()).unwrap();
        until("the line is answered as one", || {
            client.pull();
            client.lines == 2
        });
        let next = if client.survive == Survive::Fresh {
            1
        } else {
            2
        };
        assert_eq!(client.number, next);
    }
}

#[test]
fn where_a_server_listens_is_kept_before_anybody_is_served() {
    // It serves, and does not get so far as to say that.
    let kept = Kept::with_workers(1, "wait-unready");
    let (mut client, mut next) = (kept.client(Survive::State), 0);
    for _ in 0..3 {
        client.go_on(&mut next, 10);
        kept.crash();
    }
    client.go_on(&mut next, 10);
    client.finish(next);
}

#[test]
fn a_line_that_crashes_every_server_ends_its_own_connection_alone() {
    for survive in [Survive::Fresh, Survive::State] {
        // Nobody is served beside it.
        let kept = Kept::with_workers(1, "nowhere");
        let (mut good, mut next) = (kept.client(survive), 0);
        good.go_on(&mut next, 10);
        let mut bad = kept.client(survive);
        bad.client.set_nonblocking(false).unwrap();
        bad.client.write_all(POISON).unwrap();
        let mut said = Vec::new();
        let ended = bad.client.read_to_end(&mut said);
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        good.go_on(&mut next, 100);
        good.finish(next);
    }
}

#[test]
fn nothing_is_lost_where_a_server_dies_as_a_socket_is_taken_back_that_was_given_away() {
    for place in [
        "taken-back",
        "vault-settled",
        "vault-begun",
        "read",
        "served",
    ] {
        let kept = Kept::with_workers(1, place);
        let mut client = kept.client(Survive::State);
        let answered = |client: &mut Client, lines: u64| {
            until(place, || {
                client.pull();
                assert!(!client.has_ended, "{place}");
                client.lines == lines
            });
        };
        client.client.write_all(line(0).as_bytes()).unwrap();
        answered(&mut client, 1);
        client.client.write_all(AWAY).unwrap();
        until("it is given away", || kept.home.join(GIVEN).exists());
        client.client.write_all(line(1).as_bytes()).unwrap();
        kept.dies();
        fs::write(kept.home.join(BACK), "").unwrap();
        until("it has died", || kept.has_died());
        answered(&mut client, 2);
        let mut next = 2;
        client.go_on(&mut next, 10);
        client.finish(next);
    }
}

#[test]
fn who_no_longer_fits_in_ends_with_the_server_which_has_said_so_and_the_others_go_on() {
    let kept = Kept::start(1, "nowhere", true);
    // How a connection is asked whether it goes on.
    let goes_on = |client: &TcpStream, said: &str| {
        let mut answer = String::new();
        let mut asked = client;
        let asked = asked.write_all(said.as_bytes());
        let heard = asked.and_then(|()| BufReader::new(client).read_line(&mut answer));
        heard.is_ok() && answer.ends_with(said)
    };
    let client = |at: usize| {
        let mut client = connect(kept.addresses[at]);
        client.read_exact(&mut [0; 6]).unwrap();
        client
    };
    let others = [client(1), client(2)];
    for client in &others {
        assert!(goes_on(client, "one\n"));
    }
    // Their states take more than all the room that there is.
    let huge: Vec<_> = (0..100).map(|_| client(2)).collect();
    for client in &huge {
        assert!(goes_on(client, "huge\n"));
    }
    kept.crash();
    let mut fresh = [0; 6];
    (&others[0]).read_exact(&mut fresh).unwrap();
    assert_eq!(&fresh, b"again\n");
    for client in &others {
        assert!(goes_on(client, "two\n"));
    }
    let went_on = huge.iter().filter(|client| goes_on(client, "two\n"));
    let went_on = went_on.count();
    assert!((50..100).contains(&went_on), "{went_on} of 100");
    let log = fs::read_to_string(kept.home.join(LOG)).unwrap();
    assert!(
        log.contains("a crash would close some of the connections"),
        "{log}"
    );
}
