//! A server that says what no nats-server does, in the middle of a conversation that is as it should be.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};

use super::{Nats, refused};
use crate::hub::Hub;
use crate::support::home::{Home, text};
use crate::support::until;

/// Listens as long as it is there.
struct Fake {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    /// All that it was told on the subject.
    heard: Arc<Mutex<String>>,
    accepts: Option<JoinHandle<()>>,
}

impl Fake {
    /// One that takes messages of `most` bytes, and says `words` to the first who subscribes.
    fn start(most: usize, words: &'static [u8]) -> Self {
        let heard = Arc::default();
        let told = Arc::clone(&heard);
        let serves = move |number, client| {
            let words: &[u8] = if number == 0 { words } else { b"" };
            let _ = serve(client, most, words, &told);
        };
        Self::with(heard, serves)
    }

    /// One that does that with each who comes, by their number.
    fn with(
        heard: Arc<Mutex<String>>,
        serves: impl Fn(usize, TcpStream) + Clone + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ours = Arc::clone(&over);
        let accepts = thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                if ours.load(Ordering::Acquire) {
                    return;
                }
                let serves = serves.clone();
                // Over once the hub is, whatever becomes of it.
                thread::spawn(move || serves(number, client));
            }
        });
        Self {
            address,
            over,
            heard,
            accepts: Some(accepts),
        }
    }

    fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    fn until_hears(&self, line: &str) {
        until(&format!("it hears {line:?}"), || {
            self.heard.lock().unwrap().contains(line)
        });
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        let _ = self.accepts.take().map(JoinHandle::join);
    }
}

fn greet(client: &mut TcpStream, most: usize) -> Option<()> {
    let info = format!(
        "INFO {{\"server_id\":\"F\",\"server_name\":\"fake\",\"version\":\"2.9.10\",\"proto\":1,\"host\":\"127.0.0.1\",\
         \"port\":4222,\"headers\":true,\"max_payload\":{most},\"client_id\":1}}\r\n"
    );
    // However it is torn.
    for byte in info.as_bytes() {
        client.write_all(&[*byte]).ok()?;
    }
    Some(())
}

fn serve(mut client: TcpStream, most: usize, words: &[u8], told: &Mutex<String>) -> Option<()> {
    greet(&mut client, most)?;
    let mut says = BufReader::new(client.try_clone().ok()?);
    loop {
        let mut line = String::new();
        if says.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let all: Vec<&str> = line.split_whitespace().collect();
        match all[..] {
            ["PING"] => client.write_all(b"PONG\r\n").ok()?,
            ["SUB", "feed", _] => client.write_all(words).ok()?,
            ["PUB" | "HPUB", subject, .., size] => {
                let mut payload = vec![0; size.parse::<usize>().ok()? + 2];
                says.read_exact(&mut payload).ok()?;
                if subject == "feed" {
                    *told.lock().ok()? += &String::from_utf8_lossy(&payload);
                }
            }
            _ => {}
        }
    }
}

/// What ends the client that speaks with the servers ends nothing else: another one goes on.
#[test]
fn whatever_a_server_says_the_hub_is_with_it_again() {
    for words in [
        &b"-ERR\r\n"[..],
        b"MSG feed 1 18446744073709551615\r\n\r\n",
        b"MSG feed 1 -5\r\n\r\n",
        b"HMSG feed 1 9 5\r\nNATS/1.0\r\n",
        b"HMSG feed 1 10 18446744073709551610\r\n\r\n",
        b"WHAT\xff\r\n",
        b"\r\n",
        b"-ERR 'of itself'\r\n-ERR 'Stale Connection'\r\nINFO {\"ldm\":true}\r\nINFO\r\n",
    ] {
        let server = Fake::start(1 << 20, words);
        let hub = Hub::start(&["--nats", &server.url(), "--subject", "feed"]);
        let (speaker, mut listener) = (hub.join(), hub.join());
        speaker.say("one\n");
        assert_eq!(listener.hear(), "one\n");
        server.until_hears("one\n");
        let words = String::from_utf8_lossy(words);
        until(&format!("it is there after {words:?}"), || {
            hub.shares()["connected"] == true && hub.shared("said_lines") == 1
        });
        speaker.say("two\n");
        server.until_hears("two\n");
        assert_eq!(hub.shared("lost"), 0);
    }
}

#[test]
fn a_server_whose_messages_have_no_room_for_a_line_ends_a_start() {
    let home = Home::new();
    for most in [0, 600] {
        let server = Fake::start(most, b"");
        let url = server.url();
        let said = refused(&home, &["--nats", &url, "--subject", "feed"]);
        assert!(said.contains(&format!("more than {most} bytes")), "{said}");
    }
}

#[test]
fn who_is_not_let_in_at_the_second_attempt_does_not_start_either() {
    let server = Fake::with(Arc::default(), |number, mut client| {
        if number % 2 == 0 || greet(&mut client, 1 << 20).is_none() {
            return;
        }
        let mut says = BufReader::new(&client).lines().map_while(Result::ok);
        if says.any(|line| line == "PING") {
            let _ = (&client).write_all(b"-ERR 'Authorization Violation'\r\n");
        }
        let _ = (&client).read(&mut [0]);
    });
    let url = server.url();
    let said = refused(&Home::new(), &["--nats", &url, "--subject", "feed"]);
    assert!(said.contains("authorization violation"), "{said}");
}

#[test]
fn who_is_not_let_in_any_more_says_so_and_what_to_do() {
    let users = |password: &str| {
        format!("authorization {{ users: [ {{ user: one, password: {password} }} ] }}\n")
    };
    let Some(nats) = Nats::start(&users("right")) else {
        return;
    };
    let file = nats.home.join("password");
    fs::write(&file, "right\n").unwrap();
    let mut hub = nats.hub(&["--nats-user", "one", "--nats-password-file", text(&file)]);
    let change = |password| {
        fs::write(nats.home.join("nats.conf"), users(password)).unwrap();
        kill_process(Pid::from_child(&nats.child), Signal::HUP).unwrap();
    };
    change("other");
    hub.server.log_line("that it is not let in", |line| {
        line.contains(" warn ")
            && line.contains("authorization violation")
            && line.contains("take over")
    });
    let speaker = hub.join();
    speaker.say("meanwhile\n");
    until("it waits", || hub.shared("backlog") == 10);
    change("right");
    until("it is let in again", || hub.shared("said_lines") == 1);
}
