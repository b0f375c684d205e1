//! What a server may have told, for tests.

use serde_json::{Value, from_value, json};
use standfast::CloseReason;
use standfast::inspect::{ConnectionInfo, EndedInfo, Sample, Status};

/// A server that serves nobody yet.
pub(super) fn status() -> Status {
    status_with(&json!({}))
}

/// The same with other facts.
pub(super) fn status_with(facts: &Value) -> Status {
    let mut status = json!({
        "pid": 36, "version": "0.1.0", "uptime": 60.0, "counted_for": 60.0, "draining": false, "accepting": true,
        "workers": 2, "open": 0, "accepted": 0, "read": 0, "written": 0, "closed": [],
        "memory": {"limit": 268_435_456, "held": 0, "waiting": [], "mark": 262_144},
        "listeners": [{"address": "127.0.0.1:7000", "service": "echo", "accepted": 0}],
        "takeover": null,
        "takeovers": {"completed": 0, "refused": 0, "failed": 0, "frozen": 0.0, "frozen_within": [], "recent": []},
        "descriptors": {"used": 23, "limit": 1024},
    });
    for (name, fact) in facts.as_object().unwrap() {
        status[name] = fact.clone();
    }
    from_value(status).unwrap()
}

/// Samples: how many seconds ago, and how many connections had been accepted.
pub(super) fn samples(of: &[(u64, u64)]) -> Vec<Sample> {
    let sample = |&(ago, accepted): &(u64, u64)| json!({"ago": ago as f64, "open": 1, "accepted": accepted, "closed": 0, "read": 0, "written": 0});
    from_value(of.iter().map(sample).collect()).unwrap()
}

/// An echo connection.
pub(super) fn connection(id: u64, age: f64, read: u64) -> ConnectionInfo {
    from_value(json!({
        "id": id, "peer": format!("127.0.0.1:{}", 50_000 + id), "listener": "127.0.0.1:7000", "service": "echo",
        "age": age, "idle": 0.5, "read": read, "written": read, "waiting": 0, "unacknowledged": 0,
        "round_trip": 0.000_02, "next_deadline": {"kind": "read", "due_in": 599.0},
    }))
    .unwrap()
}

/// One that ended three seconds ago.
pub(super) fn ended(id: u64, reason: CloseReason) -> EndedInfo {
    from_value(json!({
        "id": id, "ago": 3.0, "peer": format!("127.0.0.1:{}", 50_000 + id), "listener": "127.0.0.1:7000",
        "upstream": null, "reason": reason.as_str(), "limit": null, "late": null, "header": null,
        "age": 8.3, "read": 2, "written": 2, "errno": null, "probes": null, "retransmits": null, "silent_for": null,
    }))
    .unwrap()
}
