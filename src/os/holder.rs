//! Who holds a port that is in use, or a socket: proc(5) tells on Linux.

#[cfg(all(target_os = "linux", not(standfast_portable)))]
use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

/// The process that listens on `address` or on one that includes it, in words. `None` where the system does not tell.
pub(crate) fn of(address: SocketAddr) -> Option<String> {
    let (inode, uid) = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| listening_inode(&table, address))?;
    let mut holder = None;
    let has_it = |pid, socket| {
        if socket == inode {
            holder = Some(pid);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    look_through(has_it, |_, _| ()).ok()?;
    Some(match holder {
        Some(pid) if pid == std::process::id() => {
            "this process itself: the same address twice".to_owned()
        }
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("pid {pid} ({})", name.trim_end())
        }
        None => format!("a process of uid {uid}"),
    })
}

/// What proc(5) tells of who has some sockets.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
#[derive(Debug, Default)]
pub(crate) struct Holders {
    /// A process that has it, for each of the sockets that somebody has.
    pub(crate) of: HashMap<u64, u32>,
    /// Whether this process may look into all members of a process group, of each that has one in `/proc`.
    groups: HashMap<i32, bool>,
}

#[cfg(all(target_os = "linux", not(standfast_portable)))]
impl Holders {
    /// Whether `group` has a member that was not looked into, if it has one at all: another user's, that `/proc` may not
    /// show either (proc(5): hidepid).
    pub(crate) fn overlooks(&self, group: i32) -> bool {
        !self.groups.get(&group).copied().unwrap_or(false)
    }
}

/// Which of these sockets, by their inodes, somebody has beside this process and those of `partners`.
///
/// Not seen are descriptors on their way from one process to another (`SCM_RIGHTS`), and those of `io_uring(7)`.
///
/// # Errors
/// There is no `/proc`, or it is that of processes among which this one is not.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
pub(crate) fn of_sockets(inodes: &[u64], partners: &[u32]) -> io::Result<Holders> {
    let own = fs::read_link("/proc/self")?;
    let own = own.to_str().and_then(|name| name.parse().ok());
    let own: u32 = own.ok_or(io::ErrorKind::InvalidData)?;
    let (mut of, mut groups) = (HashMap::new(), HashMap::new());
    let has_one = |pid, socket| {
        if pid != own && !partners.contains(&pid) && inodes.contains(&socket) {
            of.entry(socket).or_insert(pid);
        }
        ControlFlow::Continue(())
    };
    let member = |pid: u32, seen: bool| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        if let Some(group) = stat.ok().as_deref().and_then(group) {
            *groups.entry(group).or_insert(true) &= seen;
        }
    };
    look_through(has_one, member)?;
    Ok(Holders { of, groups })
}

/// Shows `found` each process and each socket that it has, by its inode, until that has enough; and `looked` each
/// process, and whether this one may look into it.
///
/// # Errors
/// There is no `/proc`, or no room to look into it, of descriptors for one.
fn look_through(
    mut found: impl FnMut(u32, u64) -> ControlFlow<()>,
    mut looked: impl FnMut(u32, bool),
) -> io::Result<()> {
    let mut target = Vec::with_capacity(64);
    for process in fs::read_dir("/proc")?.flatten() {
        let pid = process.file_name();
        let Some(pid) = pid.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let path = process.path().join("fd");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::open(&path, flags, Mode::empty()).and_then(Dir::new);
        let mut descriptors = match descriptors {
            Ok(descriptors) => descriptors,
            Err(Errno::ACCESS | Errno::PERM) => {
                looked(pid, false);
                continue;
            }
            // It has just ended.
            Err(Errno::NOENT | Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        looked(pid, true);
        while let Some(Ok(name)) = descriptors.read() {
            // As short as it is, it is whole.
            target.clear();
            let link = rustix::fs::readlinkat_raw(
                descriptors.fd()?,
                name.file_name(),
                rustix::buffer::spare_capacity(&mut target),
            );
            if link.is_ok()
                && let Some(inode) = socket(&target)
                && found(pid, inode).is_break()
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The process group in a `/proc/PID/stat`; 0 where that is none of this PID namespace.
#[cfg(all(target_os = "linux", not(standfast_portable)))]
fn group(stat: &str) -> Option<i32> {
    // The name is in parentheses, and may have some in it.
    let (_, behind) = stat.rsplit_once(')')?;
    behind.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// The inode of what a descriptor's link in proc(5) names, if that is a socket.
fn socket(link: &[u8]) -> Option<u64> {
    let number = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
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
    fn a_link_names_a_socket_or_something_else() {
        assert_eq!(socket(b"socket:[4711]"), Some(4711));
        assert_eq!(socket(b"pipe:[4711]"), None);
        assert_eq!(socket(b"/tmp/socket:[4711]"), None);
        assert_eq!(socket(b"socket:[4711"), None);
    }

    /// A child of this test has the one for its stdin, and the other is this process's alone.
    #[test]
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    fn who_has_a_socket_beside_this_process_is_found() {
        use std::os::fd::OwnedFd;
        use std::os::unix::net::UnixStream;
        let inode = |socket: &UnixStream| rustix::fs::fstat(socket).unwrap().st_ino;
        let (own, theirs) = UnixStream::pair().unwrap();
        let inodes = [inode(&own), inode(&theirs)];
        let mut child = std::process::Command::new("cat")
            .stdin(OwnedFd::from(theirs.try_clone().unwrap()))
            .spawn()
            .unwrap();
        // What another test has just forked has all descriptors, for a moment.
        let found = |but: &[u32], expected: HashMap<_, _>| {
            let mut looks = (0..10_000).map(|_| of_sockets(&inodes, but).unwrap().of);
            assert!(looks.any(|of| of == expected), "never {expected:?}");
        };
        found(&[], HashMap::from([(inodes[1], child.id())]));
        found(&[child.id()], HashMap::new());
        drop(own);
        child.wait().unwrap();
        found(&[], HashMap::new());
    }

    #[test]
    #[cfg(all(target_os = "linux", not(standfast_portable)))]
    fn a_group_is_overlooked_if_one_of_it_is_or_if_proc_shows_none() {
        let holders = Holders {
            groups: HashMap::from([(7, true), (8, false)]),
            ..Holders::default()
        };
        let overlooked = [7, 8, 9].map(|group| holders.overlooks(group));
        assert_eq!(overlooked, [false, true, true]);
        assert_eq!(group("42 (a) b (c)) S 1 41 40 0 -1"), Some(41));
        assert_eq!(group("42 (a"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let holder = of(listener.local_addr().unwrap()).unwrap();
        assert!(holder.contains("this process itself"), "{holder}");
    }
}
