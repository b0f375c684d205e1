//! The old process's side against a fake new process and a fake worker, each of which says its part when it is spoken to.

use std::thread;

use mio::{Poll, Token, Waker};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::address::endpoint::Endpoint;
use crate::handle::shown::Shown;
use crate::handle::{Mailbox, Shared};
use crate::handoff::compare::compare;
use crate::inspect::ListenerInfo;
use crate::memory::Memory;
use crate::time::deadline::Clock;
use crate::wire::question::Hello;
use crate::wire::record::{PROTOCOL, SCHEMA};

/// Longer than anything takes that goes on at all.
const GUARD: Duration = Duration::from_secs(30);

/// What the worker has.
const SUM: Sum = Sum {
    connections: 2,
    ids: 7,
    staying: 1,
};

/// A server of one worker that does nothing, listening there; and what that worker is asked.
fn server(listeners: &[&str]) -> (Handle, Receiver<Mail>) {
    let poll = Poll::new().unwrap();
    let (mailbox, mail) = Mailbox::new(Waker::new(poll.registry(), Token(0)).unwrap());
    let info = |address: &&str| ListenerInfo {
        address: address.parse().unwrap(),
        inherited_as: None,
        service: "echo".to_owned(),
        accepted: 0,
        open: 0,
        closed: Vec::new(),
        tls: None,
    };
    let shared = Shared::new(
        vec![mailbox],
        Shown {
            listeners: listeners.iter().map(info).collect(),
            listens: vec![0; listeners.len()],
            stats: vec![listeners.iter().map(|_| Arc::default()).collect()],
            upstreams: Box::new(Vec::new),
            nats: Box::new(Vec::new),
            children: Box::new(|| None),
        },
        Clock::start(),
        Memory::new(1 << 20),
        Arc::new(()),
    );
    let shared = Arc::new(shared);
    (Handle { shared }, mail)
}

/// What a worker does in a takeover, unless it `fails`. Answers how each time ended that it stood still for.
fn work(mail: &Receiver<Mail>, fails: Option<&str>) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut told = None;
    loop {
        match mail.recv_timeout(GUARD).unwrap() {
            Mail::Takeover(Call::Give(baton, events)) => {
                let listeners = Message::Listeners(Vec::new());
                baton.pass(&listeners, &[], None).unwrap();
                events.send(Event::Announced).unwrap();
                match fails {
                    Some(why) => events.send(Event::Failed(why.to_owned().into())).unwrap(),
                    None => baton.set_left(0, Duration::ZERO),
                }
                told = Some(events);
            }
            Mail::Takeover(Call::Freeze(_, outcome)) => {
                // One that is late for it hears the outcome all the same.
                let _ = told.as_ref().unwrap().send(Event::Frozen(SUM));
                outcomes.push(outcome.recv_timeout(GUARD).unwrap());
                if outcomes.ends_with(&[Outcome::Committed]) {
                    return outcomes;
                }
            }
            Mail::Takeover(Call::Keep) => return outcomes,
            _ => {}
        }
    }
}

/// What a new process answers that has nothing against it.
fn good(said: &Message) -> Vec<Message> {
    match said {
        Message::Listeners(_) | Message::Counts { .. } | Message::Past(_) => {
            vec![Message::Taken { work: 0, micros: 0 }]
        }
        Message::Final { .. } => vec![Message::Prepared],
        Message::Thaw => vec![Message::Thaw],
        Message::Commit { .. } => vec![Message::Owned, Message::Running { frozen: 1500 }],
        _ => Vec::new(),
    }
}

/// How a takeover went.
struct Gone {
    given: Result<Takeover, String>,
    is_given: bool,
    /// What the worker stood still for.
    outcomes: Vec<Outcome>,
    /// What the new process was told.
    told: Vec<Message>,
}

/// Gives to a new process that answers so; `None`: it ends.
fn gives(
    fails: Option<&str>,
    mut answers: impl FnMut(&Message) -> Option<Vec<Message>> + Send,
) -> Gone {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let line = |end| Line::new(Arc::new(end), GUARD).unwrap();
    let (handle, mail) = server(&[]);
    let (old, new) = (line(ours), line(theirs));
    thread::scope(|scope| {
        let worker = scope.spawn(move || work(&mail, fails));
        let new = scope.spawn(move || {
            let mut told = Vec::new();
            while let Ok((message, _)) = new.take(now() + GUARD) {
                let answers = answers(&message);
                told.push(message);
                let Some(answers) = answers else { break };
                for answer in answers {
                    // An old process that has given up hears nothing more.
                    let _ = new.pass(&answer.encode().unwrap(), &[], None);
                }
            }
            told
        });
        let paths = Paths {
            descriptors: Vec::new(),
            places: Vec::new(),
        };
        let given = give(old, &handle, 7, Vec::new(), true, &paths).map(|(takeover, _)| takeover);
        Gone {
            given,
            is_given: handle.shared.was_given(),
            outcomes: worker.join().unwrap(),
            told: new.join().unwrap(),
        }
    })
}

/// The steps up to the new process's word, in their order.
const STEPS: [fn(&Message) -> bool; 4] = [
    |it| matches!(it, Message::Listeners(_)),
    |it| matches!(it, Message::Counts { .. }),
    |it| matches!(it, Message::Final { .. }),
    |it| matches!(it, Message::Commit { .. }),
];

#[test]
fn what_is_answered_in_order_is_given() {
    let gone = gives(None, |said| Some(good(said)));
    let takeover = gone.given.unwrap();
    assert!(gone.is_given);
    assert_eq!((takeover.pid, takeover.role), (7, Role::Gave));
    assert_eq!((takeover.connections, takeover.staying), (2, 1));
    assert_eq!(takeover.frozen, Duration::from_micros(1500));
    // On a busy machine a freeze may be late, and another one is not.
    let (last, late) = gone.outcomes.split_last().unwrap();
    assert_eq!(*last, Outcome::Committed);
    assert!(late.iter().all(|it| *it == Outcome::Thawed));
    assert!(STEPS[0](&gone.told[0]));
    let (_, end) = gone.told.split_at(gone.told.len() - 3);
    assert!(STEPS[1..].iter().zip(end).all(|(step, it)| step(it)));
    let Message::Final {
        connections, sum, ..
    } = end[1]
    else {
        unreachable!("as was just seen");
    };
    assert_eq!((connections, sum), (SUM.connections, SUM.ids));
}

#[test]
fn the_server_goes_on_when_the_new_process_dies_before_it_owns() {
    for (at, step) in STEPS.iter().enumerate() {
        let gone = gives(None, |said| (!step(said)).then(|| good(said)));
        let why = gone.given.unwrap_err();
        assert!(why.contains("the new process ended"), "step {at}: {why}");
        assert!(!gone.is_given, "step {at}");
        let thawed = gone.outcomes.iter().all(|it| *it == Outcome::Thawed);
        assert!(thawed, "step {at}: {:?}", gone.outcomes);
    }
}

#[test]
fn the_server_goes_on_when_the_new_process_gives_up_and_says_why_in_its_words() {
    for (at, step) in STEPS.iter().enumerate() {
        let gone = gives(None, |said| {
            Some(match step(said) {
                true => vec![Message::Abort("no room".to_owned())],
                false => good(said),
            })
        });
        assert_eq!(gone.given.unwrap_err(), "no room", "step {at}");
        assert!(!gone.is_given, "step {at}");
        assert!(!gone.outcomes.contains(&Outcome::Committed), "step {at}");
    }
}

#[test]
fn what_the_new_process_says_out_of_turn_ends_the_takeover_and_it_is_told() {
    for (at, step) in STEPS[..3].iter().enumerate() {
        let gone = gives(None, |said| {
            Some(match step(said) {
                true => vec![Message::Owned],
                false => good(said),
            })
        });
        let why = gone.given.unwrap_err();
        assert!(why.contains("out of turn"), "step {at}: {why}");
        assert!(!gone.is_given, "step {at}");
        assert_eq!(gone.told.last(), Some(&Message::Abort(why)), "step {at}");
    }
}

#[test]
fn what_is_wrong_with_a_worker_ends_the_takeover_and_the_new_process_is_told() {
    let gone = gives(Some("no memory for it"), |said| Some(good(said)));
    let why = gone.given.unwrap_err();
    assert_eq!(why, "no memory for it");
    assert_eq!(gone.told.last(), Some(&Message::Abort(why)));
    assert_eq!(gone.outcomes, []);
}

#[test]
fn a_new_process_that_is_not_ready_in_time_gets_another_freeze() {
    let mut first = true;
    let gone = gives(None, |said| {
        let is_late = STEPS[2](said) && std::mem::take(&mut first);
        Some(if is_late { Vec::new() } else { good(said) })
    });
    gone.given.unwrap();
    assert_eq!(gone.outcomes.first(), Some(&Outcome::Thawed));
    assert_eq!(gone.outcomes.last(), Some(&Outcome::Committed));
    assert!(gone.told.contains(&Message::Thaw));
}

#[test]
fn a_new_process_that_differs_is_refused_with_what_differs() {
    let (handle, _mail) = server(&["127.0.0.1:7000"]);
    let address = |text: &str| text.parse::<Endpoint>().unwrap();
    let hello = || Hello {
        protocol: PROTOCOL,
        schema: SCHEMA,
        version: "1.2.3".to_owned(),
        pid: 7,
        max_conns: 1,
        network: "here".to_owned(),
        listeners: vec![
            (address("127.0.0.1:7001"), "print".to_owned()),
            (address("127.0.0.1:7000"), "echo".to_owned()),
        ],
        services: vec![0, 1],
        reload: false,
        past: true,
    };
    handle.shared.workers[0].open.store(1, Ordering::SeqCst);
    assert_eq!(compare(&hello(), &handle, "here"), Ok(vec![Fate::Goes]));
    let refused = |hello: Hello| compare(&hello, &handle, "here").unwrap_err();
    for (why, differs) in [
        (
            "speaks takeover 2.",
            Hello {
                protocol: PROTOCOL + 1,
                ..hello()
            },
        ),
        (
            "the running one 1.",
            Hello {
                schema: SCHEMA + 1,
                ..hello()
            },
        ),
        (
            "another network namespace",
            Hello {
                network: "there".to_owned(),
                ..hello()
            },
        ),
        (
            "does not listen on 127.0.0.1:7000",
            Hello {
                listeners: vec![(address("[::1]:7000"), "echo".to_owned())],
                ..hello()
            },
        ),
        (
            "served by echo, the new process has print there",
            Hello {
                listeners: vec![(address("127.0.0.1:7000"), "print".to_owned())],
                ..hello()
            },
        ),
        (
            "1 connections are open, the new process may have 0",
            Hello {
                max_conns: 0,
                ..hello()
            },
        ),
    ] {
        let said = refused(differs);
        assert!(said.contains(why), "{said}");
    }
    // A new edition of the settings has the last word.
    for (listener, fate) in [
        (("127.0.0.1:7000", "echo"), Fate::Goes),
        (("127.0.0.1:7000", "print"), Fate::GoesAlone),
        (("127.0.0.1:7001", "echo"), Fate::Stays),
    ] {
        let (at, service) = listener;
        let edition = Hello {
            listeners: vec![(address(at), service.to_owned())],
            services: vec![0],
            reload: true,
            ..hello()
        };
        assert_eq!(compare(&edition, &handle, "here"), Ok(vec![fate]));
    }
    handle.drain();
    assert!(refused(hello()).contains("is ending"));
}

#[test]
fn patience_counts_from_the_last_progress_and_progress_is_half() {
    let start = now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let left = Duration::from_millis;
    let mut convergence = Convergence::default();
    assert_eq!(convergence.note(left(900), at(0)), Duration::ZERO);
    assert_eq!(convergence.note(left(800), at(60)), Duration::from_secs(60));
    assert_eq!(convergence.note(left(450), at(61)), Duration::ZERO);
    // More again, and as little as before: since then.
    assert_eq!(convergence.note(left(700), at(70)), Duration::from_secs(9));
    assert_eq!(convergence.note(left(450), at(71)), Duration::from_secs(10));
    assert_eq!(convergence.note(left(225), at(72)), Duration::ZERO);
}
