//! The thread that speaks with the servers: the one place that knows an asynchronous runtime, and NATS.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::connection::State;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Subscriber};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::attempt::{ATTEMPT, GLANCE, HEADERS, LEAST, LONGEST_PAUSE, Wrong};
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
    // What is sent has been heard: nobody gives up because of a word that came too late.
    let (ready, heard) = mpsc::sync_channel(0);
    let ours = Arc::clone(bridge);
    let started = threads::start("nats", move || run(&ours, &options, &ready));
    started.map_err(|source| Error::Start {
        what: "start a thread for NATS",
        source,
    })?;
    match heard.recv_timeout(wait) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(Error::Config(why)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let servers = bridge.options.servers.join(",");
            let (servers, waited) = (servers.as_str(), wait);
            if bridge.is_connected() {
                log::warn!(servers, waited:?; "NATS has not told what this hub has to know in time: this hub is alone until it has");
            } else {
                log::warn!(servers, waited:?; "NATS cannot be reached: this hub is alone until it can be");
            }
            Ok(())
        }
    }
}

fn run(bridge: &Arc<Bridge>, options: &ConnectOptions, ready: &SyncSender<Result<(), String>>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(async {
            while let Some((client, way)) = join(bridge, options, ready).await {
                let ours = Arc::clone(bridge);
                let (listening, stream) = match way {
                    Way::Subject(messages) => (tokio::spawn(listen(ours, messages)), None),
                    Way::Stream(stream) => (tokio::spawn(stream.follow(ours)), Some(stream)),
                };
                speak(bridge, &client, stream.as_deref()).await;
                listening.abort();
                if bridge.is_over() {
                    break;
                }
                bridge.set_connected(false);
                log::warn!(subject = bridge.subject(); "what a server has said ended the client of NATS: connecting anew");
                sleep(LONGEST_PAUSE).await;
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

/// Connects, and finds the way; again and again, but for what is wrong for good while a start waits for it.
async fn join(
    bridge: &Arc<Bridge>,
    options: &ConnectOptions,
    ready: &SyncSender<Result<(), String>>,
) -> Option<(Client, Way)> {
    let mut pause = GLANCE;
    let mut said = String::new();
    // What the server refuses once it has let us in.
    let refused = Arc::new(Mutex::new(None));
    let options = with_events(bridge, options.clone(), &refused);
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
                    true => format!("{}: {NOT_IN}", error.kind()),
                    false => error.to_string(),
                };
                Wrong { why, for_good }
            }
        };
        let Wrong { why, for_good } = wrong;
        let servers = bridge.options.servers.join(",");
        if for_good && ready.send(Err(format!("NATS at {servers}: {why}"))).is_ok() {
            return None;
        }
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
    let most = client.max_payload();
    if most < LEAST {
        let why =
            format!("it takes no messages of more than {most} bytes, and it has to be {LEAST}");
        return Err(Wrong::for_good(why));
    }
    bridge.set_answers(reach(client).await);
    Ok(messages)
}

/// Where the credentials are not those that the servers want.
const NOT_IN: &str = "it does not let this hub in as who it says it is";

/// Whether a server says of an attempt that nobody is let in like that.
fn is_refusal(said: &str) -> bool {
    let kinds = [
        ConnectErrorKind::Authentication,
        ConnectErrorKind::AuthorizationViolation,
    ];
    kinds.iter().any(|kind| said.contains(&kind.to_string()))
}

fn with_events(
    bridge: &Arc<Bridge>,
    options: ConnectOptions,
    refused: &Arc<Mutex<Option<String>>>,
) -> ConnectOptions {
    let (bridge, refused) = (Arc::clone(bridge), Arc::clone(refused));
    // What was said of this connection, or of the attempts since: once is enough.
    let known = Mutex::new(String::new());
    options.event_callback(move |event| {
        let subject = bridge.subject();
        let is_new = |event: &Event| {
            let event = event.to_string();
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let is_new = *known != event;
            *known = event;
            is_new
        };
        match &event {
            Event::Connected => {
                bridge.set_connected(true);
                is_new(&event);
                log::info!(subject; "connected to NATS");
            }
            Event::Disconnected | Event::Closed => {
                bridge.set_connected(false);
                log::warn!(subject; "the connection to NATS is lost");
            }
            Event::ServerError(error) => {
                let why = error.to_string();
                if is_new(&event) {
                    log::warn!(subject, error = why.as_str(); "NATS refuses something");
                }
                let is_ours = why.contains(subject) || why.contains("$JS.API");
                if why.contains("Permissions Violation") && is_ours {
                    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
                    refused.get_or_insert(why);
                }
            }
            Event::ClientError(error) => {
                let why = error.to_string();
                if is_refusal(&why) && is_new(&event) {
                    log::warn!(subject, error = why.as_str(); "cannot connect to NATS: {NOT_IN}. Have it let in again, or have a server with other credentials take over: their file is read at a start");
                }
                log::debug!(subject, error = why.as_str(); "not connected to NATS");
            }
            event => log::debug!(subject, event:%; "NATS"),
        }
        std::future::ready(())
    })
}

/// Whether the client has ended, which it does not say: a server has sent what it cannot bear.
async fn has_ended(client: &Client) -> bool {
    matches!(timeout(ATTEMPT, client.flush()).await, Ok(Err(_)))
}

/// Says what there is to be said, one message at a time, so that they stay in their order; until it is over, or the client has
/// ended.
async fn speak(bridge: &Bridge, client: &Client, stream: Option<&Stream>) {
    // At once, so that what is lost of the first words is known to be.
    let mut announces = Instant::now();
    let (mut pause, mut warned) = (GLANCE, String::new());
    // A stream that is nearly full may have room for less.
    let mut room = usize::MAX;
    while !bridge.is_over() {
        // Not into the client's own queue, which nobody counts and which a takeover loses: it waits in the feed.
        if client.connection_state() != State::Connected || !bridge.speaks() {
            sleep(GLANCE).await;
            continue;
        }
        let most = client.max_payload();
        let most = most.min(stream.and_then(Stream::most).unwrap_or(most));
        if most < LEAST {
            complain(
                bridge,
                &mut warned,
                &format!("a message may have {most} bytes, and it has to be {LEAST}"),
            );
            sleep(LONGEST_PAUSE).await;
            continue;
        }
        let Some(piece) = bridge.next(most.min(room).saturating_sub(HEADERS)) else {
            if bridge.is_ending() && stream.is_none() && reach(client).await {
                bridge.note_reached();
            }
            let news = timeout_at(announces, bridge.news.notified()).await;
            if news.is_err() {
                // A stream keeps what is said, and needs nobody who says that nothing is.
                if stream.is_none() {
                    let _ = publish(bridge, client, bridge.place(), &[]).await;
                }
                if has_ended(client).await {
                    return;
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
        if let Err(why) = said {
            // It is said again: who has heard it knows.
            if client.connection_state() == State::Connected {
                if has_ended(client).await {
                    return;
                }
                complain(bridge, &mut warned, &why);
                if let Some(stream) = stream {
                    stream.look_again().await;
                    room = (piece.bytes.len() / 2).max(LEAST);
                }
            }
            let _ = timeout(pause, bridge.back.notified()).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            continue;
        }
        bridge.note_said(&piece);
        room = usize::MAX;
        if !warned.is_empty() {
            log::info!(subject = bridge.subject(); "NATS takes in what is said");
            (pause, warned) = (GLANCE, String::new());
        }
        announces = Instant::now() + ANNOUNCE;
    }
}

/// Says what is wrong, unless that was the last that was said.
fn complain(bridge: &Bridge, said: &mut String, why: &str) {
    if why != said {
        log::warn!(subject = bridge.subject(), error = why; "NATS does not take in what is said: saying it again");
        why.clone_into(said);
    }
}

/// Whether a server has done all that it was told: it takes what a client says in its order.
async fn reach(client: &Client) -> bool {
    let nobody = client.new_inbox();
    let answer = timeout(ATTEMPT, client.request(nobody, Vec::new().into())).await;
    matches!(answer, Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders)
}

async fn publish(
    bridge: &Bridge,
    client: &Client,
    place: Place,
    payload: &[u8],
) -> Result<(), String> {
    let headers = headers(place, payload.len());
    let subject = bridge.subject().to_owned();
    let sent = client.publish_with_headers(subject, headers, payload.to_vec().into());
    sent.await.map_err(|error| error.to_string())?;
    client.flush().await.map_err(|error| error.to_string())
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
