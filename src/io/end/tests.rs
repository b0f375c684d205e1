//! What every event makes of every stage.

use std::os::unix::net::UnixStream;

use super::*;
use crate::address::endpoint::Peer;
use crate::io::Is;
use CloseReason::{
    Drain, Killed, PeerClosed, PeerReset, ReadTimeout, Service, UpstreamFailed, WriteStall,
};

/// A connection, and its client.
fn io() -> (Io, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let io = Io::new(ours.into(), 1, Peer::Unix(None), 0, Moment::at_start());
    (io, theirs)
}

/// Everything that can happen to the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// As many bytes as a drain waits for.
    Bytes,
    Fin,
    ErrorBehindBytes,
    WriteFailed,
    ReadDeadline,
    OutputDeadline,
    ServiceFinished,
    Drain,
    Kill,
    FarSideEnded,
    FarSideLost,
    HandedOver,
}

impl Event {
    const ALL: [Self; 12] = [
        Self::Bytes,
        Self::Fin,
        Self::ErrorBehindBytes,
        Self::WriteFailed,
        Self::ReadDeadline,
        Self::OutputDeadline,
        Self::ServiceFinished,
        Self::Drain,
        Self::Kill,
        Self::FarSideEnded,
        Self::FarSideLost,
        Self::HandedOver,
    ];

    /// As `connection` and `client` tell it.
    fn happens(self, io: &mut Io) {
        match self {
            Self::Bytes => {
                if io.drains(LEFT) {
                    io.finish_unasked(Drain, false);
                }
            }
            Self::Fin => io.reads_end(),
            Self::ErrorBehindBytes => io.fail(libc::ECONNRESET),
            Self::WriteFailed => io.write_failed(libc::EPIPE),
            Self::ReadDeadline => io.finish_unasked(ReadTimeout, true),
            Self::OutputDeadline => io.overrule(Ending::reset(WriteStall)),
            Self::ServiceFinished => io.finish(),
            Self::Drain => io.drain(LEFT as u64),
            Self::Kill => drop(io.cut_off(Ending::reset(Killed))),
            Self::FarSideEnded => io.finish_for(PeerClosed),
            Self::FarSideLost => io.fail_at_last(Ending::reset(UpstreamFailed)),
            Self::HandedOver => hand_over(io),
        }
    }
}

/// Has another one go on from where it is, as another process does.
fn hand_over(io: &mut Io) {
    if io.is_carriable() {
        let carried = io.carried();
        let (mut other, _client) = self::io();
        other.go_on_from(&carried, false);
        assert_eq!(other.carried(), carried);
        *io = other;
    }
}

const LEFT: usize = 10;

/// How far the end has come, and with which reason.
fn seen(io: &Io) -> (Stage, Option<CloseReason>) {
    (io.end.stage, io.verdict().map(|ending| ending.reason))
}

#[test]
fn every_event_has_its_outcome_in_every_stage() {
    let finishing = |reason| (Stage::Finishing(reason), None);
    let at_last = |reason| (Stage::AtLast(reason), None);
    let decided = |reason| (Stage::Decided, Some(reason));
    let (open, draining) = ((Stage::Open, None), (Stage::Draining, None));
    // Of each stage: how it comes about, and what follows on the events in their order.
    #[rustfmt::skip]
    let table: [(&[Event], _, [_; 12]); 7] = [
        (&[], open, [
            open, open, decided(PeerReset), open,
            finishing(ReadTimeout), decided(WriteStall), finishing(Service), draining,
            decided(Killed), finishing(PeerClosed), at_last(UpstreamFailed), open,
        ]),
        (&[Event::Drain], draining, [
            finishing(Drain), draining, decided(PeerReset), draining,
            finishing(ReadTimeout), decided(WriteStall), finishing(Service), draining,
            decided(Killed), finishing(PeerClosed), at_last(UpstreamFailed), draining,
        ]),
        // It is to end well: what goes wrong meanwhile is the reason.
        (&[Event::ServiceFinished], finishing(Service), [
            finishing(Service), finishing(Service), decided(PeerReset), finishing(Service),
            finishing(Service), decided(WriteStall), finishing(Service), finishing(Service),
            decided(Killed), finishing(Service), at_last(Service), finishing(Service),
        ]),
        (&[Event::Drain, Event::Bytes], finishing(Drain), [
            finishing(Drain), finishing(Drain), decided(PeerReset), finishing(Drain),
            finishing(Drain), decided(WriteStall), finishing(Drain), finishing(Drain),
            decided(Killed), finishing(Drain), at_last(Drain), finishing(Drain),
        ]),
        // It is not: the reason that came first stays, but for an operator's.
        (&[Event::ReadDeadline], finishing(ReadTimeout), [
            finishing(ReadTimeout), finishing(ReadTimeout), decided(ReadTimeout), finishing(ReadTimeout),
            finishing(ReadTimeout), decided(ReadTimeout), finishing(ReadTimeout), finishing(ReadTimeout),
            decided(Killed), finishing(ReadTimeout), at_last(ReadTimeout), finishing(ReadTimeout),
        ]),
        (&[Event::FarSideLost], at_last(UpstreamFailed), [
            at_last(UpstreamFailed), at_last(UpstreamFailed), decided(UpstreamFailed), at_last(UpstreamFailed),
            at_last(UpstreamFailed), decided(UpstreamFailed), at_last(UpstreamFailed), at_last(UpstreamFailed),
            decided(Killed), at_last(UpstreamFailed), at_last(UpstreamFailed), at_last(UpstreamFailed),
        ]),
        (&[Event::OutputDeadline], decided(WriteStall), [
            decided(WriteStall), decided(WriteStall), decided(WriteStall), decided(WriteStall),
            decided(WriteStall), decided(WriteStall), decided(WriteStall), decided(WriteStall),
            decided(Killed), decided(WriteStall), decided(WriteStall), decided(WriteStall),
        ]),
    ];
    for (way, stage, outcomes) in table {
        for (event, outcome) in Event::ALL.into_iter().zip(outcomes) {
            let (mut io, _client) = io();
            for event in way {
                event.happens(&mut io);
            }
            assert_eq!(seen(&io), stage, "{way:?}");
            event.happens(&mut io);
            assert_eq!(seen(&io), outcome, "{event:?} after {way:?}");
        }
    }
}

#[test]
fn a_client_that_said_so_first_has_ended_it() {
    let (mut io, _client) = io();
    io.reads_end();
    assert!(io.input_is_over() && !io.discards_input(), "to be told");
    io.finish();
    assert_eq!(io.finishing(), Some(PeerClosed));
    assert!(io.discards_input());
}

#[test]
fn what_came_before_a_write_failed_is_still_read() {
    let (mut io, _client) = io();
    io.write_failed(libc::ECONNRESET);
    assert!(io.is(Is::Readable) && io.has_failed() && !io.input_is_over());
    io.reads_end();
    assert!(!io.peer_fin(), "it is the reset's");
    io.input_over();
    let ending = io.verdict().unwrap();
    assert_eq!(
        (ending.reason, ending.errno),
        (PeerReset, Some(libc::ECONNRESET))
    );
    assert_eq!(ending.how, How::Release);
}

#[test]
fn a_service_hears_its_client_out_where_neither_asked_for_the_end() {
    let (mut io, _client) = io();
    io.finish_unasked(ReadTimeout, true);
    assert!(!io.discards_input() && !io.is_open());
    io.linger_until(Moment::at_start());
    assert_eq!(io.linger(), Some(Moment::at_start()));
    io.linger_anew();
    assert_eq!(io.linger(), None);
    io.hears_no_more();
    assert!(io.discards_input());
    assert_eq!(io.ending(), Ending::fin(ReadTimeout));
}

#[test]
fn what_a_service_owes_comes_before_the_end() {
    let (mut io, _client) = io();
    io.owe();
    io.finish_for(Drain);
    assert!(io.owes());
    io.finish();
    assert!(!io.owes());
    assert_eq!(io.finishing(), Some(Drain), "the reason that came first");
}

#[test]
fn an_open_connection_needs_nothing_besides() {
    let (mut io, _client) = io();
    io.reads_end();
    io.finish();
    assert!(io.pending.is_none());
    assert_eq!(size_of::<End>(), 3);
}
