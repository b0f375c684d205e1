//! Whether the server that the load goes to is replaced meanwhile: asked at its control socket, where it is one of ours on
//! this host.

use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use standfast::Address;
use standfast::control::Client;
use standfast::dial::Dial;
use standfast::inspect::{Role, Status};
use standfast::process::threads;

use crate::load::News;
use crate::load::plan::loopback;

/// How often it is asked, and how long it may take.
const EVERY: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

/// Looks from time to time which process serves, until nobody hears of it any more. Where that cannot be known, nothing is
/// told.
pub(super) fn watch(dial: &Dial, news: Sender<News>) {
    let Some(port) = port(&dial.address) else {
        return;
    };
    let watching = threads::start("load-restarts", move || {
        let mut before: Option<Status> = None;
        loop {
            if let Some(now) = ask(port) {
                let former = before.as_ref().filter(|before| before.pid != now.pid);
                if let Some(former) = former
                    && news.send(News::Restarted(told(former, &now))).is_err()
                {
                    return;
                }
                before = Some(now);
            }
            thread::park_timeout(EVERY);
        }
    });
    if let Err(error) = watching {
        log::warn!(error:%; "restarts are not shown: cannot start a thread");
    }
}

/// The port of a server on this host.
fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Host(host, port) if host == "localhost" => Some(*port),
        _ => loopback(address).map(|(_, port)| port),
    }
}

/// What the only one says that listens there.
fn ask(port: u16) -> Option<Status> {
    let paths = Client::candidates(Some(port));
    let [path] = &*paths else {
        return None;
    };
    Client::at(path.clone()).within(PATIENCE).status().ok()
}

fn told(before: &Status, now: &Status) -> String {
    let pids = format!("pid {}, was {}", now.pid, before.pid);
    match &now.takeover {
        Some(takeover) if takeover.role == Role::Took && takeover.pid == before.pid => format!(
            "takeover: {pids}, {} connections handed over, frozen for {} ms",
            takeover.connections,
            takeover.frozen_ms()
        ),
        _ => format!("restart: {pids}"),
    }
}
