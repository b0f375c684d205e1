//! What happens to the server, told to the log, to stdout, and to the service manager.

#[cfg(control)]
use std::io;
#[cfg(control)]
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use standfast::inspect::Takeover;
use standfast::{Effective, Endpoint, Handle, Lifecycle};

use crate::args::{ProcessArgs, ServiceName};
use crate::settings::Settings;
use crate::stdout;
#[cfg(control)]
use crate::store;
use crate::supervisor::Supervisor;
use crate::takeover::Restart;
use crate::units::shown_or;
use crate::watch::Watch;

/// Whoever is told.
#[derive(Debug)]
pub(crate) struct Told {
    /// Of each listener of the settings.
    listeners: Vec<(ServiceName, Effective)>,
    prints: bool,
    /// How long a drain is meant to last, where it takes its time.
    drain_takes: Option<Duration>,
    supervisor: Supervisor,
    restart: Restart,
    watch: Option<Arc<Watch>>,
}

impl Told {
    pub(crate) fn by(
        settings: &Settings,
        effective: &[Effective],
        watch: Option<Arc<Watch>>,
    ) -> Self {
        let services = settings.listeners.iter();
        let services = services.map(|one| one.args.service.service);
        Self {
            listeners: services.zip(effective.iter().cloned()).collect(),
            prints: settings.prints(),
            drain_takes: drain_takes(&settings.whole.args.process),
            supervisor: Supervisor::from_env(),
            restart: Restart::of(settings),
            watch,
        }
    }
}

impl Lifecycle for Told {
    fn running(&self, server: &Handle) {
        let addresses = server.addresses();
        for (address, listen) in addresses.iter().zip(server.listens()) {
            if let Some((service, effective)) = self.listeners.get(listen) {
                announce(*service, effective, address);
            }
        }
        if !self.prints {
            say_listening(&addresses);
        }
    }

    #[cfg(control)]
    fn keep(&self, listening: Vec<standfast::control::Kept>) {
        crate::kept::keep(&listening);
    }

    #[cfg(control)]
    fn store(&self, name: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        crate::kept::store(name, descriptors)
    }

    #[cfg(control)]
    fn give_up(&self, name: &str) -> io::Result<()> {
        crate::kept::give_back(name)
    }

    #[cfg(control)]
    fn owns(&self) -> io::Result<()> {
        crate::kept::owns()
    }

    #[cfg(control)]
    fn gives(&self, gives: bool) {
        if let Some(store) = store::get() {
            store.gives(gives);
        }
    }

    fn settled(&self, server: &Handle) {
        #[cfg(control)]
        if let Some(store) = store::get() {
            store.settled();
        }
        let handle = server.clone();
        self.supervisor
            .watch(move |patience| handle.is_turning(patience));
        // Once it is ready the keeper has no other notes than this server's.
        #[cfg(control)]
        crate::kept::note_now(server);
        self.supervisor.ready(&server.addresses());
        if let Some(watch) = &self.watch {
            watch.begin();
        }
    }

    fn alone(&self, server: &Handle) {
        // What a server that this one takes over from prints comes first, in whole lines.
        if self.prints {
            say_listening(&server.addresses());
        }
    }

    #[cfg(control)]
    fn objection(&self, pid: u32) -> Option<String> {
        self.restart.objection(pid)
    }

    #[cfg(control)]
    fn successor(&self, control: &std::path::Path) -> io::Result<standfast::control::Successor> {
        let successor = self.restart.successor(control)?;
        if let Some(watch) = &self.watch {
            watch.has_started(successor.pid);
        }
        Ok(successor)
    }

    fn handed_over(&self, takeover: &Takeover) {
        if let Some(watch) = &self.watch {
            watch.handed_over(takeover.pid);
        }
        #[cfg(control)]
        if let Some(store) = store::get() {
            store.over();
        }
        self.supervisor.handed_over(takeover.pid);
    }

    fn ending(&self) {
        if let Some(watch) = &self.watch {
            watch.end();
        }
        self.supervisor.stopping(self.drain_takes);
    }

    fn ended(&self) {
        #[cfg(control)]
        if let Some(store) = store::get() {
            store.over();
        }
        // A successor prints once it takes this one for ended.
        stdout::until_greeted();
    }
}

/// How long a drain is meant to last at the most, if it has a delay or a spread; whoever ends the server need not know
/// otherwise.
fn drain_takes(args: &ProcessArgs) -> Option<Duration> {
    let [delay, spread, timeout] = [args.drain_delay, args.drain_spread, args.drain_timeout]
        .map(|setting| setting.into_option());
    let before = delay.unwrap_or_default() + spread.unwrap_or_default();
    timeout
        .filter(|_| !before.is_zero())
        .map(|timeout| before + timeout)
}

/// Says that the server accepts: in the log.
fn announce(service: ServiceName, effective: &Effective, address: &Endpoint) {
    let keepalive = effective.keepalive;
    let keepalive = keepalive.map_or_else(|| "off".to_owned(), |triple| triple.to_string());
    log::info!(
        listener:% = address,
        service = service.as_str(),
        keepalive = keepalive.as_str(),
        dead_after = shown_or(effective.dead_after, "off").as_str(),
        read_timeout = shown_or(effective.read_timeout, "off").as_str(),
        max_conns = effective.max_conns;
        "listening"
    );
}

/// The same on stdout: a line for each listener.
fn say_listening(addresses: &[Endpoint]) {
    let lines = addresses.iter().map(|it| format!("listening on {it}\n"));
    stdout::greet(lines.collect());
}
