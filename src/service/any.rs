//! Services of every kind under one type, for the workers: the trait without its associated type.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Context, Exported, Patience, Ready, Service, Stage};
use crate::dial::DialError;
use crate::handle::Handle;
use crate::inspect::UpstreamInfo;
use crate::liveness::close::CloseReason;

/// A [`Service`] of whatever kind, shared by the workers.
#[derive(Clone)]
pub struct AnyService(Arc<dyn Erased>);

impl AnyService {
    /// Wraps a service.
    pub fn new(service: impl Service) -> Self {
        Self(Arc::new(service))
    }

    pub(crate) fn name(&self) -> &str {
        self.0.name()
    }

    pub(crate) fn patience(&self) -> Patience {
        self.0.patience()
    }

    pub(crate) fn start(&self, server: &Handle) {
        self.0.start(server);
    }

    pub(crate) fn open(&self, conn: &mut Context<'_>) -> State {
        self.0.open(conn)
    }

    #[inline]
    pub(crate) fn input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        self.0.input(state, conn, bytes)
    }

    pub(crate) fn dialed(
        &self,
        state: &mut State,
        conn: &mut Context<'_>,
        outcome: Result<(), &DialError>,
    ) {
        self.0.dialed(state, conn, outcome);
    }

    #[inline]
    pub(crate) fn far_input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) {
        self.0.far_input(state, conn, bytes);
    }

    pub(crate) fn far_end(&self, state: &mut State, conn: &mut Context<'_>) {
        self.0.far_end(state, conn);
    }

    pub(crate) fn dials(&self) -> bool {
        self.0.dials()
    }

    pub(crate) fn upstreams(&self) -> Vec<UpstreamInfo> {
        self.0.upstreams()
    }

    #[inline]
    pub(crate) fn hears_out(&self) -> bool {
        self.0.hears_out()
    }

    pub(crate) fn outlasts_drain(&self) -> bool {
        self.0.outlasts_drain()
    }

    pub(crate) fn descriptors(&self) -> usize {
        self.0.descriptors()
    }

    pub(crate) fn end(&self, state: &mut State, conn: &mut Context<'_>, rest: &[u8]) {
        self.0.end(state, conn, rest);
    }

    pub(crate) fn output(&self, state: &mut State, conn: &mut Context<'_>) {
        self.0.output(state, conn);
    }

    pub(crate) fn round(&self, worker: usize, stage: Stage) {
        self.0.round(worker, stage);
    }

    pub(crate) fn ready(&self, state: &mut State, conn: &mut Context<'_>, what: Ready) {
        self.0.ready(state, conn, what);
    }

    pub(crate) fn recall(&self, state: &mut State, conn: &mut Context<'_>) -> bool {
        self.0.recall(state, conn)
    }

    pub(crate) fn over(&self, state: &mut State, conn: &mut Context<'_>, reason: CloseReason) {
        self.0.over(state, conn, reason);
    }

    /// Whether it is the same value, shared.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.0), Arc::as_ptr(&other.0))
    }

    /// The same service as long as somebody else has it.
    pub(crate) fn lent(&self) -> impl Fn() -> Option<Self> + Send + Sync + use<> {
        let weak = Arc::downgrade(&self.0);
        move || weak.upgrade().map(Self)
    }

    pub(crate) fn stop(&self, patience: Duration) -> bool {
        self.0.stop(patience)
    }
}

/// For a takeover.
#[cfg(control)]
impl AnyService {
    pub(crate) fn export(&self, state: &State) -> Option<Exported> {
        self.0.export(state)
    }

    pub(crate) fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        self.0.export_ahead(ahead)
    }

    pub(crate) fn export_common(&self, ahead: u64) -> Option<Exported> {
        self.0.export_common(ahead)
    }

    pub(crate) fn import_ahead(&self, exported: &Exported) -> Result<(), String> {
        self.0.import_ahead(exported)
    }

    pub(crate) fn import_common(&self, exported: &Exported) -> Result<(), String> {
        self.0.import_common(exported)
    }

    pub(crate) fn import(&self, exported: &Exported) -> Result<State, String> {
        self.0.import(exported)
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

/// A [`Service::State`] of whatever kind.
pub(crate) type State = Box<dyn Any + Send>;

/// [`Service`] without its associated type.
#[cfg_attr(
    not(control),
    expect(dead_code, reason = "without a takeover nothing is exported")
)]
trait Erased: Send + Sync {
    fn name(&self) -> &str;
    fn patience(&self) -> Patience;
    fn start(&self, server: &Handle);
    fn open(&self, conn: &mut Context<'_>) -> State;
    fn input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) -> usize;
    fn end(&self, state: &mut State, conn: &mut Context<'_>, rest: &[u8]);
    fn dialed(&self, state: &mut State, conn: &mut Context<'_>, outcome: Result<(), &DialError>);
    fn far_input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]);
    fn far_end(&self, state: &mut State, conn: &mut Context<'_>);
    fn dials(&self) -> bool;
    fn upstreams(&self) -> Vec<UpstreamInfo>;
    fn hears_out(&self) -> bool;
    fn outlasts_drain(&self) -> bool;
    fn descriptors(&self) -> usize;
    fn output(&self, state: &mut State, conn: &mut Context<'_>);
    fn round(&self, worker: usize, stage: Stage);
    fn ready(&self, state: &mut State, conn: &mut Context<'_>, what: Ready);
    fn recall(&self, state: &mut State, conn: &mut Context<'_>) -> bool;
    fn over(&self, state: &mut State, conn: &mut Context<'_>, reason: CloseReason);
    fn export(&self, state: &State) -> Option<Exported>;
    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)>;
    fn export_common(&self, ahead: u64) -> Option<Exported>;
    fn import_ahead(&self, exported: &Exported) -> Result<(), String>;
    fn import_common(&self, exported: &Exported) -> Result<(), String>;
    fn import(&self, exported: &Exported) -> Result<State, String>;
    fn stop(&self, patience: Duration) -> bool;
}

impl<S: Service> Erased for S {
    fn name(&self) -> &str {
        Service::name(self)
    }

    fn patience(&self) -> Patience {
        Service::patience(self)
    }

    fn start(&self, server: &Handle) {
        Service::start(self, server);
    }

    fn open(&self, conn: &mut Context<'_>) -> State {
        Box::new(Service::open(self, conn))
    }

    fn input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        Service::input(self, own(state), conn, bytes)
    }

    fn end(&self, state: &mut State, conn: &mut Context<'_>, rest: &[u8]) {
        Service::end(self, own(state), conn, rest);
    }

    fn dialed(&self, state: &mut State, conn: &mut Context<'_>, outcome: Result<(), &DialError>) {
        Service::dialed(self, own(state), conn, outcome);
    }

    fn far_input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) {
        Service::far_input(self, own(state), conn, bytes);
    }

    fn far_end(&self, state: &mut State, conn: &mut Context<'_>) {
        Service::far_end(self, own(state), conn);
    }

    fn dials(&self) -> bool {
        Service::dials(self)
    }

    fn upstreams(&self) -> Vec<UpstreamInfo> {
        Service::upstreams(self)
    }

    fn hears_out(&self) -> bool {
        Service::hears_out(self)
    }

    fn outlasts_drain(&self) -> bool {
        Service::outlasts_drain(self)
    }

    fn descriptors(&self) -> usize {
        Service::descriptors(self)
    }

    fn output(&self, state: &mut State, conn: &mut Context<'_>) {
        Service::output(self, own(state), conn);
    }

    fn round(&self, worker: usize, stage: Stage) {
        Service::round(self, worker, stage);
    }

    fn ready(&self, state: &mut State, conn: &mut Context<'_>, what: Ready) {
        Service::ready(self, own(state), conn, what);
    }

    fn recall(&self, state: &mut State, conn: &mut Context<'_>) -> bool {
        Service::recall(self, own(state), conn)
    }

    fn over(&self, state: &mut State, conn: &mut Context<'_>, reason: CloseReason) {
        // One whose `open` panicked has none.
        if let Some(state) = state.downcast_mut() {
            Service::over(self, state, conn, reason);
        }
    }

    fn export(&self, state: &State) -> Option<Exported> {
        Service::export(self, state.downcast_ref()?)
    }

    fn export_ahead(&self, ahead: u64) -> Option<(Exported, u64)> {
        Service::export_ahead(self, ahead)
    }

    fn export_common(&self, ahead: u64) -> Option<Exported> {
        Service::export_common(self, ahead)
    }

    fn import_ahead(&self, exported: &Exported) -> Result<(), String> {
        Service::import_ahead(self, exported)
    }

    fn import_common(&self, exported: &Exported) -> Result<(), String> {
        Service::import_common(self, exported)
    }

    fn import(&self, exported: &Exported) -> Result<State, String> {
        Ok(Box::new(Service::import(self, exported)?))
    }

    fn stop(&self, patience: Duration) -> bool {
        Service::stop(self, patience)
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
