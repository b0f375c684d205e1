//! Who holds a port that is in use: proc(5) tells on Linux.

use std::fs;
use std::net::{IpAddr, SocketAddr};

/// The process that listens on `address` or on one that includes it, in words. `None` where the system does not tell.
pub(crate) fn of(address: SocketAddr) -> Option<String> {
    let (inode, uid) = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, address))?;
    let target = format!("socket:[{inode}]");
    let own = std::process::id();
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
        if holds && pid == own {
            return Some("this process itself: the same address twice".to_owned());
        }
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("pid {pid} ({})", name.trim_end()));
        }
    }
    Some(format!("a process of uid {uid}"))
}

/// The inode and owner of the socket that listens on `wanted`, from a table as in `/proc/net/tcp`.
fn listening_inode(table: &str, wanted: SocketAddr) -> Option<(u64, u32)> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = address(fields.nth(1)?)?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?.parse().ok()?;
        let inode = fields.nth(1)?.parse().ok()?;
        let (one, other) = (local.ip().to_canonical(), wanted.ip().to_canonical());
        let meets = local.port() == wanted.port()
            && (one == other || one.is_unspecified() || other.is_unspecified());
        (state == LISTEN && meets).then_some((inode, uid))
    })
}

/// An address as the table has it: words of the host's byte order in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Vec<u8> = (0..ip.len() / 8)
        .map(|word| {
            Some(
                u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16)
                    .ok()?
                    .to_ne_bytes(),
            )
        })
        .collect::<Option<Vec<_>>>()?
        .concat();
    let ip = match words.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(words).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(words).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_line_is_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1B58 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:1B58 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 22 1\n";
        let inode = |table, wanted: &str| listening_inode(table, wanted.parse().unwrap());
        assert_eq!(inode(table, "127.0.0.1:7000"), Some((22, 1000)));
        assert_eq!(inode(table, "0.0.0.0:7000"), Some((22, 1000)));
        assert_eq!(inode(table, "127.0.0.2:7000"), None);
        assert_eq!(inode(table, "127.0.0.1:7001"), None);
        assert_eq!(inode("header\ngarbage\n", "127.0.0.1:7000"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(listener.local_addr().unwrap()).unwrap();
        assert!(holder.contains("this process itself"), "{holder}");
    }
}
