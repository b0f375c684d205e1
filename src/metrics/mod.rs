//! What a server tells of itself over HTTP: metrics for a monitoring system, and whether it lives and is ready.
//!
//! A [`Service`] as any other, on an event loop of its own (`server/metrics.rs`): so it answers while the workers are busy
//! or hang, and its clients have the engine's deadlines.

mod figures;
mod page;
mod request;
mod text;
mod ticker;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::handle::Handle;
use crate::liveness::close::CloseReason;
use crate::metrics::request::{Refusal, Request};
use crate::metrics::ticker::Ticker;
use crate::service::{Context, Ready, Service};

pub(crate) use ticker::PATIENCE;

/// Clients that are answered at a time. One more hears that there are too many.
pub(crate) const CLIENTS: usize = 64;

/// Clients that may be there to hear that; more wait in the backlog.
pub(crate) const TURNED_AWAY: usize = 16;

/// High-water mark of what waits for one: the head of its request has to find room there.
pub(crate) const BUFFER: usize = 2 * request::LONGEST;

/// Tells of a server.
pub(crate) struct Teller {
    about: Handle,
    /// Names by which it may be asked.
    hosts: Vec<String>,
    /// The server serves: what it takes over it has.
    serves: Arc<AtomicBool>,
    clients: AtomicUsize,
    ticker: Arc<Ticker>,
    own: OnceLock<Handle>,
}

/// How far a client is.
#[derive(Debug)]
pub(crate) enum State {
    /// It is one too many.
    TurnedAway,
    /// Its request is awaited.
    Asks,
    /// It waits to hear whether the workers turn: the number of that question.
    Waits { asked: u64, is_head: bool },
    /// It has its answer.
    Answered,
}

impl Teller {
    /// `serves` is set once the server does.
    pub(crate) fn new(about: Handle, hosts: Vec<String>, serves: Arc<AtomicBool>) -> Self {
        Self {
            about,
            hosts,
            serves,
            clients: AtomicUsize::new(0),
            ticker: Arc::default(),
            own: OnceLock::new(),
        }
    }

    fn serves(&self) -> bool {
        self.serves.load(Ordering::Acquire)
    }

    fn answer(&self, request: &Request) -> Answer {
        let status = || self.serves().then(|| self.about.status());
        match request.path.as_str() {
            "/metrics" => match status() {
                Some(status) => Answer::ok(
                    if request.open_metrics {
                        "application/openmetrics-text; version=1.0.0; charset=utf-8"
                    } else {
                        "text/plain; version=0.0.4; charset=utf-8"
                    },
                    figures::figures(&status, request.open_metrics),
                ),
                None => Answer::plain("503 Service Unavailable", TAKING_OVER),
            },
            "/status.json" => match status().map(|status| serde_json::to_string(&status)) {
                Some(Ok(json)) => Answer::ok("application/json", json),
                Some(Err(error)) => Answer::plain("500 Internal Server Error", &error.to_string()),
                None => Answer::plain("503 Service Unavailable", TAKING_OVER),
            },
            "/readyz" if !self.serves() => Answer::plain("503 Service Unavailable", TAKING_OVER),
            "/readyz" if self.about.is_ending() => {
                Answer::plain("503 Service Unavailable", "draining")
            }
            "/readyz" => Answer::plain("200 OK", "ready"),
            "/" => page::page(),
            _ => Answer::plain("404 Not Found", PATHS),
        }
    }

    /// Whether the workers turn, if that is known.
    fn health(&self, asked: u64) -> Option<Answer> {
        Some(match self.ticker.turning(asked)? {
            true => Answer::plain("200 OK", "the workers turn"),
            false => Answer::plain("503 Service Unavailable", "a worker hangs"),
        })
    }

    /// Answers the client if it can be, or has it wait.
    fn go_on(&self, state: &mut State, conn: &mut Context<'_>) {
        if let State::Waits { asked, is_head } = *state {
            match self.health(asked) {
                Some(answer) => {
                    answer.send(conn, is_head);
                    *state = State::Answered;
                }
                None => conn.pause(),
            }
        }
    }
}

const PATHS: &str = "there are /, /metrics, /healthz, /readyz and /status.json";
const TAKING_OVER: &str = "taking over";

impl Service for Teller {
    type State = State;

    fn name(&self) -> &'static str {
        "metrics"
    }

    fn start(&self, server: &Handle) {
        let _ = self.own.set(server.clone());
        if let Err(error) = self.ticker.start(&self.about, server) {
            log::warn!(error:%; "cannot start a thread: nobody will hear that the workers turn");
        }
    }

    fn open(&self, conn: &mut Context<'_>) -> State {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            let answer = Answer::plain("503 Service Unavailable", "too many clients");
            answer.send_as(conn, false, CloseReason::Limit);
            return State::TurnedAway;
        }
        if let Some(own) = self.own.get() {
            self.ticker.came(conn.id(), own.now().after(PATIENCE));
        }
        State::Asks
    }

    fn input(&self, state: &mut State, conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        if !matches!(state, State::Asks) {
            return bytes.len();
        }
        match Request::parse(bytes, &self.hosts) {
            Ok(None) => return 0,
            Ok(Some(request)) if request.path == "/healthz" && self.serves() => {
                *state = State::Waits {
                    asked: self.ticker.ask(),
                    is_head: request.is_head,
                };
                self.go_on(state, conn);
            }
            // It is no fault of the workers' that they do not turn yet.
            Ok(Some(request)) if request.path == "/healthz" => {
                Answer::plain("200 OK", TAKING_OVER).send(conn, request.is_head);
                *state = State::Answered;
            }
            Ok(Some(request)) => {
                self.answer(&request).send(conn, request.is_head);
                *state = State::Answered;
            }
            Err(refusal) => {
                Answer::refused(refusal).send(conn, false);
                *state = State::Answered;
            }
        }
        bytes.len()
    }

    fn end(&self, state: &mut State, conn: &mut Context<'_>, _rest: &[u8]) {
        match state {
            // A client that has said all may hear the answer yet.
            State::Waits { .. } => self.go_on(state, conn),
            _ => conn.finish(),
        }
    }

    fn ready(&self, state: &mut State, conn: &mut Context<'_>, what: Ready) {
        if what == Ready::Resumed {
            self.go_on(state, conn);
        }
    }

    fn over(&self, state: &mut State, conn: &mut Context<'_>, _reason: CloseReason) {
        if !matches!(state, State::TurnedAway) {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            self.ticker.left(conn.id());
        }
    }

    /// Who has connected gets an answer: its request may be on its way.
    fn outlasts_drain(&self) -> bool {
        true
    }

    fn stop(&self, _patience: Duration) -> bool {
        self.ticker.stop();
        true
    }
}

/// An answer, whole.
#[derive(Debug)]
struct Answer {
    status: &'static str,
    kind: &'static str,
    /// More fields of its head.
    fields: String,
    body: String,
}

impl Answer {
    fn ok(kind: &'static str, body: String) -> Self {
        Self {
            status: "200 OK",
            kind,
            fields: String::new(),
            body,
        }
    }

    fn plain(status: &'static str, line: &str) -> Self {
        Self {
            status,
            kind: "text/plain; charset=utf-8",
            fields: String::new(),
            body: format!("{line}\n"),
        }
    }

    fn refused(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed => Self::plain("400 Bad Request", "no request that is understood"),
            Refusal::Method => Self {
                fields: "Allow: GET, HEAD\r\n".to_owned(),
                ..Self::plain("405 Method Not Allowed", "GET and HEAD, nothing else")
            },
            Refusal::TooLong => Self::plain(
                "431 Request Header Fields Too Large",
                "a longer request than is read",
            ),
            Refusal::Host => Self::plain(
                "421 Misdirected Request",
                "asked by a name that is not this server's: name it with --metrics-host",
            ),
        }
    }

    fn send(&self, conn: &mut Context<'_>, is_head: bool) {
        self.send_as(conn, is_head, CloseReason::Service);
    }

    /// Sends it, and ends the connection once the client has it.
    fn send_as(&self, conn: &mut Context<'_>, is_head: bool, reason: CloseReason) {
        let Self {
            status,
            kind,
            fields,
            body,
        } = self;
        let length = body.len();
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{fields}\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
        );
        if !is_head {
            answer += body;
        }
        conn.write(answer.as_bytes());
        conn.finish_as(reason);
    }
}
