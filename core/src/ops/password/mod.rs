//! The `password` family: `password.hash`, `password.verify`, `password.derive`.
//!
//! | Algorithm | Standard | Default cost | String |
//! |---|---|---|---|
//! | `argon2id` (default), `argon2i`, `argon2d` | RFC 9106 | 19 MiB, 2 iterations, 1 lane | `$argon2id$v=19$m=19456,t=2,p=1$…` |
//! | `scrypt` | RFC 7914 | N = 2^17, r = 8, p = 1: 128 MiB | `$scrypt$ln=17,r=8,p=1$…` |
//! | `bcrypt` | Provos and Mazières 1999, the `$2b$` of OpenBSD | 2^12 rounds | `$2b$12$…` |
//! | `pbkdf2-sha256`, `pbkdf2-sha512` | RFC 8018 | 600,000 / 210,000 iterations | `$pbkdf2-sha256$i=600000$…` |
//!
//! The defaults are those of the OWASP Password Storage Cheat Sheet (2024). Strings are in PHC form, bcrypt's in the modular
//! crypt form, so that other libraries verify them.
//!
//! **Bounds.** A hash string may come from anywhere, and what it asks for is work and memory. Before any is spent, memory above
//! `max_memory_kib` and work above `max_work_ms` are `TooLarge`. Work is estimated from the parameters by the table in
//! [`Cost::work_ms`], measured on one core of a server (AMD EPYC, third generation); it is an estimate, not a clock.
//!
//! **Cancellation.** scrypt, bcrypt and PBKDF2 look at their token every few milliseconds. Argon2 looks before it starts and
//! when it is done: the library that computes it has no place to stop. That is why the ops say `Cancellable::Never`;
//! a task that is cancelled meanwhile holds its worker for at most the estimate.

mod bcrypt;
mod pbkdf2;
mod phc;
mod scrypt;

use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, ParamDef, ParamDefault, ParamType, Params, Returns};
use crate::value::Value;
use phc::Parsed;
use subtle::ConstantTimeEq;

/// Bytes of a random salt (RFC 9106 section 3.1 recommends 16).
const SALT_LEN: usize = 16;

/// Bytes of a hash in a string.
const HASH_LEN: usize = 32;

const fn optional(name: &'static str, ty: ParamType, about: &'static str) -> ParamDef {
    ParamDef { name, ty, default: ParamDefault::Absent, about }
}

const MEMORY_KIB: ParamDef =
    optional("memory_kib", ParamType::Int { min: 8, max: 1 << 32 }, "argon2: memory in KiB, at least 8 per lane; default 19456 (19 MiB).");
const ITERATIONS: ParamDef = optional(
    "iterations",
    ParamType::Int { min: 1, max: u32::MAX as i64 },
    "argon2: passes over the memory, default 2; pbkdf2: iterations, default 600000 with SHA-256 and 210000 with SHA-512.",
);
const PARALLELISM: ParamDef =
    optional("parallelism", ParamType::Int { min: 1, max: 0xff_ffff }, "argon2, scrypt: lanes (p), computed one after another; default 1.");
const COST: ParamDef = optional(
    "cost",
    ParamType::Int { min: 1, max: 31 },
    "bcrypt: rounds as a power of two, 4 to 31, default 12; scrypt: N as a power of two, default 17.",
);
const BLOCK_SIZE: ParamDef =
    optional("block_size", ParamType::Int { min: 1, max: 1 << 20 }, "scrypt: r, the block size in units of 128 bytes; default 8.");
const SECRET: ParamDef = optional("secret", ParamType::Bytes, "argon2: a key kept apart from the hashes (pepper), at most 64 KiB.");
const MAX_MEMORY_KIB: ParamDef = ParamDef {
    name: "max_memory_kib",
    ty: ParamType::Int { min: 0, max: 1 << 32 },
    default: ParamDefault::Int(256 << 10),
    about: "Most memory in KiB that the costs may ask for; more is `TooLarge`. Default 256 MiB.",
};
const MAX_WORK_MS: ParamDef = ParamDef {
    name: "max_work_ms",
    ty: ParamType::Int { min: 0, max: i64::MAX },
    default: ParamDefault::Int(10_000),
    about: "Most work that the costs may ask for, as estimated milliseconds of one core; more is `TooLarge`. Default 10 s.",
};

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    OpDef {
        name: "password.hash",
        about: "Hashes a password with a random salt into a string that holds everything needed to verify it: \
                PHC form, bcrypt in modular crypt form.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "algorithm",
                ty: ParamType::Enum(&["argon2id", "argon2i", "argon2d", "scrypt", "bcrypt", "pbkdf2-sha256", "pbkdf2-sha512"]),
                default: ParamDefault::Str("argon2id"),
                about: "Algorithm. bcrypt reads 72 bytes at most, up to a zero byte; passwords beyond that are `Invalid`.",
            },
            MEMORY_KIB,
            ITERATIONS,
            PARALLELISM,
            COST,
            BLOCK_SIZE,
            optional("salt", ParamType::Bytes, "Salt of 8 to 48 bytes, bcrypt: 16 bytes; default 16 random bytes. For tests."),
            SECRET,
            MAX_MEMORY_KIB,
            MAX_WORK_MS,
        ],
        returns: Returns::Str,
        cancellable: Cancellable::Never,
        run: hash,
    },
    OpDef {
        name: "password.verify",
        about: "Tells whether a password belongs to a hash string of argon2, scrypt, bcrypt or PBKDF2, in constant time; \
                a string that asks for absurd work or memory is `TooLarge`, a malformed one `Invalid`. So is a password that bcrypt would \
                read only in part, over 72 bytes or with a zero byte, as in password.hash: for a hash that another library made of its \
                first 72 bytes, cut it before the call.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "hash",
                ty: ParamType::Str,
                default: ParamDefault::Required,
                about: "The string that `password.hash` or another library made.",
            },
            SECRET,
            MAX_MEMORY_KIB,
            MAX_WORK_MS,
        ],
        returns: Returns::Bool,
        cancellable: Cancellable::Never,
        run: verify,
    },
    OpDef {
        name: "password.derive",
        about: "Derives key bytes from a password and a salt.",
        inputs: Inputs::One,
        params: &[
            ParamDef {
                name: "algorithm",
                ty: ParamType::Enum(&["argon2id", "argon2i", "argon2d", "scrypt", "pbkdf2-sha256", "pbkdf2-sha512"]),
                default: ParamDefault::Str("argon2id"),
                about: "Algorithm.",
            },
            ParamDef { name: "salt", ty: ParamType::Bytes, default: ParamDefault::Required, about: "Salt; argon2: at least 8 bytes." },
            ParamDef {
                name: "length",
                ty: ParamType::Int { min: 1, max: 1 << 20 },
                default: ParamDefault::Int(32),
                about: "Bytes of output; argon2: at least 4.",
            },
            MEMORY_KIB,
            ITERATIONS,
            PARALLELISM,
            COST,
            BLOCK_SIZE,
            SECRET,
            optional("associated_data", ParamType::Bytes, "argon2: data bound to the key (X of RFC 9106), at most 32 bytes."),
            MAX_MEMORY_KIB,
            MAX_WORK_MS,
        ],
        returns: Returns::Bytes,
        cancellable: Cancellable::Never,
        run: derive,
    },
];

/// An algorithm with its costs, in the terms of its standard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Argon2 { variant: argon2::Algorithm, version: argon2::Version, memory_kib: u64, passes: u32, lanes: u32 },
    Scrypt { log_n: u8, r: u32, p: u32 },
    Bcrypt { cost: u8 },
    Pbkdf2 { sha512: bool, iterations: u32 },
}

impl Cost {
    /// The costs that an op was given, with defaults; `Invalid` for one that another algorithm has.
    fn from_params(op: &'static str, params: &Params) -> Result<Cost> {
        let algorithm = params.str("algorithm");
        let own: &[&str] = match algorithm {
            "scrypt" => &["cost", "block_size", "parallelism"],
            "bcrypt" => &["cost"],
            "pbkdf2-sha256" | "pbkdf2-sha512" => &["iterations"],
            _ => &["memory_kib", "iterations", "parallelism", "secret", "associated_data"],
        };
        let mut all = vec!["memory_kib", "iterations", "parallelism", "cost", "block_size", "secret"];
        if op == "password.derive" {
            all.push("associated_data");
        }
        if let Some(foreign) = all.into_iter().find(|name| !own.contains(name) && params.has(name)) {
            return Err(Error::invalid("option belongs to another algorithm")
                .with("op", op)
                .with("option", foreign)
                .with("algorithm", algorithm)
                .with("has", own.join(" ")));
        }
        let get = |name: &str, default: i64| params.opt_int(name).unwrap_or(default);
        Ok(match algorithm {
            "scrypt" => Cost::Scrypt { log_n: get("cost", 17) as u8, r: get("block_size", 8) as u32, p: get("parallelism", 1) as u32 },
            "bcrypt" => Cost::Bcrypt { cost: get("cost", 12) as u8 },
            "pbkdf2-sha256" => Cost::Pbkdf2 { sha512: false, iterations: get("iterations", 600_000) as u32 },
            "pbkdf2-sha512" => Cost::Pbkdf2 { sha512: true, iterations: get("iterations", 210_000) as u32 },
            _ => Cost::Argon2 {
                variant: match algorithm {
                    "argon2i" => argon2::Algorithm::Argon2i,
                    "argon2d" => argon2::Algorithm::Argon2d,
                    _ => argon2::Algorithm::Argon2id,
                },
                version: argon2::Version::V0x13,
                memory_kib: get("memory_kib", 19_456) as u64,
                passes: get("iterations", 2) as u32,
                lanes: get("parallelism", 1) as u32,
            },
        })
    }

    fn memory_kib(self) -> u64 {
        match self {
            Cost::Argon2 { memory_kib, .. } => memory_kib,
            // V: N blocks of 128 r bytes; B: p of them (RFC 7914 section 6).
            Cost::Scrypt { log_n, r, p } => {
                (u64::from(r) * 128).saturating_mul((1u64 << log_n).saturating_add(u64::from(p))).div_ceil(1024)
            }
            Cost::Bcrypt { .. } => 5,
            Cost::Pbkdf2 { .. } => 1,
        }
    }

    /// Estimated milliseconds on one core: argon2 1 µs per KiB and pass, scrypt 0.25 µs per 128 bytes written or read,
    /// bcrypt 75 µs per round, PBKDF2 0.15 µs (SHA-256) or 0.7 µs (SHA-512) per iteration and block of output.
    fn work_ms(self, output: usize) -> f64 {
        let us = match self {
            Cost::Argon2 { memory_kib, passes, .. } => memory_kib as f64 * f64::from(passes),
            Cost::Scrypt { log_n, r, p } => 0.25 * 2.0 * 2f64.powi(i32::from(log_n)) * f64::from(r) * f64::from(p),
            Cost::Bcrypt { cost } => 75.0 * 2f64.powi(i32::from(cost)),
            Cost::Pbkdf2 { sha512, iterations } => {
                let (us, block) = if sha512 { (0.7, 64) } else { (0.15, 32) };
                us * f64::from(iterations) * output.div_ceil(block) as f64
            }
        };
        us / 1e3
    }

    /// Refuses what the standard forbids, and what is over the limits.
    fn check(self, op: &'static str, params: &Params, output: usize) -> Result<()> {
        let invalid = |what: &'static str| Error::invalid(what).with("op", op);
        match self {
            Cost::Argon2 { memory_kib, lanes, .. } if memory_kib < 8 * u64::from(lanes) => {
                return Err(invalid("argon2 needs 8 KiB per lane").with("memory_kib", memory_kib).with("parallelism", lanes));
            }
            // RFC 7914 section 6: N < 2^(128 r / 8), p ≤ (2^32 - 1) · 32 / (128 r).
            Cost::Scrypt { log_n, r, p } if u64::from(log_n) >= 16 * u64::from(r) || u64::from(r) * u64::from(p) >= 1 << 30 => {
                return Err(invalid("scrypt costs do not fit together").with("cost", log_n).with("block_size", r).with("parallelism", p));
            }
            Cost::Bcrypt { cost } if cost < 4 => {
                return Err(invalid("option is out of range").with("option", "cost").with("value", cost).with("min", 4).with("max", 31));
            }
            _ => {}
        }
        let (memory, max_memory) = (self.memory_kib(), params.int("max_memory_kib") as u64);
        if memory > max_memory {
            return Err(Error::new(ErrorKind::TooLarge, "password cost asks for more memory than its limit")
                .with("op", op)
                .with("memory_kib", memory)
                .with("max_memory_kib", max_memory));
        }
        let (work, max_work) = (self.work_ms(output), params.int("max_work_ms"));
        if work > max_work as f64 {
            return Err(Error::new(ErrorKind::TooLarge, "password cost asks for more work than its limit")
                .with("op", op)
                .with("work_ms", format_args!("{work:.0}"))
                .with("max_work_ms", max_work));
        }
        Ok(())
    }
}

/// What argon2 takes besides password and salt.
#[derive(Default)]
struct Extra<'a> {
    secret: &'a [u8],
    associated_data: &'a [u8],
}

/// Fills `out` with the hash of the password, which is the op's input.
fn compute(op: &'static str, ctx: &OpCtx<'_>, cost: Cost, salt: &[u8], extra: &Extra<'_>, out: &mut [u8]) -> Result<()> {
    ctx.check()?;
    let password = ctx.input();
    match cost {
        Cost::Argon2 { variant, version, memory_kib, passes, lanes } => {
            let invalid = |e: argon2::Error| match e {
                argon2::Error::OutOfMemory => {
                    Error::new(ErrorKind::TooLarge, "argon2 memory cannot be had").with("op", op).with("memory_kib", memory_kib)
                }
                e => Error::invalid("argon2 refused").with("op", op).with("cause", e),
            };
            let mut builder = argon2::ParamsBuilder::new();
            builder.m_cost(u32::try_from(memory_kib).unwrap_or(u32::MAX)).t_cost(passes).p_cost(lanes).output_len(out.len());
            if !extra.associated_data.is_empty() {
                builder.data(argon2::AssociatedData::new(extra.associated_data).map_err(invalid)?);
            }
            let params = builder.build().map_err(invalid)?;
            argon2::Argon2::new_with_secret(extra.secret, variant, version, params)
                .and_then(|a| a.hash_password_into(password, salt, out))
                .map_err(invalid)
        }
        Cost::Scrypt { log_n, r, p } => scrypt::scrypt(op, ctx, password, salt, (log_n, r, p), out),
        Cost::Bcrypt { cost } => {
            let salt =
                salt.try_into().map_err(|_| Error::invalid("bcrypt salt is not 16 bytes").with("op", op).with("salt_len", salt.len()))?;
            let hash = bcrypt::bcrypt(ctx, cost, salt, password)?;
            out.copy_from_slice(&hash[..out.len()]);
            Ok(())
        }
        Cost::Pbkdf2 { sha512: false, iterations } => pbkdf2::pbkdf2::<sha2::Sha256>(ctx, password, salt, iterations, out),
        Cost::Pbkdf2 { sha512: true, iterations } => pbkdf2::pbkdf2::<sha2::Sha512>(ctx, password, salt, iterations, out),
    }
}

fn secret<'a>(op: &'static str, params: &'a Params) -> Result<&'a [u8]> {
    let secret = params.opt_bytes("secret").unwrap_or_default();
    if secret.len() > 64 << 10 {
        return Err(Error::invalid("secret is over 64 KiB").with("op", op).with("secret_len", secret.len()));
    }
    Ok(secret)
}

fn hash(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "password.hash";
    let params = ctx.params();
    let cost = Cost::from_params(OP, params)?;
    let mut random = [0; SALT_LEN];
    let salt = match params.opt_bytes("salt") {
        Some(given) if !(8..=48).contains(&given.len()) => {
            return Err(Error::invalid("salt is not of 8 to 48 bytes").with("op", OP).with("salt_len", given.len()));
        }
        Some(given) => given,
        None => {
            getrandom::fill(&mut random).map_err(|e| Error::os("getrandom", e.raw_os_error().unwrap_or(0)))?;
            &random[..]
        }
    };
    let mut out = [0; HASH_LEN];
    let out = if let Cost::Bcrypt { .. } = cost {
        bcrypt::check_password(OP, ctx.input())?;
        &mut out[..bcrypt::HASH_LEN]
    } else {
        &mut out[..]
    };
    cost.check(OP, params, out.len())?;
    compute(OP, ctx, cost, salt, &Extra { secret: secret(OP, params)?, ..Extra::default() }, out)?;
    Ok(Value::from(phc::format(cost, salt, out)))
}

fn verify(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "password.verify";
    let params = ctx.params();
    let Parsed { cost, salt, hash } = phc::parse(OP, params.str("hash"))?;
    if params.has("secret") && !matches!(cost, Cost::Argon2 { .. }) {
        return Err(Error::invalid("option belongs to another algorithm").with("op", OP).with("option", "secret"));
    }
    if let Cost::Bcrypt { .. } = cost {
        bcrypt::check_password(OP, ctx.input())?;
    }
    cost.check(OP, params, hash.len())?;
    let mut out = vec![0; hash.len()];
    compute(OP, ctx, cost, &salt, &Extra { secret: secret(OP, params)?, ..Extra::default() }, &mut out)?;
    Ok(Value::Bool(out.ct_eq(&hash).into()))
}

fn derive(ctx: &mut OpCtx<'_>) -> Result<Value> {
    const OP: &str = "password.derive";
    let params = ctx.params();
    let cost = Cost::from_params(OP, params)?;
    let mut out = vec![0; params.int("length") as usize];
    cost.check(OP, params, out.len())?;
    let extra = Extra { secret: secret(OP, params)?, associated_data: params.opt_bytes("associated_data").unwrap_or_default() };
    compute(OP, ctx, cost, params.opt_bytes("salt").unwrap_or_default(), &extra, &mut out)?;
    Ok(Value::from(out))
}
