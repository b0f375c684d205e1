//! What tests ask of the kernel: to keep packets from a client, to leave a server little, what it has in its tables.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use super::Server;

/// Makes a client deaf: what comes from the server is dropped before TCP sees it, so nothing is acknowledged, and the
/// server gets no answer. Needs no privilege (`IP_MINTTL`, ip(7): the server sends with a TTL of 64).
///
/// The client still sends: wait [`settle`] after its last byte, and keep it open.
pub(crate) fn deafen(client: &TcpStream) {
    set_min_ttl(client, 255);
}

/// A deafened client hears again.
pub(crate) fn undeafen(client: &TcpStream) {
    set_min_ttl(client, 0);
}

#[expect(unsafe_code, reason = "no safe crate sets IP_MINTTL")]
fn set_min_ttl(client: &TcpStream, ttl: libc::c_int) {
    use std::os::fd::AsRawFd;
    let (level, option) = if client.local_addr().unwrap().is_ipv4() {
        (libc::IPPROTO_IP, libc::IP_MINTTL)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT)
    };
    // SAFETY: the option reads one int from `ttl`, which outlives the call; `client` is borrowed, so open.
    let answer = unsafe {
        libc::setsockopt(
            client.as_fd().as_raw_fd(),
            level,
            option,
            (&raw const ttl).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap(),
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
}

/// A connection as the kernel's table has it (`/proc/net/tcp`, proc(5)), seen from `local`.
#[derive(Debug)]
pub(crate) struct Row {
    /// The keepalive timer, if that is the one that runs: time to the next probe.
    pub(crate) keepalive: Option<Duration>,
    /// No process holds it any more, and the kernel goes on with it alone.
    pub(crate) orphan: bool,
}

/// The row of the connection from `local` to `peer`. Slow where the host has many connections.
pub(crate) fn row(local: SocketAddr, peer: SocketAddr) -> Option<Row> {
    let table = if local.is_ipv4() {
        "/proc/net/tcp"
    } else {
        "/proc/net/tcp6"
    };
    let both = format!(" {} {} ", in_table(local), in_table(peer));
    let table = std::fs::read_to_string(table).unwrap();
    let line = table.lines().find(|line| line.contains(&both))?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (timer, when) = fields[5].split_once(':')?;
    let when = u64::from_str_radix(when, 16).unwrap();
    Some(Row {
        keepalive: (timer == "02").then(|| Duration::from_millis(when * 10)),
        orphan: fields[9] == "0",
    })
}

/// An address in the table's notation: 32-bit words of the host's byte order.
pub(super) fn in_table(address: SocketAddr) -> String {
    let bytes = match address.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words: String = bytes
        .chunks(4)
        .map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap())))
        .collect();
    format!("{words}:{:04X}", address.port())
}

/// Leaves the running server `more` descriptors than it has: the limit is on their numbers, and the lowest free one
/// is taken.
pub(crate) fn leave_descriptors(server: &Server, more: usize) {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let taken: std::collections::HashSet<u64> = names.map(|name| name.parse().unwrap()).collect();
    let limit = (0..).filter(|fd| !taken.contains(fd)).nth(more).unwrap();
    let limit = rustix::process::Rlimit {
        current: Some(limit),
        maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
    };
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap());
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
}

/// Leaves a server that much more address space than it has, what it keeps for need included (`RLIMIT_AS`, getrlimit(2)).
pub(crate) fn leave_address_space(server: &Server, more: i64) {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    let limit = rustix::process::Rlimit {
        current: Some((pages * 4096).strict_add_signed(more)),
        maximum: None,
    };
    let pid = rustix::process::Pid::from_raw(i32::try_from(server.pid()).unwrap());
    rustix::process::prlimit(pid, rustix::process::Resource::As, limit).unwrap();
}
