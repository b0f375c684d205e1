//! The new process's side against a fake old process, which says its part beforehand and then no more: no wait, no thread.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use super::*;
use crate::wire::record::{LONGEST, Piece};

/// What a worker was asked, in words.
#[derive(Default)]
struct FakeTaker {
    asked: RefCell<Vec<String>>,
    /// What begins so it refuses.
    refuses: Option<&'static str>,
    keys: usize,
}

impl FakeTaker {
    fn note(&self, what: String) -> Result<(), String> {
        let refused = self
            .refuses
            .is_some_and(|refuses| what.starts_with(refuses));
        self.asked.borrow_mut().push(what);
        match refused {
            true => Err("refused".to_owned()),
            false => Ok(()),
        }
    }

    fn owns(&self) -> bool {
        self.asked.borrow().iter().any(|it| it.starts_with("own"))
    }
}

impl Taker for FakeTaker {
    fn import(
        &mut self,
        arrival: &Arrival,
        _: OwnedFd,
        along: Vec<OwnedFd>,
    ) -> Result<usize, String> {
        let (id, listener) = (arrival.record.id, arrival.listener);
        self.note(format!("import {id} of {listener} with {}", along.len()))?;
        self.keys += 1;
        Ok(self.keys)
    }

    fn update(&mut self, key: usize, _: &Update) -> Result<bool, String> {
        self.note(format!("update {key}")).map(|()| false)
    }

    fn forget(&mut self, key: usize) {
        self.asked.borrow_mut().push(format!("forget {key}"));
    }

    fn import_common(&self, ours: &[u16], all: &Exported, _: bool) -> Result<(), String> {
        self.note(format!("common {:?} of {ours:?}", all.bytes))
    }

    fn look_at_the_clock(&mut self) {}

    fn own(&mut self, first: impl Iterator<Item = usize>) {
        let _ = first.count();
        self.asked.borrow_mut().push("own".to_owned());
    }
}

fn record(id: u64) -> Record {
    Record {
        id,
        silence: 0,
        shifted: false,
        read: 0,
        written: 0,
        output: 0,
        input_at: 0,
        input: 0,
        peer_fin: false,
        fin_wanted: false,
        fin_sent: false,
        ended: false,
        finishing: None,
        failed: None,
        progress: None,
        look_at: None,
        linger: None,
        dialing: false,
        far: None,
        given_away: false,
        alarm: None,
        tls: None,
        state_schema: 1,
        state: Vec::new(),
    }
}

fn connections(listener: u16, ids: &[u64]) -> Message {
    let arrival = |&id| Arrival {
        listener,
        peer: "127.0.0.1:4711".parse().unwrap(),
        dialled: None,
        age: 0,
        along: 1,
        record: record(id),
    };
    Message::Connections(ids.iter().map(arrival).collect())
}

fn updates(id: u64) -> Message {
    Message::Updates(vec![Update {
        record: record(id),
        output: Piece::default(),
        input: Piece::default(),
        far: Piece::default(),
    }])
}

fn common(listener: u16, left: u64) -> Message {
    Message::Common {
        listeners: vec![listener],
        ahead: false,
        schema: 1,
        bytes: vec![5],
        left,
    }
}

const ALL: Message = Message::Final {
    connections: 1,
    sum: 1,
    last_id: 9,
};

fn commit() -> Message {
    Message::Commit {
        frozen_at: 1,
        staying: 4,
        places: Vec::new(),
    }
}

/// What a takeover says in order, each with so many descriptors.
fn good() -> Vec<(Vec<u8>, usize)> {
    let said = [
        (connections(0, &[1, 2]), 4),
        (updates(1), 0),
        (common(0, 0), 0),
        (Message::Gone(vec![2]), 0),
        (ALL, 0),
        (commit(), 1),
    ];
    said.iter().map(|(it, with)| said_as(it, *with)).collect()
}

fn said_as(message: &Message, descriptors: usize) -> (Vec<u8>, usize) {
    (message.encode().unwrap(), descriptors)
}

/// The old process's end, which is this socket, and the new one's.
fn lines() -> (Arc<OwnedFd>, Line, Line) {
    let flags = SocketFlags::CLOEXEC;
    let (old, new) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let line = |end| Line::new(end, PATIENCE).unwrap();
    let old = Arc::new(old);
    (Arc::clone(&old), line(old), line(Arc::new(new)))
}

/// A new process that hears this and no more, and whether its old one hears its answers; with those.
fn hears(
    said: &[(Vec<u8>, usize)],
    is_deaf: bool,
    worker: &mut FakeTaker,
    is_ending: bool,
) -> (io::Result<Taken>, Vec<Message>) {
    let (theirs, old, new) = lines();
    let null = File::open("/dev/null").unwrap();
    for (bytes, descriptors) in said {
        let along = vec![null.as_fd(); *descriptors];
        old.pass(bytes, &along, None).unwrap();
    }
    // One that is told to end would otherwise wait: for it the old process is silent, not gone.
    if !is_ending {
        let how = if is_deaf {
            Shutdown::Both
        } else {
            Shutdown::Write
        };
        shutdown(&theirs, how).unwrap();
    }
    let giver = Giver {
        line: new,
        pid: 7,
        patience: PATIENCE,
        listener_of: vec![3],
    };
    let taken = giver.connections(std::slice::from_mut(worker), || is_ending, || 0);
    let answers = std::iter::from_fn(|| old.take(now()).ok().map(|(message, _)| message));
    (taken, answers.collect())
}

#[test]
fn what_is_said_in_order_is_taken_over() {
    let mut worker = FakeTaker::default();
    let (taken, answers) = hears(&good(), false, &mut worker, false);
    let taken = taken.unwrap();
    assert_eq!((taken.connections, taken.last_id, taken.staying), (1, 9, 4));
    assert!(taken.control.is_some() && taken.paths.is_empty());
    assert_eq!(
        worker.asked.into_inner(),
        [
            "import 1 of 3 with 1",
            "import 2 of 3 with 1",
            "update 1",
            "forget 2",
            "common [5] of [3]",
            "own"
        ]
    );
    let (taken_in, rest) = answers.split_at(4);
    assert!(
        taken_in
            .iter()
            .all(|it| matches!(it, Message::Taken { .. }))
    );
    assert!(matches!(rest, [Message::Prepared, Message::Owned]));
}

#[test]
fn nothing_is_owned_when_the_old_process_dies_before_its_commit() {
    for said in 0..good().len() {
        for is_deaf in [false, true] {
            let mut worker = FakeTaker::default();
            let (taken, _) = hears(&good()[..said], is_deaf, &mut worker, false);
            let why = taken.unwrap_err().to_string();
            assert!(why.contains("went on alone"), "after {said}: {why}");
            assert!(!worker.owns(), "after {said}");
        }
    }
}

#[test]
fn a_commit_is_kept_when_the_old_process_dies_right_behind_it() {
    // It heard all answers up to that, as its commit shows.
    let mut worker = FakeTaker::default();
    let (taken, _) = hears(&good(), false, &mut worker, false);
    taken.unwrap().until_alone();
    assert!(worker.owns());
}

/// Each is said after the first of the good ones.
#[test]
fn what_is_amiss_ends_the_takeover_and_the_old_process_is_told() {
    let mut torn = said_as(&updates(1), 0);
    torn.0.pop();
    let mut other = said_as(&updates(1), 0);
    other.0[6] += 1;
    let abort = Message::Abort("no more".to_owned());
    for (what, said, is_told) in [
        ("commit before all", said_as(&commit(), 1), true),
        ("its own answer", said_as(&Message::Prepared, 0), true),
        (
            "listeners again",
            said_as(&Message::Listeners(Vec::new()), 0),
            true,
        ),
        ("no descriptors", said_as(&connections(0, &[5]), 0), true),
        ("too few of them", said_as(&connections(0, &[5]), 1), true),
        ("no such listener", said_as(&connections(1, &[5]), 2), true),
        (
            "a connection again",
            said_as(&connections(0, &[1]), 2),
            true,
        ),
        ("unknown updated", said_as(&updates(5), 0), true),
        ("unknown gone", said_as(&Message::Gone(vec![5]), 0), true),
        ("common of nobody", said_as(&common(1, 0), 0), true),
        ("one too many", said_as(&ALL, 0), true),
        ("torn", torn, false),
        ("of another schema", other, false),
        ("more than is read", (vec![0; LONGEST + 1], 0), false),
        ("no message", (vec![0xff; 40], 0), false),
        ("it gives up", said_as(&abort, 0), false),
    ] {
        let mut worker = FakeTaker::default();
        let (taken, answers) = hears(&[good().remove(0), said], false, &mut worker, false);
        let error = taken.expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
        assert!(!worker.owns(), "{what}");
        let told = matches!(answers.last(), Some(Message::Abort(_)));
        assert_eq!(told, is_told, "{what}: {answers:?}");
    }
}

#[test]
fn a_worker_that_refuses_ends_the_takeover_with_its_reason() {
    for what in ["import", "update", "common"] {
        let mut worker = FakeTaker {
            refuses: Some(what),
            ..FakeTaker::default()
        };
        let (taken, answers) = hears(&good(), false, &mut worker, false);
        assert_eq!(taken.unwrap_err().to_string(), "refused", "{what}");
        let told = Message::Abort("refused".to_owned());
        assert_eq!(answers.last(), Some(&told), "{what}");
        assert!(!worker.owns(), "{what}");
    }
}

#[test]
fn what_connections_have_in_common_comes_in_pieces_and_is_had_once_all_are_there() {
    let mut said = good();
    said.insert(2, said_as(&common(0, 1), 0));
    let mut worker = FakeTaker::default();
    hears(&said, false, &mut worker, false).0.unwrap();
    let asked = worker.asked.into_inner();
    assert!(asked.contains(&"common [5, 5] of [3]".to_owned()));
    // One that is lost on the way is missed.
    said.remove(3);
    let mut worker = FakeTaker::default();
    let (taken, answers) = hears(&said, false, &mut worker, false);
    let why = taken.unwrap_err().to_string();
    assert_eq!(why, "bytes were lost on the way");
    assert_eq!(answers.last(), Some(&Message::Abort(why)));
}

#[test]
fn more_in_common_than_there_may_be_is_refused_before_all_has_come() {
    let workers = &mut [FakeTaker::default()];
    let mut taking = Taking::new(workers, &[3]);
    let most = vec![0; LONGEST_COMMON];
    taking.take_common(&[0], false, 1, &most, 1).unwrap();
    taking.take_common(&[0], false, 1, &[0], 1).unwrap_err();
}

#[test]
fn listeners_without_their_descriptors_are_refused_and_the_old_process_is_told() {
    let (_theirs, old, new) = lines();
    let null = File::open("/dev/null").unwrap();
    let listeners = Message::Listeners(Vec::new()).encode().unwrap();
    old.pass(&listeners, &[null.as_fd()], None).unwrap();
    let why = Giver::listeners(new, 7).unwrap_err().to_string();
    let (told, _) = old.take(now()).unwrap();
    assert_eq!(told, Message::Abort(why));
}

#[test]
fn a_new_process_that_is_told_to_end_does_not_wait_for_a_silent_old_one() {
    let mut worker = FakeTaker::default();
    let (taken, answers) = hears(&good()[..1], false, &mut worker, true);
    assert!(taken.unwrap_err().to_string().contains("told to end"));
    assert!(matches!(answers.last(), Some(Message::Abort(_))));
}

#[test]
fn an_old_process_that_is_silent_for_too_long_is_given_up_and_nothing_is_owned() {
    // The last one behind the answer that everything is here: its commit comes too late, or never.
    for said in [0, 1, 5] {
        let (_theirs, old, line) = lines();
        let null = File::open("/dev/null").unwrap();
        for (bytes, descriptors) in &good()[..said] {
            let along = vec![null.as_fd(); *descriptors];
            old.pass(bytes, &along, None).unwrap();
        }
        let giver = Giver {
            line,
            pid: 7,
            patience: Duration::ZERO,
            listener_of: vec![3],
        };
        let mut worker = FakeTaker::default();
        let taken = giver.connections(std::slice::from_mut(&mut worker), || false, || 0);
        let error = taken.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "after {said}");
        assert!(error.to_string().contains("said nothing"), "after {said}");
        assert!(!worker.owns(), "after {said}");
    }
}

#[test]
fn a_late_freeze_begins_anew() {
    let mut said = good();
    let again = [said_as(&Message::Thaw, 0), said[2].clone(), said[4].clone()];
    said.splice(5..5, again);
    let mut worker = FakeTaker::default();
    let (taken, answers) = hears(&said, false, &mut worker, false);
    assert_eq!(taken.unwrap().connections, 1);
    assert!(answers.contains(&Message::Thaw));
    // A commit behind the thaw, with nothing prepared, is out of turn.
    let mut said = good();
    said.insert(5, said_as(&Message::Thaw, 0));
    let mut worker = FakeTaker::default();
    hears(&said, false, &mut worker, false).0.unwrap_err();
    assert!(!worker.owns());
}
