//! Many turns: input and output that take their time, silence, instants, wakes, links by the thousand.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::SockRef;
use standfast::CloseReason;
use standfast::client::{Caller, Client, End, Link, LinkId, Links, Next};
use standfast::dial::{Dial, DialError, DialErrorKind, Family};
use standfast::services::Echo;

use super::apart::{apart, descriptors, resident};
use super::{Running, Server, Told, dial};
use crate::support::clients::{Stream, reset, until_acknowledged};
use crate::support::embedded::{Embedded, listen};
use crate::support::peers::refusing;
use crate::support::seeded::Seeded;
use crate::support::{GUARD, cannot_run, now, pass, read_to_fin, until};

#[test]
fn a_link_that_connects_anew_at_once_starves_no_other() {
    let echo = Embedded::start(listen(Echo));
    let client = Running::idle(dial(&echo.address().to_string()), |script| {
        // The first link ends as soon as it is connected, for ever.
        script.next = Next::RetryNow;
        script.connected = Box::new(|link| {
            if link.id() == 0 {
                link.abort();
            }
        });
    });
    client.ask(|links| (links.open(), links.open()));
    let mut churned = 0;
    for round in 0_u32..200 {
        let word = round.to_le_bytes();
        until("connected", || {
            client.ask(move |links| links.link(1).is_some_and(|mut link| link.send(&word) == 4))
        });
        let mut came = Vec::new();
        while came.len() < 4 {
            match client.told() {
                (1, Told::Input(bytes)) => came.extend(bytes),
                (0, Told::Ended(over)) => {
                    assert_eq!(over.reason, CloseReason::Service);
                    churned += 1;
                }
                (_, Told::Connected) => {}
                told => panic!("{told:?}"),
            }
        }
        assert_eq!(came, word);
    }
    assert!(churned > 10, "{churned}");
}

#[test]
fn connecting_anew_at_once_for_ever_piles_nothing_up() {
    if !apart(
        module_path!(),
        "connecting_anew_at_once_for_ever_piles_nothing_up",
        &[],
    ) {
        return;
    }
    let server = Server::start();
    let (_port, address) = refusing();
    let refused = Running::start(dial(&address.to_string()), |script| {
        script.next = Next::RetryNow;
    });
    let churning = Running::start(server.dial(), |script| script.next = Next::RetryNow);
    let churn = || {
        for round in 0..500 {
            let mut peer = server.accept();
            match round % 3 {
                0 => drop(peer),
                1 => reset(peer),
                _ => {
                    // FIN, with bytes of the link's on their way.
                    peer.write_all(b"x").unwrap();
                    peer.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(peer.read(&mut [0]).unwrap_or(0), 0);
                }
            }
        }
        while refused.told.try_recv().is_ok() {}
        while churning.told.try_recv().is_ok() {}
    };
    churn();
    let (open, used) = (descriptors(), resident());
    for _ in 0..4 {
        churn();
    }
    let (open_then, used_then) = (descriptors(), resident());
    assert!(
        open_then <= open + 4,
        "{open} descriptors, then {open_then}"
    );
    assert!(
        used_then <= used + (8 << 20),
        "{used} bytes, then {used_then}"
    );
}

#[test]
fn a_thousand_links_at_once() {
    if !apart(module_path!(), "a_thousand_links_at_once", &[]) {
        return;
    }
    const LINKS: usize = 1000;
    if standfast::process::raise_descriptor_limit().is_some_and(|limit| limit < 2200) {
        return cannot_run("a_thousand_links_at_once", "2200 descriptors (ulimit -Hn)");
    }
    let echo = Embedded::start(listen(Echo));
    let before = descriptors();
    // By name: all of them wait for its resolution together.
    let address = format!("localhost:{}", echo.address().port());
    let dial = Dial {
        family: Family::V4,
        sources: (1..=4).map(|last| [127, 0, 0, last].into()).collect(),
        ..dial(&address)
    };
    let client = Running::idle(dial, |script| {
        script.connected = Box::new(|link| {
            let word = u64::try_from(link.id()).unwrap().to_le_bytes();
            assert_eq!(link.send(&word), 8);
            let source = [127, 0, 0, 1 + u8::try_from(link.id() % 4).unwrap()];
            assert_eq!(link.local().unwrap().ip(), IpAddr::from(source));
        });
    });
    client.ask(|links| {
        for id in 0..LINKS {
            assert_eq!(links.open(), id);
        }
    });
    let mut echoed = vec![Vec::new(); LINKS];
    let mut whole = 0;
    while whole < LINKS {
        match client.told() {
            (_, Told::Connected) => {}
            (id, Told::Input(bytes)) => {
                echoed[id].extend(bytes);
                whole += usize::from(echoed[id].len() == 8);
            }
            told => panic!("{told:?}"),
        }
    }
    for (id, word) in echoed.iter().enumerate() {
        assert_eq!(*word, u64::try_from(id).unwrap().to_le_bytes());
    }
    client.ask(|links| {
        for id in 0..LINKS {
            links.link(id).unwrap().leave();
        }
    });
    for _ in 0..LINKS {
        assert_eq!(client.ends().reason, CloseReason::Service);
    }
    assert_eq!(client.ask(|links| links.live()), 0);
    until("descriptors are given back", || descriptors() <= before + 4);
}

/// A link with a receive deadline of 300 ms that was paused when it was connected, and its server's end.
fn paused_from_the_first() -> (Running, TcpStream) {
    let server = Server::start();
    let dial = Dial {
        read_timeout: Some(Duration::from_millis(300)),
        ..server.dial()
    };
    let client = Running::start(dial, |script| {
        script.connected = Box::new(|link| link.pause());
    });
    client.connects();
    let peer = server.accept();
    (client, peer)
}

#[test]
fn the_receive_deadline_stands_still_while_a_link_is_paused() {
    let (client, mut peer) = paused_from_the_first();
    peer.write_all(b"waits").unwrap();
    pass(Duration::from_millis(900));
    assert!(client.told.try_recv().is_err());
    let resumed = now();
    client.with(0, |link| link.resume());
    client.reads(b"waits");
    let told = client.hears();
    let waited = resumed.elapsed();
    assert!(
        matches!(told, Told::Silent(silence) if silence == Duration::from_millis(300)),
        "{told:?}"
    );
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert_eq!(client.ends().reason, CloseReason::ReadTimeout);
}

#[test]
fn a_paused_silent_link_has_the_rest_of_its_time_when_it_is_resumed() {
    let (client, _peer) = paused_from_the_first();
    pass(Duration::from_millis(900));
    let resumed = now();
    client.with(0, |link| link.resume());
    let told = client.hears();
    assert!(matches!(told, Told::Silent(_)), "{told:?}");
    // It was paused from its beginning on, but for the turn in which it was connected.
    let waited = resumed.elapsed();
    assert!(waited >= Duration::from_millis(299), "{waited:?}");
}

#[test]
fn silence_is_told_as_often_as_it_is_borne_and_a_byte_ends_it() {
    let server = Server::start();
    let wait = Duration::from_millis(150);
    let dial = Dial {
        read_timeout: Some(wait),
        ..server.dial()
    };
    let began = now();
    let client = Running::start(dial, |script| script.patience = 5);
    client.connects();
    let mut peer = server.accept();
    for times in 1..=3 {
        let told = client.hears();
        assert!(
            matches!(told, Told::Silent(silence) if silence == wait * times),
            "{told:?}"
        );
        assert!(began.elapsed() >= wait * times);
    }
    peer.write_all(b"x").unwrap();
    for times in 1..=3 {
        let mut told = client.hears();
        if matches!(told, Told::Silent(silence) if silence == wait * 4) {
            // The byte was late.
            return;
        }
        if let Told::Input(_) = told {
            told = client.hears();
        }
        assert!(
            matches!(told, Told::Silent(silence) if silence == wait * times),
            "{told:?}"
        );
    }
    let over = client.ends();
    assert_eq!(
        (over.reason, over.noticed),
        (CloseReason::ReadTimeout, wait * 3)
    );
    // Well: FIN, not a reset.
    assert_eq!(read_to_fin(&mut peer), b"");
}

#[test]
fn an_instant_a_turn_is_wanted_at_is_met_and_not_before() {
    /// Asks for the next turn at ever other distances.
    #[derive(Debug)]
    struct Ticks {
        wanted: Option<Instant>,
        random: Seeded,
        left: u32,
        late: Vec<Duration>,
        early: u32,
    }

    impl Caller for Ticks {
        fn connected(&mut self, _: &mut Link<'_>) {}

        fn input(&mut self, _: &mut Link<'_>, _: &[u8]) {}

        fn ended(&mut self, _: LinkId, _: &End) -> Next {
            Next::Drop
        }

        fn failed(&mut self, _: LinkId, _: &DialError) -> Next {
            Next::Drop
        }

        fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
            if let Some(wanted) = self.wanted {
                if links.now() < wanted {
                    self.early += 1;
                    return self.wanted;
                }
                self.late.push(links.now() - wanted);
            }
            if self.left == 0 {
                links.end();
                return None;
            }
            self.left -= 1;
            let micros = self.random.below(3000);
            self.wanted = Some(links.now() + Duration::from_micros(micros));
            self.wanted
        }
    }

    let ticks = Ticks {
        wanted: None,
        random: Seeded::new(1),
        left: 300,
        late: Vec::new(),
        early: 0,
    };
    let ticks = Client::new(dial("1"), ticks).unwrap().run().unwrap();
    assert_eq!((ticks.late.len(), ticks.early), (300, 0));
}

#[test]
fn every_thread_that_wakes_the_client_is_heard() {
    let client = Running::idle(dial("1"), |_| {});
    let answers: u32 = thread::scope(|scope| {
        let asking = (0..4).map(|_| {
            let (asks, wake) = (client.asks.clone(), client.wake.clone());
            scope.spawn(move || {
                let (answer, answered) = mpsc::channel();
                for _ in 0..250 {
                    let answer = answer.clone();
                    asks.send(Box::new(move |_: &mut Links<'_>| answer.send(1).unwrap()))
                        .unwrap();
                    wake.wake();
                    answered.recv_timeout(GUARD).unwrap();
                }
                250_u32
            })
        });
        let asking: Vec<_> = asking.collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).sum()
    });
    assert_eq!(answers, 1000);
    let wake = client.wake.clone();
    client.end();
    // Nobody is there any more.
    wake.wake();
}

#[test]
fn a_server_that_reads_slowly_gets_everything_in_order() {
    const ALL: u64 = 8 << 20;
    fn send(stream: &mut Stream, link: &mut Link<'_>) {
        while stream.at < ALL {
            match link.send(&stream.peek(50_001)) {
                0 => return,
                count => stream.skip(count),
            }
        }
        link.half_close();
    }

    let server = Server::start();
    let stream = Arc::new(Mutex::new(Stream::default()));
    let client = Running::start(server.dial(), |script| {
        let first = Arc::clone(&stream);
        script.connected = Box::new(move |link| send(&mut first.lock().unwrap(), link));
        script.writable = Box::new(move |link| send(&mut stream.lock().unwrap(), link));
    });
    client.connects();
    let mut peer = server.accept();
    let mut came = Stream::default();
    let all = came.read_to_fin(&mut peer);
    assert!(all >= ALL, "{all}");
    drop(peer);
    assert_eq!(client.ends().written, all);
}

#[test]
fn nothing_is_missed_of_much_input_with_urgent_bytes_pauses_and_an_end() {
    for end in [false, true] {
        let server = Server::start();
        let client = Running::start(server.dial(), |script| {
            let mut stream = Stream::default();
            // Pauses now and then, and is resumed by the next turn's task.
            script.input = Some(Box::new(move |link, bytes| {
                stream.verify(bytes);
                if stream.at % 7 == 0 {
                    link.pause();
                    link.resume();
                }
            }));
        });
        client.connects();
        let peer = server.accept();
        let mut stream = Stream::default();
        for piece in 1..=60 {
            let bytes = stream.next(piece * 1777);
            let (before, urgent) = bytes.split_at(bytes.len() - 1);
            (&peer).write_all(before).unwrap();
            assert_eq!(SockRef::from(&peer).send_out_of_band(urgent).unwrap(), 1);
        }
        (&peer).write_all(&stream.next(3)).unwrap();
        if end {
            peer.shutdown(Shutdown::Write).unwrap();
            let over = client.ends();
            assert_eq!(
                (over.reason, over.read),
                (CloseReason::PeerClosed, stream.at)
            );
        } else {
            until_acknowledged(&peer);
            reset(peer);
            let over = client.ends();
            assert_eq!(
                (over.reason, over.read),
                (CloseReason::PeerReset, stream.at)
            );
        }
    }
}

#[test]
fn links_for_which_no_descriptor_is_left_fail_and_come_back() {
    const FEW: [&str; 4] = ["sh", "-c", "ulimit -n 60; exec \"$@\"", "sh"];
    if !apart(
        module_path!(),
        "links_for_which_no_descriptor_is_left_fail_and_come_back",
        &FEW,
    ) {
        return;
    }
    let server = Server::start();
    let client = Running::idle(server.dial(), |script| script.next = Next::Retry);
    client.ask(|links| {
        for _ in 0..80 {
            links.open();
        }
    });
    let (mut connected, mut failed) = (Vec::new(), 0);
    while connected.len() < 30 || failed == 0 {
        match client.told() {
            (id, Told::Connected) => connected.push(id),
            (_, Told::Failed(kind, text)) => {
                failed += 1;
                assert_eq!(kind, DialErrorKind::Local);
                let why =
                    "Too many open files (os error 24); raise the descriptor limit (ulimit -n)";
                assert!(text.ends_with(why), "{text}");
            }
            (_, Told::Retrying(..)) => {}
            (_, told) => panic!("{told:?}"),
        }
    }
    // Whoever goes makes room for another.
    client.ask(move |links| {
        for id in connected {
            links.link(id).unwrap().abort();
        }
    });
    for _ in 0..30 {
        while !matches!(client.told(), (_, Told::Connected)) {}
    }
}

/// Does anything at any time, and asserts that it is told only what can be.
#[derive(Debug)]
struct Wild {
    random: Seeded,
    /// Of each link: whether it is connected, and whether it was aborted since.
    links: Vec<(bool, bool)>,
    most: usize,
    ends: HashMap<CloseReason, u32>,
}

impl Wild {
    fn act(&mut self, link: &mut Link<'_>) {
        let (connected, aborted) = self.links[link.id()];
        assert!(connected && !aborted, "link {} is over", link.id());
        match self.random.below(24) {
            0..8 => {
                let count = self.random.below(300_000);
                let count = usize::try_from(count).unwrap();
                assert!(link.send(&vec![b'x'; count]) <= count);
            }
            8..10 => link.pause(),
            10..16 => link.resume(),
            16 => link.half_close(),
            17 => link.leave(),
            18 => {
                link.abort();
                self.links[link.id()].1 = true;
            }
            19 => assert!(link.unacknowledged() < 1 << 30),
            _ => {}
        }
    }

    fn next(&mut self) -> Next {
        match self.random.below(6) {
            0..2 => Next::Drop,
            2 => Next::RetryNow,
            _ => Next::Retry,
        }
    }
}

impl Caller for Wild {
    fn connected(&mut self, link: &mut Link<'_>) {
        let before = std::mem::replace(&mut self.links[link.id()], (true, false));
        assert!(!before.0, "connected twice");
        self.act(link);
    }

    fn input(&mut self, link: &mut Link<'_>, bytes: &[u8]) {
        assert!(!bytes.is_empty());
        self.act(link);
    }

    fn writable(&mut self, link: &mut Link<'_>) {
        self.act(link);
    }

    fn silent(&mut self, link: &mut Link<'_>, _: Duration) -> bool {
        self.act(link);
        self.random.below(2) == 0
    }

    fn ended(&mut self, id: LinkId, end: &End) -> Next {
        let before = std::mem::take(&mut self.links[id]);
        assert!(before.0, "ended twice");
        *self.ends.entry(end.reason).or_default() += 1;
        self.next()
    }

    fn failed(&mut self, id: LinkId, error: &DialError) -> Next {
        assert!(!self.links[id].0, "{error}");
        self.next()
    }

    fn turn(&mut self, links: &mut Links<'_>) -> Option<Instant> {
        for _ in 0..2 {
            if links.opened() < self.most {
                let id = links.open();
                // A new number, or that of one that is gone.
                assert!(id <= self.links.len(), "{id} of {}", self.links.len());
                if id == self.links.len() {
                    self.links.push((false, false));
                }
                assert_eq!(self.links[id], (false, false), "link {id} is in use");
            }
        }
        for _ in 0..20 {
            let id = usize::try_from(self.random.below(self.links.len() as u64)).unwrap();
            if !self.links[id].1
                && let Some(mut link) = links.link(id)
            {
                self.act(&mut link);
            }
        }
        if links.live() == 0 && links.opened() == self.most {
            links.end();
        }
        Some(links.now() + Duration::from_micros(self.random.below(1500)))
    }
}

/// Does anything with whoever connects, until `over`.
fn wild_server(server: &Server, mut random: Seeded, over: &AtomicBool) {
    server.0.set_nonblocking(true).unwrap();
    let (mut peers, mut buffer) = (Vec::<TcpStream>::new(), vec![0; 100_000]);
    while !over.load(Ordering::Relaxed) {
        while let Ok((peer, _)) = server.0.accept() {
            peer.set_nonblocking(true).unwrap();
            peers.push(peer);
        }
        let mut at = 0;
        while let Some(mut peer) = peers.get(at) {
            let count = usize::try_from(random.below(100_000)).unwrap();
            match random.below(60) {
                0..5 => drop(peer.write(&buffer[..count])),
                5..9 => drop(peer.read(&mut buffer[..count])),
                9 => drop(SockRef::from(peer).send_out_of_band(b"!")),
                10 => drop(peer.shutdown(Shutdown::Write)),
                11 => reset(peers.swap_remove(at)),
                12 => drop(peers.swap_remove(at)),
                _ => {}
            }
            at += 1;
        }
        pass(Duration::from_micros(200));
    }
}

#[test]
fn whatever_both_sides_do_each_link_ends_once_and_is_forgotten() {
    const TEST: &str = "whatever_both_sides_do_each_link_ends_once_and_is_forgotten";
    if !apart(module_path!(), TEST, &[]) {
        return;
    }
    let before = descriptors();
    for seed in 0..3 {
        let (server, over) = (Server::start(), Arc::new(AtomicBool::new(false)));
        let dial = Dial {
            read_timeout: Some(Duration::from_millis(5)),
            ..server.dial()
        };
        let serving = thread::spawn({
            let over = Arc::clone(&over);
            move || wild_server(&server, Seeded::new(seed), &over)
        });
        let wild = Wild {
            random: Seeded::new(!seed),
            links: Vec::new(),
            most: 300,
            ends: HashMap::new(),
        };
        let (done, running) = mpsc::channel();
        let client = Client::new(dial, wild).unwrap();
        let ran = thread::spawn(move || {
            let ended = client.run();
            let _ = done.send(());
            ended
        });
        let waited = running.recv_timeout(GUARD);
        over.store(true, Ordering::Relaxed);
        assert!(waited.is_ok() || ran.is_finished(), "seed {seed} goes on");
        let wild = ran.join().unwrap().unwrap();
        serving.join().unwrap();
        assert!(wild.ends.len() >= 4, "{:?}", wild.ends);
        assert_eq!(descriptors(), before);
    }
}
