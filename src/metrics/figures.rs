//! What a server is, in figures: the families of metrics and their labels, which are a contract (docs/metrics.md).

use super::text::{Kind, Text};
use crate::inspect::{FREEZE_BOUNDS, NatsInfo, Status};
use crate::liveness::close::CloseReason;

/// The metrics of a server.
pub(super) fn figures(status: &Status, open_metrics: bool) -> String {
    let mut text = Text::new(open_metrics);
    let listeners = &status.listeners;
    text.family(
        "standfast_connections",
        Kind::Gauge,
        "Connections that are open.",
    )
    .by(
        "listener",
        listeners.iter().map(|it| (&it.address, it.open)),
    );
    text.family(
        "standfast_accepted_total",
        Kind::Counter,
        "Connections accepted, those over a limit included.",
    )
    .by(
        "listener",
        listeners.iter().map(|it| (&it.address, it.accepted)),
    );
    let closed = text.family(
        "standfast_closed_total",
        Kind::Counter,
        "Connections that ended, by the reason that the log has.",
    );
    for listener in listeners {
        // Each reason from the beginning: the first end is a rise then.
        for reason in CloseReason::ALL {
            let mut counts = listener.closed.iter();
            let count = counts.find(|(of, _)| *of == reason);
            closed.value(
                &[("listener", &listener.address), ("reason", &reason)],
                count.map_or(0, |(_, count)| *count),
            );
        }
    }
    if listeners.iter().any(|listener| listener.tls.is_some()) {
        let handshakes = text.family(
            "standfast_tls_handshakes_total",
            Kind::Counter,
            "Handshakes of TLS that were done, in full or by a ticket.",
        );
        for listener in listeners {
            let Some(tls) = &listener.tls else { continue };
            for (kind, count) in [("full", tls.full), ("resumed", tls.resumed)] {
                handshakes.value(&[("listener", &listener.address), ("kind", &kind)], count);
            }
        }
    }
    text.family(
        "standfast_bytes_total",
        Kind::Counter,
        "Bytes read from clients, and written to them.",
    )
    .by(
        "direction",
        [("read", status.read), ("written", status.written)],
    );
    text.family(
        "standfast_accept_errors_total",
        Kind::Counter,
        "Accepts that failed, by the error of the system.",
    )
    .by(
        "errno",
        status
            .accept_errors
            .iter()
            .map(|(errno, count)| (errno, *count)),
    );
    text.family(
        "standfast_accept_paused",
        Kind::Gauge,
        "Whether accepting is paused for a lack of descriptors or memory.",
    )
    .value(&[], u8::from(status.accept_paused));
    if let Some(crashes) = status.crashes {
        text.family(
            "standfast_crashes_total",
            Kind::Counter,
            "Servers that the keeper has seen crash.",
        )
        .value(&[], crashes);
    }
    let takeovers = &status.takeovers;
    text.family(
        "standfast_handoffs_total",
        Kind::Counter,
        "Takeovers: completed, refused before anything moved, or failed, the old process going on.",
    )
    .by(
        "result",
        [
            ("completed", takeovers.completed),
            ("refused", takeovers.refused),
            ("failed", takeovers.failed),
        ],
    );
    let within = takeovers.frozen_within.iter().copied();
    let within: Vec<(f64, u64)> = FREEZE_BOUNDS.into_iter().zip(within).collect();
    text.family(
        "standfast_handoff_freeze_seconds",
        Kind::Histogram,
        "How long nobody served in a takeover that was completed.",
    )
    .histogram(&within, takeovers.completed, takeovers.frozen.as_secs_f64());
    let memory = &status.memory;
    text.family(
        "standfast_waiting_bytes",
        Kind::Gauge,
        "Bytes that wait in the process, by kind.",
    )
    .by(
        "kind",
        memory
            .waiting
            .iter()
            .map(|(kind, bytes)| (kind, *bytes as u64)),
    );
    text.family(
        "standfast_memory_limit_bytes",
        Kind::Gauge,
        "The bound for all of them.",
    )
    .value(&[], memory.limit);
    if let Some(descriptors) = status.descriptors {
        text.family(
            "standfast_descriptors_used",
            Kind::Gauge,
            "Descriptors of the process that are open.",
        )
        .value(&[], descriptors.used);
        text.family(
            "standfast_descriptors_limit",
            Kind::Gauge,
            "Descriptors that may be.",
        )
        .value(&[], descriptors.limit);
    }
    if !status.upstreams.is_empty() {
        text.family(
            "standfast_upstream_up",
            Kind::Gauge,
            "Whether an upstream could be reached when that was last tried, or was never tried.",
        )
        .by(
            "upstream",
            status
                .upstreams
                .iter()
                .map(|it| (&it.address, u64::from(it.up))),
        );
    }
    if !status.nats.is_empty() {
        nats(status, &mut text);
    }
    if let Some(children) = status.children {
        text.family(
            "standfast_children",
            Kind::Gauge,
            "Processes that run for clients.",
        )
        .value(&[], children);
    }
    text.family(
        "standfast_build_info",
        Kind::Info,
        "The version of the program.",
    )
    .value(&[("version", &status.version)], 1);
    text.finish()
}

/// How hubs share their feeds with other machines.
fn nats(status: &Status, text: &mut Text) {
    let feeds = &status.nats;
    let connected = feeds.iter();
    let connected = connected.map(|it| (&it.subject, u64::from(it.connected)));
    let name = "standfast_nats_connected";
    text.family(name, Kind::Gauge, "Whether NATS can be reached.")
        .by("subject", connected);
    let both = |said: fn(&NatsInfo) -> u64, heard: fn(&NatsInfo) -> u64| {
        feeds.iter().flat_map(move |it| {
            let of = [("said", said(it)), ("heard", heard(it))];
            of.map(|(direction, count)| (&it.subject, direction, count))
        })
    };
    let lines = text.family(
        "standfast_nats_lines_total",
        Kind::Counter,
        "Lines said to hubs on other machines, and heard of them.",
    );
    for (subject, direction, count) in both(|it| it.said_lines, |it| it.heard_lines) {
        lines.value(&[("subject", subject), ("direction", &direction)], count);
    }
    let bytes = text.family("standfast_nats_bytes_total", Kind::Counter, "Their bytes.");
    for (subject, direction, count) in both(|it| it.said_bytes, |it| it.heard_bytes) {
        bytes.value(&[("subject", subject), ("direction", &direction)], count);
    }
    let mut family = |name: &'static str, kind: Kind, help: &str, of: fn(&NatsInfo) -> u64| {
        let each = feeds.iter().map(|it| (&it.subject, of(it)));
        text.family(name, kind, help).by("subject", each);
    };
    family(
        "standfast_nats_missed_total",
        Kind::Counter,
        "Lines that other hubs have said, and that did not come.",
        |it| it.missed,
    );
    family(
        "standfast_nats_lost_total",
        Kind::Counter,
        "Lines that were not said to other hubs: more than --nats-buffer waited.",
        |it| it.lost,
    );
    family(
        "standfast_nats_repeated_total",
        Kind::Counter,
        "Messages of other hubs that had come before, and were dropped.",
        |it| it.again,
    );
    family(
        "standfast_nats_foreign_total",
        Kind::Counter,
        "Messages on the subject that no hub has sent.",
        |it| it.foreign,
    );
    family(
        "standfast_nats_too_long_total",
        Kind::Counter,
        "Lines of other hubs that were longer than a line may be, and were dropped.",
        |it| it.too_long,
    );
    family(
        "standfast_nats_backlog_bytes",
        Kind::Gauge,
        "Bytes that wait to be said to other hubs.",
        |it| it.backlog,
    );
    family(
        "standfast_nats_lag_messages",
        Kind::Gauge,
        "Messages of the stream that have not come yet.",
        |it| it.lag,
    );
}
