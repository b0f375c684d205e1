//! What the kernel tells of a connection over several paths (MPTCP, RFC 8684): of the whole, and of each of its flows.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use super::imp::{CLOSE, Info};
use super::{Journal, TcpInfo};

/// `SOL_MPTCP` and its options (`include/linux/socket.h`, `include/uapi/linux/mptcp.h`).
const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;
const MPTCP_TCPINFO: libc::c_int = 2;

/// `struct mptcp_info` of `include/uapi/linux/mptcp.h`, as of Linux 6.10.
#[repr(C)]
struct Whole {
    _counts: [u8; 6],
    _flags: u32,
    _token: u32,
    _numbers: [u64; 3],
    _local: [u8; 3],
    _retransmits: u32,
    _bytes_retrans: u64,
    _bytes_sent: u64,
    bytes_received: u64,
    bytes_acked: u64,
    subflows_total: u8,
    _endpoints: [u8; 3],
    _last_data_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
}

/// Flows that are asked for: the kernel has no more (`MPTCP_SUBFLOWS_MAX`, and the first one).
const FLOWS: usize = 9;

/// `struct mptcp_subflow_data` of `include/uapi/linux/mptcp.h`, and the `TCP_INFO` of each flow behind it.
#[repr(C)]
struct Flows {
    size_subflow_data: u32,
    num_subflows: u32,
    _size_kernel: u32,
    size_user: u32,
    infos: [Info; FLOWS],
}

const _: () = {
    assert!(size_of::<Whole>() == 96);
    assert!(std::mem::offset_of!(Whole, bytes_received) == 64);
    assert!(std::mem::offset_of!(Whole, last_ack_recv) == 92);
    assert!(std::mem::offset_of!(Flows, infos) == 16);
};

/// Has the kernel fill in as much of `place` as it knows. Answers how much that is.
fn ask<T>(fd: BorrowedFd<'_>, option: libc::c_int, place: &mut T) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: `place` is writable for `length` bytes and both outlive the call; both callers' types are plain integers, of
    // which any bytes are a value; `fd` is borrowed, so open.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            SOL_MPTCP,
            option,
            std::ptr::from_mut(place).cast(),
            &raw mut length,
        )
    };
    if answer == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(length).unwrap_or(0))
}

/// What the kernel knows of the peer, by all flows together: when it was heard of last on any of them, and how often it
/// was asked in vain on the one where that was most often. One that the kernel has given up counts no more.
///
/// # Errors
/// `Unsupported` before Linux 6.10, which does not tell when the peer was heard of; and what is no MPTCP.
pub(crate) fn multipath_info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    // SAFETY: plain integers.
    let mut whole: Whole = unsafe { std::mem::zeroed() };
    if ask(fd, MPTCP_INFO, &mut whole)? < size_of::<Whole>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: plain integers.
    let mut flows: Flows = unsafe { std::mem::zeroed() };
    flows.size_subflow_data = 16;
    flows.size_user = u32::try_from(size_of::<Info>()).unwrap_or(0);
    ask(fd, MPTCP_TCPINFO, &mut flows)?;
    let count = usize::try_from(flows.num_subflows).unwrap_or(FLOWS);
    let live = || {
        flows
            .infos
            .iter()
            .take(count)
            .filter(|one| one.state != CLOSE)
    };
    // The whole hears nothing where it fell back to TCP (RFC 8684, 3.7): its one flow does.
    let flows_heard = live().map(|one| one.last_ack_recv.min(one.last_data_recv));
    let heard = whole.last_ack_recv.min(whole.last_data_recv);
    let heard = flows_heard.min().map_or(heard, |flow| flow.min(heard));
    Ok(TcpInfo {
        silence: Duration::from_millis(heard.into()),
        probes: live().map(|one| one.probes).max().unwrap_or(0),
        round_trip: Duration::from_micros(live().map(|one| one.rtt).min().unwrap_or(0).into()),
        retransmits: live().map(|one| one.retransmits).max().unwrap_or(0),
        flows: Some(whole.subflows_total),
        journal: Journal {
            idle: Duration::from_millis(whole.last_data_recv.into()),
            received: whole.bytes_received,
            acknowledged: whole.bytes_acked,
            ..Journal::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use socket2::{Domain, Protocol, SockAddr, Socket, Type};

    use super::*;

    #[test]
    fn the_kernel_tells_of_all_flows_and_of_a_socket_that_has_none_yet() {
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
        let Ok(listener) = socket() else {
            // This kernel has no MPTCP.
            return;
        };
        let before = multipath_info(listener.as_fd()).unwrap();
        assert_eq!((before.flows, before.probes), (Some(0), 0));
        let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&SockAddr::from(any)).unwrap();
        listener.listen(1).unwrap();
        let client = socket().unwrap();
        client.connect(&listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        client.send(b"hello").unwrap();
        let mut room = [std::mem::MaybeUninit::uninit(); 5];
        accepted.recv(&mut room).unwrap();
        let info = multipath_info(accepted.as_fd()).unwrap();
        assert_eq!((info.flows, info.journal.received), (Some(1), 5));
        assert!(info.round_trip > Duration::ZERO);
        assert!(
            super::super::tcp_info(accepted.as_fd())
                .unwrap()
                .flows
                .is_none()
        );
        let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        assert!(multipath_info(tcp.as_fd()).is_err());
    }
}
