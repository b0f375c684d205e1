//! What a listener does with its connections: bytes in, bytes out. The trait an embedder writes.

pub(crate) mod any;
mod context;

#[cfg(control)]
use std::collections::HashSet;
use std::time::Duration;

use crate::dial::DialError;
use crate::handle::Handle;
use crate::inspect::{NatsInfo, UpstreamInfo};
use crate::liveness::close::CloseReason;
#[cfg(control)]
use crate::os::journal::Journal;
pub use crate::service::any::AnyService;
pub use crate::service::context::{Context, Far};

/// What a listener does with its connections.
///
/// One value serves all connections of a listener, from several threads; what belongs to one connection is its
/// [`State`](Service::State). The calls for one connection come one after another. They must not block: a worker's
/// other connections wait meanwhile. A call that panics ends its own connection, with reason `service`.
///
/// ```
/// use standfast::{Context, Service};
///
/// /// Answers each line with its number.
/// struct Count;
///
/// impl Service for Count {
///     type State = u64;
///
///     fn open(&self, _conn: &mut Context<'_>) -> u64 {
///         0
///     }
///
///     fn input(&self, lines: &mut u64, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
///         let mut taken = 0;
///         for line in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
///             *lines += 1;
///             conn.write(format!("{lines}\n").as_bytes());
///             taken += line.len();
///         }
///         taken // what is left comes again, with more behind it
///     }
/// }
/// ```
pub trait Service: Send + Sync + 'static {
    /// What is remembered of one connection; `()` if nothing is. A zero-sized state costs no memory.
    type State: Send + 'static;

    /// What this service is called in tables. Default: the name of its type.
    fn name(&self) -> &str {
        let path = std::any::type_name::<Self>();
        path.rsplit("::").next().unwrap_or(path)
    }

    /// How long its clients may take, where the settings say nothing else: what [`Listen::new`](crate::Listen::new)
    /// begins with. Default: that of a service whose clients speak.
    fn patience(&self) -> Patience {
        Patience::default()
    }

    /// The server starts; `server` may be kept, to wake waiting connections or to drain. Default: nothing.
    fn start(&self, server: &Handle) {
        let _ = server;
    }

    /// A connection was accepted. What is written here greets the client.
    fn open(&self, conn: &mut Context<'_>) -> Self::State;

    /// The client sent `bytes`. Answers how many of them were used.
    ///
    /// The rest is kept and comes again with more behind it, up to [`Context::buffer`] bytes in all: with that many
    /// the service must use some, or [`pause`](Context::pause), or the connection ends with reason `service`.
    fn input(&self, state: &mut Self::State, conn: &mut Context<'_>, bytes: &[u8]) -> usize;

    /// No more input will come: the client sent its FIN, or the connection is ending for another reason. `rest` is
    /// what [`input`](Service::input) left.
    ///
    /// Called once, or again after a [`pause`](Context::pause). The default [`finish`](Context::finish)es; a service
    /// that has more to send to a half-closed client calls that later, within the half-close timeout.
    fn end(&self, state: &mut Self::State, conn: &mut Context<'_>, rest: &[u8]) {
        let _ = (state, rest);
        conn.finish();
    }

    /// What [`Context::dial`] asked for has come to its end: the connection has a [far side](Context::far), or it could
    /// not be had. Default: in that case the connection ends, with reason `upstream-failed`.
    fn dialed(
        &self,
        state: &mut Self::State,
        conn: &mut Context<'_>,
        outcome: Result<(), &DialError>,
    ) {
        let _ = state;
        if let Err(error) = outcome {
            conn.upstream_failed(error);
        }
    }

    /// The far side sent `bytes`. Default: the client gets them.
    fn far_input(&self, state: &mut Self::State, conn: &mut Context<'_>, bytes: &[u8]) {
        let _ = state;
        conn.write(bytes);
    }

    /// The far side sent its FIN: nothing more comes from there. Default: the client gets one, too; where what came may be
    /// [cut short](crate::Far::is_truncated) it is reset.
    ///
    /// A far side that is lost ends the connection: once the client has what came before, with reason `upstream-failed`.
    fn far_end(&self, state: &mut Self::State, conn: &mut Context<'_>) {
        let _ = state;
        if conn.far().is_some_and(|far| far.is_truncated()) {
            return conn.fail_as_truncated();
        }
        conn.half_close();
    }

    /// Whether its connections are [dialled](Context::dial) on as soon as they are [open](Service::open). Then all are
    /// opened and dialled by the worker that accepts, so that who is dialled for has them in the order in which clients
    /// came; another worker gets a connection once it is connected. Default `false`: whoever serves it opens it.
    fn dials(&self) -> bool {
        false
    }

    /// Whether the far sides of its connections are ends of pairs, whose other ends programs have. Default: they are servers that
    /// were dialled. For the exec of this crate alone.
    #[doc(hidden)]
    fn has_pairs(&self) -> bool {
        false
    }

    /// What it connects clients to, and whether that can be reached: for the status. Default: nothing.
    fn upstreams(&self) -> Vec<UpstreamInfo> {
        Vec::new()
    }

    /// How many processes it runs for its clients: for the status. Default `None`: it is no service that runs any.
    fn children(&self) -> Option<usize> {
        None
    }

    /// How it shares its clients' lines with other machines: for the status. Default: it does not. For the hub of this crate
    /// alone.
    #[doc(hidden)]
    fn nats(&self) -> Option<NatsInfo> {
        None
    }

    /// Whether what a client sends after our FIN, at its read deadline or in a drain, and before its own, is input as
    /// any other. Default `false`: it is thrown away, for nobody could answer it.
    fn hears_out(&self) -> bool {
        false
    }

    /// Whether its connections go on in a drain until they end by themselves or the drain timeout cuts them off. Default
    /// `false`: what has come is served, and that was it.
    fn outlasts_drain(&self) -> bool {
        false
    }

    /// How many descriptors one of its connections takes, at most. Default 1.
    fn descriptors(&self) -> usize {
        1
    }

    /// There is room for output: the connection was [prompted](Handle::prompt), or all output that had waited has been
    /// written. Not called while the connection is ending, unless its service wants to
    /// [finish later](Context::finish_later). Default: nothing.
    ///
    /// A service with output of its own writes some here, and makes sure that it is called again: by leaving some of it
    /// waiting, or by another prompt.
    fn output(&self, state: &mut Self::State, conn: &mut Context<'_>) {
        let _ = (state, conn);
    }

    /// A round of [prompted](Handle::prompt) calls of [`output`](Service::output) on a worker: it begins, or is over,
    /// or there are none any more. Default: nothing. For the hub of this crate alone.
    #[doc(hidden)]
    fn round(&self, worker: usize, stage: RoundStage) {
        let _ = (worker, stage);
    }

    /// Something came that the service had asked to be told of: [`Context::watch`], [`Context::set_alarm`], or
    /// [`Handle::resume`] after a [`pause`](Context::pause). Default: nothing.
    fn ready(&self, state: &mut Self::State, conn: &mut Context<'_>, what: Ready) {
        let _ = (state, conn, what);
    }

    /// The client of a socket that was [given away](Context::give_away) has been silent for as long as it may. Answers
    /// whether whoever has the socket is made to end now, so that this service has it
    /// [back](Context::take_back) soon, or [finishes](Context::finish): until then it stays with them, and what
    /// was written before is delivered after that. Default `false`: both copies end at once, and what the client has not
    /// got by then is lost if it sends something yet.
    fn recall(&self, state: &mut Self::State, conn: &mut Context<'_>) -> bool {
        let _ = (state, conn);
        false
    }

    /// The connection is over, for this reason; its state is dropped next. [`CloseReason::HandedOff`]: another process
    /// goes on with it. Nothing can be sent any more. Default: nothing.
    fn over(&self, state: &mut Self::State, conn: &mut Context<'_>, reason: CloseReason) {
        let _ = (state, conn, reason);
    }

    /// The state of a connection, to go on in a process that takes over. `None` (default): it cannot leave, and the
    /// connection stays with this process, which drains it.
    ///
    /// Asked for again whenever the connection has changed before the takeover is complete, and in vain if that comes to
    /// nothing. A connection that is [paused](Context::pause) arrives as one that is not.
    fn export(&self, state: &Self::State) -> Option<Exported> {
        let _ = state;
        None
    }

    /// A connection's state as another process exported it. What this answers may be dropped again: newer state
    /// replaces it, or the takeover comes to nothing. So it does nothing but make the state.
    ///
    /// # Errors
    /// In words, what is wrong with it (default: that this service takes none); then nothing is taken over.
    fn import(&self, exported: &Exported) -> Result<Self::State, String> {
        let _ = exported;
        Err(format!("{} takes over no connections", self.name()))
    }

    /// A part of what all connections have in common that changes no more, to go to a process that takes over while
    /// this one still serves: the next one, where what `ahead` says has gone already; and what has gone with it.
    /// `ahead` is 0 at first, and the service's own affair from then on. `None` (default): there is none, or none yet.
    ///
    /// Asked for time and again, beside calls for connections, until a moment comes in which there is none, or ten seconds
    /// after all else has gone; and in vain if the takeover comes to nothing.
    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        let _ = ahead;
        None
    }

    /// What becomes of its connections where the process crashes, or is killed, behind a
    /// keeper (`Config::keeper`): asked once, when the server starts. Default: they end.
    fn survive(&self) -> Survive {
        Survive::Close
    }

    /// A connection of a server that crashed goes on [afresh](Survive::Fresh). What is written here stands behind what the
    /// former server's service had written; input comes from the first byte on that this had not used. Default: as
    /// [`open`](Self::open), which is wrong for a service that greets.
    fn reopen(&self, conn: &mut Context<'_>) -> Self::State {
        self.open(conn)
    }

    /// How many bytes its [journal](Survive::Journal) has room for, where a client's input is kept up to `buffer` bytes.
    #[doc(hidden)]
    fn journal_room(&self, buffer: usize) -> usize {
        buffer
    }

    /// It has a journal from here on, and goes on with what another process has left in its own. Called before it starts. Default:
    /// nothing.
    #[cfg(control)]
    #[doc(hidden)]
    fn keep_journal(&self, journal: Journal, left: Option<Left>) {
        let _ = (journal, left);
    }

    /// A connection has come of another process that is to be found by the next one from here on, should this one crash. Said anew
    /// with each state of it, before it is served. Default: nothing.
    #[cfg(control)]
    #[doc(hidden)]
    fn arrived(&self, state: &mut Self::State, conn: &mut Context<'_>) {
        let _ = (state, conn);
    }

    /// What all connections have in common, but for what has gone [`ahead`](Self::export_ahead), to go on in a process
    /// that takes over. Called once no call for any of them is under way, and none follows unless the takeover comes to
    /// nothing. Everybody waits meanwhile, so it should be little. `None` (default): nothing.
    fn export_common(&self, ahead: u64) -> Option<Exported> {
        let _ = ahead;
        None
    }

    /// A part that went [`ahead`](Self::export_ahead), in the order in which they were exported.
    ///
    /// # Errors
    /// In words, what is wrong with it (default: that this service takes none); then nothing is taken over.
    fn import_ahead(&self, exported: &Exported) -> Result<(), String> {
        let _ = exported;
        Err(format!("{} has no common state", self.name()))
    }

    /// What all connections have in common, as another process exported it; what went ahead and the states of
    /// connections came before. After a freeze that came too late it comes once more, as it is then: it takes the place of
    /// what came before.
    ///
    /// # Errors
    /// In words, what is wrong with it (default: that this service has nothing in common); then nothing is taken over.
    fn import_common(&self, exported: &Exported) -> Result<(), String> {
        let _ = exported;
        Err(format!("{} has no common state", self.name()))
    }

    /// All connections have ended. Brings to an end what the service still does, in at most `patience`, and answers
    /// whether all was done. Default: nothing, all was.
    fn stop(&self, patience: Duration) -> bool {
        let _ = patience;
        true
    }
}

/// What another process has left to a service in its journal.
#[cfg(control)]
#[doc(hidden)]
#[derive(Debug)]
pub struct Left {
    pub(crate) journal: Journal,
    /// The connections that go on.
    pub(crate) living: HashSet<u64>,
}

/// How long a service's clients may take, unless the settings say otherwise. `None`: for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a service says all of it, or leaves the rest to the default"
)]
pub struct Patience {
    /// The read deadline. Default 10 min. Who is silent is not gone: those that are, are found within
    /// [`dead_after`](crate::Listen::dead_after) in any case.
    pub read: Option<Duration>,
    /// The half-close timeout. Default 60 s.
    pub half_close: Option<Duration>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            read: Some(Duration::from_secs(600)),
            half_close: Some(Duration::from_secs(60)),
        }
    }
}

impl Patience {
    /// A client may be silent for as long as it likes.
    pub(crate) fn with_silence() -> Self {
        Self {
            read: None,
            ..Self::default()
        }
    }

    /// And an answer may take long.
    pub(crate) fn with_work() -> Self {
        Self {
            read: None,
            half_close: Some(Duration::from_secs(600)),
        }
    }
}

/// How far a worker has come with a round of [`Service::output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a service that misses one of them is wrong"
)]
pub enum RoundStage {
    /// What is prompted for from here on is another round.
    Begins,
    /// It goes on, after a turn of the worker's other work.
    GoesOn,
    /// It was called for every connection of the worker.
    Over {
        /// The time since it began.
        took: Duration,
    },
    /// The worker ends: it has no connection, and gets none.
    Gone,
}

/// A connection's state on its way to another process: opaque bytes, and the number of their form, which is the
/// service's own affair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// The form of `bytes`: any but `u16::MAX`, which says that the service has not heard of the connection.
    pub schema: u16,
    /// The state: of a connection at most 64 KiB, or it stays; what they have in common at most 64 MiB, a part that goes
    /// ahead at most 2 GiB.
    pub bytes: Vec<u8>,
}

/// What becomes of a connection where the server crashes behind a keeper (`Config::keeper`).
///
/// [`Fresh`](Self::Fresh) and [`State`](Self::State) keep these promises, wherever between two instructions the process dies:
///
/// - No input is lost. The connection goes on from the last event whose calls all came to their end: what these used is used,
///   and what came later is given to the service, once more where it had seen it.
/// - What the service writes reaches the client once, whole and in order. Nothing of an event is sent before it is where the
///   next server finds it, together with what the connection goes on from; so of an event that was interrupted no client has
///   seen anything, and the service may answer otherwise the second time.
/// - What it does elsewhere, to files, to other services, to what its connections have in common, it may do twice.
///
/// The price: output is copied twice, and leaves after the calls for its event; [`Service::output`] is called once more when
/// it has left, as if the client were slow. With `State` the state is exported for each event, too. Without a keeper there is none.
///
/// These connections end all the same; the next server says so in a line with reason [`Crash`](crate::CloseReason::Crash), but
/// for the last two, of whom it knows no more than their number:
///
/// - over a Unix socket or MPTCP one that was just being served, for the system does not say how much of it was read;
/// - one that was being served in two crashes and had used no input in between, so that poison does not end everybody; where it
///   had none in the first one, as who only hears what others say, it is enough that it was sent something;
/// - one of which the system has taken more than was noted, which would be an end that was cut short;
/// - one that was accepted in the very turn of the crash, or had begun to end;
/// - one that has a [far side](Context::far), [watches](Context::watch) descriptors beside its own socket or, with `Fresh`,
///   has [given that away](Context::give_away): whoever has it keeps it; or whose state was not [exported](Service::export).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Survive {
    /// It is reset, and the next server counts it as [`Crash`](crate::CloseReason::Crash).
    Close,
    /// It goes on. Its state begins anew, by [`Service::reopen`], at the input that was not yet used. For protocols whose
    /// messages stand alone: requests, lines.
    Fresh,
    /// It goes on with its state as [`Service::export`] said it after the last event; the next server makes that by
    /// [`Service::import`]. An alarm goes along, and what a service watches of a socket that it has given away.
    State,
    /// It goes on. It has no state, and the answer to each byte is that byte.
    #[doc(hidden)]
    Echo,
    /// It goes on. It has no state, and no byte is answered.
    #[doc(hidden)]
    Discard,
    /// It goes on. Its state stays what it was, once it has a far side; each byte of that goes to the client, and the other
    /// way round, but for what it writes as it is told of the far side.
    #[doc(hidden)]
    Relay,
    /// It goes on. Its state begins anew, by [`Service::reopen`], with what its service has noted in its journal: which input it
    /// has used since that was noted last, and what it has sent.
    #[doc(hidden)]
    Journal,
}

impl Survive {
    /// Whether what a service has not come to an end with is given to it again: then nothing is sent before it is kept.
    pub(crate) fn is_given_again(self) -> bool {
        matches!(self, Self::Fresh | Self::State)
    }
}

/// What a service is told of by [`Service::ready`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ready {
    /// A watched descriptor may be read. Which one, and whether there is really something, a read shows.
    Watched,
    /// The alarm was due.
    Alarm,
    /// A waiting connection was resumed.
    Resumed,
}
