//! Clients with more to them than connecting: small windows, streams that can be verified, resets, company.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::{Began, GUARD, assert_echoes, connect, deafen, now, pass, settle, until};

/// A client from another address of this host.
pub(crate) fn connect_from(source: std::net::Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&server.into()).unwrap();
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(GUARD)).unwrap();
    client
}

/// A connected client with a receive buffer of `bytes`, so that output for it soon waits at the server.
pub(crate) fn connect_with_window(address: SocketAddr, bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(bytes).unwrap();
    socket.connect(&address.into()).unwrap();
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(GUARD)).unwrap();
    client.set_write_timeout(Some(GUARD)).unwrap();
    client
}

/// One whose window takes a little of a long answer.
#[track_caller]
pub(crate) fn narrow(address: SocketAddr) -> TcpStream {
    connect_with_window(address, 32 * 1024)
}

/// Closes with a reset instead of a FIN.
pub(crate) fn reset(client: TcpStream) {
    SockRef::from(&client)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(client);
}

/// Waits until the server's kernel has acknowledged all that the client sent.
pub(crate) fn until_acknowledged(client: &TcpStream) {
    until("acknowledged by the server", || unacknowledged(client) == 0);
}

/// Bytes, and FIN, that the client sent and the server's kernel has not acknowledged.
#[expect(unsafe_code, reason = "no safe crate asks for SIOCOUTQ")]
pub(crate) fn unacknowledged(client: &TcpStream) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int, and `bytes` is one; `client` is borrowed, so open.
    let answer = unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    bytes.try_into().unwrap()
}

/// Bytes that the server's kernel has room for, as it has told: a promise that is not taken back.
#[expect(unsafe_code, reason = "no safe crate asks for the window of TCP_INFO")]
pub(crate) fn window(client: &TcpStream) -> usize {
    // SAFETY: the struct is of integers alone, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap();
    let fd = client.as_raw_fd();
    // SAFETY: `info` is `length` bytes long, and both outlive the call; `client` is borrowed, so open.
    let answer = unsafe {
        libc::getsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    info.tcpi_snd_wnd.try_into().unwrap()
}

/// The server has ended this connection, in whichever way.
#[track_caller]
pub(crate) fn assert_over(client: &mut TcpStream) {
    if let Err(error) = client.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
}

/// Bytes that wait for the client to read them.
pub(crate) fn unread(client: &TcpStream) -> u64 {
    rustix::io::ioctl_fionread(client).unwrap()
}

/// Waits until nothing is on its way, acknowledgements included, and turns the client deaf.
pub(crate) fn vanish(client: &TcpStream) -> Vanished {
    let heard = now();
    until_acknowledged(client);
    settle();
    deafen(client);
    let at = Began::now();
    Vanished { heard, at }
}

/// When a client vanished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vanished {
    /// Until here at least the server heard of it.
    pub(crate) heard: Instant,
    /// From here on it did not.
    pub(crate) at: Began,
}

/// Bytes that tell where they belong: one lost, doubled or moved shows wherever it is.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Position in the stream.
    pub(crate) at: u64,
}

impl Stream {
    /// The next `count` bytes.
    pub(crate) fn next(&mut self, count: usize) -> Vec<u8> {
        let bytes = self.peek(count);
        self.skip(count);
        bytes
    }

    /// The same, without moving on.
    pub(crate) fn peek(&self, count: usize) -> Vec<u8> {
        let first = self.at / 8;
        let into = usize::try_from(self.at % 8).unwrap();
        let words = (into + count).div_ceil(8) as u64;
        let mut bytes = Vec::with_capacity(8 * (count / 8 + 2));
        for word in first..first + words {
            let word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.truncate(into + count);
        bytes.drain(..into);
        bytes
    }

    pub(crate) fn skip(&mut self, count: usize) {
        self.at += count as u64;
    }

    /// Asserts that `bytes` are the next ones.
    #[track_caller]
    pub(crate) fn verify(&mut self, bytes: &[u8]) {
        let wanted = self.peek(bytes.len());
        assert!(
            wanted == bytes,
            "not the stream's bytes, from {} to {}",
            self.at,
            self.at + bytes.len() as u64
        );
        self.skip(bytes.len());
    }

    /// Reads `count` of them from `client`.
    #[track_caller]
    pub(crate) fn read(&mut self, client: &mut TcpStream, count: u64) {
        let mut buffer = vec![0; 65536];
        let end = self.at + count;
        while self.at < end {
            let most = buffer.len().min(usize::try_from(end - self.at).unwrap());
            let got = client.read(&mut buffer[..most]).unwrap();
            assert!(got > 0, "FIN after {} of {end} bytes", self.at);
            self.verify(&buffer[..got]);
        }
    }

    /// Reads to the FIN; answers how many bytes the stream has had in all.
    #[track_caller]
    pub(crate) fn read_to_fin(&mut self, client: &mut TcpStream) -> u64 {
        let mut buffer = vec![0; 65536];
        loop {
            match client.read(&mut buffer).unwrap() {
                0 => return self.at,
                got => self.verify(&buffer[..got]),
            }
        }
    }
}

/// A well-behaved client beside a bad one: sends a little, and waits for its echo, again and again.
pub(crate) struct Bystander {
    over: Arc<AtomicBool>,
    echoing: Option<JoinHandle<(u64, Duration)>>,
}

impl Bystander {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let mut client = connect(address);
        let over = Arc::new(AtomicBool::new(false));
        let echoing = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                let (mut echoes, mut longest) = (0, Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    let sent = now();
                    assert_echoes(&mut client, b"what a well-behaved client says\n");
                    longest = longest.max(sent.elapsed());
                    echoes += 1;
                    pass(Duration::from_millis(5));
                }
                (echoes, longest)
            }
        });
        Self {
            over,
            echoing: Some(echoing),
        }
    }

    /// Asserts that it got each echo in time, all the while: ten seconds, for a busy machine is no fault of the server's.
    pub(crate) fn assert_unhurt(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let (echoes, longest) = self.echoing.take().unwrap().join().unwrap();
        assert!(echoes > 0, "the bystander got no echo at all");
        assert!(
            longest < Duration::from_secs(10),
            "an echo took {longest:?}, of {echoes}"
        );
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends all of `count` bytes of the stream from a thread of its own, then FIN.
pub(crate) fn send_all(client: &TcpStream, count: u64) -> JoinHandle<()> {
    let mut client = client.try_clone().unwrap();
    thread::spawn(move || {
        let mut stream = Stream::default();
        while stream.at < count {
            let most = usize::try_from(count - stream.at).unwrap().min(65536);
            client.write_all(&stream.next(most)).unwrap();
        }
        client.shutdown(std::net::Shutdown::Write).unwrap();
    })
}

/// Raises a flag at the end of its scope, also when an assertion fails.
pub(crate) struct Raised<'a>(pub(crate) &'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
