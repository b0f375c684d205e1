//! With a stream of `JetStream`: it takes in what is said, and says so, and what it has is read in its order, each message once.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, RequestError};
use async_nats::jetstream::stream::{Info, Stream as Found};
use async_nats::jetstream::{Context, ContextBuilder, ErrorCode, Message};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use tokio::time::{sleep, timeout};

use super::attempt::{ATTEMPT, GLANCE, HEADERS, LONGEST_PAUSE, Wrong};
use super::bridge::Bridge;
use super::heard::Spot;
use super::options::Foreign;
use super::place::HEADER;

/// How many messages may be on their way to this hub.
const BATCH: usize = 64;

/// The server says that it is there, so often, where nothing comes: after two that are missing it is asked anew.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long one request for messages holds.
const EXPIRES: Duration = Duration::from_secs(20);

/// What a stream has to take in one message, bytes: less is all headers.
const LEAST: usize = 2 * HEADERS;

/// See above.
pub(super) struct Stream {
    context: Context,
    name: String,
    /// What it takes in one message, bytes, if it says so.
    pub(super) most: Option<usize>,
}

impl Stream {
    /// Looks for the stream, and notes where it ends: what comes behind that this hub hears.
    pub(super) async fn find(bridge: &Bridge, client: &Client, name: &str) -> Result<Self, Wrong> {
        let context = ContextBuilder::new().timeout(ATTEMPT).build(client.clone());
        let stream = context.get_stream(name).await;
        let stream = stream.map_err(|error| refusal(name, &error))?;
        let info = stream.cached_info();
        let most = usize::try_from(info.config.max_message_size);
        let most = most.ok().filter(|&most| most > 0);
        if let Some(why) = unsuitable(info, bridge.subject(), most) {
            return Err(Wrong::for_good(format!("the stream {name} {why}")));
        }
        let past = if bridge.history > 0 && bridge.is_new() {
            let past = past(&stream, bridge).await;
            past.map_err(|why| Wrong::for_now(format!("the stream {name}: {why}")))?
        } else {
            VecDeque::new()
        };
        let (made, sequence) = (made(info), info.state.last_sequence);
        bridge.begins_at(Spot { made, sequence }, past.into());
        let name = name.to_owned();
        Ok(Self {
            context,
            name,
            most,
        })
    }

    /// Reads it, once this process serves, until it is over.
    pub(super) fn follow(&self, bridge: Arc<Bridge>) -> impl Future<Output = ()> + use<> {
        follow(bridge, self.context.clone(), self.name.clone())
    }

    /// Has the stream take in a message, and waits until it says that it has.
    pub(super) async fn publish(
        &self,
        bridge: &Bridge,
        headers: HeaderMap,
        payload: &[u8],
    ) -> Result<(), String> {
        // What was asked over a connection that is lost is answered over none.
        let back = pin!(bridge.back.notified());
        let subject = bridge.subject().to_owned();
        let taken = pin!(async {
            let sent = self
                .context
                .publish_with_headers(subject, headers, payload.to_vec().into());
            sent.await?.await
        });
        match select(taken, back).await {
            Either::Left((Ok(_), _)) => Ok(()),
            Either::Left((Err(error), _)) => Err(error.to_string()),
            Either::Right(_) => Err("the connection was lost meanwhile".to_owned()),
        }
    }
}

/// Reads the stream, once this process serves, until it is over.
async fn follow(bridge: Arc<Bridge>, context: Context, name: String) {
    let mut said = String::new();
    let mut pause = GLANCE;
    while !bridge.is_over() {
        if !bridge.speaks() {
            // Another process hears, and may say yet how far that was.
            sleep(GLANCE).await;
            continue;
        }
        let before = bridge.heard_messages();
        match read(&bridge, &context, &name).await {
            Ok(()) => said.clear(),
            Err(why) if why != said && bridge.is_connected() => {
                log::warn!(subject = bridge.subject(), stream = name.as_str(), error = why.as_str(); "cannot read the stream of NATS: trying again");
                said = why;
            }
            Err(_) => {}
        }
        if bridge.heard_messages() > before {
            (pause, said) = (GLANCE, String::new());
        }
        // A connection that is back is a reason to look at once.
        let _ = timeout(pause, bridge.back.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Reads the stream until something is not as it should be, or the connection has come back.
async fn read(bridge: &Bridge, context: &Context, name: &str) -> Result<(), String> {
    let mut back = pin!(bridge.back.notified());
    back.as_mut().enable();
    let stream = context.get_stream(name).await;
    let stream = stream.map_err(|error| refusal(name, &error).why)?;
    let info = stream.cached_info();
    let made = made(info);
    let known = bridge.sequence_in(made, info.state.last_sequence);
    let consumer = consumer(&stream, bridge, known + 1).await?;
    bridge.set_lag(consumer.cached_info().num_pending);
    let mut messages = messages(&consumer).await?;
    let mut count = 0;
    loop {
        let message = match select(messages.next(), back.as_mut()).await {
            Either::Left((Some(Ok(message)), _)) => message,
            Either::Left((Some(Err(error)), _)) => return Err(error.to_string()),
            Either::Left((None, _)) => return Err("it says nothing more".to_owned()),
            Either::Right(_) => return Ok(()),
        };
        let info = message.info().map_err(|error| error.to_string())?;
        count += 1;
        if info.consumer_sequence != count {
            return Err("a message was lost on the way".to_owned());
        }
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let spot = Spot { made, sequence };
        while !bridge.hear_at(spot, header(&message), &message.payload) {
            if bridge.is_over() || bridge.is_given() {
                return Ok(());
            }
            let _ = timeout(GLANCE, bridge.room.notified()).await;
        }
        bridge.set_lag(pending);
    }
}

/// The messages at the end of the stream that have as many lines as who connects is to get, or all there are.
async fn past(
    stream: &Found,
    bridge: &Bridge,
) -> Result<VecDeque<(Option<String>, Vec<u8>)>, String> {
    let state = &stream.cached_info().state;
    let (first, end) = (state.first_sequence.max(1), state.last_sequence + 1);
    let mut span = 8;
    loop {
        let from = end.saturating_sub(span).max(first);
        let (past, lines) = past_from(stream, bridge, from, end).await?;
        if lines >= bridge.history || from == first {
            return Ok(past);
        }
        span *= 8;
    }
}

async fn past_from(
    stream: &Found,
    bridge: &Bridge,
    from: u64,
    end: u64,
) -> Result<(VecDeque<(Option<String>, Vec<u8>)>, usize), String> {
    let (mut past, mut lines, mut bytes) = (VecDeque::new(), 0, 0);
    if from >= end {
        return Ok((past, 0));
    }
    let consumer = consumer(stream, bridge, from).await?;
    if consumer.cached_info().num_pending == 0 {
        return Ok((past, 0));
    }
    let mut messages = messages(&consumer).await?;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| error.to_string())?;
        let info = message.info().map_err(|error| error.to_string())?;
        if info.stream_sequence >= end {
            break;
        }
        let is_last = info.stream_sequence + 1 == end || info.pending == 0;
        let header = header(&message).map(str::to_owned);
        if header.is_some() || bridge.options.foreign == Foreign::Pass {
            lines += lines_of(&message.payload);
            bytes += message.payload.len();
            past.push_back((header, message.payload.to_vec()));
        }
        // No more than is needed, nor than there is room for.
        while let Some((_, oldest)) = past.front()
            && (lines - lines_of(oldest) >= bridge.history || bytes > bridge.options.buffer / 2)
        {
            lines -= lines_of(oldest);
            bytes -= oldest.len();
            past.pop_front();
        }
        if is_last {
            break;
        }
    }
    Ok((past, lines))
}

/// The lines of a message; what has no end is one, of a stranger, or a part of one that is said in several messages.
fn lines_of(payload: &[u8]) -> usize {
    payload.iter().filter(|&&byte| byte == b'\n').count()
}

async fn consumer(stream: &Found, bridge: &Bridge, from: u64) -> Result<PullConsumer, String> {
    let consumer = stream.create_consumer(pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence {
            start_sequence: from,
        },
        ack_policy: AckPolicy::None,
        max_deliver: 1,
        filter_subject: bridge.subject().to_owned(),
        inactive_threshold: EXPIRES + HEARTBEAT,
        num_replicas: 1,
        memory_storage: true,
        ..pull::Config::default()
    });
    consumer.await.map_err(|error| error.to_string())
}

async fn messages(consumer: &PullConsumer) -> Result<pull::Stream, String> {
    let messages = consumer
        .stream()
        .max_messages_per_batch(BATCH)
        .expires(EXPIRES)
        .heartbeat(HEARTBEAT)
        .messages();
    messages.await.map_err(|error| error.to_string())
}

fn header(message: &Message) -> Option<&str> {
    let header = message.headers.as_ref()?.get(HEADER)?;
    Some(header.as_str())
}

/// When it was made, in nanoseconds.
fn made(info: &Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0)
}

/// Why the stream cannot be that of a feed, if so.
fn unsuitable(info: &Info, subject: &str, most: Option<usize>) -> Option<String> {
    let config = &info.config;
    if !config.subjects.iter().any(|of| covers(of, subject)) {
        let of = config.subjects.join(", ");
        return Some(format!("is of other subjects than {subject}: {of}"));
    }
    if config.no_ack {
        return Some("does not say what it has taken in (no_ack)".to_owned());
    }
    if let Some(most) = most.filter(|&most| most < LEAST) {
        return Some(format!(
            "takes no messages of more than {most} bytes, and it has to be {LEAST}"
        ));
    }
    None
}

/// Whether `pattern`, which may have wildcards, has `subject`, which has none.
fn covers(pattern: &str, subject: &str) -> bool {
    let mut words = subject.split('.');
    for part in pattern.split('.') {
        let word = words.next();
        match (part, word) {
            (_, None) => return false,
            (">", _) => return true,
            ("*", _) => {}
            (part, Some(word)) if part == word => {}
            _ => return false,
        }
    }
    words.next().is_none()
}

/// What is wrong with the stream of that name: for good, if the servers say so themselves.
fn refusal(name: &str, error: &GetStreamError) -> Wrong {
    let said = std::error::Error::source(error);
    let said = said.and_then(|error| error.downcast_ref::<RequestError>());
    match error.kind() {
        GetStreamErrorKind::JetStream(error) => {
            let code = error.error_code();
            if code == ErrorCode::STREAM_NOT_FOUND {
                return Wrong::for_good(format!("there is no stream {name}"));
            }
            let why = format!("the stream {name}: {error}");
            match code {
                ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                    Wrong::for_good(why)
                }
                _ => Wrong::for_now(why),
            }
        }
        _ if said.is_some_and(|error| error.kind() == RequestErrorKind::NoResponders) => {
            Wrong::for_good(format!(
                "the stream {name} cannot be: no JetStream is enabled there"
            ))
        }
        _ => Wrong::for_now(format!("the stream {name}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_covers_what_it_says() {
        for (pattern, subject, does) in [
            ("buoys", "buoys", true),
            ("buoys", "buoys.north", false),
            ("buoys.*", "buoys.north", true),
            ("buoys.*", "buoys", false),
            ("buoys.*", "buoys.north.one", false),
            ("*.north", "buoys.north", true),
            ("buoys.>", "buoys.north.one", true),
            ("buoys.>", "buoys", false),
            (">", "buoys", true),
        ] {
            assert_eq!(covers(pattern, subject), does, "{pattern} {subject}");
        }
    }
}
