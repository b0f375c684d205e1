//! A connection as bytes, and the envelope every message of a takeover travels in.
//!
//! The envelope never changes: magic, protocol, kind, schema, length, checksum. Bodies are postcard, one struct per
//! schema. Whatever comes in is bounded by the message it came in, and is checked before it is believed.
#![warn(clippy::indexing_slicing)]

use std::fmt;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::address::endpoint::{Endpoint, Peer};
use crate::io::chronicle::Told;
use crate::io::stats::Counts;
use crate::io::tls::has_come;
use crate::os::socket_file::Place;
use crate::wire::pace;

/// The protocol spoken, and the schema of the records in it.
pub(crate) const PROTOCOL: u8 = 1;
pub(crate) const SCHEMA: u16 = 6;

/// The longest message.
pub(crate) const LONGEST: usize = 128 * 1024;

/// Descriptors in one message: the kernel's `SCM_MAX_FD`.
pub(crate) const DESCRIPTORS: usize = 253;

/// Bytes of a connection's output or input in one message.
pub(crate) const PIECE: usize = 64 * 1024;

/// The most that connections may have in common, bytes, in the freeze; and the largest part of it that goes ahead.
pub(crate) const LONGEST_COMMON: usize = 64 * 1024 * 1024;
pub(crate) const LONGEST_AHEAD: usize = 2 * 1024 * 1024 * 1024 - 1;

const MAGIC: [u8; 4] = *b"stdf";
const ENVELOPE: usize = 16;

/// What a message is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The listeners, with their descriptors.
    Listeners(Vec<ListenerRecord>),
    /// Connections that were not sent before, with their descriptors.
    Connections(Vec<Arrival>),
    /// Connections that were sent before, as they are now.
    Updates(Vec<Update>),
    /// Connections that ended after they were sent.
    Gone(Vec<u64>),
    /// The new process has taken a message in: how much work that was, and how many microseconds it took.
    Taken { work: u64, micros: u64 },
    /// That was all.
    Final {
        connections: u64,
        sum: u64,
        last_id: u64,
    },
    /// The new process has everything, and waits.
    Prepared,
    /// From here on the connections are the new process's. Nobody serves since `frozen_at`, in nanoseconds of
    /// `CLOCK_MONOTONIC`, which both processes share. With the descriptors of the control socket and of the locks: its
    /// own, then those of the listeners' paths; `places`: what stands at those paths.
    Commit {
        frozen_at: u64,
        staying: u64,
        places: Vec<Place>,
    },
    /// The new process serves; nobody had served for so many microseconds.
    Running { frozen: u64 },
    /// Whoever watches over the old process knows of the new one.
    Told,
    /// The new process cannot go on.
    Abort(String),
    /// What all connections of these listeners have in common, in the schema of their service, or a part of that which
    /// goes ahead of the rest: a piece of it, and how many bytes are yet to come.
    Common {
        listeners: Vec<u16>,
        ahead: bool,
        schema: u16,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
        left: u64,
    },
    /// The new process has read the commit, and is about to serve.
    Owned,
    /// What was counted for each listener, for so many microseconds.
    Counts {
        listeners: Vec<Counts>,
        counted_for: u64,
        told: Told,
    },
    /// The freeze came too late, and the old process serves again: what came of the rest in common and of the counts is
    /// forgotten, and comes anew. The new process answers the same.
    Thaw,
    /// What is shown of the time before, or what is new of that; JSON, and sent to who asked for it.
    Past(#[serde(with = "serde_bytes")] Vec<u8>),
    /// What the TLS tickets of a listener are sealed with: those that clients have stay good.
    Tickets { listener: u16, keys: Secret },
    /// The TLS sessions of connections of which nothing else has changed, by their numbers: in the freeze alone.
    Sessions(Vec<(u64, Secret)>),
    /// The same of connections whose far sides have one: their own, which is empty where they have none, and that.
    FarSessions(Vec<(u64, Secret, Secret)>),
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerRecord {
    pub(crate) address: Endpoint,
    pub(crate) service: String,
}

/// A connection that comes with its descriptor: what stays the same of it, and how it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Arrival {
    pub(crate) listener: u16,
    pub(crate) peer: Peer,
    /// What it has dialled, where a proxy says so.
    pub(crate) dialled: Option<SocketAddr>,
    /// Microseconds since it was accepted.
    pub(crate) age: u64,
    /// So many descriptors follow its own: its far side's, those that its service watches.
    pub(crate) along: u8,
    pub(crate) record: Record,
}

/// What the kernel does not keep of a connection, but for its bytes. Times are elapsed or left, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: u64,
    /// Since the last byte came, less the time nothing was read.
    pub(crate) silence: u64,
    /// That time was taken off.
    pub(crate) shifted: bool,
    pub(crate) read: u64,
    pub(crate) written: u64,
    /// Output that waits behind what was written, bytes.
    pub(crate) output: u64,
    /// Where the input begins that the service left, counted from the connection's first byte.
    pub(crate) input_at: u64,
    /// How much it left, bytes.
    pub(crate) input: u64,
    pub(crate) peer_fin: bool,
    /// FIN is to follow the output.
    pub(crate) fin_wanted: bool,
    pub(crate) fin_sent: bool,
    /// The service was told that no more input comes.
    pub(crate) ended: bool,
    /// The number of the reason it is finishing for.
    pub(crate) finishing: Option<u8>,
    /// A write failed so.
    pub(crate) failed: Option<i32>,
    /// Bytes acknowledged when that was last looked at, and how long ago they stood there.
    pub(crate) progress: Option<(u64, u64)>,
    /// Until the next look at the output.
    pub(crate) look_at: Option<u64>,
    /// Until the client's FIN is awaited no longer.
    pub(crate) linger: Option<u64>,
    /// Its far side was being dialled.
    pub(crate) dialing: bool,
    /// Its far side, and whom that is connected to; without a state.
    pub(crate) far: Option<Box<(Peer, Self)>>,
    /// The socket was given away: whoever has it reads and writes.
    pub(crate) given_away: bool,
    /// Until the service wants to be called.
    pub(crate) alarm: Option<u64>,
    /// Its TLS session; empty before the freeze, for only then nothing is sealed any more.
    pub(crate) tls: Option<Secret>,
    /// The service's state, in the schema of the service's own.
    pub(crate) state_schema: u16,
    #[serde(with = "serde_bytes")]
    pub(crate) state: Vec<u8>,
}

/// What nobody else is to see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Secret(#[serde(with = "serde_bytes")] pub(crate) Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

#[cfg(feature = "tls")]
impl Drop for Secret {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// The schema of [`AtDoor`], which no service has.
pub(crate) const AT_DOOR: u16 = u16::MAX;

/// In place of a service's state, that none has heard of the connection: what it waits for, and for how many more
/// microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AtDoor {
    /// The header of the PROXY protocol, at most so long.
    Header(u64),
    /// Its turn among those of its address.
    Turn(u64),
    /// Nothing: the service of a server that crashed had not come to an end with its greeting.
    Unheard,
    /// The same: that one had.
    Anew,
    /// The handshake of TLS, at most so long, of which that has come.
    Handshake(u64, #[serde(with = "serde_bytes")] Vec<u8>),
}

impl AtDoor {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers into memory: nothing can fail.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// # Errors
    /// In words: what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        parse(bytes)
    }
}

impl Record {
    /// Where its output ends, counted from the connection's first byte.
    pub(crate) fn output_end(&self) -> u64 {
        self.written.saturating_add(self.output)
    }

    /// Whether its service is to begin with it, be it anew, in a process that goes on after a crash; or its handshake.
    pub(crate) fn is_to_enter(&self) -> bool {
        let at_door = (self.state_schema == AT_DOOR).then(|| AtDoor::decode(&self.state));
        match at_door {
            Some(Ok(AtDoor::Unheard | AtDoor::Anew)) => true,
            Some(Ok(AtDoor::Handshake(_, hello))) => !hello.is_empty(),
            _ => false,
        }
    }

    /// Whether it goes on where there is TLS alone.
    pub(crate) fn has_tls(&self) -> bool {
        let is_at_door = self.state_schema == AT_DOOR;
        let at_door = is_at_door.then(|| AtDoor::decode(&self.state));
        self.tls.is_some() || matches!(at_door, Some(Ok(AtDoor::Handshake(..))))
    }

    /// Its TLS session, and its far side's.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Secret> {
        let far = self.far.as_ref().and_then(|far| far.1.tls.as_ref());
        self.tls.iter().chain(far)
    }

    /// How long they are, bytes.
    pub(crate) fn sealed(&self) -> usize {
        self.sessions().map(|saved| saved.0.len()).sum()
    }

    /// Whether one of those is yet to come.
    pub(crate) fn is_promised(&self) -> bool {
        self.sessions().any(|saved| saved.0.is_empty())
    }

    /// Whether it has something to do that no event tells of. Of room for output that waits one does.
    pub(crate) fn has_to_be_served(&self) -> bool {
        let ends = |of: &Self| of.peer_fin || of.finishing.is_some() || of.failed.is_some();
        let far = self.far.as_ref().is_some_and(|far| ends(&far.1));
        let sealed = self.sessions().any(|saved| has_come(&saved.0));
        ends(self) || far || sealed || self.dialing || self.input > 0 || self.is_to_enter()
    }

    /// Whether bytes of it wait, on either side.
    pub(crate) fn has_bytes(&self) -> bool {
        let far = self.far.as_ref().is_some_and(|far| far.1.output > 0);
        self.output > 0 || self.input > 0 || far
    }

    /// Where the input ends that the service left.
    pub(crate) fn input_end(&self) -> u64 {
        self.input_at.saturating_add(self.input)
    }
}

/// A connection as it is now, and what was not sent yet of its bytes, or a piece of that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Update {
    pub(crate) record: Record,
    pub(crate) output: Piece,
    pub(crate) input: Piece,
    /// Of the far side's output.
    pub(crate) far: Piece,
}

/// Bytes, and where they begin in a connection's output or input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) at: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) bytes: Vec<u8>,
}

impl Update {
    /// What it costs to send it and to take it in.
    pub(crate) fn work(&self) -> u64 {
        let pieces = [&self.output, &self.input, &self.far];
        let bytes: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        pace::RECORD + bytes as u64
    }
}

impl Message {
    /// The whole message, envelope included.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        // Not behind an envelope to be filled in: that writer takes bytes one by one.
        let body = postcard::to_stdvec(self).map_err(|error| error.to_string())?;
        Ok(sealed([&[0; ENVELOPE][..], &body].concat()))
    }

    /// # Errors
    /// In words: what is wrong with the message.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let body = opened(bytes)?;
        parse(body)
    }
}

/// Fills in the envelope in front of a body.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let (envelope, body) = bytes.split_at_mut(ENVELOPE);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let fields = MAGIC
        .into_iter()
        .chain([PROTOCOL, 0])
        .chain(SCHEMA.to_le_bytes())
        .chain(length.to_le_bytes())
        .chain(crc32fast::hash(body).to_le_bytes());
    for (place, byte) in envelope.iter_mut().zip(fields) {
        *place = byte;
    }
    bytes
}

/// Checks the envelope and answers the body.
fn opened(bytes: &[u8]) -> Result<&[u8], String> {
    let (envelope, body) = bytes
        .split_first_chunk::<ENVELOPE>()
        .ok_or("a message cut short")?;
    let [
        m0,
        m1,
        m2,
        m3,
        protocol,
        flags,
        s0,
        s1,
        l0,
        l1,
        l2,
        l3,
        c0,
        c1,
        c2,
        c3,
    ] = *envelope;
    if [m0, m1, m2, m3] != MAGIC {
        return Err("not a message of a takeover".to_owned());
    }
    if protocol != PROTOCOL {
        return Err(format!("protocol {protocol}, this one speaks {PROTOCOL}"));
    }
    if flags != 0 {
        return Err("a message with unknown flags".to_owned());
    }
    let schema = u16::from_le_bytes([s0, s1]);
    if schema != SCHEMA {
        return Err(format!(
            "records of schema {schema}, this one reads {SCHEMA}"
        ));
    }
    if usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])) != Ok(body.len()) {
        return Err("a message cut short".to_owned());
    }
    if crc32fast::hash(body) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err("a message that was damaged".to_owned());
    }
    Ok(body)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err("a message with something behind it".to_owned()),
        Err(error) => Err(format!("a message that cannot be read: {error}")),
    }
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test that indexes wrongly fails")]
mod tests {
    use super::*;
    use crate::seeded::Seeded;

    fn record(id: u64) -> Record {
        Record {
            id,
            silence: 7,
            shifted: false,
            read: 1 << 40,
            written: 3,
            output: 4,
            input_at: 1,
            input: 0,
            peer_fin: true,
            fin_wanted: false,
            fin_sent: false,
            ended: false,
            finishing: Some(2),
            failed: None,
            progress: Some((9, 10)),
            look_at: Some(11),
            linger: None,
            dialing: false,
            far: (id == 7).then(|| {
                let peer = "127.0.0.1:80".parse().unwrap();
                Box::new((peer, record(8)))
            }),
            given_away: true,
            alarm: Some(12),
            tls: (id == 1).then(|| Secret(vec![5, 6])),
            state_schema: 1,
            state: vec![1, 2, 3],
        }
    }

    fn messages() -> Vec<Message> {
        let arrival = |id| Arrival {
            listener: 1,
            peer: "[::1]:4711".parse().unwrap(),
            dialled: (id == 1).then(|| "192.0.2.2:443".parse().unwrap()),
            age: 5_000_000,
            along: 2,
            record: record(id),
        };
        vec![
            Message::Listeners(vec![ListenerRecord {
                address: "127.0.0.1:7000".parse().unwrap(),
                service: "echo".to_owned(),
            }]),
            Message::Connections((0..2).map(arrival).collect()),
            Message::Updates(vec![Update {
                record: record(7),
                output: Piece {
                    at: 99,
                    bytes: vec![7; 3],
                },
                input: Piece {
                    at: 0,
                    bytes: Vec::new(),
                },
                far: Piece {
                    at: 5,
                    bytes: vec![9; 2],
                },
            }]),
            Message::Gone(vec![1, 2, 3]),
            Message::Final {
                connections: 3,
                sum: 6,
                last_id: 9,
            },
            Message::Commit {
                frozen_at: 400,
                staying: 1,
                places: vec![Place::from(std::fs::metadata("/").unwrap())],
            },
            Message::Abort("no".to_owned()),
            Message::Common {
                listeners: vec![0, 3],
                ahead: true,
                schema: 1,
                bytes: vec![1, 2, 3],
                left: 70_000,
            },
            Message::Owned,
            Message::Taken {
                work: 70_000,
                micros: 150,
            },
            Message::Counts {
                listeners: vec![Counts::default()],
                counted_for: 70_000,
                told: Told::default(),
            },
            Message::Thaw,
            Message::Past(vec![1, 2, 3]),
            Message::Tickets {
                listener: 1,
                keys: Secret(vec![7; 36]),
            },
            Message::Sessions(vec![(1, Secret(vec![5, 6])), (2, Secret(Vec::new()))]),
            Message::FarSessions(vec![(1, Secret(Vec::new()), Secret(vec![5, 6]))]),
        ]
    }

    #[test]
    fn messages_survive_the_journey() {
        for message in messages() {
            assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
        }
    }

    /// Released schemas stay readable: these bytes are schema 6.
    #[test]
    fn the_bytes_of_schema_6_are_these() {
        let hex =
            |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let golden = [
            "737464660100060016000000f49b939e00010e3132372e302e302e313a37303030046563686f",
            "73746466010006007a0000001dd53ed40102010a5b3a3a315d3a3437313100c096b10202000700808080808020030401000100000001020001090a010b00000001010c000103010203010a5b3a3a315d3a343731310100c0000202bb03c096b10202010700808080808020030401000100000001020001090a010b00000001010c010205060103010203",
            "7374646601000600640000006ab5965e0201070700808080808020030401000100000001020001090a010b0000010c3132372e302e302e313a3830080700808080808020030401000100000001020001090a010b00000001010c00010301020301010c0001030102036303070707000005020909",
            "7374646601000600050000002c7bca390303010203",
        ];
        let messages = messages();
        let bytes = |message: &Message| hex(&message.encode().unwrap());
        let encoded: Vec<String> = messages.iter().take(4).map(bytes).collect();
        assert_eq!(encoded, golden);
    }

    #[test]
    fn what_waits_at_the_door_is_told_in_these_bytes() {
        for (at_door, golden) in [
            (AtDoor::Header(4_000_000), &[0, 0x80, 0x92, 0xf4, 0x01][..]),
            (AtDoor::Turn(5), &[1, 5]),
        ] {
            assert_eq!(at_door.encode(), golden);
            assert_eq!(AtDoor::decode(golden), Ok(at_door));
        }
        for wrong in [&[][..], &[0], &[2, 5], &[1, 5, 0]] {
            assert!(AtDoor::decode(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        for message in messages() {
            let bytes = message.encode().unwrap();
            for length in 0..bytes.len() {
                assert!(
                    Message::decode(&bytes[..length]).is_err(),
                    "{length} of {}",
                    bytes.len()
                );
            }
        }
    }

    /// A seeded stream of damage, with and without an honest checksum: never a panic.
    #[test]
    fn garbage_is_an_error_or_another_message() {
        let mut random = Seeded::new(1);
        let mut draw = move |limit: usize| random.below(limit);
        let originals: Vec<Vec<u8>> = messages()
            .iter()
            .map(|message| message.encode().unwrap())
            .collect();
        for round in 0..200_000 {
            let mut bytes = originals[draw(originals.len())].clone();
            for _ in 0..=draw(4) {
                let at = draw(bytes.len());
                bytes[at] = u8::try_from(draw(256)).unwrap();
            }
            if round % 2 == 0 {
                bytes = sealed(bytes);
            }
            let _ = Message::decode(&bytes);
        }
    }

    #[test]
    fn another_protocol_and_another_schema_are_named() {
        let mut bytes = Message::Prepared.encode().unwrap();
        bytes[4] = 9;
        assert_eq!(
            Message::decode(&bytes),
            Err("protocol 9, this one speaks 1".to_owned())
        );
        bytes[4] = PROTOCOL;
        bytes[6] = 1;
        assert_eq!(
            Message::decode(&bytes),
            Err("records of schema 1, this one reads 6".to_owned())
        );
    }
}
