//! Every header that tells an upstream who its client is, as haproxy's and nginx's own receivers read it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::home::{Home, text};
use crate::support::{GUARD, Guarded, Server, cannot_run, connect, until};

const TEST: &str = "every_header_is_taken_by_haproxy_and_by_nginx";

/// A receiver that answers each request with its client's address and port, as the header has them.
struct Receiver {
    program: &'static str,
    /// Ends with it.
    _child: Guarded,
    path: PathBuf,
}

impl Receiver {
    fn start(program: &'static str, home: &Path, config: &str, args: &[&str]) -> Option<Self> {
        let path = home.join(program);
        let file = home.join(format!("{program}.conf"));
        let config = config
            .replace("PATH", text(&path))
            .replace("HOME", text(home));
        fs::write(&file, config).unwrap();
        let child = Command::new(program)
            .args(args)
            .arg(text(&file))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.ok()?;
        let receiver = Self {
            program,
            _child: Guarded(child),
            path,
        };
        until(program, || UnixStream::connect(&receiver.path).is_ok());
        Some(receiver)
    }

    /// In the foreground, one process, and nothing outside its folder.
    fn all(home: &Path) -> Vec<Self> {
        let haproxy = "\
global
  log stdout format raw local0 emerg
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 30s
frontend it
  bind unix@PATH accept-proxy
  http-request return status 200 content-type text/plain lf-string \"said %[src] %[src_port] said\"
";
        let nginx = "\
daemon off;
master_process off;
pid HOME/nginx.pid;
error_log HOME/error.log;
events {}
http {
  access_log off;
  client_body_temp_path HOME/body;
  proxy_temp_path HOME/proxy;
  fastcgi_temp_path HOME/fastcgi;
  uwsgi_temp_path HOME/uwsgi;
  scgi_temp_path HOME/scgi;
  server {
    listen unix:PATH proxy_protocol;
    location / { return 200 \"said $proxy_protocol_addr $proxy_protocol_port said\"; }
  }
}
";
        let mut receivers = Vec::new();
        for (program, config, args) in [
            ("haproxy", haproxy, &["-db", "-f"][..]),
            ("nginx", nginx, &["-c"][..]),
        ] {
            match Self::start(program, home, config, args) {
                Some(receiver) => receivers.push(receiver),
                None => cannot_run(TEST, program),
            }
        }
        receivers
    }
}

/// Asks over `stream`, and answers whom the receiver takes it for; that it is answered at all says that the header is
/// one.
#[track_caller]
fn asks(mut stream: impl Read + Write, case: &str) -> String {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: it\r\nConnection: close\r\n\r\n")
        .unwrap_or_else(|error| panic!("{case}: {error}"));
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(read.is_ok(), "{case}: {read:?}: {answer}");
    let said = answer.split("said ").nth(1);
    let said = said.unwrap_or_else(|| panic!("{case}: {answer:?}"));
    said.split(" said").next().unwrap().trim().to_owned()
}

fn unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream
}

#[test]
fn every_header_is_taken_by_haproxy_and_by_nginx() {
    let home = Home::new();
    let front = home.join("front");
    let at = format!("unix:{}", text(&front));
    let six = TcpListener::bind("[::1]:0").is_ok();
    for receiver in Receiver::all(&home.path) {
        let to = format!("unix:{}", text(&receiver.path));
        for version in ["v1", "v2"] {
            let mut words = vec!["serve", "forward", &to, "--send-proxy", version];
            words.extend(["-l", "127.0.0.1:0", "-l", ":0", "-l", &at]);
            if six {
                words.extend(["-l", "[::1]:0"]);
            }
            let mut command = home.standfast(&words);
            command.stdin(Stdio::null()).stdout(Stdio::piped());
            let mut relay = Server::launch(command);
            let mut listening = || {
                let line = relay.stdout_line();
                line.strip_prefix("listening on ").unwrap().to_owned()
            };
            let four: SocketAddr = listening().parse().unwrap();
            let both: SocketAddr = listening().parse().unwrap();
            assert_eq!(listening(), at);
            let mut servers = vec![four, ([127, 0, 0, 1], both.port()).into()];
            servers.extend(six.then(|| listening().parse::<SocketAddr>().unwrap()));
            for server in servers {
                let case = format!("{} {version} by {server}", receiver.program);
                let client = connect(server);
                let from = client.local_addr().unwrap();
                let expected = format!("{} {}", from.ip(), from.port());
                assert_eq!(asks(client, &case), expected, "{case}");
            }
            let case = format!("{} {version} by {at}", receiver.program);
            assert_eq!(asks(unix(&front), &case), "", "{case}");
        }
        // A client and what it dialled of two families: no socket has them, and what is sent then is known to the byte.
        let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\x00\x24".to_vec();
        binary.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        binary.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        binary.extend([0, 5, 0, 7]);
        let line = b"PROXY TCP6 ::ffff:10.0.0.1 2001:db8::2 5 7\r\n".to_vec();
        for header in [line, binary] {
            let case = format!("{} of two families", receiver.program);
            let mut stream = unix(&receiver.path);
            stream.write_all(&header).unwrap();
            assert_eq!(asks(stream, &case), "::ffff:10.0.0.1 5", "{case}");
        }
    }
}
