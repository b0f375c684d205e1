//! What a run comes to: the figures by name, as a flat JSON object, and the table made from the same numbers.

use std::fmt::{self, Display, Write as _};

use serde_json::{Map, Value as Json};
use standfast::CloseReason;
use standfast::inspect::TlsInfo;

use crate::load::plan::{Mode, Plan};
use crate::load::tally::{Latencies, PLAIN, REASONS, Tally, milliseconds};
use crate::units::Shown;

/// A run that is over.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// As it was typed.
    pub(super) target: &'a str,
    pub(super) plan: &'a Plan,
    /// How long was sent, in seconds.
    pub(super) seconds: f64,
    pub(super) tally: &'a Tally,
    pub(super) latencies: &'a Latencies,
    /// Of the first connection.
    pub(super) tls: Option<&'a TlsInfo>,
    /// Whoever answers is believed.
    pub(super) insecure: bool,
}

impl Report<'_> {
    fn a_second(&self, count: u64) -> f64 {
        if self.seconds > 0.0 {
            count as f64 / self.seconds
        } else {
            0.0
        }
    }

    /// Every figure, in the order of the table. The set of names is always the same.
    pub(super) fn figures(&self) -> Map<String, Json> {
        let Self {
            plan,
            tally,
            latencies,
            ..
        } = self;
        let mut figures = Map::new();
        let mut figure = |name: &str, value: Json| {
            figures.insert(name.to_owned(), value);
        };
        figure("connections", plan.connections.into());
        figure("seconds", rounded(self.seconds, 1e3));
        figure("up", tally.up.into());
        figure("connects", tally.connects.into());
        figure("reconnects", tally.reconnects.into());
        figure("failed", tally.failed.all().into());
        figure("refused", tally.failed.refused.into());
        figure("connect_reset", tally.failed.reset.into());
        figure("connect_timed_out", tally.failed.timed_out.into());
        figure("unreachable", tally.failed.unreachable.into());
        figure("unresolved", tally.failed.unresolved.into());
        figure("local_failures", tally.failed.local.into());
        figure("tls_failures", tally.failed.tls.into());
        figure("certificate_failures", tally.failed.certificate.into());
        figure("other_failures", tally.failed.other.into());
        let reset = tally.ended_for(CloseReason::PeerReset) + tally.failed.reset;
        figure("reset", reset.into());
        let timed_out = tally.ended_for(CloseReason::ReadTimeout) + tally.failed.timed_out;
        figure("timed_out", timed_out.into());
        figure("foreign", tally.foreign.into());
        figure("ended", tally.all_ended().into());
        for (reason, count) in REASONS.iter().zip(tally.ended) {
            let name = format!("ended_{}", reason.as_str().replace('-', "_"));
            figure(&name, count.into());
        }
        figure("ended_otherwise", tally.ended_otherwise.into());
        // 0: none.
        let version: Option<f64> = self.tls.and_then(|tls| tls.version.parse().ok());
        figure("tls_version", version.unwrap_or(0.0).into());
        figure("sent", tally.sent.into());
        figure("echoed", tally.echoed.into());
        figure("unsent", tally.unsent.into());
        figure("sent_bytes", tally.sent_bytes.into());
        figure("received_bytes", tally.received_bytes.into());
        figure("lost", tally.faults.lost.into());
        figure("duplicated", tally.faults.duplicated.into());
        figure("reordered", tally.faults.reordered.into());
        figure("corrupted", tally.faults.corrupted.into());
        let a_second = self.a_second(tally.echoed_in_time);
        figure("messages_per_second", rounded(a_second, 10.0));
        let bytes = self.a_second(tally.received_in_time);
        figure("megabytes_per_second", rounded(bytes / 1e6, 1e3));
        figure("asked_per_second", plan.rate.into());
        for (name, share) in QUANTILES {
            let name = format!("{}_ms", name.replace('.', "_"));
            figure(&name, latencies.quantile_ms(share).into());
        }
        figure("max_ms", latencies.most_ms().into());
        figure("longest_gap_ms", milliseconds(tally.longest_gap).into());
        figures
    }

    /// The same for people.
    pub(super) fn table(&self) -> String {
        let Self {
            plan,
            tally,
            latencies,
            ..
        } = self;
        let (failed, faults) = (&tally.failed, &tally.faults);
        let mut table = String::new();
        let mut row = |name: &str, what: &dyn Display| {
            // Writing into a string cannot fail.
            let _ = writeln!(table, "{name:<14} {what}");
        };
        row("target", &self.target);
        if let Some(tls) = self.tls {
            let unknown = if self.insecure { ", not verified" } else { "" };
            row("TLS", &format!("{}, {}{unknown}", tls.version, tls.cipher));
        }
        // Half a second is no early end.
        if self.seconds + 0.5 < plan.duration.as_secs_f64() {
            row("load", &format!("{plan}; ended after {:.1}s", self.seconds));
        } else {
            row("load", plan);
        }
        let connects = Listed(&[
            (tally.connects, "connects"),
            (tally.reconnects, "reconnects"),
        ]);
        if plan.mode == Mode::Churn {
            row("connections", &connects);
        } else {
            let (up, all) = (tally.up, plan.connections);
            row(
                "connections",
                &format!("{up} of {all} up at the end, {connects}"),
            );
        }
        let mut failures = vec![
            (failed.refused, "refused"),
            (failed.reset, "reset"),
            (failed.timed_out, "timed out"),
            (failed.unreachable, "unreachable"),
            (failed.unresolved + failed.local + failed.other, "other"),
        ];
        let without = [
            (failed.tls, "without TLS"),
            (failed.certificate, "for a certificate"),
        ];
        failures.extend(without.into_iter().filter(|(count, _)| *count > 0));
        row("failed", &Listed(&failures));
        let mut ended: Vec<(u64, &str)> = REASONS
            .iter()
            .zip(tally.ended)
            .enumerate()
            .filter(|(at, (_, count))| *at < PLAIN || *count > 0)
            .map(|(_, (reason, count))| (count, reason.as_str()))
            .collect();
        let rare = [
            (tally.ended_otherwise, "other"),
            (tally.foreign, "not echoing"),
        ];
        ended.extend(rare.into_iter().filter(|(count, _)| *count > 0));
        row("ended", &Listed(&ended));
        if plan.mode == Mode::Idle {
            return table;
        }
        row(
            "messages",
            &Listed(&[(tally.sent, "sent"), (tally.echoed, "echoed")]),
        );
        let judged = [
            (faults.lost, "lost"),
            (faults.duplicated, "duplicated"),
            (faults.reordered, "reordered"),
            (faults.corrupted, "corrupted"),
        ];
        if plan.verify {
            row("bytes", &Listed(&judged));
        } else {
            row(
                "bytes",
                &format!("{}; counted, not verified", Listed(&judged[..2])),
            );
        }
        let bytes = self.a_second(tally.received_in_time) / 1e6;
        let messages = self.a_second(tally.echoed_in_time);
        row(
            "throughput",
            &format!("{messages:.0} messages/s, {bytes:.3} MB/s"),
        );
        if let Some(rate) = plan.rate.filter(|_| tally.unsent > 0) {
            let reached = (rate - self.a_second(tally.unsent)).max(0.0);
            row(
                "rate",
                &format!(
                    "asked {rate}/s, reached {reached:.0}/s: {} messages were never sent",
                    tally.unsent
                ),
            );
        }
        let mut shares: Vec<String> = QUANTILES
            .iter()
            .filter_map(|(name, share)| Some((name, latencies.quantile_ms(*share)?)))
            .map(|(name, ms)| format!("{name} {}", Milliseconds(ms)))
            .collect();
        shares.extend(
            latencies
                .most_ms()
                .map(|ms| format!("max {}", Milliseconds(ms))),
        );
        if shares.is_empty() {
            shares.push("no message was echoed".to_owned());
        }
        row("latency", &shares.join(", "));
        row(
            "longest gap",
            &Milliseconds(milliseconds(tally.longest_gap)),
        );
        table
    }

    /// Why the run is a failure, whatever is expected of its figures: what it was there for never happened.
    pub(super) fn failure(&self) -> Option<String> {
        let tally = self.tally;
        if tally.failed.certificate > 0 {
            return Some("it ended early: a certificate was refused".to_owned());
        }
        if self.plan.mode == Mode::Idle {
            return (tally.up == 0).then(|| "no connection was up at the end".to_owned());
        }
        let wrong = tally.faults.corrupted;
        if tally.foreign > 0 {
            Some(format!(
                "the peer does not echo: on {} connections it sent something else",
                tally.foreign
            ))
        } else if tally.sent_bytes > 0 && tally.received_bytes == 0 {
            Some("the peer does not echo: nothing came back".to_owned())
        } else if wrong > 0 && wrong > tally.received_bytes / 8 * 7 {
            Some("the peer does not echo: what came back is something else".to_owned())
        } else if tally.echoed == 0 {
            Some("no message was echoed".to_owned())
        } else if !tally.is_proven {
            Some("no message came back as it was sent".to_owned())
        } else {
            None
        }
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.connections;
        let plural = if count == 1 { "" } else { "s" };
        write!(f, "{count} connection{plural}")?;
        let what = match self.mode {
            Mode::Idle => {
                return write!(f, ", idle for {}", Shown(self.duration));
            }
            Mode::Churn => " at a time, a message each",
            Mode::Echo => "",
        };
        write!(f, "{what}, {} bytes a message", self.size)?;
        if self.pipeline > 1 {
            write!(f, ", {} outstanding", self.pipeline)?;
        }
        match self.rate {
            None => f.write_str(", as fast as they are echoed")?,
            Some(rate) => write!(f, ", {rate} a second in all")?,
        }
        write!(f, ", for {}", Shown(self.duration))
    }
}

/// Counts with what they count.
struct Listed<'a>(&'a [(u64, &'a str)]);

impl Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (count, what)) in self.0.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{count} {what}")?;
        }
        Ok(())
    }
}

/// Milliseconds, to no more places than are of use.
pub(super) struct Milliseconds(pub(super) f64);

impl Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places = match self.0 {
            0.0..10.0 => 3,
            10.0..1000.0 => 1,
            _ => 0,
        };
        write!(f, "{:.places$} ms", self.0)
    }
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// In parts of a unit.
fn rounded(number: f64, parts: f64) -> Json {
    ((number * parts).round() / parts).into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn plan(rate: Option<f64>) -> Plan {
        Plan {
            mode: Mode::Echo,
            connections: 10,
            connect_rate: None,
            rate,
            size: 64,
            pipeline: 4,
            verify: true,
            duration: Duration::from_secs(10),
            read_timeout: 0,
            connect_timeout: None,
            workers: 1,
            every: 1_000_000_000,
        }
    }

    fn shown(plan: &Plan, tally: &Tally) -> (String, Map<String, Json>, Option<String>) {
        let mut latencies = Latencies::new().unwrap();
        for micros in 1..=1000 {
            latencies.record(micros * 1000);
        }
        let report = Report {
            target: "127.0.0.1:7000",
            plan,
            seconds: 10.0,
            tally,
            latencies: &latencies,
            tls: None,
            insecure: false,
        };
        (report.table(), report.figures(), report.failure())
    }

    #[test]
    fn the_figures_are_flat_and_lower_case() {
        let (_, figures, _) = shown(&plan(None), &Tally::default());
        for (name, value) in &figures {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(plain), "{name}");
            assert!(value.is_number() || value.is_null(), "{name}: {value}");
        }
        assert_eq!(figures["p99_ms"].as_f64().map(f64::round), Some(1.0));
        assert_eq!(figures["ended_keepalive_dead"], 0);
    }

    #[test]
    fn a_rate_that_was_missed_is_said() {
        let tally = Tally {
            unsent: 456_780,
            ..Tally::default()
        };
        let (table, figures, _) = shown(&plan(Some(100_000.0)), &tally);
        let line = "asked 100000/s, reached 54322/s: 456780 messages were never sent\n";
        assert!(table.contains(line), "{table}");
        assert_eq!(figures["unsent"], 456_780);
        let (table, ..) = shown(&plan(Some(100_000.0)), &Tally::default());
        assert!(!table.contains("asked"), "{table}");
    }

    #[test]
    fn ends_and_attempts_are_counted_by_reason() {
        let mut tally = Tally::default();
        tally.ended(CloseReason::PeerReset);
        tally.ended(CloseReason::ReadTimeout);
        tally.ended(CloseReason::WriteStall);
        let (table, figures, _) = shown(&plan(None), &tally);
        assert!(table.contains("1 peer-reset, 0 keepalive-dead"), "{table}");
        assert!(table.contains("0 io-error, 1 other\n"), "{table}");
        let named = ["reset", "timed_out", "ended_peer_reset", "ended_otherwise"];
        assert!(named.iter().all(|name| figures[*name] == 1));
        assert_eq!(figures["ended"], 3);
    }

    #[test]
    fn a_peer_that_does_not_echo_is_called_so() {
        let tally = Tally {
            sent_bytes: 64,
            received_bytes: 64,
            echoed: 1,
            is_proven: true,
            ..Tally::default()
        };
        assert_eq!(shown(&plan(None), &tally).2, None);
        let mut silent = tally;
        silent.received_bytes = 0;
        let mut foreign = tally;
        foreign.foreign = 1;
        let mut wrong = tally;
        wrong.faults.corrupted = 63;
        for tally in [silent, foreign, wrong] {
            let why = shown(&plan(None), &tally).2.unwrap();
            assert!(why.starts_with("the peer does not echo"), "{why}");
        }
    }

    #[test]
    fn a_run_without_one_whole_echo_is_a_failure() {
        let mut changed = Tally {
            up: 1,
            sent_bytes: 64,
            received_bytes: 64,
            echoed: 1,
            ..Tally::default()
        };
        changed.faults.corrupted = 1;
        let why = |tally: &Tally| shown(&plan(None), tally).2;
        let said = "no message came back as it was sent";
        assert_eq!(why(&changed).as_deref(), Some(said));
        let said = "no message was echoed";
        assert_eq!(why(&Tally::default()).as_deref(), Some(said));
    }

    #[test]
    fn connections_that_are_only_held_are_a_failure_when_none_is_left() {
        let idle = Plan {
            mode: Mode::Idle,
            ..plan(None)
        };
        let mut tally = Tally::default();
        let said = "no connection was up at the end";
        assert_eq!(shown(&idle, &tally).2.as_deref(), Some(said));
        tally.up = 1;
        assert_eq!(shown(&idle, &tally).2, None);
    }
}
