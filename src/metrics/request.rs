//! What a client asks for, or what is wrong with it: the head of an HTTP/1 request (RFC 9112), nothing of its body.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest head, bytes, and the most header fields in it.
pub(super) const LONGEST: usize = 8 * 1024;
const FIELDS: usize = 64;

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Without what stands behind a question mark.
    pub(super) path: String,
    /// Only the head of the answer is wanted.
    pub(super) is_head: bool,
    /// The text format of `OpenMetrics` is wanted, rather than that of Prometheus.
    pub(super) open_metrics: bool,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Malformed,
    /// Neither GET nor HEAD.
    Method,
    TooLong,
    /// The `Host` is a name that is not this server's: a page from elsewhere may ask by a name of its own that leads here
    /// (DNS rebinding).
    Host,
}

impl Request {
    /// The request that `bytes` begin with; `None`: more of it is to come. `hosts` are names by which the server may be
    /// asked.
    pub(super) fn parse(bytes: &[u8], hosts: &[String]) -> Result<Option<Self>, Refusal> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Partial) if bytes.len() >= LONGEST => {
                return Err(Refusal::TooLong);
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(length)) if length > LONGEST => {
                return Err(Refusal::TooLong);
            }
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLong),
            Err(_) => return Err(Refusal::Malformed),
        }
        let named = |name: &'static str| {
            let fields = request.headers.iter();
            let fields = fields.filter(move |field| field.name.eq_ignore_ascii_case(name));
            fields.map(|field| str::from_utf8(field.value).ok())
        };
        // HTTP/1.1 has it exactly once (RFC 9112, 3.2), HTTP/1.0 may go without.
        let mut host = named("host");
        match (host.next(), host.next(), request.version) {
            (Some(Some(host)), None, _) if is_ours(host.trim(), hosts) => {}
            (Some(Some(_)), None, _) => return Err(Refusal::Host),
            (None, None, Some(0)) => {}
            _ => return Err(Refusal::Malformed),
        }
        let is_head = match request.method {
            Some("GET") => false,
            Some("HEAD") => true,
            _ => return Err(Refusal::Method),
        };
        let target = request.path.unwrap_or_default();
        let path = target.split(['?', '#']).next().unwrap_or_default();
        let open_metrics = named("accept").flatten().any(prefers_open_metrics);
        Ok(Some(Self {
            path: path.to_owned(),
            is_head,
            open_metrics,
        }))
    }
}

/// Whether `host`, with or without a port, is an address, `localhost`, or one of `hosts`.
fn is_ours(host: &str, hosts: &[String]) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || is_port(port));
    }
    let name = match host.split_once(':') {
        None => host,
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return false,
    };
    let is_name = |ours: &str| ours.eq_ignore_ascii_case(name.trim_end_matches('.'));
    name.parse::<Ipv4Addr>().is_ok() || is_name("localhost") || hosts.iter().any(|it| is_name(it))
}

fn is_port(port: &str) -> bool {
    let port = port.strip_prefix(':');
    port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether an `Accept` names `OpenMetrics` before plain text: by quality (RFC 9110, 12.5.1), in a tie as it is written.
fn prefers_open_metrics(accept: &str) -> bool {
    let quality = |kind: &str| {
        let named = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next()?.eq_ignore_ascii_case(kind);
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            let quality = quality.map_or(Some(1.0), |quality| quality.parse::<f32>().ok());
            named.then_some(quality.unwrap_or(0.0))
        });
        named.fold(0.0, f32::max)
    };
    let open = quality("application/openmetrics-text");
    open > 0.0 && open >= quality("text/plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Option<Request>, Refusal> {
        Request::parse(head.as_bytes(), &["metrics.example".to_owned()])
    }

    #[test]
    fn a_request_is_known_by_its_head() {
        let head = "GET /metrics?x=1 HTTP/1.1\r\nHost: 127.0.0.1:9100\r\n\r\n";
        let request = parse(head).unwrap().unwrap();
        assert_eq!(request.path, "/metrics");
        assert!(!request.is_head && !request.open_metrics);
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end]), Ok(None), "{end}");
        }
        assert!(parse("HEAD / HTTP/1.0\r\n\r\n").unwrap().unwrap().is_head);
    }

    #[test]
    fn a_host_is_an_address_localhost_or_a_name_that_was_given() {
        let asked = |host: &str| parse(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        for ours in [
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]",
            "[::1]:9100",
            "localhost",
            "LocalHost:1",
            "metrics.example:9100",
        ] {
            assert!(matches!(asked(ours), Ok(Some(_))), "{ours}");
        }
        for other in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "[::1].evil.example",
            "[evil]",
            "[::1",
            "localhost:80:80",
            "",
        ] {
            assert_eq!(asked(other), Err(Refusal::Host), "{other}");
        }
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n"), Err(Refusal::Malformed));
        let twice = "GET / HTTP/1.1\r\nHost: ::1\r\nHost: localhost\r\n\r\n";
        assert_eq!(parse(twice), Err(Refusal::Malformed));
    }

    #[test]
    fn what_is_no_request_or_too_long_is_refused() {
        let post = "POST / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(parse(post), Err(Refusal::Method));
        for garbage in [
            "\0\0\0\0",
            "GET\r\n\r\n",
            "GET / HTTP/2.0\r\n\r\n",
            "\u{16}\u{3}",
        ] {
            assert_eq!(parse(garbage), Err(Refusal::Malformed), "{garbage:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(LONGEST));
        assert_eq!(parse(&long), Err(Refusal::TooLong));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert_eq!(parse(&many), Err(Refusal::TooLong));
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        // What Prometheus 2.42 sends.
        assert!(prefers_open_metrics(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
             text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        ));
        for accept in [
            "*/*",
            "text/plain;version=0.0.4",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0",
        ] {
            assert!(!prefers_open_metrics(accept), "{accept}");
        }
    }
}
