//! After the server's FIN: whether that was its goodbye, or only the end of what it has to say. Pure; time comes in as an
//! argument.
//!
//! A FIN does not tell (RFC 9293, 3.6): `close` and `shutdown` send the same. What is sent after it does: a socket that
//! reads on acknowledges it, one that is gone answers with a reset. So the first bytes after a FIN are a question, and
//! kept until it is answered; and where stdin has nothing to ask with, it is taken for a goodbye. One that only lingers,
//! as web servers do, acknowledges and forgets, and nobody can tell; so it is asked anew after each pause of stdin, and
//! what meets its end goes to the next connection.

use std::time::Duration;

use crate::connect::verdict::Stdin;

/// stdin has nothing under way when it gave nothing for so long. A younger connection may be one whose first bytes are
/// on their way, to a server that half-closes as soon as it accepts.
pub(crate) const QUIET: Duration = Duration::from_secs(2);

/// Most bytes that are kept to be sent again, should the server be gone.
pub(crate) const QUESTION: usize = 1024;

/// Nothing was sent for so long: a server that reads on is asked anew whether it still does.
const PAUSE: Duration = Duration::from_millis(10);

/// How soon to look for an answer, at first and at most: acknowledgements make no event.
pub(crate) const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MOST: Duration = Duration::from_millis(100);

/// A connection whose server has sent its FIN.
#[derive(Debug)]
pub(crate) struct Parting {
    /// Bytes it had acknowledged by then, or when it was last asked.
    acknowledged: u64,
    /// It came soon after the connection was made.
    was_young: bool,
    /// That was the first one there was, and neither side had said anything.
    was_untouched: bool,
    /// That stdin is waited for was told.
    was_told: bool,
    /// It has acknowledged more since the FIN.
    reads_on: bool,
    /// And since it was last asked: bytes may be sent that are not kept.
    takes: bool,
    /// How many bytes were sent since as a question; they wait still.
    asked: usize,
    pause: Duration,
}

/// How things stand when it is asked what the FIN meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    pub(crate) stdin: Stdin,
    pub(crate) is_terminal: bool,
    /// How long stdin gave nothing, from the start of the program on.
    pub(crate) quiet: Duration,
    /// The last byte that stdin gave was the end of a line, and it gave one.
    pub(crate) at_line_end: bool,
    /// How long nothing of it was sent.
    pub(crate) idle: Duration,
    /// Some of what it gave waits to be sent.
    pub(crate) waits: bool,
    /// It holds some that were not read yet.
    pub(crate) gives: bool,
    /// Bytes acknowledged, and those that are not.
    pub(crate) acknowledged: u64,
    pub(crate) queued: u64,
    /// There will be no other connection.
    pub(crate) is_last: bool,
}

/// What the FIN meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It reads on.
    HalfClose,
    Goodbye,
    /// Not known, and what waits is to ask with.
    Ask,
    /// A server that only receives says nothing from the first: stdin has all the time it needs for its first byte.
    /// Told once.
    Patience,
    /// Not known: to be looked at again after so long, or when something happens.
    Unknown(Option<Duration>),
}

impl Parting {
    /// The FIN has come on a connection of that `age`, on which so many bytes had been acknowledged; nothing but that had
    /// come of it if it `was_untouched`.
    pub(crate) fn new(age: Duration, acknowledged: u64, was_untouched: bool) -> Self {
        Self {
            acknowledged,
            was_young: age < QUIET,
            was_untouched,
            was_told: false,
            reads_on: false,
            takes: false,
            asked: 0,
            pause: LOOK_FIRST,
        }
    }

    /// Whether it was seen to read after its FIN.
    pub(crate) fn reads_on(&self) -> bool {
        self.reads_on
    }

    /// Whether bytes may be sent that are not kept.
    pub(crate) fn takes(&self) -> bool {
        self.takes
    }

    /// How many bytes that wait were sent as a question.
    pub(crate) fn asked(&self) -> usize {
        self.asked
    }

    /// So many were sent as a question, behind `sent` others.
    pub(crate) fn ask(&mut self, count: usize, sent: u64) {
        self.asked = count;
        self.acknowledged = sent;
        self.pause = LOOK_FIRST;
    }

    /// It had everything, and that long ago: it may have gone since.
    pub(crate) fn may_have_gone(&self, idle: Duration, queued: u64) -> bool {
        self.asked == 0 && queued == 0 && idle >= PAUSE
    }

    /// What the FIN meant, as far as is known.
    pub(crate) fn meaning(&mut self, scene: &Scene) -> Meaning {
        if self.reads_on && self.may_have_gone(scene.idle, scene.queued) {
            self.takes = false;
            self.acknowledged = scene.acknowledged;
        }
        if self.takes || scene.acknowledged > self.acknowledged {
            self.reads_on = true;
            self.takes = true;
            return Meaning::HalfClose;
        }
        if scene.queued > 0 {
            let pause = self.pause;
            self.pause = (pause * 2).min(LOOK_MOST);
            return Meaning::Unknown(Some(pause));
        }
        match scene.stdin {
            _ if scene.waits && self.asked == 0 => Meaning::Ask,
            _ if self.reads_on => Meaning::Unknown(None),
            Stdin::Silent => Meaning::Goodbye,
            Stdin::Unsent | Stdin::Sent => Meaning::Unknown(None),
            Stdin::Open if scene.waits || scene.gives => Meaning::Unknown(None),
            Stdin::Open if scene.is_terminal => Meaning::Goodbye,
            // Nothing is gained by going, and what stdin may give yet would be lost.
            Stdin::Open if scene.is_last => Meaning::Unknown(None),
            Stdin::Open if scene.at_line_end && !self.was_young => Meaning::Goodbye,
            Stdin::Open => match QUIET.checked_sub(scene.quiet) {
                None | Some(Duration::ZERO) if !(self.was_young && self.was_untouched) => {
                    Meaning::Goodbye
                }
                None | Some(Duration::ZERO) if std::mem::replace(&mut self.was_told, true) => {
                    Meaning::Unknown(None)
                }
                None | Some(Duration::ZERO) => Meaning::Patience,
                left => Meaning::Unknown(left),
            },
        }
    }

    /// The bytes of the question are on their way as any others now: how many those are.
    pub(crate) fn answered(&mut self) -> usize {
        std::mem::take(&mut self.asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(60);
    const YOUNG: Duration = Duration::from_millis(3);

    /// stdin is open, at the end of a line, and has been quiet for long; nothing is under way.
    const IDLE: Scene = Scene {
        stdin: Stdin::Open,
        is_terminal: false,
        quiet: OLD,
        at_line_end: true,
        idle: OLD,
        waits: false,
        gives: false,
        acknowledged: 10,
        queued: 0,
        is_last: false,
    };

    fn meaning(age: Duration, scene: Scene) -> Meaning {
        Parting::new(age, 10, false).meaning(&scene)
    }

    #[test]
    fn with_nothing_under_way_it_is_a_goodbye() {
        let silent = Scene {
            stdin: Stdin::Silent,
            quiet: Duration::ZERO,
            at_line_end: false,
            ..IDLE
        };
        let typing = Scene {
            is_terminal: true,
            quiet: Duration::ZERO,
            at_line_end: false,
            ..IDLE
        };
        for age in [OLD, YOUNG] {
            for scene in [IDLE, silent, typing] {
                assert_eq!(meaning(age, scene), Meaning::Goodbye, "{scene:?}");
            }
        }
        let between_lines = Scene {
            quiet: YOUNG,
            ..IDLE
        };
        assert_eq!(meaning(OLD, between_lines), Meaning::Goodbye);
    }

    #[test]
    fn a_stdin_that_may_be_about_to_give_something_is_given_time() {
        let quiet = Duration::from_millis(1400);
        let left = Meaning::Unknown(Some(Duration::from_millis(600)));
        let in_a_line = Scene {
            at_line_end: false,
            quiet,
            ..IDLE
        };
        assert_eq!(meaning(OLD, in_a_line), left);
        assert_eq!(meaning(YOUNG, Scene { quiet, ..IDLE }), left);
        let quiet = QUIET;
        assert_eq!(meaning(OLD, Scene { quiet, ..in_a_line }), Meaning::Goodbye);
    }

    #[test]
    fn what_is_under_way_decides_and_is_looked_at_ever_more_rarely() {
        let mut parting = Parting::new(OLD, 10, false);
        let asked = Scene {
            waits: true,
            queued: 5,
            ..IDLE
        };
        for millis in [1, 2, 4, 8, 16, 32, 64, 100, 100] {
            let pause = Duration::from_millis(millis);
            assert_eq!(parting.meaning(&asked), Meaning::Unknown(Some(pause)));
        }
        let answered = Scene {
            acknowledged: 11,
            queued: 4,
            ..asked
        };
        assert_eq!(parting.meaning(&answered), Meaning::HalfClose);
        assert!(parting.takes());
        // Once it is known, a pause of stdin is no goodbye.
        let done = Scene {
            acknowledged: 15,
            ..IDLE
        };
        let between = Scene {
            idle: Duration::ZERO,
            ..done
        };
        assert_eq!(parting.meaning(&between), Meaning::HalfClose);
        assert_eq!(parting.meaning(&done), Meaning::Unknown(None));
        // But it is asked anew.
        assert!(parting.reads_on() && !parting.takes());
        let waits = true;
        assert_eq!(parting.meaning(&Scene { waits, ..done }), Meaning::Ask);
    }

    #[test]
    fn what_waits_is_what_to_ask_with() {
        for stdin in [Stdin::Open, Stdin::Unsent] {
            let scene = Scene {
                stdin,
                waits: true,
                is_terminal: true,
                ..IDLE
            };
            assert_eq!(meaning(OLD, scene), Meaning::Ask);
        }
    }

    #[test]
    fn who_half_closes_the_first_connection_at_once_is_left_to_a_stdin_that_takes_its_time() {
        let quiet_from_the_first = Scene {
            at_line_end: false,
            acknowledged: 0,
            ..IDLE
        };
        let mut parting = Parting::new(YOUNG, 0, true);
        assert_eq!(parting.meaning(&quiet_from_the_first), Meaning::Patience);
        let waits_on = Meaning::Unknown(None);
        assert_eq!(parting.meaning(&quiet_from_the_first), waits_on);
        let mut old = Parting::new(OLD, 0, true);
        assert_eq!(old.meaning(&quiet_from_the_first), Meaning::Goodbye);
    }

    #[test]
    fn what_stdin_holds_is_waited_for() {
        let gives = Scene {
            gives: true,
            ..IDLE
        };
        assert_eq!(meaning(OLD, gives), Meaning::Unknown(None));
    }

    #[test]
    fn the_only_connection_there_will_be_is_kept_for_whatever_stdin_may_give() {
        let only = Scene {
            is_last: true,
            ..IDLE
        };
        assert_eq!(meaning(OLD, only), Meaning::Unknown(None));
        let at_a_terminal = Scene {
            is_terminal: true,
            ..only
        };
        assert_eq!(meaning(OLD, at_a_terminal), Meaning::Goodbye);
    }

    #[test]
    fn a_question_is_kept_until_it_is_answered() {
        let mut parting = Parting::new(OLD, 10, false);
        parting.ask(5, 10);
        assert_eq!(parting.asked(), 5);
        assert!(!parting.reads_on());
        assert_eq!(parting.answered(), 5);
        assert_eq!(parting.asked(), 0);
    }
}
