//! What is asked, where, and by which clients: the URL, the mix. Pure but for the resolver.

use crate::error::{Error, ErrorKind, Result};
use crate::sys::stream::{Peer, check_path};
use std::net::{Ipv6Addr, ToSocketAddrs};
use std::path::{Path, PathBuf};

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    /// A name or an address, of IPv6 without its brackets.
    host: String,
    port: u16,
    /// As in the field `Host`.
    pub(super) authority: String,
    /// Path and query.
    pub(super) path: String,
    pub(super) text: String,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Url> {
        let wrong = |what: &'static str| Err(Error::invalid(what).with("url", text));
        let Some((scheme, rest)) = text.split_once("://") else { return wrong("url has no scheme, as http:// is one") };
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(Error::new(ErrorKind::Unsupported, "scheme is not http").with("scheme", scheme).with("url", text));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return wrong("url has a user, which a field `authorization` says instead");
        }
        let (host, port, brackets) = match authority.strip_prefix('[') {
            Some(v6) => {
                let Some((host, port)) = v6.split_once(']') else { return wrong("url's IPv6 address has no end") };
                if host.parse::<Ipv6Addr>().is_err() {
                    return wrong("url's host in brackets is no IPv6 address");
                }
                (host, port, true)
            }
            None => {
                let at = authority.find(':').unwrap_or(authority.len());
                (&authority[..at], &authority[at..], false)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => 80,
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port > 0 && !digits.starts_with('+') => port,
                _ => return wrong("url's port is outside 1 to 65535"),
            },
            None => return wrong("url's host is followed by something"),
        };
        let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if host.is_empty() || !visible(host) {
            return wrong("url has no host, or one that is no ASCII name");
        }
        if !visible(path) {
            return wrong("url has a character that has to be percent-encoded");
        }
        let shown = if brackets { format!("[{host}]") } else { host.to_owned() };
        Ok(Url {
            authority: if port == 80 { shown } else { format!("{shown}:{port}") },
            host: host.to_owned(),
            port,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            text: text.to_owned(),
        })
    }

    /// Whom to connect to, in the order of the resolver; at least one.
    pub(super) fn peers(&self) -> Result<Vec<Peer>> {
        let failed = |e: std::io::Error| Error::new(ErrorKind::NotFound, "host has no address").with("host", &self.host).with("error", e);
        let found: Vec<Peer> = (self.host.as_str(), self.port).to_socket_addrs().map_err(failed)?.map(Peer::Tcp).collect();
        if found.is_empty() { Err(Error::new(ErrorKind::NotFound, "host has no address").with("host", &self.host)) } else { Ok(found) }
    }
}

/// A unix socket instead of the URL's host.
pub(super) fn unix(path: &Path) -> Result<Vec<Peer>> {
    check_path(path)?;
    Ok(vec![Peer::Unix(PathBuf::from(path))])
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    New,
    Keep,
    SlowBody,
    SlowRead,
}

impl Behaviour {
    pub(super) const ALL: [Behaviour; 4] = [Behaviour::New, Behaviour::Keep, Behaviour::SlowBody, Behaviour::SlowRead];

    pub(super) fn name(self) -> &'static str {
        match self {
            Behaviour::New => "new",
            Behaviour::Keep => "keep",
            Behaviour::SlowBody => "slow-body",
            Behaviour::SlowRead => "slow-read",
        }
    }
}

/// How many of the clients behave in which way, by weight; in the order of [`Behaviour::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mix(pub(super) [u32; 4]);

impl Mix {
    /// `new=8,keep=4`: a weight each, 1 where none is said.
    pub(super) fn parse(text: &str) -> Result<Mix, String> {
        let mut weights = [0; 4];
        let mut said = [false; 4];
        for item in text.split(',') {
            let (name, weight) = item.split_once('=').unwrap_or((item, "1"));
            let Some(at) = Behaviour::ALL.iter().position(|b| b.name() == name) else {
                return Err(format!("{name} is none of new, keep, slow-body, slow-read"));
            };
            if std::mem::replace(&mut said[at], true) {
                return Err(format!("{name} is given twice"));
            }
            weights[at] = weight.parse().ok().filter(|w| *w <= 1_000_000).ok_or(format!("{weight} is no weight from 0 to 1000000"))?;
        }
        if weights.iter().all(|w| *w == 0) { Err("all weights are 0".into()) } else { Ok(Mix(weights)) }
    }

    /// So many clients, shared out by weight, each behaviour with a weight having one at least.
    pub(super) fn share(&self, clients: usize) -> Result<[usize; 4]> {
        let kinds = self.0.iter().filter(|w| **w > 0).count();
        if clients < kinds {
            return Err(Error::invalid("fewer connections than behaviours in the mix")
                .with("connections", clients)
                .with("behaviours", kinds));
        }
        let total: i64 = self.0.iter().map(|w| i64::from(*w)).sum();
        let mut shares = self.0.map(|w| i64::from(w > 0));
        for _ in kinds..clients {
            // To the one that is furthest below its due.
            let ahead = |i: &usize| shares[*i] * total - i64::from(self.0[*i]) * clients as i64;
            if let Some(least) = (0..4).filter(|i| self.0[*i] > 0).min_by_key(ahead) {
                shares[least] += 1;
            }
        }
        Ok(shares.map(|n| n as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_whom_to_ask_for_what() {
        let parts = |text: &str| {
            let url = Url::parse(text).expect("url");
            (url.host, url.port, url.authority, url.path)
        };
        let some = |host: &str, port, authority: &str, path: &str| (host.to_owned(), port, authority.to_owned(), path.to_owned());
        assert_eq!(parts("http://localhost"), some("localhost", 80, "localhost", "/"));
        assert_eq!(parts("HTTP://h:8080/a/b?c=d#e"), some("h", 8080, "h:8080", "/a/b?c=d"));
        assert_eq!(parts("http://h?q"), some("h", 80, "h", "/?q"));
        assert_eq!(parts("http://h:80/"), some("h", 80, "h", "/"));
        assert_eq!(parts("http://[::1]:3000/x"), some("::1", 3000, "[::1]:3000", "/x"));
        let Peer::Tcp(v6) = Url::parse("http://[::1]:3000/").and_then(|u| u.peers()).expect("peers")[0].clone() else { panic!("unix") };
        assert_eq!(v6.to_string(), "[::1]:3000");
    }

    #[test]
    fn a_url_that_says_no_such_thing_is_refused() {
        for (text, kind, told) in [
            ("https://h/", ErrorKind::Unsupported, "scheme is not http"),
            ("ftp://h/", ErrorKind::Unsupported, "scheme is not http"),
            ("localhost:80", ErrorKind::Invalid, "no scheme"),
            ("http:///x", ErrorKind::Invalid, "no host"),
            ("http://:80", ErrorKind::Invalid, "no host"),
            ("http://h:0", ErrorKind::Invalid, "port"),
            ("http://h:+1", ErrorKind::Invalid, "port"),
            ("http://h:65536", ErrorKind::Invalid, "port"),
            ("http://h:", ErrorKind::Invalid, "port"),
            ("http://u:p@h/", ErrorKind::Invalid, "user"),
            ("http://[::1", ErrorKind::Invalid, "no end"),
            ("http://[h]/", ErrorKind::Invalid, "no IPv6"),
            ("http://[::1]x/", ErrorKind::Invalid, "followed"),
            ("http://h/a b", ErrorKind::Invalid, "percent-encoded"),
            ("http://h/\r\nX: y", ErrorKind::Invalid, "percent-encoded"),
            ("http://h/ä", ErrorKind::Invalid, "percent-encoded"),
        ] {
            let e = Url::parse(text).expect_err(text);
            assert!(e.kind() == kind && e.message().contains(told), "{text}: {e}");
        }
        let e = Url::parse("http://no-such-host.invalid/").and_then(|u| u.peers()).expect_err("a name that is never given");
        assert_eq!(e.kind(), ErrorKind::NotFound);
        assert!(unix(Path::new(&"x".repeat(200))).is_err());
    }

    #[test]
    fn clients_are_shared_out_by_weight() {
        let share = |text: &str, n| Mix::parse(text).expect("mix").share(n);
        assert_eq!(share("new=8,keep=4,slow-body=2,slow-read=2", 16).expect("shares"), [8, 4, 2, 2]);
        assert_eq!(share("keep", 5).expect("shares"), [0, 5, 0, 0]);
        assert_eq!(share("new,keep,slow-read", 4).expect("shares").iter().sum::<usize>(), 4);
        assert_eq!(share("new=1000,slow-read=1", 4).expect("shares"), [3, 0, 0, 1]);
        assert_eq!(share("new=0,keep=2", 2).expect("shares"), [0, 2, 0, 0]);
        let e = share("new,keep,slow-read", 2).expect_err("too few");
        assert!(e.to_string().contains("connections=2") && e.to_string().contains("behaviours=3"), "{e}");
        // All are shared out, none is left without, and nobody is a client or more away from its weight unless it has its one.
        for n in 4..60 {
            for weights in [[1, 1, 1, 1], [8, 4, 2, 2], [97, 1, 1, 1], [3, 0, 5, 11], [1_000_000, 1, 999_999, 2]] {
                let shares = Mix(weights).share(n).expect("shares");
                assert_eq!(shares.iter().sum::<usize>(), n);
                let total: u32 = weights.iter().sum();
                let bumped = (0..4).filter(|i| weights[*i] > 0 && f64::from(weights[*i]) * (n as f64) < f64::from(total)).count() as f64;
                for i in 0..4 {
                    assert_eq!(shares[i] > 0, weights[i] > 0, "{weights:?} {n}: {shares:?}");
                    let exact = f64::from(weights[i]) * n as f64 / f64::from(total);
                    assert!(shares[i] == 1 || (shares[i] as f64 - exact).abs() < 1.0 + bumped, "{weights:?} {n}: {shares:?}");
                }
            }
        }
    }

    #[test]
    fn a_mix_that_is_none_is_refused() {
        for (text, told) in [
            ("old=1", "old is none of new"),
            ("", "is none of"),
            ("new=0", "all weights are 0"),
            ("new=1,new=2", "new is given twice"),
            ("new=-1", "-1 is no weight"),
            ("new=1000001", "1000001 is no weight"),
            ("new=x", "x is no weight"),
        ] {
            let e = Mix::parse(text).expect_err(text);
            assert!(e.contains(told), "{text}: {e}");
        }
    }
}
