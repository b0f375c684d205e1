//! Prometheus itself: what it says of the text, and that it scrapes it.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use super::{get, metrics, serve};
use crate::support::home::{Home, text};
use crate::support::{Guarded, assert_echoes, lacks, until};

#[test]
fn promtool_has_nothing_to_say_against_the_text() {
    if lacks(&["promtool"]) {
        return;
    }
    let home = Home::new();
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = upstream.local_addr().unwrap().to_string();
    for args in [&[][..], &["exec", "--", "cat"], &["forward", &upstream]] {
        let (_server, at) = serve(&home, args);
        let mut promtool = Command::new("promtool");
        promtool.args(["check", "metrics"]).stdin(Stdio::piped());
        promtool.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut checking = promtool.spawn().unwrap();
        let mut stdin = checking.stdin.take().unwrap();
        stdin.write_all(metrics(at).as_bytes()).unwrap();
        drop(stdin);
        let said = checking.wait_with_output().unwrap();
        assert!(said.status.success() && said.stderr.is_empty(), "{said:?}");
    }
}

#[test]
fn prometheus_scrapes_it() {
    if lacks(&["prometheus"]) {
        return;
    }
    let home = Home::new();
    let (server, at) = serve(&home, &[]);
    let mut client = server.connect();
    assert_echoes(&mut client, b"hello");
    let settings = home.join("prometheus.yml");
    let jobs = format!(
        "scrape_configs:\n- job_name: standfast\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{at}']\n"
    );
    fs::write(&settings, jobs).unwrap();
    // It takes no port 0: one that was free a moment ago.
    let own = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut command = Command::new("prometheus");
    command
        .arg(format!("--config.file={}", text(&settings)))
        .arg(format!("--storage.tsdb.path={}", text(&home.join("data"))))
        .arg(format!("--web.listen-address={own}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let _running = Guarded(command.spawn().unwrap());
    let query = "/api/v1/query?query=standfast_bytes_total%7Bdirection%3D%22read%22%7D";
    let mut last = String::new();
    until("it to be scraped", || {
        if std::net::TcpStream::connect(own).is_err() {
            return false;
        }
        last = get(own, query).body;
        last.contains("\"5\"")
    });
    assert!(last.contains(&format!("\"instance\":\"{at}\"")), "{last}");
    let targets = get(own, "/api/v1/targets").body;
    assert!(targets.contains("\"health\":\"up\""), "{targets}");
}
