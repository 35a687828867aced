//! `corpus TARGET DIR`: what the fuzzer begins with, a file each: the messages of `tests/vectors/codec.json`, as they are or as records of a
//! channel; of a ring a few steps, alone and beside a scribbler, and images of headers.

use offloop::wire::channel::{Head, Kind};
use std::path::Path;

fn main() {
    let (target, dir) = (std::env::args().nth(1).expect("corpus TARGET DIR"), std::env::args().nth(2).expect("corpus TARGET DIR"));
    std::fs::create_dir_all(&dir).expect("DIR");
    let keep = |name: String, bytes: Vec<u8>| std::fs::write(format!("{dir}/{name}"), bytes).expect("DIR can be written");
    if target == "ring" {
        for kind in 0..8 {
            // Both handles, some records; what is taken is read and acknowledged.
            let steps = [105, 1, 2, 5, 3, 6, 4, 7, 137, 1, 3];
            keep(format!("steps-{kind}"), [&[kind][..], &steps].concat());
            keep(format!("scribbled-{kind}"), [&[kind | 8][..], &steps.repeat(8)].concat());
            // With as many doorbells as seats, by fds and by a name; then with a field of another value, and one that contradicts the file.
            let bells = if kind & 3 == 0 { 2 } else { 3 };
            let image = |laid: &[u8]| [&[kind | 16, bells << 4 | 2, 0, 0], laid].concat();
            keep(format!("image-{kind}"), image(&[]));
            (8..64).step_by(4).for_each(|at| keep(format!("image-{kind}-{at}"), image(&[&vec![0; at][..], &[1]].concat())));
            keep(format!("image-{kind}-length"), [kind | 16, bells << 4, 1, 0].to_vec());
        }
        return;
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
