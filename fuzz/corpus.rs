//! `corpus TARGET DIR`: what the fuzzer begins with, a file each: the messages of `tests/vectors/codec.json`, as they are or as records of a
//! channel; of a ring a few steps.

use offloop::wire::channel::{Head, Kind};
use std::path::Path;

fn main() {
    let (target, dir) = (std::env::args().nth(1).expect("corpus TARGET DIR"), std::env::args().nth(2).expect("corpus TARGET DIR"));
    std::fs::create_dir_all(&dir).expect("DIR");
    let keep = |name: String, bytes: Vec<u8>| std::fs::write(format!("{dir}/{name}"), bytes).expect("DIR can be written");
    if target == "ring" {
        // Of each kind: both handles, some records, what is taken is read and acknowledged.
        return (0..4).for_each(|kind| keep(format!("steps-{kind}"), vec![kind, 105, 105, 106, 109, 99, 102, 108, 7]));
    }
    let vectors = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/codec.json")).expect("vectors");
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).expect("JSON");
    let entries = ["values", "hostile"].into_iter().flat_map(|list| vectors[list].as_array().expect("list"));
    for (i, entry) in entries.enumerate() {
        let hex = entry["hex"].as_str().expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
        let bytes = if target == "channel" {
            let head = Head { kind: Kind::Message, flags: 0, fds: 0, buffers: 0, id: 0, body_len: bytes.len() as u64 };
            [&[0][..], &head.encode(), &bytes].concat()
        } else {
            bytes
        };
        keep(format!("vector-{i:03}"), bytes);
    }
}
