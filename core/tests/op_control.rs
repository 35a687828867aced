//! What a running op owes its caller: it looks at its token often enough, stops when told to, and gives the same result
//! however many workers help.
#![cfg(all(feature = "hash", feature = "compress"))]
#![allow(clippy::unwrap_used, reason = "a test")]

use offloop::ops::{self, Control, OpCtx, Params, Splitter};
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
    fn progress(&self, _: Value) {}
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
        out.extend_from_slice(format!("{{\"id\":{i},\"value\":{},\"name\":\"user {}\",\"ok\":{}}}\n", x >> 12, x >> 24, x & 0x8000 == 0).as_bytes());
    }
    out.truncate(len);
    out
}

const HASHES: [&str; 8] = ["sha256", "sha512", "sha224", "sha384", "sha512_256", "blake3", "xxh3", "crc32"];
const PAIRS: [(&str, &str); 6] =
    [("gzip", "gunzip"), ("deflate", "inflate"), ("zlib", "unzlib"), ("zstd", "unzstd"), ("brotli", "unbrotli"), ("lz4", "unlz4")];

#[test]
fn ops_look_at_their_token_for_each_mebibyte() {
    let input = records(12 * MIB);
    let hashes = HASHES.iter().copied();
    for name in hashes.chain(PAIRS.iter().map(|p| p.0)) {
        let (out, looks) = run(name, &input, &Value::Nil, usize::MAX, 1);
        out.unwrap();
        assert!(looks >= 12, "{name} looked {looks} times at 12 MiB");
    }
    for (name, inverse) in PAIRS {
        let packed = bytes(name, &input, &Value::Nil, 1);
        let (out, looks) = run(inverse, &packed, &Value::Nil, usize::MAX, 1);
        assert_eq!(out.unwrap().into_bytes().unwrap().as_slice(), input, "{inverse}");
        assert!(looks >= 12, "{inverse} looked {looks} times at 12 MiB of output");
    }
}

#[test]
fn cancelled_op_stops_at_its_next_look() {
    let input = records(12 * MIB);
    let stops = |name: &str, input: &[u8], width: usize| {
        for stop_at in [1, 7] {
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
fn split_output_does_not_depend_on_the_number_of_helpers() {
    let input = records(2 * MIB);
    assert_eq!(bytes("gzip", &input, &Value::Nil, 2), bytes("gzip", &input, &Value::Nil, 4));
}

#[test]
fn bombs_stop_at_the_limit() {
    let zeros = vec![0; 64 * MIB];
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
