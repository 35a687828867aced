//! `corpus TARGET DIR`: what the fuzzer begins with, a file each: the messages of `tests/vectors/codec.json`, as they are or as records of a
//! channel, with the records of `tests/vectors/channel.json`, with and without buffers that they do not name; of a ring a few steps, alone and beside a scribbler, and images of headers.

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
    let vectors = |name: &str| -> serde_json::Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors").join(name);
        serde_json::from_slice(&std::fs::read(path).expect("vectors")).expect("JSON")
    };
    let bytes = |entry: &serde_json::Value| -> Vec<u8> {
        let hex = entry["hex"].as_str().expect("hex");
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    };
    let record = |fds: u8, head: Head, rest: &[u8]| [&[fds][..], &head.encode(), rest].concat();
    let head = |buffers, body_len: usize| Head { kind: Kind::Message, flags: 0, fds: 0, buffers, id: 0, body_len: body_len as u64 };
    let codec = vectors("codec.json");
    let entries = ["values", "hostile"].into_iter().flat_map(|list| codec[list].as_array().expect("list"));
    for (i, entry) in entries.enumerate() {
        let bytes = bytes(entry);
        keep(format!("vector-{i:03}"), if target == "channel" { record(0, head(0, bytes.len()), &bytes) } else { bytes });
    }
    if target == "channel" {
        for (i, entry) in vectors("channel.json").as_array().expect("list").iter().enumerate() {
            let fds = entry["fds"].as_array().expect("list").len() as u8;
            keep(format!("record-{i}"), [&[fds][..], &bytes(entry)].concat());
        }
        // A table of empty buffers, of which the body names two, one, or none.
        let table = 1u64.to_le_bytes().repeat(64);
        for body in [&[0x92, 0xd5, 3, 0, 0, 0xd5, 3, 0, 1][..], &[0xd5, 3, 0, 0], &[0xc0]] {
            let padded = [body, &[0; 8][..body.len().wrapping_neg() % 8]].concat();
            for buffers in [1, 2, 64] {
                let rest = [&padded, &table[..buffers * 8]].concat();
                keep(format!("table-{}-{buffers}", body.len()), record(0, head(buffers as u32, body.len()), &rest));
            }
        }
    }
}
