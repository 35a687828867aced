//! What is as long as memory and does not fit is an error, and the process lives. Alone in its file, because the limit holds for
//! the whole process.

use offloop::codec::{self, Options};
use offloop::{Error, ErrorKind, Value};

/// Longer than what the limit leaves.
const LEN: usize = 300 << 20;
const LEFT: u64 = 128 << 20;

/// Lets the process have [`LEFT`] more bytes than it has now.
fn limit() {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: u64 = statm.split(' ').next().and_then(|n| n.parse().ok()).expect("a number of pages");
    let bytes = pages * 4096 + LEFT;
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: a valid rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) }, 0);
}

fn is_refused(e: &Error) {
    assert_eq!((e.kind(), e.errno()), (ErrorKind::Os, Some((libc::ENOMEM, "malloc"))), "{e}");
}

#[test]
fn a_copy_a_message_and_a_value_that_do_not_fit_are_errors() {
    let options = Options { max_bytes: usize::MAX, ..Options::default() };
    let bytes = Value::from(vec![0u8; LEN]);
    let mut message = Vec::with_capacity(LEN + 16);
    codec::encode(&bytes, &options, &mut message).expect("it has room");
    let text = Value::from(String::from_utf8(vec![0; LEN]).expect("text"));
    #[cfg(feature = "ops")]
    let ops = Ops::new();
    limit();
    for value in [&bytes, &text] {
        is_refused(&value.deep_clone().expect_err("no memory for a copy"));
        let mut out = vec![7];
        is_refused(&codec::encode(value, &options, &mut out).expect_err("no memory for a message"));
        assert_eq!(out, [7], "it is as it was");
    }
    is_refused(&codec::decode(&message, &mut [], &options).expect_err("no memory for the value"));
    #[cfg(feature = "ops")]
    ops.are_refused();
    drop(text);
    bytes.deep_clone().expect("there is memory again");
}

/// Ops whose output is about as long as their input.
#[cfg(feature = "ops")]
struct Ops {
    pool: offloop::ThreadPool,
    /// Nothing makes it shorter.
    noise: &'static [u8],
    json: &'static [u8],
}

#[cfg(feature = "ops")]
impl Ops {
    fn new() -> Ops {
        let pool = offloop::ThreadPool::builder().max_workers(1).build().expect("pool");
        let mut seed = 1u64;
        let noise = (0..LEN / 8).flat_map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        });
        let noise = Vec::leak(noise.collect());
        let mut json = b"1,".repeat(LEN / 2);
        json[0] = b'[';
        json[1] = b' ';
        json.extend_from_slice(b"1]");
        let ops = Ops { pool, noise, json: Vec::leak(json) };
        assert!(ops.run("noop", b"the worker runs").is_ok());
        ops
    }

    fn run(&self, op: &str, input: &'static [u8]) -> Result<Value, Error> {
        let inputs = vec![offloop::Bytes::from_static(input)];
        self.pool.submit_op(op, inputs, &Value::Nil, Default::default())?.wait(None)
    }

    fn are_refused(&self) {
        let noise = ["gzip", "zlib", "zstd", "lz4", "brotli"].map(|op| (op, self.noise));
        for (op, input) in noise.into_iter().chain(["json.minify", "json.format"].map(|op| (op, self.json))) {
            let e = self.run(op, input).expect_err(op);
            assert_eq!((e.kind(), e.to_string().contains("does not fit in memory")), (ErrorKind::TooLarge, true), "{op}: {e}");
        }
    }
}
