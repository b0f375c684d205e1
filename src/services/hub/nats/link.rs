//! The thread that speaks with the servers: the one place that knows an asynchronous runtime, and NATS.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Subscriber};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::attempt::{ATTEMPT, GLANCE, HEADERS, LONGEST_PAUSE, Wrong};
use super::bridge::Bridge;
use super::options::Credentials;
use super::place::{HEADER, Place};
use super::stream::Stream;
use crate::error::Error;
use crate::os::threads;

/// A hub that says nothing says how much it has said, so often: or nobody would notice that its last words are missing.
const ANNOUNCE: Duration = Duration::from_secs(2);

/// Where a connection is found dead that carries nothing, after two of these.
const PING: Duration = Duration::from_secs(5);

/// Messages that wait between the client's task and ours, in one turn of the runtime.
const QUEUE: usize = 4096;

/// Starts the thread, and waits until it hears what is said on the subject: no longer than it was told to.
///
/// # Errors
/// Credentials or certificates that cannot be read, or that the server refuses. A server that is away is none.
pub(super) fn open(bridge: &Arc<Bridge>) -> Result<(), Error> {
    let options = connect_options(bridge)?;
    let wait = bridge.options.wait;
    let (ready, heard) = mpsc::channel();
    let ours = Arc::clone(bridge);
    let started = threads::start("nats", move || run(&ours, options, &ready));
    started.map_err(|source| Error::Start {
        what: "start a thread for NATS",
        source,
    })?;
    match heard.recv_timeout(wait) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(Error::Config(why)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            log::warn!(servers = bridge.options.servers.join(",").as_str(), waited:? = wait; "NATS cannot be reached: this hub is alone until it can be");
            Ok(())
        }
    }
}

fn run(bridge: &Arc<Bridge>, options: ConnectOptions, ready: &Sender<Result<(), String>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            if let Some((client, way)) = join(bridge, options, ready).await {
                let ours = Arc::clone(bridge);
                let (listening, stream) = match way {
                    Way::Subject(messages) => (tokio::spawn(listen(ours, messages)), None),
                    Way::Stream(stream) => (tokio::spawn(stream.follow(ours)), Some(stream)),
                };
                speak(bridge, &client, stream.as_deref()).await;
                listening.abort();
            }
        }),
        Err(error) => log::error!(error:%; "no runtime for NATS: this hub is alone"),
    }
    bridge.set_connected(false);
}

/// How what others say comes.
enum Way {
    Subject(Subscriber),
    Stream(Box<Stream>),
}

/// Connects, and finds the way; again and again, but for what is wrong at the first time.
async fn join(
    bridge: &Arc<Bridge>,
    options: ConnectOptions,
    ready: &Sender<Result<(), String>>,
) -> Option<(Client, Way)> {
    let mut pause = GLANCE;
    let mut is_first = true;
    let mut said = String::new();
    // What the server refuses once it has let us in.
    let refused = Arc::new(Mutex::new(None));
    let options = with_events(bridge, options, &refused);
    while !bridge.is_over() {
        let wrong = match options.clone().connect(&bridge.options.servers).await {
            Ok(client) => match find(bridge, &client, &refused).await {
                Ok(way) => {
                    bridge.set_connected(true);
                    // Nobody waits for it any more, or it may go on.
                    let _ = ready.send(Ok(()));
                    return Some((client, way));
                }
                Err(wrong) => wrong,
            },
            Err(error) => {
                let is_refusal = matches!(
                    error.kind(),
                    ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation
                );
                let for_good = is_refusal
                    || matches!(
                        error.kind(),
                        ConnectErrorKind::Tls | ConnectErrorKind::ServerParse
                    );
                let why = match is_refusal {
                    true => format!(
                        "{}: it does not let this hub in as who it says it is",
                        error.kind()
                    ),
                    false => error.to_string(),
                };
                Wrong { why, for_good }
            }
        };
        let Wrong { why, for_good } = wrong;
        let servers = bridge.options.servers.join(",");
        if for_good && is_first {
            let _ = ready.send(Err(format!("NATS at {servers}: {why}")));
            return None;
        }
        is_first = false;
        if why != said {
            log::warn!(servers = servers.as_str(), error = why.as_str(); "cannot connect to NATS");
            said = why;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    None
}

/// The way on which this hub hears the others from here on.
async fn find(
    bridge: &Bridge,
    client: &Client,
    refused: &Mutex<Option<String>>,
) -> Result<Way, Wrong> {
    let found = match &bridge.options.stream {
        None => subscribe(bridge, client).await.map(Way::Subject),
        Some(name) => Stream::find(bridge, client, name)
            .await
            .map(|stream| Way::Stream(Box::new(stream))),
    };
    let refused = refused
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    refused.map_or(found, |why| Err(Wrong::for_good(why)))
}

/// Listens to the subject, from here on.
async fn subscribe(bridge: &Bridge, client: &Client) -> Result<Subscriber, Wrong> {
    let subject = bridge.subject().to_owned();
    let messages = client.subscribe(subject).await;
    let messages = messages.map_err(|error| Wrong::for_good(error.to_string()))?;
    // The server takes what a client says in its order: once it answers this, it has the subscription.
    let nobody = client.new_inbox();
    let _ = timeout(ATTEMPT, client.request(nobody, Vec::new().into())).await;
    Ok(messages)
}

fn with_events(
    bridge: &Arc<Bridge>,
    options: ConnectOptions,
    refused: &Arc<Mutex<Option<String>>>,
) -> ConnectOptions {
    let (bridge, refused) = (Arc::clone(bridge), Arc::clone(refused));
    options.event_callback(move |event| {
        let subject = bridge.subject();
        match &event {
            Event::Connected => {
                bridge.set_connected(true);
                log::info!(subject; "connected to NATS");
            }
            Event::Disconnected | Event::Closed => {
                bridge.set_connected(false);
                log::warn!(subject; "the connection to NATS is lost");
            }
            Event::ServerError(error) => {
                let why = error.to_string();
                log::warn!(subject, error = why.as_str(); "NATS refuses something");
                let is_ours = why.contains(subject) || why.contains("$JS.API");
                if why.contains("Permissions Violation") && is_ours {
                    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
                    refused.get_or_insert(why);
                }
            }
            Event::ClientError(error) => log::debug!(subject, error:%; "not connected to NATS"),
            event => log::debug!(subject, event:%; "NATS"),
        }
        std::future::ready(())
    })
}

/// Says what there is to be said, one message at a time, so that they stay in their order.
async fn speak(bridge: &Bridge, client: &Client, stream: Option<&Stream>) {
    // At once, so that what is lost of the first words is known to be.
    let mut announces = Instant::now();
    let (mut pause, mut warned) = (GLANCE, String::new());
    while !bridge.is_over() {
        // Not into the client's own queue, which nobody counts and which a takeover loses: it waits in the feed.
        if client.connection_state() != State::Connected || !bridge.speaks() {
            sleep(GLANCE).await;
            continue;
        }
        let most = client.max_payload();
        let most = most.min(stream.and_then(Stream::most).unwrap_or(most));
        let Some(piece) = bridge.next(most.saturating_sub(HEADERS)) else {
            let news = timeout_at(announces, bridge.news.notified()).await;
            if news.is_err() {
                // A stream keeps what is said, and needs nobody who says that nothing is.
                if stream.is_none() {
                    let _ = publish(bridge, client, bridge.place(), &[]).await;
                }
                announces = Instant::now() + ANNOUNCE;
            }
            continue;
        };
        let said = match stream {
            None => publish(bridge, client, piece.place, &piece.bytes).await,
            Some(stream) => {
                let headers = headers(piece.place, piece.bytes.len());
                stream.publish(bridge, headers, &piece.bytes).await
            }
        };
        match said {
            // Said or not: it is in the client's hands, and would come twice.
            Ok(()) => bridge.note_said(&piece),
            Err(_) if stream.is_none() => bridge.note_said(&piece),
            Err(why) => {
                if why != warned && client.connection_state() == State::Connected {
                    log::warn!(subject = bridge.subject(), error = why.as_str(); "the stream of NATS has not said that it takes this in: saying it again");
                    warned = why;
                    if let Some(stream) = stream {
                        stream.look_again().await;
                    }
                }
                let _ = timeout(pause, bridge.back.notified()).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        }
        if !warned.is_empty() {
            log::info!(subject = bridge.subject(); "the stream of NATS takes in what is said");
            (pause, warned) = (GLANCE, String::new());
        }
        announces = Instant::now() + ANNOUNCE;
    }
}

async fn publish(
    bridge: &Bridge,
    client: &Client,
    place: Place,
    payload: &[u8],
) -> Result<(), String> {
    let headers = headers(place, payload.len());
    let subject = bridge.subject().to_owned();
    let sent = async {
        let sent = client.publish_with_headers(subject, headers, payload.to_vec().into());
        sent.await.map_err(|error| error.to_string())?;
        client.flush().await.map_err(|error| error.to_string())
    };
    let sent = sent.await;
    if let Err(why) = &sent {
        log::warn!(subject = bridge.subject(), error = why.as_str(); "not said to NATS");
    }
    sent
}

fn headers(place: Place, length: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in Bridge::headers(place, length) {
        headers.insert(name, value.as_str());
    }
    headers
}

async fn listen(bridge: Arc<Bridge>, mut messages: Subscriber) {
    while let Some(message) = messages.next().await {
        let headers = message.headers.as_ref();
        let header = headers.and_then(|headers| headers.get(HEADER));
        bridge.hear(header.map(|header| header.as_str()), &message.payload);
    }
}

/// How to connect, with whatever has to be read for that.
fn connect_options(bridge: &Bridge) -> Result<ConnectOptions, Error> {
    let asked = &bridge.options;
    let mut options = ConnectOptions::new()
        .name("standfast hub")
        .no_echo()
        .ping_interval(PING)
        .connection_timeout(ATTEMPT)
        .subscription_capacity(QUEUE)
        .reconnect_delay_callback(|attempt| {
            let attempt = u32::try_from(attempt).unwrap_or(u32::MAX);
            let doubled = GLANCE.saturating_mul(1 << attempt.saturating_sub(1).min(8));
            if attempt <= 1 {
                Duration::ZERO
            } else {
                doubled.min(LONGEST_PAUSE)
            }
        });
    let wrong =
        |path: &Path, error: io::Error| Error::Config(format!("NATS: {}: {error}", path.display()));
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|error| wrong(path, error));
    options = match &asked.credentials {
        Credentials::None => options,
        Credentials::Creds(path) => options
            .credentials(&read(path)?)
            .map_err(|error| wrong(path, error))?,
        Credentials::Nkey(path) => options.nkey(first_line(&read(path)?)),
        Credentials::Password(user, path) => {
            options.user_and_password(user.clone(), first_line(&read(path)?))
        }
    };
    // Read here for their errors alone: the client reads them whenever it connects.
    if let Some(path) = &asked.tls_ca {
        read(path)?;
        options = options
            .add_root_certificates(path.clone())
            .require_tls(true);
    }
    if let Some((certificate, key)) = &asked.tls_identity {
        read(certificate)?;
        read(key)?;
        options = options
            .add_client_certificate(certificate.clone(), key.clone())
            .require_tls(true);
    }
    Ok(options)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}
