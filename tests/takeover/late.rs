//! A freeze that comes too late: everybody is served again, and the next one may be in time.

use super::faults::{ARGS, Company};
use super::relay::{Relay, too_late};

use crate::support::home::{refusal, text};

#[test]
fn a_freeze_that_comes_too_late_is_followed_by_another() {
    let mut company = Company::start();
    let real = company.home.socket_of(&company.server);
    let path = company.home.join("relay.sock");
    let relay = Relay::start(&path, &real, too_late(2));
    let addresses = company.server.addresses.clone();
    let next = company.server.replaced_by(1, || {
        let mut command = company.home.successor(&addresses, &ARGS);
        command.args(["--control", text(&path)]);
        command
    });
    drop(relay);
    assert_eq!(company.server.wait().code(), Some(0));
    let late = company.server.lines.iter().filter(|line| {
        line.contains(" info late in the freeze, serving until the next one ")
            && line.contains("within 50 ms")
    });
    assert!(late.count() >= 2, "{:?}", company.server.lines);
    company.server = next;
    company.assert_unhurt();
}

#[test]
fn after_five_late_freezes_the_server_serves_on() {
    let mut company = Company::start();
    let real = company.home.socket_of(&company.server);
    let path = company.home.join("relay.sock");
    let _relay = Relay::start(&path, &real, too_late(usize::MAX));
    let mut command = company.home.successor(&company.server.addresses, &ARGS);
    command.args(["--control", text(&path)]);
    let (code, line) = refusal(command);
    assert_eq!(code, 1, "{line}");
    let told = company.why();
    assert!(
        told.contains("in 5 freezes ") && told.contains(" within 50 ms"),
        "{told}"
    );
    company.assert_unhurt();
}
