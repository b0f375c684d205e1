//! What the tables have: the names and their order are those of the page of `--metrics`, and of `standfast list`.

use std::time::Duration;

use standfast::CloseReason;
use standfast::inspect::{
    ConnectionInfo, DeadlineKind, EndedInfo, ListenerInfo, PastTakeover, UpstreamInfo,
};

use crate::ctl::short;
use crate::top::table::{Column, Key, NONE};
use crate::top::words::{Weight, ago, bytes, count, evidence, weight, whole};

/// A connection, and what it did since it was last asked about.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) info: ConnectionInfo,
    /// Bytes a second, read and written; `None` while it was seen only once.
    pub(super) rates: Option<(f64, f64)>,
}

impl Connection {
    /// `former`: as it was when last asked about.
    pub(super) fn new(info: ConnectionInfo, former: Option<&ConnectionInfo>) -> Self {
        let former = former.filter(|former| {
            former.age <= info.age && former.read <= info.read && former.written <= info.written
        });
        // By the server's clock, which the age is by.
        let time = |former: &ConnectionInfo| (info.age - former.age).as_secs_f64();
        let rates = former.filter(|former| time(former) > 0.0).map(|former| {
            let rate = |now: u64, then: u64| (now - then) as f64 / time(former);
            (
                rate(info.read, former.read),
                rate(info.written, former.written),
            )
        });
        Self { info, rates }
    }
}

/// A connection that ended, and how long ago by now.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub(super) info: EndedInfo,
    pub(super) ago: Duration,
}

/// A takeover, and how long ago.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) info: PastTakeover,
    pub(super) ago: Duration,
}

pub(super) fn key_of_connection(row: &Connection) -> Key {
    Key::Number(row.info.id)
}

pub(super) fn key_of_ended(row: &Ended) -> Key {
    Key::Number(row.info.id)
}

pub(super) fn key_of_listener(row: &ListenerInfo) -> Key {
    Key::Name(row.address.to_string())
}

pub(super) fn key_of_reason(row: &(CloseReason, u64)) -> Key {
    Key::Name(row.0.to_string())
}

pub(super) fn key_of_upstream(row: &UpstreamInfo) -> Key {
    Key::Name(row.address.clone())
}

pub(super) fn key_of_takeover(row: &Past) -> Key {
    Key::Number(row.info.pid.into())
}

/// Of this there is none.
fn or_none(number: Option<f64>) -> f64 {
    number.unwrap_or(NONE)
}

/// What changes stands first: not all fits beside one another.
pub(super) const CONNECTIONS: &[Column<Connection>] = &[
    Column::number("ID", |row| row.info.id as f64, number),
    Column::name("PEER", |row| row.info.peer.to_string()),
    Column::number("AGE", |row| row.info.age.as_secs_f64(), seconds),
    Column::number("IDLE", |row| row.info.idle.as_secs_f64(), seconds),
    Column::number(
        "READ/S",
        |row| or_none(row.rates.map(|(read, _)| read)),
        bytes,
    ),
    Column::number(
        "WRITTEN/S",
        |row| or_none(row.rates.map(|(_, written)| written)),
        bytes,
    ),
    Column::number("READ", |row| row.info.read as f64, bytes),
    Column::number("WRITTEN", |row| row.info.written as f64, bytes),
    Column::number("WAITING", |row| row.info.waiting as f64, bytes),
    Column::number(
        "UNACKED",
        |row| or_none(row.info.unacknowledged.map(|bytes| bytes as f64)),
        bytes,
    ),
    Column::number(
        "RTT",
        |row| or_none(row.info.round_trip.map(|time| time.as_secs_f64())),
        milliseconds,
    ),
    Column::name("NEXT", |row| {
        let next = row.info.next_deadline;
        next.map_or("-", |next| deadline(next.kind)).to_owned()
    }),
    Column::number(
        "IN",
        |row| or_none(row.info.next_deadline.map(|next| next.due_in.as_secs_f64())),
        seconds,
    ),
    Column::name("LISTENER", |row| row.info.listener.to_string()),
    Column::name("SERVICE", |row| row.info.service.clone()),
    Column::name("UPSTREAM", |row| {
        let upstream = row.info.upstream.as_ref();
        upstream.map_or_else(|| "-".to_owned(), ToString::to_string)
    }),
];

/// Those that move most first.
pub(super) const BY_TRAFFIC: usize = 4;

pub(super) const ENDED: &[Column<Ended>] = &[
    Column::number("ENDED", |row| row.ago.as_secs_f64(), seconds_ago),
    Column::name("REASON", |row: &Ended| reason(&row.info))
        .weighed(|row| row.info.reason.map_or(Weight::Plain, weight)),
    Column::name("EVIDENCE", |row| evidence(&row.info)),
    Column::name("PEER", |row| row.info.peer.to_string()),
    Column::name("LISTENER", |row| row.info.listener.to_string()),
    Column::number("AGE", |row| row.info.age.as_secs_f64(), seconds),
    Column::number("READ", |row| row.info.read as f64, bytes),
    Column::number("WRITTEN", |row| row.info.written as f64, bytes),
    Column::number("ID", |row| row.info.id as f64, number),
];

pub(super) const LISTENERS: &[Column<ListenerInfo>] = &[
    Column::name("ADDRESS", |row| row.address.to_string()),
    Column::name("SERVICE", |row| row.service.clone()),
    Column::number("OPEN", |row| row.open as f64, in_thousands),
    Column::number("ACCEPTED", |row| row.accepted as f64, in_thousands),
    Column::number("ENDED", |row| all(&row.closed) as f64, in_thousands),
];

pub(super) const REASONS: &[Column<(CloseReason, u64)>] = &[
    Column::name("REASON", |row: &(CloseReason, u64)| row.0.to_string())
        .weighed(|row| weight(row.0)),
    Column::number("ENDED", |row| row.1 as f64, in_thousands),
];

/// The most frequent first.
pub(super) const BY_COUNT: usize = 1;

pub(super) const UPSTREAMS: &[Column<UpstreamInfo>] = &[
    Column::name("ADDRESS", |row| row.address.clone()),
    Column::name("STATE", |row: &UpstreamInfo| match row.down_for {
        Some(time) => format!("down for {}", short(time)),
        None if row.up => "up".to_owned(),
        None => "down".to_owned(),
    })
    .weighed(|row| if row.up { Weight::Good } else { Weight::Bad }),
];

pub(super) const TAKEOVERS: &[Column<Past>] = &[
    Column::number("WHEN", |row| row.ago.as_secs_f64(), seconds_ago),
    Column::number("FREEZE", |row| row.info.frozen.as_secs_f64(), milliseconds),
    Column::number(
        "CONNECTIONS",
        |row| row.info.connections as f64,
        in_thousands,
    ),
    Column::number("STAYED", |row| row.info.staying as f64, in_thousands),
    Column::name("VERSION", |row| row.info.version.clone()),
    Column::number("PID", |row| row.info.pid.into(), number),
];

fn number(value: f64) -> String {
    whole(value).to_string()
}

fn in_thousands(value: f64) -> String {
    count(whole(value))
}

fn seconds(value: f64) -> String {
    short(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX))
}

fn seconds_ago(value: f64) -> String {
    format!("{} ago", seconds(value))
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.2}ms", seconds * 1e3)
}

pub(super) fn all(closed: &[(CloseReason, u64)]) -> u64 {
    closed.iter().map(|(_, count)| count).sum()
}

pub(super) fn reason(end: &EndedInfo) -> String {
    end.reason
        .map_or_else(|| "unknown".to_owned(), |reason| reason.to_string())
}

/// As `list` calls it.
fn deadline(kind: DeadlineKind) -> &'static str {
    match kind {
        DeadlineKind::Read => "read",
        DeadlineKind::Output => "output",
        DeadlineKind::HalfClose => "half-close",
        DeadlineKind::Linger => "linger",
        DeadlineKind::Age => "age",
        DeadlineKind::ProxyHeader => "proxy-header",
        DeadlineKind::TlsHandshake => "tls-handshake",
        DeadlineKind::Turn => "turn",
        _ => "?",
    }
}

/// All that is known of a connection.
pub(super) fn of_connection(row: &Connection) -> Vec<(&'static str, String)> {
    let info = &row.info;
    let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "not known".to_owned());
    let mut told = vec![("id", info.id.to_string()), ("peer", info.peer.to_string())];
    told.extend(info.via.map(|via| ("via", via.to_string())));
    told.extend([
        ("listener", info.listener.to_string()),
        ("service", info.service.clone()),
    ]);
    told.extend(
        info.upstream
            .as_ref()
            .map(|at| ("upstream", at.to_string())),
    );
    let rates = row
        .rates
        .map(|(read, written)| (bytes(read), bytes(written)));
    let (read, written) = rates.unwrap_or_else(|| ("-".to_owned(), "-".to_owned()));
    told.extend([
        ("age", short(info.age)),
        ("idle", short(info.idle)),
        ("read", format!("{} bytes, {read}/s", count(info.read))),
        (
            "written",
            format!("{} bytes, {written}/s", count(info.written)),
        ),
        ("waiting", format!("{} bytes", count(info.waiting as u64))),
        (
            "held",
            format!("{} bytes of memory", count(info.held as u64)),
        ),
        (
            "unacked",
            or_unknown(
                info.unacknowledged
                    .map(|bytes| format!("{} bytes", count(bytes))),
            ),
        ),
        (
            "rtt",
            or_unknown(info.round_trip.map(|time| milliseconds(time.as_secs_f64()))),
        ),
        (
            "next",
            info.next_deadline.map_or_else(
                || "no deadline".to_owned(),
                |next| format!("{} in {}", deadline(next.kind), short(next.due_in)),
            ),
        ),
    ]);
    told
}

/// All that is known of one that ended.
pub(super) fn of_ended(row: &Ended) -> Vec<(&'static str, String)> {
    let info = &row.info;
    vec![
        ("id", info.id.to_string()),
        ("ended", ago(row.ago)),
        ("reason", reason(info)),
        ("evidence", evidence(info)),
        ("peer", info.peer.to_string()),
        ("listener", info.listener.to_string()),
        ("age", short(info.age)),
        ("read", format!("{} bytes", count(info.read))),
        ("written", format!("{} bytes", count(info.written))),
    ]
}

/// All that is known of a listener.
pub(super) fn of_listener(row: &ListenerInfo) -> Vec<(&'static str, String)> {
    let mut told = vec![("address", row.address.to_string())];
    told.extend(
        row.inherited_as
            .as_ref()
            .map(|name| ("inherited", name.clone())),
    );
    told.extend([
        ("service", row.service.clone()),
        ("open", count(row.open)),
        ("accepted", count(row.accepted)),
        ("ended", count(all(&row.closed))),
    ]);
    let ends = row.closed.iter();
    told.extend(ends.map(|(reason, ends)| (reason.as_str(), count(*ends))));
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::table::Shows;
    use crate::top::told;

    #[test]
    fn what_a_connection_does_in_a_second_is_by_its_own_age() {
        let info = |age: f64, read: u64| told::connection(1, age, read);
        let rates = |now, then: Option<ConnectionInfo>| Connection::new(now, then.as_ref()).rates;
        assert_eq!(rates(info(5.0, 100), None), None);
        let (read, written) = rates(info(5.0, 100), Some(info(3.0, 40))).unwrap();
        assert_eq!((read, written), (30.0, 30.0));
        assert_eq!(rates(info(5.0, 100), Some(info(5.0, 40))), None, "no time");
        // Of another server, with the same number.
        assert_eq!(rates(info(1.0, 100), Some(info(3.0, 40))), None);
        assert_eq!(rates(info(5.0, 10), Some(info(3.0, 40))), None);
    }

    #[test]
    fn deadlines_are_called_as_list_calls_them() {
        for kind in [
            DeadlineKind::Read,
            DeadlineKind::Output,
            DeadlineKind::HalfClose,
            DeadlineKind::Linger,
            DeadlineKind::Age,
            DeadlineKind::ProxyHeader,
            DeadlineKind::TlsHandshake,
            DeadlineKind::Turn,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), deadline(kind));
        }
    }

    #[test]
    fn those_that_move_most_stand_first_and_of_whom_nothing_is_known_last() {
        assert_eq!(CONNECTIONS[BY_TRAFFIC].title, "READ/S");
        assert_eq!(REASONS[BY_COUNT].title, "ENDED");
        let unknown = Connection::new(told::connection(1, 1.0, 5), None);
        let Shows::Number(value, _) = CONNECTIONS[BY_TRAFFIC].shows else {
            panic!("no number");
        };
        assert_eq!(value(&unknown), NONE);
        assert_eq!(CONNECTIONS[BY_TRAFFIC].text(&unknown), "-");
    }
}
