//! Whom a nats-server lets in. What is wrong with it a start says, and ends with 2; so does `check`.

use std::fs;
use std::process::Command;

use super::{Nats, refused};
use crate::support::home::{Home, text};
use crate::support::{lacks, output};

const USERS: &str = "authorization { users: [
    { user: one, password: right }
    { user: deaf, password: right, permissions: { subscribe: { deny: \"feed\" } } }
] }\n";

#[test]
fn who_has_the_password_is_in_and_nobody_else() {
    let Some(nats) = Nats::start(USERS) else {
        return;
    };
    let (right, wrong) = (nats.home.join("right"), nats.home.join("wrong"));
    fs::write(&right, "right\n").unwrap();
    fs::write(&wrong, "wrong\n").unwrap();
    let url = nats.url();
    let on = ["--nats", &url, "--subject", "feed"];
    let user = |name, file| ["--nats-user", name, "--nats-password-file", text(file)];
    let hub = nats.hub(&user("one", &right));
    assert!(hub.shares()["connected"].as_bool().unwrap());
    let nowhere = nats.home.join("nowhere");
    for (args, word) in [
        (user("one", &wrong).to_vec(), "authorization violation"),
        (vec![], "authorization violation"),
        (user("deaf", &right).to_vec(), "ermissions"),
        (user("one", &nowhere).to_vec(), "No such file"),
        (vec!["--creds", text(&wrong)], "wrong"),
        (vec!["--nkey", text(&nowhere)], "No such file"),
    ] {
        let said = refused(&hub.home, &[&on[..], &args].concat());
        let lines = said.lines().filter(|line| line.starts_with("standfast: "));
        let lines: Vec<_> = lines.filter(|line| line.contains(word)).collect();
        assert_eq!(lines.len(), 2, "{args:?}: {said}");
    }
}

/// The pair that the documents of NATS show: nobody's.
#[test]
fn who_has_the_seed_of_an_nkey_is_in() {
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let settings = format!("authorization {{ users: [ {{ nkey: {PUBLIC} }} ] }}\n");
    let Some(nats) = Nats::start(&settings) else {
        return;
    };
    let seed = nats.home.join("seed");
    fs::write(&seed, format!("{SEED}\n")).unwrap();
    let hub = nats.hub(&["--nkey", text(&seed)]);
    assert!(hub.shares()["connected"].as_bool().unwrap());
}

#[test]
fn a_server_is_believed_by_its_certificate_and_asks_for_ours() {
    if lacks(&["openssl", "nats-server"]) {
        return;
    }
    let home = Home::new();
    let mut command = Command::new("sh");
    let script = "exec 2>&1; set -e; cd \"$1\"
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=localhost
        printf 'subjectAltName=IP:127.0.0.1,DNS:localhost' >names
        openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names";
    command.args(["-c", script, "sh", text(&home.path)]);
    let (code, said, _) = output(command);
    assert_eq!(code, 0, "{said}");
    let file = |name: &str| text(&home.join(name)).to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let settings = format!(
        "tls {{ cert_file: \"{cert}\", key_file: \"{key}\", ca_file: \"{ca}\", verify: true }}\n"
    );
    let nats = Nats::start(&settings).unwrap();
    let hub = nats.hub(&[
        "--nats-tlsca",
        &ca,
        "--nats-tlscert",
        &cert,
        "--nats-tlskey",
        &key,
    ]);
    assert!(hub.shares()["connected"].as_bool().unwrap());
    let url = nats.url();
    let on = ["--nats", &url, "--subject", "feed", "--nats-tlsca"];
    let said = refused(&home, &[&on[..], &["nowhere"]].concat());
    assert!(said.contains("No such file"), "{said}");
}

#[test]
fn what_cannot_be_is_refused_without_a_server() {
    let home = Home::new();
    for (args, word) in [
        (&["--nats", "127.0.0.1:1"][..], "--subject"),
        (&["--subject", "feed"], "--nats"),
        (&["--nats", "127.0.0.1:1", "--subject", "a.*"], "no subject"),
        (
            &["--nats", "me:secret@127.0.0.1:1", "--subject", "a"],
            "credentials in it",
        ),
        (
            &["--nats", "127.0.0.1:1", "--subject", "a", "--raw"],
            "--raw",
        ),
    ] {
        let said = refused(&home, args);
        assert!(
            said.contains(word) && !said.contains("secret"),
            "{args:?}: {said}"
        );
    }
    let (code, _, said) =
        output(home.standfast(&["serve", "echo", "--nats", "a", "--subject", "b"]));
    assert_eq!(code, 2);
    assert!(said.contains("is for the service hub"), "{said}");
}
