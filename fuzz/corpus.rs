//! `corpus DIR`: the messages of `tests/vectors/codec.json`, a file each, for the fuzzer to begin with.

use std::path::Path;

fn main() {
    let dir = std::env::args().nth(1).expect("corpus DIR");
    std::fs::create_dir_all(&dir).expect("DIR");
    let vectors = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/codec.json")).expect("vectors");
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).expect("JSON");
    let entries = ["values", "hostile"].into_iter().flat_map(|list| vectors[list].as_array().expect("list"));
    for (i, entry) in entries.enumerate() {
        let hex = entry["hex"].as_str().expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
        std::fs::write(format!("{dir}/vector-{i:03}"), bytes).expect("DIR can be written");
    }
}
