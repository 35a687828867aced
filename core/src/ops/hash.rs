//! The `hash` family: SHA-2, BLAKE3, XXH3 and CRC-32.
//!
//! | Op | Standard | Crate | Split over workers |
//! |---|---|---|---|
//! | `sha224` … `sha512_256` | FIPS 180-4 | `sha2`, SHA-NI / AVX2 / ARMv8 chosen at run time | no: the chain is serial |
//! | `blake3` | the BLAKE3 paper, sections 2.4 and 2.5 | `blake3`, SIMD chosen at run time | subtrees of 1 MiB |
//! | `xxh3` | xxHash 0.8 specification | `xxhash-rust` | no |
//! | `crc32` | ISO 3309, RFC 1952 section 8 | `crc32fast`, carry-less multiply chosen at run time | pieces of 4 MiB, combined |
//!
//! Every op looks at its token before each MiB ([`STEP`]) of input.

use crate::error::{Error, Result};
use crate::ops::{Cancellable, Inputs, OpCtx, OpDef, ParamDef, ParamDefault, ParamType, Returns};
use crate::sync::lock;
use crate::value::Value;
use blake3::hazmat::{self, HasherExt, Mode};
use sha2::Digest;
use std::fmt::Write;
use std::sync::Mutex;

/// Input bytes between two looks at the token. A power of two, as a BLAKE3 subtree must be.
const STEP: usize = 1 << 20;

/// Bytes of one piece of a split CRC-32: about 0.4 ms of work, against some 10 µs to wake a worker.
const CRC_PIECE: usize = 4 << 20;

const ENCODING: ParamDef = ParamDef {
    name: "encoding",
    ty: ParamType::Enum(&["bytes", "hex", "base64"]),
    default: ParamDefault::Str("bytes"),
    about: "Form of the result: bytes, or text in lower-case hexadecimal or padded standard base64.",
};

/// One row for a SHA-2 function.
macro_rules! sha2_op {
    ($name:literal, $hash:ty, $title:literal, $bits:literal) => {
        OpDef {
            name: $name,
            about: concat!("Computes the ", $title, " digest (FIPS 180-4) of its input: ", $bits, " bytes."),
            inputs: Inputs::One,
            params: &[ENCODING],
            returns: Returns::Encoded,
            cancellable: Cancellable::Always,
            run: |ctx| sha2_digest::<$hash>(ctx),
        }
    };
}

/// The ops of this family.
pub(super) const OPS: &[OpDef] = &[
    sha2_op!("sha256", sha2::Sha256, "SHA-256", "32"),
    sha2_op!("sha512", sha2::Sha512, "SHA-512", "64"),
    sha2_op!("sha224", sha2::Sha224, "SHA-224", "28"),
    sha2_op!("sha384", sha2::Sha384, "SHA-384", "48"),
    sha2_op!("sha512_256", sha2::Sha512_256, "SHA-512/256", "32"),
    OpDef {
        name: "blake3",
        about: "Computes the BLAKE3 hash of its input, plain, keyed or as a key derivation; large inputs are split over idle workers.",
        inputs: Inputs::One,
        params: &[
            ENCODING,
            ParamDef {
                name: "length",
                ty: ParamType::Int { min: 1, max: 1 << 20 },
                default: ParamDefault::Int(32),
                about: "Bytes of output.",
            },
            ParamDef {
                name: "key",
                ty: ParamType::Bytes,
                default: ParamDefault::Absent,
                about: "Key of exactly 32 bytes: computes the keyed hash (a MAC). Excludes `context`.",
            },
            ParamDef {
                name: "context",
                ty: ParamType::Str,
                default: ParamDefault::Absent,
                about: "Context string, unique to the application: derives a key from the input (`derive_key`). Excludes `key`.",
            },
        ],
        returns: Returns::Encoded,
        cancellable: Cancellable::Always,
        run: blake3_hash,
    },
    OpDef {
        name: "xxh3",
        about: "Computes the XXH3 hash of its input, for tables and change detection, not against an adversary. \
                The bytes are the canonical, big-endian form that `xxhsum` prints.",
        inputs: Inputs::One,
        params: &[
            ENCODING,
            ParamDef {
                name: "bits",
                ty: ParamType::Int { min: 64, max: 128 },
                default: ParamDefault::Int(64),
                about: "Width of the hash: 64 or 128 bits.",
            },
            ParamDef {
                name: "seed",
                ty: ParamType::Int { min: i64::MIN, max: i64::MAX },
                default: ParamDefault::Int(0),
                about: "Seed; a negative one stands for its two's complement of 64 bits.",
            },
        ],
        returns: Returns::Encoded,
        cancellable: Cancellable::Always,
        run: xxh3,
    },
    OpDef {
        name: "crc32",
        about: "Computes the CRC-32 (ISO 3309, as in gzip and PNG) of its input, from 0 to 4294967295; \
                large inputs are split over idle workers.",
        inputs: Inputs::One,
        params: &[ParamDef {
            name: "value",
            ty: ParamType::Int { min: 0, max: u32::MAX as i64 },
            default: ParamDefault::Int(0),
            about: "CRC-32 of the bytes before this input, to go on from there.",
        }],
        returns: Returns::Int,
        cancellable: Cancellable::Always,
        run: crc32,
    },
];

/// The digest in the form that option `encoding` asks for.
fn encoded(ctx: &OpCtx<'_>, digest: Vec<u8>) -> Value {
    match ctx.params().str("encoding") {
        "hex" => Value::from(hex(&digest)),
        "base64" => Value::from(base64(&digest)),
        _ => Value::from(digest),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

/// RFC 4648 section 4, padded.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let n = group.iter().enumerate().fold(0u32, |n, (i, b)| n | u32::from(*b) << (16 - 8 * i));
        for i in 0..4 {
            out.push(if i <= group.len() { char::from(ALPHABET[(n >> (18 - 6 * i) & 63) as usize]) } else { '=' });
        }
    }
    out
}

fn sha2_digest<D: Digest>(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let mut hash = D::new();
    for piece in ctx.input().chunks(STEP) {
        ctx.check()?;
        hash.update(piece);
    }
    Ok(encoded(ctx, hash.finalize().to_vec()))
}

fn blake3_hash(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let params = ctx.params();
    let mut out = vec![0; params.int("length") as usize];
    let key: Option<[u8; 32]> = params
        .opt_bytes("key")
        .map(|k| k.try_into().map_err(|_| Error::invalid("key is not 32 bytes").with("op", "blake3").with("key_len", k.len())))
        .transpose()?;
    let context = params.opt_str("context").map(hazmat::hash_derive_key_context);
    let mode = match (&key, &context) {
        (Some(_), Some(_)) => return Err(Error::invalid("key and context exclude each other").with("op", "blake3")),
        (Some(key), None) => Mode::KeyedHash(key),
        (None, Some(context)) => Mode::DeriveKeyMaterial(context),
        (None, None) => Mode::Hash,
    };
    let hasher = || match mode {
        Mode::Hash => blake3::Hasher::new(),
        Mode::KeyedHash(key) => blake3::Hasher::new_keyed(key),
        Mode::DeriveKeyMaterial(context) => blake3::Hasher::new_from_context_key(context),
    };
    let input = ctx.input();
    if ctx.width() == 1 || input.len() < 2 * STEP {
        let mut hash = hasher();
        for piece in input.chunks(STEP) {
            ctx.check()?;
            hash.update(piece);
        }
        hash.finalize_xof().fill(&mut out);
    } else {
        let leaves: Vec<Mutex<hazmat::ChainingValue>> = input.chunks(STEP).map(|_| Mutex::default()).collect();
        ctx.parallel(leaves.len(), &|i| {
            let piece = &input[i * STEP..input.len().min((i + 1) * STEP)];
            let value = hasher().set_input_offset((i * STEP) as u64).update(piece).finalize_non_root();
            *lock(&leaves[i]) = value;
            Ok(())
        })?;
        let leaves: Vec<hazmat::ChainingValue> = leaves.iter().map(|l| *lock(l)).collect();
        // The left side of the root is the largest power of two of whole pieces that leaves something for the right.
        let (left, right) = leaves.split_at(left_leaves(leaves.len()));
        hazmat::merge_subtrees_root_xof(&subtree(left, mode), &subtree(right, mode), mode).fill(&mut out);
    }
    Ok(encoded(ctx, out))
}

/// Leaves on the left of a node over `n` ≥ 2 leaves: the largest power of two below `n` (BLAKE3 paper, section 2.1).
fn left_leaves(n: usize) -> usize {
    n.next_power_of_two() / 2
}

fn subtree(leaves: &[hazmat::ChainingValue], mode: Mode<'_>) -> hazmat::ChainingValue {
    if let [one] = leaves {
        return *one;
    }
    let (left, right) = leaves.split_at(left_leaves(leaves.len()));
    hazmat::merge_subtrees_non_root(&subtree(left, mode), &subtree(right, mode), mode)
}

fn xxh3(ctx: &mut OpCtx<'_>) -> Result<Value> {
    use xxhash_rust::xxh3;
    let bits = ctx.params().int("bits");
    let seed = ctx.params().int("seed") as u64;
    if bits != 64 && bits != 128 {
        return Err(Error::invalid("bits is neither 64 nor 128").with("op", "xxh3").with("bits", bits));
    }
    let input = ctx.input();
    let digest = if input.len() <= STEP {
        ctx.check()?;
        // One call knows the short forms and needs no 576 bytes of state.
        if bits == 64 {
            xxh3::xxh3_64_with_seed(input, seed).to_be_bytes().to_vec()
        } else {
            xxh3::xxh3_128_with_seed(input, seed).to_be_bytes().to_vec()
        }
    } else {
        let mut hash = xxh3::Xxh3::with_seed(seed);
        for piece in input.chunks(STEP) {
            ctx.check()?;
            hash.update(piece);
        }
        if bits == 64 { hash.digest().to_be_bytes().to_vec() } else { hash.digest128().to_be_bytes().to_vec() }
    };
    Ok(encoded(ctx, digest))
}

fn crc32(ctx: &mut OpCtx<'_>) -> Result<Value> {
    let input = ctx.input();
    let mut crc = crc32fast::Hasher::new_with_initial(ctx.params().int("value") as u32);
    if ctx.width() == 1 || input.len() < 2 * CRC_PIECE {
        for piece in input.chunks(STEP) {
            ctx.check()?;
            crc.update(piece);
        }
    } else {
        let pieces: Vec<(&[u8], Mutex<crc32fast::Hasher>)> = input.chunks(CRC_PIECE).map(|p| (p, Mutex::default())).collect();
        ctx.parallel(pieces.len(), &|i| {
            let mut own = crc32fast::Hasher::new();
            for piece in pieces[i].0.chunks(STEP) {
                ctx.check()?;
                own.update(piece);
            }
            *lock(&pieces[i].1) = own;
            Ok(())
        })?;
        for (_, own) in &pieces {
            crc.combine(&lock(own));
        }
    }
    Ok(Value::Int(crc.finalize().into()))
}
