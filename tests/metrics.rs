//! `serve --metrics`: what a server tells of itself over HTTP, asked by hand, by curl, and by Prometheus.

mod clients;
mod health;
mod prometheus;
mod takeover;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use crate::support::home::Home;
use crate::support::{Server, connect, read_to_fin};

/// `serve --metrics 0 ARGS...`, and where its metrics are.
fn serve(home: &Home, args: &[&str]) -> (Server, SocketAddr) {
    let mut server = home.serve(&[&["--metrics", "0"], args].concat());
    let line = server.log_line("the metrics", |line| {
        line.contains(" info metrics address=")
    });
    let (_, address) = line.rsplit_once('=').unwrap();
    (server, address.parse().unwrap())
}

/// An answer: its status, its head, its body.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    /// All that `client` is answered.
    fn to(client: &mut TcpStream) -> Self {
        Self::parse(&read_to_fin(client))
    }

    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{text:?}"));
        let status = head.split(' ').nth(1).unwrap();
        Self {
            status: status.parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }
}

/// Asks for `path` as a simple client does.
fn get(at: SocketAddr, path: &str) -> Answer {
    ask(
        at,
        &format!("GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n"),
    )
}

fn ask(at: SocketAddr, request: &str) -> Answer {
    let mut client = connect(at);
    client.write_all(request.as_bytes()).unwrap();
    Answer::to(&mut client)
}

/// The value of the metric whose name and labels are `named`, of the text of `/metrics`.
#[track_caller]
fn value(metrics: &str, named: &str) -> f64 {
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix(named)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {named} in {metrics}"));
    line.parse().unwrap()
}

fn metrics(at: SocketAddr) -> String {
    let answer = get(at, "/metrics");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}
