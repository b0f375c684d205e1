//! What a service may have beside the bytes: descriptors it watches, alarms, a socket it gives away.

use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use standfast::{CloseReason, Context, Ready, Service};

use crate::support::embedded::{Embedded, listen};
use crate::support::{now, read_to_fin, until};

/// Sends its client what comes through a pipe, a byte a call, and says how it ended.
struct Pipes {
    readers: Mutex<Vec<OwnedFd>>,
    over: Mutex<Vec<CloseReason>>,
}

impl Service for &'static Pipes {
    type State = ();

    fn open(&self, conn: &mut Context<'_>) {
        conn.watch(self.readers.lock().unwrap().pop().unwrap());
    }

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        assert_eq!(bytes, b"when?");
        conn.set_alarm(Some(Duration::from_secs(1000)));
        conn.set_alarm(Some(Duration::from_millis(200)));
        bytes.len()
    }

    fn ready(&self, (): &mut (), conn: &mut Context<'_>, what: Ready) {
        match what {
            Ready::Watched => {
                let mut byte = [0];
                if let Ok(1) = rustix::io::read(conn.watched()[0].as_fd(), &mut byte) {
                    conn.write(&byte);
                    conn.again();
                }
            }
            Ready::Alarm => conn.write(b"now"),
            _ => {}
        }
    }

    fn over(&self, (): &mut (), _: &mut Context<'_>, reason: CloseReason) {
        self.over.lock().unwrap().push(reason);
    }
}

fn pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    (reader, writer)
}

#[test]
fn a_service_is_told_of_what_it_watches_and_of_its_alarm_and_of_the_end() {
    let ((reader, mut writer), over) = (pipe(), Mutex::default());
    let pipes: &'static Pipes = Box::leak(Box::new(Pipes {
        readers: Mutex::new(vec![reader.into()]),
        over,
    }));
    let server = Embedded::start(listen(pipes));
    let mut client = server.connect();
    writer.write_all(b"through the pipe").unwrap();
    let mut got = [0; 16];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"through the pipe");
    let asked = now();
    client.write_all(b"when?").unwrap();
    client.read_exact(&mut got[..3]).unwrap();
    assert_eq!(&got[..3], b"now");
    assert!(now() - asked >= Duration::from_millis(200));
    let near = client.local_addr().unwrap();
    drop(client);
    assert_eq!(server.closed_from(near).reason(), "peer-closed");
    assert_eq!(*pipes.over.lock().unwrap(), [CloseReason::PeerClosed]);
    // The reader went with the connection.
    until("the reader is closed", || writer.write_all(b"x").is_err());
}

/// A thread of its own answers the first line; the engine has the rest.
struct Answered;

impl Service for Answered {
    /// The far end is dropped when the thread is done.
    type State = ();

    fn open(&self, conn: &mut Context<'_>) {
        let (reader, writer) = pipe();
        let mut socket = TcpStream::from(conn.give_away().unwrap());
        conn.watch(reader.into());
        thread::spawn(move || {
            let mut line = [0; 6];
            // It blocks, though the engine's sockets do not.
            socket.read_exact(&mut line).unwrap();
            socket.write_all(b"thread: ").unwrap();
            socket.write_all(&line).unwrap();
            drop(socket);
            drop(writer);
        });
    }

    fn input(&self, (): &mut (), conn: &mut Context<'_>, bytes: &[u8]) -> usize {
        conn.write(b"engine: ");
        conn.write(bytes);
        bytes.len()
    }

    fn ready(&self, (): &mut (), conn: &mut Context<'_>, _: Ready) {
        conn.take_back().unwrap();
    }
}

#[test]
fn a_socket_that_was_given_away_can_be_taken_back() {
    let server = Embedded::start(listen(Answered));
    let mut client = server.connect();
    client.write_all(b"first\n").unwrap();
    let mut got = [0; 14];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"thread: first\n");
    client.write_all(b"second\n").unwrap();
    let mut got = [0; 15];
    client.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"engine: second\n");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read_to_fin(&mut client), b"");
    let closed = server.closed(&client);
    assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
    assert_eq!((closed.get("read"), closed.get("written")), ("13", "29"));
}
