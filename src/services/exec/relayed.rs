//! Over TLS, where nobody can be given the client's socket: what of a program's connection is then for this service to see to.
//!
//! The engine relays between the client and one end of a pair, as it does to a server that was dialled (`connection/far.rs`).
//! Who has the other end is told by that pair: it ends with the last of them.

use std::os::fd::AsFd;

use super::{Exec, Left, Phase, Process, Running, STDERR, part};
use crate::service::Context;
use crate::services::exec::lines::STDERR_TURN;
use crate::services::exec::nursery::FAREWELL;

impl Exec {
    /// The client sends no more.
    pub(super) fn client_ended(conn: &mut Context<'_>) {
        if conn.is_truncated() {
            if !(conn.has_far_ended() && conn.is_far_hung_up()) {
                // To the program the end of its input would be the end in order that it was not.
                conn.fail_as_truncated();
            }
            // Else there is nobody to take it for that: the client has gone once it had all.
            return;
        }
        if let Some(mut far) = conn.far() {
            far.half_close();
        } else if !conn.has_tls() {
            conn.finish();
        }
        // Else the program has closed its end, and works on.
    }

    /// Nobody says anything to the client any more.
    pub(super) fn program_ended(process: &mut Process, conn: &mut Context<'_>) {
        conn.half_close();
        match &mut process.phase {
            Phase::Left(left) => {
                let after_client = left.after_client;
                process.phase = Phase::Over;
                conn.set_alarm(None);
                part(conn, after_client);
            }
            Phase::Running(running) => running.parted = Some(conn.has_peer_finished()),
            Phase::Starting(_) | Phase::Ended { .. } | Phase::Over => {}
        }
    }

    /// A process has ended. What it has said is still on its way, and there may be others.
    pub(super) fn leave(process: &mut Process, running: &Running, conn: &mut Context<'_>) {
        // What the client says once it has all is an answer to that.
        let client_first = running.parted.unwrap_or_else(|| conn.has_peer_finished());
        let after_client = running.sent.is_none() && client_first;
        if conn.has_far_ended() {
            return part(conn, after_client);
        }
        let pid = running.group.pid();
        process.phase = Phase::Left(Left { pid, after_client });
        conn.set_alarm(Some(FAREWELL));
    }

    /// Those whom a process has left had their time to end with it.
    pub(super) fn say_left(process: &mut Process, conn: &mut Context<'_>) {
        let Phase::Left(Left { pid, .. }) = process.phase else {
            return;
        };
        if conn.is_far_hung_up() {
            // There is nobody, and what the process has said waits for its client.
            return;
        }
        if conn.is_ending() {
            process.phase = Phase::Over;
            conn.hang_up_far();
            return conn.finish();
        }
        log::info!(id = process.id, pid; "a process has left its connection to another one");
    }

    /// Those whom a process has left may say something on its stderr, too.
    pub(super) fn hear_left(&self, process: &mut Process, conn: &mut Context<'_>) {
        if let Phase::Left(_) = process.phase
            && let Some(stderr) = conn.watched().get(STDERR)
        {
            let spent = (conn.turn.now, self.nursery.spoken());
            let lines = &mut process.lines;
            if lines.read(stderr.as_fd(), STDERR_TURN, spent, process.id) {
                conn.again();
            }
        }
    }
}

impl Running {
    /// Its connection is over. It may have seen the end that its client has sent, or is hung up on.
    pub(super) fn hang_up(&mut self, conn: &Context<'_>) {
        if conn.has_tls() && !conn.has_far_heard_all() && self.has_ended(conn).is_none() {
            self.group.hang_up();
        }
    }
}
