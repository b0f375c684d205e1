//! Who may come in, by address: rules that allow and deny, looked up in a sorted table.

use std::net::IpAddr;
use std::time::Duration;

use crate::address::network::{self, Network};
use crate::config::AcceptProxy;
use crate::error::Error;

/// The rules of one [`Listen`](crate::Listen).
#[derive(Debug)]
pub(crate) struct Access {
    v4: Table,
    v6: Table,
    /// What holds for who is in no range.
    otherwise: bool,
}

/// From which address on which rule decides, in order; `None`: none does.
type Table = Box<[(u128, Option<bool>)]>;

impl Access {
    /// The longest range decides, and of a range in both lists `deny`.
    pub(crate) fn new(allow: &[Network], deny: &[Network]) -> Self {
        let allowed = allow.iter().map(|network| (network, true));
        let denied = deny.iter().map(|network| (network, false));
        let rules: Vec<_> = allowed.chain(denied).collect();
        let (v4, v6): (Vec<_>, Vec<_>) = rules.iter().partition(|(network, _)| network.is_ipv4());
        Self {
            v4: table(v4),
            v6: table(v6),
            otherwise: allow.is_empty(),
        }
    }

    /// An IPv4 address mapped into IPv6 is that IPv4 address.
    pub(crate) fn lets_in(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let table = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        let address = network::bits(ip);
        let behind = table.partition_point(|(from, _)| *from <= address);
        let decides = behind.checked_sub(1).and_then(|at| table.get(at));
        let decides = decides.and_then(|(_, rule)| *rule);
        decides.unwrap_or(self.otherwise)
    }
}

/// Who says who the client is.
#[derive(Debug)]
pub(crate) struct Proxies {
    pub(crate) trusted: Access,
    /// How long that may take.
    pub(crate) timeout: Duration,
}

/// The least a proxy gets for its header: the specification wants that a lost segment can be sent anew.
const PROXY_TIMEOUT_LEAST: Duration = Duration::from_secs(3);

impl Proxies {
    /// # Errors
    /// Too short a time.
    pub(crate) fn new(accept: &AcceptProxy) -> Result<Self, Error> {
        if accept.timeout < PROXY_TIMEOUT_LEAST {
            return Err(Error::Config(
                "proxy timeout below 3 s: a header whose segment is lost could not come in time"
                    .to_owned(),
            ));
        }
        Ok(Self {
            trusted: Access::new(&accept.from, &[]),
            timeout: accept.timeout,
        })
    }
}

/// Ranges lie within each other or apart, so those that an address is in are a stack, with the longest on top.
fn table(mut rules: Vec<(&Network, bool)>) -> Table {
    // Of one range the denying rule is the last, and stays.
    rules.sort_by_key(|(network, lets_in)| (network.range().0, network.prefix(), !lets_in));
    let mut table = Vec::with_capacity(2 * rules.len());
    let mut within: Vec<(u128, bool)> = Vec::new();
    let leave = |within: &mut Vec<(u128, bool)>, table: &mut Vec<_>, until: Option<u128>| {
        while let Some((last, _)) = within.pop_if(|(last, _)| until.is_none_or(|at| *last < at)) {
            if let Some(next) = last.checked_add(1) {
                table.push((next, within.last().map(|(_, lets_in)| *lets_in)));
            }
        }
    };
    for (network, lets_in) in rules {
        let (first, last) = network.range();
        leave(&mut within, &mut table, Some(first));
        table.push((first, Some(lets_in)));
        within.push((last, lets_in));
    }
    leave(&mut within, &mut table, None);
    // Of what begins at one address the last holds.
    table.reverse();
    table.dedup_by_key(|(from, _)| *from);
    table.reverse();
    table.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded::Seeded;

    fn networks(text: &str) -> Vec<Network> {
        text.split_whitespace()
            .map(|one| one.parse().unwrap())
            .collect()
    }

    fn access(allow: &str, deny: &str) -> Access {
        Access::new(&networks(allow), &networks(deny))
    }

    #[track_caller]
    fn assert_lets_in(access: &Access, yes: &str, no: &str) {
        for (list, expected) in [(yes, true), (no, false)] {
            for ip in list.split_whitespace() {
                assert_eq!(access.lets_in(ip.parse().unwrap()), expected, "{ip}");
            }
        }
    }

    #[test]
    fn without_rules_everybody_is_let_in() {
        assert_lets_in(&access("", ""), "10.0.0.1 ::1 ::ffff:10.0.0.1", "");
    }

    #[test]
    fn who_is_in_no_range_is_let_in_unless_something_is_allowed() {
        let denied = access("", "10.0.0.0/8 fd00::/8");
        assert_lets_in(
            &denied,
            "11.0.0.0 9.255.255.255 ::1",
            "10.0.0.0 10.255.255.255 fd12::1",
        );
        let allowed = access("10.0.0.0/8", "");
        assert_lets_in(
            &allowed,
            "10.1.2.3 ::ffff:10.1.2.3",
            "11.0.0.0 9.255.255.255 ::1",
        );
    }

    #[test]
    fn the_longest_range_decides() {
        let access = access(
            "10.1.0.0/16 10.1.2.3 ::/0",
            "10.0.0.0/8 10.1.2.0/24 2001:db8::/32",
        );
        assert_lets_in(
            &access,
            "10.1.0.0 10.1.2.3 10.1.3.0 10.1.255.255 ::1 2001:db9::",
            "10.0.0.1 10.1.2.2 10.1.2.4 10.2.0.0 11.0.0.0 2001:db8::1",
        );
    }

    #[test]
    fn of_a_range_in_both_lists_deny_decides() {
        assert_lets_in(&access("10.0.0.0/8", "10.0.0.0/8"), "", "10.0.0.1 11.0.0.1");
        assert_lets_in(
            &access("0.0.0.0/0", "0.0.0.0/0"),
            "",
            "10.0.0.1 255.255.255.255",
        );
        assert_lets_in(
            &access("::ffff:0:0/96", "1.2.3.4"),
            "1.2.3.5",
            "1.2.3.4 ::1",
        );
        assert_lets_in(
            &access("255.255.255.255 ffff::/16", "::/0"),
            "255.255.255.255 ffff::1",
            "1.1.1.1 fff0::",
        );
    }

    /// Against asking every rule, with many ranges that begin and end where others do.
    #[test]
    fn the_table_agrees_with_asking_every_rule() {
        let mut random = Seeded::new(7);
        let mut draw = |limit: u64| random.below(limit);
        for _ in 0..50 {
            let mut lists = [Vec::new(), Vec::new()];
            for _ in 0..draw(40) {
                let prefix = 24 + draw(9);
                let address = draw(256) >> (32 - prefix) << (32 - prefix);
                let network = format!("10.0.0.{address}/{prefix}").parse::<Network>();
                let list = usize::from(draw(2) == 0);
                lists[list].push(network.unwrap());
            }
            let [allow, deny] = lists;
            let access = Access::new(&allow, &deny);
            for last in 0..=255 {
                let ip = IpAddr::from([10, 0, 0, last]);
                let longest = |list: &[Network]| {
                    let having = list.iter().filter(|network| network.contains(ip));
                    having.map(Network::prefix).max()
                };
                let expected = match (longest(&allow), longest(&deny)) {
                    (None, None) => allow.is_empty(),
                    (allowed, denied) => allowed > denied,
                };
                assert_eq!(access.lets_in(ip), expected, "{ip}: {allow:?}, {deny:?}");
            }
        }
    }
}
