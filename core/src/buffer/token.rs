//! One-shot rights to take a transferred buffer inside this process.
//!
//! A token is text, so that `postMessage`, JSON and pickle carry it: `olt-<instance>-<number>-<128 random bits>`, all hex.
//! The instance id tells a token of another process (`Invalid`); the number tells a used one (`Detached`) from one that
//! was never made, without keeping used ones; the random bits make it unguessable.

use crate::buffer::Region;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock;
use crate::sys::fork::ForkCell;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

/// The right to take one buffer once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransferToken {
    instance: u64,
    number: u64,
    secret: u128,
}

impl fmt::Display for TransferToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "olt-{:016x}-{:x}-{:032x}", self.instance, self.number, self.secret)
    }
}

impl FromStr for TransferToken {
    type Err = Error;

    fn from_str(s: &str) -> Result<TransferToken> {
        let hex = |part: Option<&str>, max: usize| {
            part.filter(|p| !p.is_empty() && p.len() <= max && p.bytes().all(|b| b.is_ascii_hexdigit()))
                .and_then(|p| u128::from_str_radix(p, 16).ok())
        };
        let mut parts = s.split('-');
        let parsed = (|| {
            (parts.next() == Some("olt")).then_some(())?;
            let (instance, number, secret) = (hex(parts.next(), 16)?, hex(parts.next(), 16)?, hex(parts.next(), 32)?);
            parts.next().is_none().then_some(TransferToken { instance: instance as u64, number: number as u64, secret })
        })();
        parsed.ok_or_else(|| Error::invalid("text is not a transfer token").with("token", s.chars().take(80).collect::<String>()))
    }
}

struct Registry {
    instance: u64,
    next: u64,
    waiting: HashMap<u64, (u128, Arc<Region>)>,
}

static REGISTRY: ForkCell<Mutex<Registry>> = ForkCell::new();

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0u8; N];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(ErrorKind::Os, "no random bytes").with("error", e))?;
    Ok(bytes)
}

fn registry() -> Result<&'static Mutex<Registry>> {
    if let Some(r) = REGISTRY.peek() {
        return Ok(r);
    }
    let instance = u64::from_le_bytes(random()?);
    Ok(REGISTRY.get(|| Mutex::new(Registry { instance, next: 1, waiting: HashMap::new() })))
}

/// A random number that tells this process's core from every other.
///
/// # Errors
/// `Os` without random bytes.
pub fn instance() -> Result<u64> {
    Ok(lock(registry()?).instance)
}

pub(super) fn issue(region: Arc<Region>) -> Result<TransferToken, (Error, Arc<Region>)> {
    let (registry, secret) = match (registry(), random()) {
        (Ok(r), Ok(s)) => (r, u128::from_le_bytes(s)),
        (Err(e), _) | (_, Err(e)) => return Err((e, region)),
    };
    let mut r = lock(registry);
    let number = r.next;
    r.next += 1;
    r.waiting.insert(number, (secret, region));
    Ok(TransferToken { instance: r.instance, number, secret })
}

pub(super) fn take(token: TransferToken) -> Result<Arc<Region>> {
    let mut r = lock(registry()?);
    if token.instance != r.instance {
        return Err(Error::invalid("transfer token belongs to another process").with("token", token));
    }
    match r.waiting.get(&token.number) {
        Some((secret, _)) if *secret == token.secret => {}
        None if token.number != 0 && token.number < r.next => {
            return Err(Error::new(ErrorKind::Detached, "transfer token was already used or revoked").with("token", token));
        }
        _ => return Err(Error::invalid("transfer token was never issued").with("token", token)),
    }
    let (_, region) = r.waiting.remove(&token.number).expect("looked up above, under the same lock");
    Ok(region)
}

/// Frees the bytes behind a token that nobody will take.
///
/// # Errors
/// `Invalid` for a token of another process or one that was never issued, `Detached` for a used one.
pub fn revoke_token(token: TransferToken) -> Result<()> {
    take(token).map(drop)
}

/// Tokens that were issued in this process and neither taken nor revoked.
#[must_use]
pub fn tokens_untaken() -> usize {
    REGISTRY.peek().map_or(0, |r| lock(r).waiting.len())
}
