//! Hash strings: the PHC string format (`$id$v=…$name=value,…$salt$hash`, unpadded base64) and bcrypt's modular crypt form
//! (`$2b$cost$salt+hash`, 22 and 31 digits of an alphabet of its own).
//!
//! Read as well: argon2 without `v` (version 16), `$2a$` and `$2y$`, PBKDF2 with RustCrypto's `l=`, and passlib's PBKDF2
//! (`$pbkdf2-sha256$29000$…` with `.` in place of `+`).

use super::{Cost, bcrypt};
use crate::error::{Error, ErrorKind, Result};
use argon2::{Algorithm, Version};
use base64ct::{Base64Bcrypt, Base64Unpadded, Encoding};

/// Longest string that is read; the longest that is made has 150 characters.
const MAX_STRING: usize = 1024;

/// Bytes of a salt and of a hash that are accepted in a string; a hash below 10 bytes could be met by chance.
const SALT: std::ops::RangeInclusive<usize> = 1..=64;
const HASH: std::ops::RangeInclusive<usize> = 10..=128;

/// A hash string, taken apart.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) cost: Cost,
    pub(super) salt: Vec<u8>,
    pub(super) hash: Vec<u8>,
}

pub(super) fn format(cost: Cost, salt: &[u8], hash: &[u8]) -> String {
    let head = match cost {
        Cost::Bcrypt { cost } => {
            return format!("$2b${cost:02}${}{}", Base64Bcrypt::encode_string(salt), Base64Bcrypt::encode_string(hash));
        }
        Cost::Argon2 { variant, version, memory_kib, passes, lanes } => {
            format!("${}$v={}$m={memory_kib},t={passes},p={lanes}", variant.as_str(), u32::from(version))
        }
        Cost::Scrypt { log_n, r, p } => format!("$scrypt$ln={log_n},r={r},p={p}"),
        Cost::Pbkdf2 { sha512, iterations } => format!("$pbkdf2-{}$i={iterations}", if sha512 { "sha512" } else { "sha256" }),
    };
    format!("{head}${}${}", Base64Unpadded::encode_string(salt), Base64Unpadded::encode_string(hash))
}

pub(super) fn parse(op: &'static str, string: &str) -> Result<Parsed> {
    let malformed = |what: &'static str| Error::invalid(what).with("op", op).with("option", "hash");
    if string.len() > MAX_STRING {
        return Err(malformed("hash string is too long").with("len", string.len()).with("max", MAX_STRING));
    }
    let Some(body) = string.strip_prefix('$') else { return Err(malformed("hash string does not begin with $")) };
    let mut parts = body.split('$');
    let id = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let (cost, salt, hash, alphabet) = match id {
        "2a" | "2b" | "2y" => return parse_bcrypt(&rest).ok_or_else(|| malformed("bcrypt hash string is malformed")),
        "argon2id" | "argon2i" | "argon2d" => {
            let variant = match id {
                "argon2id" => Algorithm::Argon2id,
                "argon2i" => Algorithm::Argon2i,
                _ => Algorithm::Argon2d,
            };
            let (version, rest) = match rest.split_first() {
                Some((&"v=19", rest)) => (Version::V0x13, rest),
                Some((&"v=16", rest)) => (Version::V0x10, rest),
                Some((v, _)) if v.starts_with("v=") => {
                    return Err(Error::new(ErrorKind::Unsupported, "argon2 version is not 16 or 19")
                        .with("op", op)
                        .with("version", v.chars().skip(2).take(20).collect::<String>()));
                }
                _ => (Version::V0x10, &rest[..]),
            };
            let [costs, salt, hash] = rest else { return Err(malformed("argon2 hash string is malformed")) };
            let [m, t, p] = named(costs, ["m", "t", "p"]).ok_or_else(|| malformed("argon2 costs are not m, t, p"))?;
            (Cost::Argon2 { variant, version, memory_kib: m.into(), passes: t, lanes: p }, *salt, *hash, Alphabet::Standard)
        }
        "scrypt" => {
            let [costs, salt, hash] = rest[..] else { return Err(malformed("scrypt hash string is malformed")) };
            let costs = named(costs, ["ln", "r", "p"]).filter(|[ln, ..]| (1..64).contains(ln));
            let [ln, r, p] = costs.ok_or_else(|| malformed("scrypt costs are not ln, r, p"))?;
            (Cost::Scrypt { log_n: ln as u8, r, p }, salt, hash, Alphabet::Standard)
        }
        "pbkdf2-sha256" | "pbkdf2-sha512" => {
            let [costs, salt, hash] = rest[..] else { return Err(malformed("pbkdf2 hash string is malformed")) };
            let (iterations, alphabet) = if let Some(i) = number(costs) {
                (i, Alphabet::Passlib)
            } else if let Some([i]) = named(costs, ["i"]) {
                (i, Alphabet::Standard)
            } else if let Some([i, l]) = named(costs, ["i", "l"]) {
                let hash_len = hash.len() * 3 / 4;
                if l as usize != hash_len {
                    return Err(malformed("pbkdf2 length differs from its hash").with("l", l).with("hash_len", hash_len));
                }
                (i, Alphabet::Standard)
            } else {
                return Err(malformed("pbkdf2 costs are not i"));
            };
            (Cost::Pbkdf2 { sha512: id == "pbkdf2-sha512", iterations }, salt, hash, alphabet)
        }
        other => {
            return Err(Error::new(ErrorKind::Unsupported, "unknown hash algorithm")
                .with("op", op)
                .with("algorithm", other.chars().take(40).collect::<String>()));
        }
    };
    let decode = |text: &str| match alphabet {
        Alphabet::Standard => Base64Unpadded::decode_vec(text),
        Alphabet::Passlib => Base64Unpadded::decode_vec(&text.replace('.', "+")),
    };
    let salt = decode(salt).ok().filter(|s| SALT.contains(&s.len())).ok_or_else(|| malformed("salt of the hash string is malformed"))?;
    let hash = decode(hash).ok().filter(|h| HASH.contains(&h.len())).ok_or_else(|| malformed("hash of the hash string is malformed"))?;
    let zero = matches!(cost, Cost::Argon2 { passes: 0, .. } | Cost::Argon2 { lanes: 0, .. } | Cost::Scrypt { r: 0, .. })
        || matches!(cost, Cost::Scrypt { p: 0, .. } | Cost::Pbkdf2 { iterations: 0, .. });
    if zero {
        return Err(malformed("a cost of the hash string is zero"));
    }
    Ok(Parsed { cost, salt, hash })
}

enum Alphabet {
    Standard,
    /// Standard with `.` in place of `+`.
    Passlib,
}

fn parse_bcrypt(rest: &[&str]) -> Option<Parsed> {
    let [cost, digits] = rest else { return None };
    if cost.len() != 2 || digits.len() != 53 || !digits.is_ascii() {
        return None;
    }
    let cost = number(cost).filter(|c| (4..=31).contains(c))? as u8;
    let (salt, hash) = digits.split_at(22);
    let salt = decode_bcrypt(salt)?;
    let hash = decode_bcrypt(hash)?;
    (salt.len() == 16 && hash.len() == bcrypt::HASH_LEN).then_some(Parsed { cost: Cost::Bcrypt { cost }, salt, hash })
}

/// Decodes bcrypt's digits. The last one of 22 or 31 carries bits beyond the bytes; old libraries left them set, and
/// verified such strings nevertheless, so they are cleared before a decoder that wants them zero.
fn decode_bcrypt(digits: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mask = match digits.len() % 4 {
        2 => !0xf,
        3 => !0x3,
        _ => !0,
    };
    let (last, head) = digits.as_bytes().split_last()?;
    let value = DIGITS.iter().position(|d| d == last)?;
    let mut clean = head.to_vec();
    clean.push(DIGITS[value & mask]);
    Base64Bcrypt::decode_vec(std::str::from_utf8(&clean).ok()?).ok()
}

/// A decimal number without sign or leading zeros, as PHC wants; two-digit bcrypt costs may begin with a zero.
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// `a=1,b=2` with exactly these names in this order.
fn named<const N: usize>(text: &str, names: [&str; N]) -> Option<[u32; N]> {
    let mut out = [0; N];
    let mut parts = text.split(',');
    for (out, name) in out.iter_mut().zip(names) {
        *out = number(parts.next()?.strip_prefix(name)?.strip_prefix('=')?)?;
    }
    parts.next().is_none().then_some(out)
}
