//! Packets that this host dropped on their way in: on loopback a burst overflows the queue of a processor
//! (`net.core.netdev_max_backlog`), and what is lost comes again 200 ms later or more. That is none of the server's doing.

use std::fs;

/// How many were dropped since the host was started, where the system tells (`/proc/net/softnet_stat`: a row for each
/// processor, hexadecimal, the second column).
pub(super) fn dropped() -> Option<u64> {
    count(&fs::read_to_string("/proc/net/softnet_stat").ok()?)
}

fn count(rows: &str) -> Option<u64> {
    let count = |row: &str| u64::from_str_radix(row.split_ascii_whitespace().nth(1)?, 16).ok();
    rows.lines().map(count).sum()
}

/// What to say of a run in which there were `before` at its begin.
pub(super) fn remark(before: Option<u64>) -> Option<String> {
    let meanwhile = dropped()?.saturating_sub(before?);
    (meanwhile > 0).then(|| {
        format!(
            "this host dropped {meanwhile} packets meanwhile, as on loopback when net.core.netdev_max_backlog is too \
             small: gaps and latencies of 200 ms and more may come from that"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drops_of_all_processors_are_counted() {
        let rows = "0064b18a 00000b0e 0000000a\n00632bb0 00001474 00000003\n";
        assert_eq!(count(rows), Some(0x0b0e + 0x1474));
        assert_eq!(count("x\n"), None);
    }

    #[test]
    fn a_run_without_drops_needs_no_remark() {
        assert_eq!(remark(None), None);
        assert_eq!(remark(Some(u64::MAX)), None);
    }
}
