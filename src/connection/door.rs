//! A connection at the door: what its client waits for, and what of that has come.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Connection, Serving, Step};
use crate::address::introduction::{Introduction, LONGEST, Named};
use crate::io::Is;
use crate::io::door::{Door, Heard, Shaken};
use crate::liveness::close::{CloseReason, Ending, Note};
use crate::time::deadline::Moment;

impl Connection {
    /// Whether it may [enter](Step::Enter), is to end, or waits on at the door.
    pub(crate) fn knock(&mut self, serving: &mut Serving<'_>) -> Step {
        match self.io.door() {
            Some(Door::Header(until)) => self.hear(until, serving),
            Some(Door::Turn(at)) if serving.turn.now < at => self.wait_on(),
            Some(Door::Handshake(until)) => self.shake_hands(until, serving),
            _ => Step::Enter,
        }
    }

    /// What its first bytes say.
    fn hear(&mut self, until: Moment, serving: &mut Serving<'_>) -> Step {
        let most = serving.buffer.len().min(LONGEST);
        let heard = self.io.listen_at_door(&mut serving.buffer[..most]);
        if let Some(verdict) = self.io.verdict() {
            if verdict.reason == CloseReason::PeerReset {
                self.io.set_remark(Note::Probe);
            }
            return Step::Close(verdict);
        }
        match heard {
            Heard::End => {
                self.io.set_remark(Note::Probe);
                Step::Close(Ending::fin(CloseReason::PeerClosed))
            }
            Heard::Words(Introduction::Wrong(what)) => self.refuse(what),
            Heard::Words(Introduction::Whole(length, named)) => {
                let words = &mut serving.buffer[..length];
                if self.io.take_in(words, &serving.turn) < length {
                    // It had been there.
                    return self.refuse("torn");
                }
                match named {
                    // haproxy's checks by version 1, which has no word for that.
                    Named::Ends(client, _) if self.io.peer() == client.into() => {
                        self.io.set_remark(Note::Own(self.io.read));
                    }
                    Named::Ends(client, dialled) => {
                        let via = self.io.peer();
                        self.io.introduce(client.into(), via, Some(dialled));
                    }
                    Named::Nobody => {}
                    Named::Proxy => self.io.set_remark(Note::Own(self.io.read)),
                }
                Step::Enter
            }
            Heard::Words(Introduction::Torn) if self.io.is(Is::ReadOn) => self.refuse("torn"),
            _ if until <= serving.turn.known => self.refuse("late"),
            _ => Step::Rest,
        }
    }

    /// Who is to tell who the client is has not.
    fn refuse(&mut self, what: &'static str) -> Step {
        self.io.set_remark(Note::Header(what));
        Step::Close(Ending::reset(CloseReason::BadProxyHeader))
    }

    /// What its handshake has come to.
    fn shake_hands(&mut self, until: Moment, serving: &mut Serving<'_>) -> Step {
        let Some(tls) = serving.tls else {
            // It came from a process that has it there.
            return self.refuse_tls("this listener has none", serving);
        };
        let io = &mut self.io;
        // A panic in there is the client's alone, as one of a service is.
        let shaken = catch_unwind(AssertUnwindSafe(|| {
            io.shake_hands(tls, serving.buffer, &serving.turn)
        }));
        let shaken = shaken.unwrap_or(Shaken::Failed("an error of this server"));
        if let Some(verdict) = self.io.verdict() {
            return Step::Close(verdict);
        }
        match shaken {
            Shaken::Done => Step::Enter,
            Shaken::End => {
                self.io.set_remark(Note::Probe);
                Step::Close(Ending::fin(CloseReason::PeerClosed))
            }
            Shaken::Failed(what) => self.refuse_tls(what, serving),
            Shaken::Waits if until <= serving.turn.known => self.refuse_tls("late", serving),
            Shaken::Waits => Step::Rest,
        }
    }

    /// There is no session: the alert has been sent.
    fn refuse_tls(&mut self, what: &'static str, serving: &mut Serving<'_>) -> Step {
        self.io.discard_unread(serving.buffer);
        self.io.set_remark(Note::Tls(what));
        Step::Close(Ending::fin(CloseReason::TlsHandshake))
    }

    /// Its turn has not come. One that is lost, and has left nothing to be read, does not wait for it.
    fn wait_on(&mut self) -> Step {
        if self.io.is(Is::Failing) && self.io.unread() == 0 {
            self.io.input_over();
        }
        self.io.verdict().map_or(Step::Rest, Step::Close)
    }

    /// The server drains: nobody waits for their turn any more, and who has not begun to speak is not heard out.
    pub(super) fn drain_at_door(&mut self, serving: &mut Serving<'_>) -> Step {
        if !matches!(self.io.door(), Some(Door::Header(_) | Door::Handshake(_))) {
            return Step::Enter;
        }
        match self.knock(serving) {
            Step::Rest if self.io.unread() == 0 && !self.io.is_heard() => {
                Step::Close(Ending::fin(CloseReason::Drain))
            }
            step => step,
        }
    }

    /// It has come in: the service greets, and what has come by now is served.
    pub(crate) fn enter(&mut self, serving: &mut Serving<'_>) -> Step {
        self.greet(serving);
        match self.opened(serving) {
            Step::Rest if !self.io.is(Is::GivenAway) => self.advance(serving),
            step => step,
        }
    }

    /// It goes on after a crash: the service begins, anew if it had begun, unless all that is left is its end.
    pub(crate) fn enter_again(&mut self, serving: &mut Serving<'_>, anew: bool) -> Step {
        if !self.io.is_open() {
            self.io.told();
        } else if anew {
            self.begin(serving, |service, conn| service.reopen(conn));
        } else {
            self.greet(serving);
        }
        self.advance(serving)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use super::*;
    use crate::address::endpoint::Peer;
    use crate::io::stats::Stats;
    use crate::io::{Io, Terms};
    use crate::liveness::reap::Limits;
    use crate::memory::Memory;
    use crate::service::{AnyService, Context, Ready, Service};

    /// Must not be called at all before it has opened.
    struct Opened;

    impl Service for Opened {
        type State = u64;

        fn open(&self, _conn: &mut Context<'_>) -> u64 {
            0
        }

        fn input(&self, read: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
            *read += bytes.len() as u64;
            conn.write(bytes);
            bytes.len()
        }
    }

    fn terms() -> Terms {
        Terms {
            limits: Limits {
                read_timeout: Some(Duration::from_secs(1)),
                dead_after: None,
                write_timeout: None,
                slowest_reader: None,
                half_close_timeout: None,
                max_age: Some(Duration::from_secs(1)),
                buffer: 4096,
            },
            stats: Stats::default(),
            memory: Memory::new(1 << 20),
            of_pairs: false,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::at(Duration::from_secs(seconds))
    }

    fn waiting(door: Door) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut io = Io::new(ours.into(), 1, Peer::Unix(None), 0, at(0));
        io.wait_at(door, at(0));
        (Connection::unheard(io), theirs)
    }

    #[test]
    fn whatever_happens_no_service_hears_of_who_is_at_the_door() {
        let (terms, service) = (terms(), AnyService::new(Opened));
        for door in [Door::Header(at(5)), Door::Turn(at(5))] {
            let (mut connection, mut client) = waiting(door);
            let mut buffer = [0; 8192];
            client.write_all(b"PROXY ").unwrap();
            let turn = terms.turn(at(4), at(4));
            let mut serving = Serving {
                service: &*service,
                turn,
                tls: None,
                buffer: &mut buffer,
                far_buffer: &mut [],
            };
            let steps = [
                connection.advance(&mut serving),
                connection.prompted(&mut serving),
                connection.watched(&mut serving),
                connection.expire(&mut serving),
            ];
            assert!(steps.iter().all(|step| *step == Step::Rest), "{steps:?}");
            connection.resume(&serving);
            connection.tell(&serving, Ready::Alarm);
            assert_eq!(connection.io.verdict(), None, "a panic would be one");
            assert_eq!(
                (connection.io.due(&turn), connection.io.door()),
                (at(5), Some(door))
            );
            connection.over(&serving, CloseReason::Killed);
        }
    }

    #[test]
    fn what_it_waits_for_comes_or_does_not() {
        let (terms, service) = (terms(), AnyService::new(Opened));
        let mut buffer = [0; 8192];
        let mut serving = Serving {
            service: &*service,
            turn: terms.turn(at(5), at(5)),
            tls: None,
            buffer: &mut buffer,
            far_buffer: &mut [],
        };
        let (mut connection, _client) = waiting(Door::Turn(at(5)));
        assert_eq!(connection.expire(&mut serving), Step::Enter);
        let (mut connection, mut client) = waiting(Door::Header(at(5)));
        client.write_all(b"PROXY ").unwrap();
        let late = Step::Close(Ending::reset(CloseReason::BadProxyHeader));
        assert_eq!(connection.expire(&mut serving), late);
        assert_eq!(connection.io.remark(), Some(Note::Header("late")));
        // At the last moment.
        let (mut connection, mut client) = waiting(Door::Header(at(5)));
        client
            .write_all(b"PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\nhello")
            .unwrap();
        assert_eq!(connection.expire(&mut serving), Step::Enter);
        assert_eq!(connection.io.peer().to_string(), "1.2.3.4:5");
        assert_eq!(connection.io.unread(), 5);
        connection.io.come_in(at(5));
        connection.enter(&mut serving);
        assert_eq!((connection.io.read, connection.io.written), (37, 5));
    }
}
