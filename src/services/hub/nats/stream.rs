//! With a stream of `JetStream`: it takes in what is said, and says so, and what it has is read in its order, each message once.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, RequestError};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Info, RawMessage, Stream as Found};
use async_nats::jetstream::{Context, ContextBuilder, ErrorCode};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::{Either, select};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::attempt::{ATTEMPT, GLANCE, LEAST, LONGEST_PAUSE, Wrong};
use super::bridge::{Bridge, Message};
use super::options::Foreign;
use super::place::{HEADER, Spot};

/// How many messages may be on their way to this hub.
const BATCH: usize = 64;

/// The server says that it is there, so often, where nothing comes: after two that are missing it is asked anew.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long one request for messages holds.
const EXPIRES: Duration = Duration::from_secs(20);

/// The header by which a stream takes in nothing that is meant for another one.
const EXPECTED: &str = "Nats-Expected-Stream";

/// What was delivered to a connection that ended is not again.
const LOST: &str = "a message was lost on the way";

/// See above.
pub(super) struct Stream {
    context: Context,
    name: String,
    /// What it takes in one message, bytes, if it says so.
    most: Cell<Option<usize>>,
}

impl Stream {
    /// Looks for the stream, and notes where it ends: what comes behind that this hub hears.
    pub(super) async fn find(bridge: &Bridge, client: &Client, name: &str) -> Result<Self, Wrong> {
        let context = ContextBuilder::new().timeout(ATTEMPT).build(client.clone());
        let stream = context.get_stream(name).await;
        let stream = stream.map_err(|error| refusal(name, &error))?;
        let info = stream.cached_info();
        let most = most(info);
        if let Some(why) = unsuitable(info, bridge.subject(), most) {
            return Err(Wrong::for_good(format!("the stream {name} {why}")));
        }
        let past = if bridge.history > 0 && bridge.is_new() {
            let past = past(&context, &stream, bridge).await;
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
            most: Cell::new(most),
        })
    }

    /// What it takes in one message, bytes, if it says so.
    pub(super) fn most(&self) -> Option<usize> {
        self.most.get()
    }

    /// That may be another one by now.
    pub(super) async fn look_again(&self) {
        if let Ok(stream) = self.context.get_stream(&self.name).await {
            self.most.set(most(stream.cached_info()));
        }
    }

    /// Reads it, once this process serves, until it is over.
    pub(super) fn follow(&self, bridge: Arc<Bridge>) -> impl Future<Output = ()> + use<> {
        follow(bridge, self.context.clone(), self.name.clone())
    }

    /// Has the stream take in a message, and waits until it says that it has.
    pub(super) async fn publish(
        &self,
        bridge: &Bridge,
        mut headers: HeaderMap,
        payload: &[u8],
    ) -> Result<(), String> {
        headers.insert(EXPECTED, self.name.as_str());
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
    let mut fruitless = 0;
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
            (pause, said, fruitless) = (GLANCE, String::new(), 0);
        } else {
            fruitless += 1;
        }
        // What comes next may be what ends the reading, and would do so for ever.
        if fruitless > 1 && bridge.is_connected() && read_stored(&bridge, &context, &name).await {
            fruitless = 0;
            continue;
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
            return Err(LOST.to_owned());
        }
        let (sequence, pending) = (info.stream_sequence, info.pending);
        let spot = Spot { made, sequence };
        let header = header(message.headers.as_ref());
        if !hear(bridge, spot, header, &message.payload).await {
            return Ok(());
        }
        bridge.set_lag(pending);
    }
}

/// Has the hub take in what stands at `spot`, once there is room. Answers whether it goes on.
async fn hear(bridge: &Bridge, spot: Spot, header: Option<&str>, payload: &[u8]) -> bool {
    while !bridge.hear_at(spot, header, payload) {
        if bridge.is_over() || bridge.is_given() {
            return false;
        }
        let _ = timeout(GLANCE, bridge.room.notified()).await;
    }
    true
}

/// Reads the next messages as they are stored, one by one, and not as they are delivered: headers of a stranger that are none
/// end the client's connection, or are taken for the server's own word. Answers whether there was one.
async fn read_stored(bridge: &Bridge, context: &Context, name: &str) -> bool {
    let Ok(stream) = context.get_stream(name).await else {
        return false;
    };
    let info = stream.cached_info();
    let made = made(info);
    let mut known = bridge.sequence_in(made, info.state.last_sequence);
    let mut is_some = false;
    for _ in 0..BATCH {
        let Some((sequence, (header, payload))) = stored(context, name, bridge, known + 1).await
        else {
            break;
        };
        let spot = Spot { made, sequence };
        if !hear(bridge, spot, header.as_deref(), &payload).await {
            break;
        }
        (known, is_some) = (sequence, true);
    }
    is_some
}

/// The next message at or behind `from`, with its number.
async fn stored(
    context: &Context,
    name: &str,
    bridge: &Bridge,
    from: u64,
) -> Option<(u64, Message)> {
    let ask = json!({ "seq": from, "next_by_subj": bridge.subject() });
    let answer = context.request(format!("STREAM.MSG.GET.{name}"), &ask);
    let mut answer: Value = answer.await.ok()?;
    let mut raw: RawMessage = serde_json::from_value(answer.get_mut("message")?.take()).ok()?;
    let sequence = raw.sequence;
    if let Ok(message) = StreamMessage::try_from(raw.clone()) {
        let header = header(Some(&message.headers)).map(str::to_owned);
        return Some((sequence, (header, message.payload.to_vec())));
    }
    raw.headers = None;
    let message = StreamMessage::try_from(raw).ok()?;
    Some((sequence, (None, message.payload.to_vec())))
}

/// Messages at the end of a stream.
#[derive(Default)]
struct Past {
    messages: VecDeque<Message>,
    lines: usize,
    bytes: usize,
    /// There is no room for more.
    is_full: bool,
}

impl Past {
    /// Adds the next one; no more stay than are needed, nor than there is room for.
    fn add(&mut self, bridge: &Bridge, header: Option<String>, payload: Vec<u8>) {
        if header.is_none() && bridge.options.foreign != Foreign::Pass {
            return;
        }
        self.lines += lines_of(&payload);
        self.bytes += payload.len();
        self.messages.push_back((header, payload));
        while let Some((_, oldest)) = self.messages.front() {
            let is_needed = self.lines - lines_of(oldest) < bridge.history;
            let is_too_much = self.bytes > bridge.options.buffer / 2;
            if is_needed && !is_too_much {
                break;
            }
            self.is_full |= is_needed;
            self.lines -= lines_of(oldest);
            self.bytes -= oldest.len();
            self.messages.pop_front();
        }
    }
}

/// The messages at the end of the stream that have as many lines as who connects is to get, or all there are, or fit.
async fn past(
    context: &Context,
    stream: &Found,
    bridge: &Bridge,
) -> Result<VecDeque<Message>, String> {
    let state = &stream.cached_info().state;
    let (first, end) = (state.first_sequence.max(1), state.last_sequence + 1);
    let mut span = 8;
    let mut is_readable = true;
    loop {
        let from = end.saturating_sub(span).max(first);
        let mut past = Past::default();
        if is_readable {
            let delivered = delivered_past(stream, bridge, from..end, &mut past).await;
            is_readable = delivered.is_ok();
        }
        if !is_readable {
            past = stored_past(context, stream, bridge, from..end).await;
        }
        let is_all = past.lines >= bridge.history || past.is_full || from == first;
        // Who is waited for no more begins without it.
        if is_all || !bridge.is_new() {
            return Ok(past.messages);
        }
        span *= 8;
    }
}

async fn delivered_past(
    stream: &Found,
    bridge: &Bridge,
    span: Range<u64>,
    past: &mut Past,
) -> Result<(), String> {
    if span.is_empty() {
        return Ok(());
    }
    let consumer = consumer(stream, bridge, span.start).await?;
    if consumer.cached_info().num_pending == 0 {
        return Ok(());
    }
    let mut messages = messages(&consumer).await?;
    let mut count = 0;
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| error.to_string())?;
        let info = message.info().map_err(|error| error.to_string())?;
        count += 1;
        if info.consumer_sequence != count {
            return Err(LOST.to_owned());
        }
        let (sequence, pending) = (info.stream_sequence, info.pending);
        if sequence >= span.end || !bridge.is_new() {
            break;
        }
        let header = header(message.headers.as_ref()).map(str::to_owned);
        past.add(bridge, header, message.payload.to_vec());
        if sequence + 1 == span.end || pending == 0 {
            break;
        }
    }
    Ok(())
}

/// The same where what is delivered cannot be read.
async fn stored_past(context: &Context, stream: &Found, bridge: &Bridge, span: Range<u64>) -> Past {
    let (mut past, mut from) = (Past::default(), span.start);
    let name = &stream.cached_info().config.name;
    while bridge.is_new()
        && let Some((sequence, (header, payload))) = stored(context, name, bridge, from).await
        && sequence < span.end
    {
        past.add(bridge, header, payload);
        from = sequence + 1;
    }
    past
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

fn header(headers: Option<&HeaderMap>) -> Option<&str> {
    let header = headers?.get(HEADER)?;
    Some(header.as_str())
}

/// What the stream takes in one message, bytes, if it says so.
fn most(info: &Info) -> Option<usize> {
    let most = usize::try_from(info.config.max_message_size);
    most.ok().filter(|&most| most > 0)
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
