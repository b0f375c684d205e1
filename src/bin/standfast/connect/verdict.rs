//! What follows when a connection has ended or could not be had: another attempt, or the end of the program with an exit
//! code. Pure.

use crate::args::Reconnect;

/// How stdin stands, and what of it the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// More may come.
    Open,
    /// At its end without a byte: only what the server sends matters.
    Silent,
    /// At its end, and some of it waits to be sent.
    Unsent,
    /// At its end, and the kernel took all of it.
    Sent,
}

/// What happened to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happened {
    /// The server said it was done (FIN).
    Closed,
    /// It is lost.
    Lost,
    /// It could not be had.
    NotConnected,
    /// One side does not believe the other's certificate, and will not the next time.
    Refused,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    Exit(u8),
}

/// What follows from what `happened`. `last` is how the connection before ended, if there was one.
pub(crate) fn follows(
    happened: Happened,
    stdin: Stdin,
    reconnect: Reconnect,
    last: Option<Happened>,
) -> Verdict {
    let first_must_succeed = reconnect == Reconnect::OnLoss && last.is_none();
    match (happened, stdin) {
        (Happened::Closed, _) if reconnect == Reconnect::Never => Verdict::Exit(0),
        (Happened::Refused, _) => Verdict::Exit(1),
        (_, _) if reconnect == Reconnect::Never => Verdict::Exit(1),
        (Happened::NotConnected, _) if first_must_succeed => Verdict::Exit(1),
        (_, Stdin::Open | Stdin::Silent | Stdin::Unsent) => Verdict::Retry,
        (Happened::NotConnected, Stdin::Sent) => Verdict::Exit(settled(last)),
        (_, Stdin::Sent) => Verdict::Exit(settled(Some(happened))),
    }
}

/// The exit code when nothing is left to send and there is no connection: by how the one that took the last of it ended.
/// Without any, nothing was delivered.
pub(crate) fn settled(last: Option<Happened>) -> u8 {
    u8::from(last != Some(Happened::Closed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STDINS: [Stdin; 4] = [Stdin::Open, Stdin::Silent, Stdin::Unsent, Stdin::Sent];

    #[test]
    fn while_something_is_left_to_do_it_comes_back() {
        for reconnect in [Reconnect::Always, Reconnect::OnLoss] {
            for stdin in [Stdin::Open, Stdin::Silent, Stdin::Unsent] {
                for happened in [Happened::Closed, Happened::Lost, Happened::NotConnected] {
                    let last = Some(Happened::Lost);
                    let verdict = follows(happened, stdin, reconnect, last);
                    assert_eq!(verdict, Verdict::Retry, "{happened:?} {stdin:?}");
                }
            }
        }
    }

    #[test]
    fn when_all_is_sent_the_servers_end_is_the_end_and_a_loss_is_a_failure() {
        for reconnect in [Reconnect::Always, Reconnect::OnLoss, Reconnect::Never] {
            let after = |happened, last| follows(happened, Stdin::Sent, reconnect, last);
            assert_eq!(after(Happened::Closed, None), Verdict::Exit(0));
            assert_eq!(after(Happened::Lost, None), Verdict::Exit(1));
            assert_eq!(
                after(Happened::Lost, Some(Happened::Closed)),
                Verdict::Exit(1)
            );
        }
    }

    #[test]
    fn a_certificate_that_is_refused_is_final() {
        for reconnect in [Reconnect::Always, Reconnect::OnLoss, Reconnect::Never] {
            for stdin in STDINS {
                let verdict = follows(Happened::Refused, stdin, reconnect, Some(Happened::Closed));
                assert_eq!(verdict, Verdict::Exit(1), "{reconnect:?} {stdin:?}");
            }
        }
    }

    #[test]
    fn stdin_that_ends_between_connections_is_settled_by_the_last_one() {
        let after = |last| follows(Happened::NotConnected, Stdin::Sent, Reconnect::Always, last);
        assert_eq!(after(Some(Happened::Closed)), Verdict::Exit(0));
        assert_eq!(after(Some(Happened::Lost)), Verdict::Exit(1));
        assert_eq!(after(None), Verdict::Exit(1));
    }

    #[test]
    fn on_loss_wants_the_first_attempt_to_succeed_and_never_wants_only_one() {
        for stdin in STDINS {
            let first = |reconnect| follows(Happened::NotConnected, stdin, reconnect, None);
            assert_eq!(first(Reconnect::OnLoss), Verdict::Exit(1));
            assert_eq!(first(Reconnect::Never), Verdict::Exit(1));
            let never = |happened| follows(happened, stdin, Reconnect::Never, None);
            assert_eq!(never(Happened::Closed), Verdict::Exit(0));
            assert_eq!(never(Happened::Lost), Verdict::Exit(1));
        }
    }
}
