//! Tests that need a process, or namespaces, of their own.

use std::ffi::OsStr;
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;

use crate::support::{cannot_run, lacks, output};

/// Runs `test` of `module` again alone in a process of its own, under `wrapper`. Answers whether this is that process.
pub(super) fn apart(module: &str, test: &str, wrapper: &[&str]) -> bool {
    const APART: &str = "STANDFAST_TEST_APART";
    if std::env::var_os(APART).is_some() {
        return true;
    }
    let name = format!("{}::{test}", module.strip_prefix("main::").unwrap());
    let exe = std::env::current_exe().unwrap();
    let words = wrapper.iter().map(OsStr::new);
    let mut words = words.chain([exe.as_os_str(), OsStr::new(&name)]);
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .args(["--exact", "--nocapture"])
        .env(APART, "1");
    let (code, stdout, stderr) = output(command);
    assert_eq!(code, 0, "{stdout}\n{stderr}");
    assert!(stdout.contains("1 passed"), "{stdout}\n{stderr}");
    false
}

pub(super) fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

pub(super) fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Runs `test` again alone in network and mount namespaces of its own, in which `127.0.0.1` is the name server. Answers
/// whether this is that process.
pub(super) fn in_namespaces(module: &str, test: &str) -> bool {
    const WRAPPER: [&str; 3] = ["unshare", "--net", "--mount"];
    if lacks(&["unshare", "ip", "mount"]) {
        return false;
    }
    let possible = Command::new(WRAPPER[0])
        .args(&WRAPPER[1..])
        .arg("true")
        .output();
    if !possible.is_ok_and(|done| done.status.success()) {
        cannot_run(test, "root, for namespaces");
        return false;
    }
    if !apart(module, test, &WRAPPER) {
        return false;
    }
    let file = std::env::temp_dir().join(format!("standfast-resolv-{}", std::process::id()));
    fs::write(
        &file,
        "nameserver 127.0.0.1\noptions timeout:20 attempts:1\n",
    )
    .unwrap();
    let script = "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf && rm \"$1\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(&file);
    let (code, _, stderr) = output(command);
    assert_eq!(code, 0, "{stderr}");
    true
}

/// A name server that answers each question for addresses as `answer` says, the first being number 0.
pub(super) fn name_server(mut answer: impl FnMut(u32) -> Vec<[u8; 4]> + Send + 'static) {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || {
        let (mut buffer, mut asked) = ([0; 512], 0);
        while let Ok((count, client)) = socket.recv_from(&mut buffer) {
            // RFC 1035: header of 12 bytes, then the name, its type and class; what follows is not for us.
            let name = 12
                + buffer[12..count]
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap()
                + 1;
            let mut addresses = Vec::new();
            if buffer[name..name + 2] == [0, 1] {
                addresses = answer(asked);
                asked += 1;
            }
            let mut reply = buffer[..name + 4].to_vec();
            let found = u8::try_from(addresses.len()).unwrap();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, found, 0, 0, 0, 0]);
            for address in addresses {
                // The name asked for, type A, class IN, no time to live, four bytes.
                reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                reply.extend(address);
            }
            socket.send_to(&reply, client).unwrap();
        }
    });
}
