//! Who holds a port that is in use: proc(5) tells on Linux.

use std::fs;
use std::net::SocketAddr;

/// The process that listens on `address` or on one that includes it, in words. `None` where the system does not tell.
pub(crate) fn of(address: SocketAddr) -> Option<String> {
    let (inode, uid) = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, address.port()))?;
    let target = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = descriptors.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == target.as_str())
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("pid {pid} ({})", name.trim_end()));
        }
    }
    Some(format!("a process of uid {uid}"))
}

/// The inode and owner of a listening socket on `port`, from a table as in `/proc/net/tcp`.
fn listening_inode(table: &str, port: u16) -> Option<(u64, u32)> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        (state == LISTEN && local_port == port).then_some((inode, uid))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_is_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1B58 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:1B58 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1\n";
        assert_eq!(listening_inode(table, 7000), Some((22, 1000)));
        assert_eq!(listening_inode(table, 7001), None);
        assert_eq!(listening_inode("header\ngarbage\n", 7000), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(listener.local_addr().unwrap()).unwrap();
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }
}
