//! What a running op owes its caller: it looks at its token often enough, stops when told to, and gives the same result
//! however many workers help.
#![cfg(all(feature = "hash", feature = "compress", feature = "password"))]
#![allow(clippy::unwrap_used, reason = "a test")]

use offloop::ops::{self, Cancellable, Control, OpCtx, Params, Splitter};
use offloop::{Bytes, Error, ErrorKind, Result, Value};
use std::sync::atomic::{AtomicUsize, Ordering};

const MIB: usize = 1 << 20;

/// Counts the looks at the token and says `Cancelled` from the `stop_at`-th on.
struct Count {
    looks: AtomicUsize,
    stop_at: usize,
}

impl Control for Count {
    fn check(&self) -> Result<()> {
        let n = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        if n >= self.stop_at { Err(Error::new(ErrorKind::Cancelled, "task was cancelled")) } else { Ok(()) }
    }
}

/// Lends as many threads as it says.
struct Threads(usize);

impl Splitter for Threads {
    fn width(&self) -> usize {
        self.0
    }
    fn join(&self, helpers: usize, body: &(dyn Fn(&dyn Fn() -> bool) + Sync)) {
        std::thread::scope(|s| {
            for _ in 0..helpers {
                s.spawn(|| body(&|| false));
            }
            body(&|| false);
        });
    }
}

fn run(name: &str, input: &[u8], params: &Value, stop_at: usize, width: usize) -> (Result<Value>, usize) {
    let op = ops::find(name).unwrap();
    let params = Params::check(op.name, op.params, params).unwrap();
    let control = Count { looks: AtomicUsize::new(0), stop_at };
    let out = (op.run)(&mut OpCtx::new(vec![Bytes::from(input)], &params, &control, &Threads(width)));
    (out, control.looks.load(Ordering::Relaxed))
}

fn bytes(name: &str, input: &[u8], params: &Value, width: usize) -> Vec<u8> {
    match run(name, input, params, usize::MAX, width).0.unwrap() {
        Value::Bytes(b) => b.into_vec(),
        Value::Int(i) => i.to_le_bytes().to_vec(),
        other => panic!("{name} returned {}", other.type_name()),
    }
}

/// Records as servers send them: compressible, not trivial, `len` bytes.
fn records(len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 128);
    let mut x = 1u32;
    for i in 0.. {
        if out.len() >= len {
            break;
        }
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        out.extend_from_slice(
            format!("{{\"id\":{i},\"value\":{},\"name\":\"user {}\",\"ok\":{}}}\n", x >> 12, x >> 24, x & 0x8000 == 0).as_bytes(),
        );
    }
    out.truncate(len);
    out
}

const HASHES: [&str; 8] = ["sha256", "sha512", "sha224", "sha384", "sha512_256", "blake3", "xxh3", "crc32"];
const PAIRS: [(&str, &str); 6] =
    [("gzip", "gunzip"), ("deflate", "inflate"), ("zlib", "unzlib"), ("zstd", "unzstd"), ("brotli", "unbrotli"), ("lz4", "unlz4")];

#[test]
fn ops_look_at_their_token_for_each_mebibyte() {
    let input = records(6 * MIB);
    let hashes = HASHES.iter().copied();
    for name in hashes.chain(PAIRS.iter().map(|p| p.0)) {
        let (out, looks) = run(name, &input, &Value::Nil, usize::MAX, 1);
        out.unwrap();
        assert!(looks >= 6, "{name} looked {looks} times at 6 MiB");
    }
    for (name, inverse) in PAIRS {
        let packed = bytes(name, &input, &Value::Nil, 1);
        let (out, looks) = run(inverse, &packed, &Value::Nil, usize::MAX, 1);
        assert_eq!(out.unwrap().into_bytes().unwrap().as_slice(), input, "{inverse}");
        assert!(looks >= 6, "{inverse} looked {looks} times at 6 MiB of output");
    }
}

#[test]
fn cancelled_op_stops_at_its_next_look() {
    let input = records(6 * MIB);
    let stops = |name: &str, input: &[u8], width: usize| {
        for stop_at in [1, 5] {
            let (out, looks) = run(name, input, &Value::Nil, stop_at, width);
            assert_eq!(out.expect_err(name).kind(), ErrorKind::Cancelled, "{name}");
            // Each thread of a split op may look once more before it sees the first one's answer.
            assert!((stop_at..stop_at + width).contains(&looks), "{name} went on for {} looks", looks - stop_at);
        }
    };
    for name in HASHES {
        stops(name, &input, 1);
    }
    for (name, inverse) in PAIRS {
        stops(name, &input, 1);
        stops(inverse, &bytes(name, &input, &Value::Nil, 1), 1);
    }
    for name in ["blake3", "gzip", "deflate"] {
        stops(name, &input, 3);
    }
}

#[test]
fn streams_that_produce_nothing_are_cancelled_too() {
    // 8 MiB of empty stored blocks, of empty zstd frames, of empty lz4 frames: input without output.
    let stored = [0u8, 0, 0, 0xff, 0xff].repeat(8 * MIB / 5);
    let skippable = [0x50u8, 0x2a, 0x4d, 0x18, 0, 0, 0, 0].repeat(MIB);
    for (name, input) in [("inflate", &stored), ("unzstd", &skippable), ("unlz4", &skippable)] {
        let (out, looks) = run(name, input, &Value::Nil, 5, 1);
        assert_eq!(out.expect_err(name).kind(), ErrorKind::Cancelled, "{name}");
        assert_eq!(looks, 5, "{name}");
    }
}

#[test]
fn split_hashes_equal_serial_ones() {
    let keyed = Value::map([("key", Value::from(vec![7; 32])), ("length", Value::Int(100))]);
    let derived = Value::map([("context", Value::str("a context"))]);
    // Around every shape of the tree: whole, one byte more or less, an odd number of pieces.
    for len in [2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 3 * MIB, 5 * MIB + 7, 8 * MIB, 9 * MIB + 1024, 16 * MIB - 1, 23 * MIB + 5] {
        let input = records(len);
        for params in [&Value::Nil, &keyed, &derived] {
            assert_eq!(bytes("blake3", &input, params, 3), bytes("blake3", &input, params, 1), "blake3 of {len} bytes");
        }
        assert_eq!(bytes("crc32", &input, &Value::Nil, 3), bytes("crc32", &input, &Value::Nil, 1), "crc32 of {len} bytes");
    }
    let initial = Value::map([("value", Value::Int(0x1234_5678))]);
    let input = records(9 * MIB);
    assert_eq!(bytes("crc32", &input, &initial, 2), bytes("crc32", &input, &initial, 1));
}

#[test]
fn split_gzip_is_one_member_of_the_same_size() {
    const KIB: usize = 1 << 10;
    for len in [512 * KIB - 1, 512 * KIB, 512 * KIB + 1, 768 * KIB, 3 * MIB + 11] {
        let input = records(len);
        for level in [0, 1, 6, 9] {
            let params = Value::map([("level", Value::Int(level))]);
            let (split, serial) = (bytes("gzip", &input, &params, 3), bytes("gzip", &input, &params, 1));
            assert_eq!(bytes("gunzip", &split, &Value::Nil, 1), input, "level {level}, {len} bytes");
            // `inflate` refuses anything after the first stream, so that the body is one stream.
            assert_eq!(bytes("inflate", &split[10..split.len() - 8], &Value::Nil, 1), input, "level {level}, {len} bytes");
            assert!(split.len() * 100 <= serial.len() * 101, "level {level}: {} bytes split, {} serial", split.len(), serial.len());
            let raw = bytes("deflate", &input, &params, 3);
            assert_eq!(raw, split[10..split.len() - 8]);
        }
    }
}

#[test]
fn pieces_of_a_split_gzip_see_the_window_before_them() {
    // 20 KiB of noise, over and over: each piece that cannot look back pays for the noise again.
    let mut x = 1u32;
    let mut noise = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    let input = (0..20 << 10).map(|_| noise()).collect::<Vec<u8>>().repeat(100);
    let (split, serial) = (bytes("gzip", &input, &Value::Nil, 2), bytes("gzip", &input, &Value::Nil, 1));
    assert_eq!(bytes("gunzip", &split, &Value::Nil, 1), input);
    assert!(split.len() < serial.len() + 4096, "{} bytes split, {} serial", split.len(), serial.len());
}

#[test]
fn split_output_does_not_depend_on_the_number_of_helpers() {
    let input = records(2 * MIB);
    assert_eq!(bytes("gzip", &input, &Value::Nil, 2), bytes("gzip", &input, &Value::Nil, 4));
}

#[test]
fn bombs_stop_at_the_limit() {
    let zeros = vec![0; 16 * MIB];
    let limit = Value::map([("max_output", Value::Int(3 * MIB as i64))]);
    for (name, inverse) in PAIRS {
        let bomb = bytes(name, &zeros, &Value::Nil, 1);
        let (out, looks) = run(inverse, &bomb, &limit, usize::MAX, 1);
        let e = out.expect_err(inverse);
        assert_eq!(e.kind(), ErrorKind::TooLarge, "{inverse}: {e}");
        assert!(e.to_string().contains("max_output=3145728"), "{e}");
        // 3 MiB in steps of 256 KiB, after smaller ones at the start: it did not decompress the rest.
        assert!(looks <= 24, "{inverse} went on for {looks} steps");
    }
}

#[test]
fn password_costs_can_be_cancelled_where_the_docs_say_so() {
    let cost = |algorithm: &'static str, name: &'static str, value: i64| {
        Value::map([("algorithm", Value::str(algorithm)), ("salt", Value::from(vec![1; 16])), (name, Value::Int(value))])
    };
    // One look per 4096 iterations, per 64 rounds, per 2^14 blocks of 64 bytes (and scrypt's PBKDF2: one per 32 bytes).
    for (params, expected) in [
        (cost("pbkdf2-sha256", "iterations", 40_960), 9),
        (cost("pbkdf2-sha512", "iterations", 40_960), 9),
        (cost("bcrypt", "cost", 9), 8),
        (cost("scrypt", "cost", 14), 64),
    ] {
        let (out, looks) = run("password.hash", b"password", &params, usize::MAX, 1);
        out.unwrap();
        assert!((expected..expected + 6).contains(&looks), "{params:?}: {looks} looks");
        for stop_at in [1, 5] {
            let (out, looks) = run("password.hash", b"password", &params, stop_at, 1);
            assert_eq!(out.expect_err("cancelled").kind(), ErrorKind::Cancelled);
            assert_eq!(looks, stop_at, "{params:?}");
        }
    }
    // Argon2 has no place to stop, which is why the family does not call itself cancellable.
    let (out, looks) = run("password.hash", b"password", &Value::Nil, 1, 1);
    assert_eq!((out.expect_err("cancelled").kind(), looks), (ErrorKind::Cancelled, 1));
    assert!(ops::all().filter(|o| o.name.starts_with("password.")).all(|o| o.cancellable == Cancellable::Never));
}

#[test]
fn each_hash_has_its_own_salt_and_verifies() {
    let text = |v: Value| v.as_str().unwrap().to_owned();
    for algorithm in ["argon2id", "scrypt", "bcrypt", "pbkdf2-sha256", "pbkdf2-sha512"] {
        let mut params = vec![("algorithm", Value::str(algorithm))];
        // Defaults for argon2id; costs that a test can afford for the others.
        match algorithm {
            "scrypt" => params.push(("cost", Value::Int(10))),
            "bcrypt" => params.push(("cost", Value::Int(4))),
            "argon2id" => {}
            _ => params.push(("iterations", Value::Int(1000))),
        }
        let params = Value::map(params);
        let make = || text(run("password.hash", b"correct horse", &params, usize::MAX, 1).0.unwrap());
        let (one, two) = (make(), make());
        assert_ne!(one, two, "{algorithm}");
        let verify = |password: &[u8], hash: &str| {
            let params = Value::map([("hash", Value::from(hash.to_owned()))]);
            run("password.verify", password, &params, usize::MAX, 1).0.unwrap().as_bool().unwrap()
        };
        assert!(verify(b"correct horse", &one) && verify(b"correct horse", &two), "{algorithm}");
        assert!(!verify(b"correct horsf", &one), "{algorithm}");
    }
}

#[test]
fn secret_is_part_of_an_argon2_hash() {
    let params = Value::map([("memory_kib", Value::Int(64)), ("secret", Value::str("pepper"))]);
    let hash = run("password.hash", b"correct horse", &params, usize::MAX, 1).0.unwrap().as_str().unwrap().to_owned();
    let verify = |secret: Option<&'static str>| {
        let params = Value::map([("hash", Value::from(hash.clone())), ("secret", secret.map_or(Value::Nil, Value::str))]);
        run("password.verify", b"correct horse", &params, usize::MAX, 1).0.unwrap().as_bool().unwrap()
    };
    assert!(verify(Some("pepper")));
    assert!(!verify(Some("salt")) && !verify(None));
}
