//! haproxy and nginx in front, as they are installed: what they say of their clients arrives.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::connecting::Port;
use crate::support::home::{Home, number, text};
use crate::support::{GUARD, Guarded, Server, assert_echoes, lacks, until};

/// A proxy that listens on a Unix socket or on a port of this host, in front of `server`.
struct Front {
    /// Ends with it.
    _child: Guarded,
    /// In its folder.
    home: Home,
}

impl Front {
    /// `config`: with `HOME` for its folder, `TO` for the server's address.
    fn start(program: &str, args: &[&str], config: &str, server: &Server) -> Self {
        let home = Home::new();
        let file = home.join("front.conf");
        let config = config.replace("HOME", text(&home.path));
        fs::write(&file, config.replace("TO", &server.address().to_string())).unwrap();
        let child = Command::new(program)
            .args(args)
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _child = Guarded(child);
        Self { _child, home }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    /// A client that tells the front that it is `192.0.2.7:56324`: so is it known that this is passed on.
    fn connect(&self, name: &str) -> UnixStream {
        let path = self.path(name);
        until(name, || UnixStream::connect(&path).is_ok());
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(GUARD)).unwrap();
        client
            .write_all(b"PROXY TCP4 192.0.2.7 192.0.2.1 56324 443\r\nhello")
            .unwrap();
        let mut came = [0; 5];
        client.read_exact(&mut came).unwrap();
        assert_eq!(&came, b"hello");
        client
    }
}

#[track_caller]
fn assert_known(server: &mut Server, times: usize) {
    let mut known = 0;
    while known < times {
        let closed = server.closed();
        // Checks are the proxy's own.
        if closed.get("peer").starts_with("127.0.0.1:") {
            continue;
        }
        assert_eq!(closed.reason(), "peer-closed", "{}", closed.line);
        assert_eq!(closed.get("peer"), "192.0.2.7:56324", "{}", closed.line);
        assert!(
            closed.get("via").starts_with("127.0.0.1:"),
            "{}",
            closed.line
        );
        known += 1;
    }
}

#[test]
fn the_client_of_haproxy_is_known_by_both_versions_and_its_checks_are_quiet() {
    if lacks(&["haproxy"]) {
        return;
    }
    let home = Home::new();
    let mut server = home.serve(&["--accept-proxy-from", "127.0.0.1"]);
    let config = "\
global
  log stdout format raw local0 emerg
defaults
  mode tcp
  timeout client 30s
  timeout server 30s
  timeout connect 30s
frontend one
  bind unix@HOME/one accept-proxy
  default_backend one
backend one
  server it TO send-proxy check inter 50ms
frontend two
  bind unix@HOME/two accept-proxy
  default_backend two
backend two
  server it TO send-proxy-v2 check inter 50ms proxy-v2-options unique-id,crc32c
  server plain TO backup send-proxy-v2 check no-check-send-proxy inter 50ms
";
    let front = Front::start("haproxy", &["-db", "-f"], config, &server);
    drop(front.connect("one"));
    drop(front.connect("two"));
    assert_known(&mut server, 2);
    let port = server.address().port().to_string();
    // A few rounds of checks, which all were taken: none of them is a line, nor an end for a bad header.
    until("checks", || {
        number(&home.json(&["status", &port])["accepted"]) > 12
    });
    drop(front);
    assert!(server.drain().success());
    let ended = server.summary();
    assert!(!ended.contains_key("bad-proxy-header"), "{ended:?}");
    // Nor one that said so, by LOCAL, and was reset.
    let closed = server.lines.iter().filter(|line| line.contains(" closed "));
    let own = closed.filter(|line| !line.contains("peer=192.0.2.7:56324"));
    assert_eq!(own.count(), 0, "{:?}", server.lines);
}

#[test]
fn the_client_of_nginx_is_known() {
    if lacks(&["nginx"]) {
        return;
    }
    let mut server = Server::start(&["--accept-proxy"]);
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let load = match std::path::Path::new(module).exists() {
        true => format!("load_module {module};\n"),
        false => String::new(),
    };
    let config = load
        + "\
daemon off;
master_process off;
pid HOME/nginx.pid;
error_log HOME/error.log;
events {}
stream {
  server {
    listen AT;
    proxy_protocol on;
    proxy_pass TO;
  }
}
";
    let free = Port::new();
    let at = free.address();
    let front = Front::start(
        "nginx",
        &["-c"],
        &config.replace("AT", &at.to_string()),
        &server,
    );
    let mut client = None;
    until("nginx", || {
        client = TcpStream::connect(at).ok();
        client.is_some()
    });
    let mut client = client.unwrap();
    assert_echoes(&mut client, b"hello");
    let own = client.local_addr().unwrap().to_string();
    drop(client);
    let closed = server.closed();
    assert_eq!(closed.get("peer"), own, "{}", closed.line);
    assert!(
        closed.get("via").starts_with("127.0.0.1:"),
        "{}",
        closed.line
    );
    drop((front, free));
}
