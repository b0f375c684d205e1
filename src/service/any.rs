//! Services of every kind under one type, for the workers: the trait with one type of state for all.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

#[cfg(control)]
use super::Left;
use super::{Context, Exported, Patience, Ready, RoundStage, Service, Survive};
use crate::dial::DialError;
use crate::handle::Handle;
use crate::inspect::{NatsInfo, UpstreamInfo};
use crate::liveness::close::CloseReason;
#[cfg(control)]
use crate::os::journal::Journal;

/// A [`Service`] of whatever kind, shared by the workers.
#[derive(Clone)]
pub struct AnyService(Arc<Hooks>);

/// A [`Service::State`] of whatever kind.
pub(crate) type State = Box<dyn Any + Send>;

/// A [`Service`] of whatever kind.
pub(crate) type Hooks = dyn Service<State = State>;

impl AnyService {
    /// Wraps a service.
    pub fn new(service: impl Service) -> Self {
        Self(Arc::new(Boxed(service)))
    }

    /// Whether it is the same value, shared.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }

    /// The same service as long as somebody else has it.
    pub(crate) fn downgrade(&self) -> impl Fn() -> Option<Self> + Send + Sync + use<> {
        let weak = Arc::downgrade(&self.0);
        move || weak.upgrade().map(Self)
    }
}

impl Deref for AnyService {
    type Target = Hooks;

    #[inline]
    fn deref(&self) -> &Hooks {
        &*self.0
    }
}

impl<S: Service> From<S> for AnyService {
    fn from(service: S) -> Self {
        Self::new(service)
    }
}

impl fmt::Debug for AnyService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyService")
    }
}

/// A service whose states are boxed; a zero-sized one needs no memory for that.
struct Boxed<S>(S);

#[deny(clippy::missing_trait_methods)] // A hook that is missing here would never be called.
impl<S: Service> Service for Boxed<S> {
    type State = State;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn patience(&self) -> Patience {
        self.0.patience()
    }

    fn start(&self, server: &Handle) {
        self.0.start(server);
    }

    fn open(&self, conn: &mut Context<'_>) -> State {
        Box::new(self.0.open(conn))
    }

    #[inline]
    fn input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        self.0.input(own(state), conn, bytes)
    }

    fn end(&self, state: &mut State, conn: &mut Context<'_>, rest: &[u8]) {
        self.0.end(own(state), conn, rest);
    }

    fn dialed(&self, state: &mut State, conn: &mut Context<'_>, outcome: Result<(), &DialError>) {
        self.0.dialed(own(state), conn, outcome);
    }

    #[inline]
    fn far_input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) {
        self.0.far_input(own(state), conn, bytes);
    }

    fn far_end(&self, state: &mut State, conn: &mut Context<'_>) {
        self.0.far_end(own(state), conn);
    }

    fn dials(&self) -> bool {
        self.0.dials()
    }

    fn has_pairs(&self) -> bool {
        self.0.has_pairs()
    }

    fn upstreams(&self) -> Vec<UpstreamInfo> {
        self.0.upstreams()
    }

    fn children(&self) -> Option<usize> {
        self.0.children()
    }

    fn nats(&self) -> Option<NatsInfo> {
        self.0.nats()
    }

    #[inline]
    fn hears_out(&self) -> bool {
        self.0.hears_out()
    }

    fn outlasts_drain(&self) -> bool {
        self.0.outlasts_drain()
    }

    fn descriptors(&self) -> usize {
        self.0.descriptors()
    }

    fn output(&self, state: &mut State, conn: &mut Context<'_>) {
        self.0.output(own(state), conn);
    }

    fn round(&self, worker: usize, stage: RoundStage) {
        self.0.round(worker, stage);
    }

    fn ready(&self, state: &mut State, conn: &mut Context<'_>, what: Ready) {
        self.0.ready(own(state), conn, what);
    }

    fn recall(&self, state: &mut State, conn: &mut Context<'_>) -> bool {
        self.0.recall(own(state), conn)
    }

    fn over(&self, state: &mut State, conn: &mut Context<'_>, reason: CloseReason) {
        // One whose `open` panicked has none.
        if let Some(state) = state.downcast_mut() {
            self.0.over(state, conn, reason);
        }
    }

    fn export(&self, state: &State) -> Option<Exported> {
        self.0.export(state.downcast_ref()?)
    }

    fn import(&self, exported: &Exported) -> Result<State, String> {
        Ok(Box::new(self.0.import(exported)?))
    }

    fn survive(&self) -> Survive {
        self.0.survive()
    }

    fn reopen(&self, conn: &mut Context<'_>) -> State {
        Box::new(self.0.reopen(conn))
    }

    fn journal_room(&self, buffer: usize) -> usize {
        self.0.journal_room(buffer)
    }

    #[cfg(control)]
    fn keep_journal(&self, journal: Journal, left: Option<Left>) {
        self.0.keep_journal(journal, left);
    }

    #[cfg(control)]
    fn arrived(&self, state: &mut State, conn: &mut Context<'_>) {
        self.0.arrived(own(state), conn);
    }

    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        self.0.export_ahead(ahead)
    }

    fn export_common(&self, ahead: u64) -> Option<Exported> {
        self.0.export_common(ahead)
    }

    fn import_ahead(&self, exported: &Exported) -> Result<(), String> {
        self.0.import_ahead(exported)
    }

    fn import_common(&self, exported: &Exported) -> Result<(), String> {
        self.0.import_common(exported)
    }

    fn stop(&self, patience: Duration) -> bool {
        self.0.stop(patience)
    }
}

#[inline]
#[expect(
    clippy::expect_used,
    reason = "a connection's state is only made by `open` of its own service"
)]
fn own<T: 'static>(state: &mut State) -> &mut T {
    state
        .downcast_mut()
        .expect("a connection keeps its service")
}
