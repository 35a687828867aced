//! The codec against `tests/vectors/codec.json`, and against mutations of them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod notation;

use notation::{hex, to_value};
use offloop::codec::{self, Options};
use offloop::{Error, ErrorKind, TransferBuffer, Value};
use serde_json::Value as Json;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what the running thread has allocated, to show that a message cannot make its reader reserve more than it is worth.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work; the counters are thread-local cells, which need no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        NOW.with(|now| {
            now.set(now.get() + layout.size());
            MOST.with(|most| most.set(most.get().max(now.get())));
        });
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // Freed by another thread than it was allocated on: not what is measured here.
        NOW.with(|now| now.set(now.get().saturating_sub(layout.size())));
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn most_allocated<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    MOST.set(before);
    let out = f();
    (out, MOST.get() - before)
}

fn vectors() -> Json {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/codec.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list<'a>(json: &'a Json, key: &str) -> &'a [Json] {
    json[key].as_array().map_or(&[], Vec::as_slice)
}

fn text(json: &Json) -> &str {
    json.as_str().unwrap()
}

fn show(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn options(entry: &Json) -> Options {
    let defaults = Options::default();
    let or = |name: &str, default| entry["options"][name].as_u64().map_or(default, |n| n as usize);
    Options {
        max_depth: or("max_depth", defaults.max_depth),
        max_items: or("max_items", defaults.max_items),
        max_bytes: or("max_bytes", defaults.max_bytes),
        out_of_band: entry.get("beside").map(|_| entry["outOfBand"].as_u64().map_or(usize::MAX, |n| n as usize)),
    }
}

fn beside(entry: &Json) -> Vec<Option<TransferBuffer>> {
    list(entry, "beside").iter().map(|b| Some(TransferBuffer::from_slice(&hex(text(b))).unwrap())).collect()
}

/// Equal in every detail: kinds of numbers, bits of floats, order of pairs.
fn identical(a: &Value, b: &Value) -> bool {
    let all = |a: &[Value], b: &[Value]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| identical(a, b));
    match (a, b) {
        (Value::Nil, Value::Nil) => true,
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Big(a), Value::Big(b)) => a == b,
        (Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits(),
        (Value::Str(a), Value::Str(b)) => a == b,
        (Value::Bytes(a), Value::Bytes(b)) => a.as_slice() == b.as_slice(),
        (Value::Array(a), Value::Array(b)) => all(a, b),
        (Value::Map(a), Value::Map(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| identical(&a.0, &b.0) && identical(&a.1, &b.1))
        }
        (Value::Date(a), Value::Date(b)) => a == b,
        (Value::Typed(a), Value::Typed(b)) => a.dtype == b.dtype && a.shape == b.shape && a.bytes.as_slice() == b.bytes.as_slice(),
        (Value::Buffer(a), Value::Buffer(b)) => a.to_vec().unwrap() == b.to_vec().unwrap(),
        (Value::Error(a), Value::Error(b)) => {
            a.name == b.name
                && a.message == b.message
                && a.stack == b.stack
                && a.cause.is_some() == b.cause.is_some()
                && a.cause.iter().zip(&b.cause).all(|(a, b)| identical(a, b))
                && a.properties.len() == b.properties.len()
                && a.properties.iter().zip(&b.properties).all(|(a, b)| a.0 == b.0 && identical(&a.1, &b.1))
        }
        _ => false,
    }
}

fn check(entry: &Json) -> Result<(), String> {
    let (want, options) = (to_value(&entry["value"]), options(entry));
    let mut message = Vec::new();
    let count = codec::encode(&want, &options, &mut message).map_err(|e| e.to_string())?;
    if show(&message) != text(&entry["hex"]) {
        return Err(format!("is written as {}", show(&message)));
    }
    let taken = codec::take_buffers(&mut to_value(&entry["value"]), &options).unwrap();
    let taken: Vec<String> = taken.iter().map(|b| show(&b.to_vec().unwrap())).collect();
    if count != taken.len() || !taken.iter().eq(list(entry, "beside").iter().map(text)) {
        return Err(format!("{count} buffers travel beside it: {taken:?}"));
    }
    for form in std::iter::once(&entry["hex"]).chain(list(entry, "also")) {
        let bytes = hex(text(form));
        for owned in [false, true] {
            let mut buffers = beside(entry);
            let got = if owned {
                codec::decode_owned(bytes.clone().into(), &mut buffers, &options)
            } else {
                codec::decode(&bytes, &mut buffers, &options)
            };
            let got = got.map_err(|e| format!("{form}: {e}"))?;
            if !identical(&got, &want) {
                return Err(format!("{form} is read as {got:?}, not {want:?}"));
            }
            assert!(buffers.iter().all(Option::is_none), "{form}: a buffer was not taken");
        }
    }
    Ok(())
}

fn check_hostile(entry: &Json) -> Result<(), String> {
    let bytes = hex(text(&entry["hex"]));
    let e = match codec::decode(&bytes, &mut beside(entry), &options(entry)) {
        Ok(value) => return Err(format!("is read as {value:?}")),
        Err(e) => e,
    };
    if e.kind().row().name != text(&entry["kind"]) {
        return Err(format!("kind differs: {e}"));
    }
    let offset = e.context().iter().find(|(name, _)| *name == "offset");
    if e.kind() == ErrorKind::Corrupt && offset.is_none_or(|(_, at)| at.parse::<usize>().unwrap() > bytes.len()) {
        return Err(format!("message lacks an offset: {e}"));
    }
    match list(entry, "contains").iter().find(|p| !e.to_string().contains(text(p))) {
        Some(missing) => Err(format!("message lacks {missing}: {e}")),
        None => Ok(()),
    }
}

#[test]
fn every_vector_holds() {
    let json = vectors();
    let mut failures = Vec::new();
    let mut count = 0;
    for (key, check) in [("values", check as fn(&Json) -> _), ("hostile", check_hostile)] {
        for entry in list(&json, key) {
            count += 1;
            if let Err(why) = check(entry) {
                failures.push(format!("{}: {why}", text(&entry["name"])));
            }
        }
    }
    println!("{count} vectors");
    assert!(count > 150, "the lists are not where they were");
    assert!(failures.is_empty(), "{} of {count} vectors fail:\n{}", failures.len(), failures.join("\n"));
}

struct Random(u64);

impl Random {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Bytes that mean most to a reader: markers with lengths, and the largest lengths.
const TELLING: &[u8] = &[
    0x00, 0x01, 0x02, 0x04, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc1, 0xc4, 0xc6, 0xc7, 0xc9, 0xd4, 0xd8, 0xdb, 0xdd, 0xdf,
    0xff,
];

fn mutate(message: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let at = random.below(message.len());
        match random.below(8) {
            0 if !message.is_empty() => message[at] ^= 1 << random.below(8),
            1 if !message.is_empty() => message[at] = random.next() as u8,
            2 if !message.is_empty() => message[at] = TELLING[random.below(TELLING.len())],
            3 => message.truncate(at),
            4 => message.insert(at, TELLING[random.below(TELLING.len())]),
            5 if !message.is_empty() => drop(message.remove(at)),
            6 => {
                // A value inside a value, or a value cut by another.
                let other = &corpus[random.below(corpus.len())];
                let end = if random.below(2) == 0 { at } else { (at + random.below(message.len())).min(message.len()) };
                message.splice(at..end, other.iter().copied());
            }
            _ => {
                // A container around it.
                let head: &[u8] = [&[0x91][..], &[0x81, 0xc0], &[0x92, 0xc0], &[0xdc, 0, 1]][random.below(4)];
                message.splice(0..0, head.iter().copied());
            }
        }
    }
    message.truncate(1 << 14);
}

fn try_one(message: &[u8], rewritten: &mut Vec<u8>) -> Result<(), String> {
    let options = Options { out_of_band: Some(usize::MAX), ..Options::default() };
    let buffers = || [(); 2].map(|()| Some(TransferBuffer::from_slice(b"beside").unwrap()));
    let ((got, given), most) = most_allocated(|| {
        let mut given = buffers();
        (codec::decode(message, &mut given, &options), given)
    });
    // A value of 40 bytes for each byte, a text of an error for a value, and what an error's own text takes.
    if most > 64 * message.len() + 4096 {
        return Err(format!("reader allocated {most} bytes for {}", message.len()));
    }
    let value = match got {
        Ok(value) => value,
        Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::TooLarge) => return Ok(()),
        Err(e) => return Err(e.to_string()),
    };
    let text = |e: Error| format!("what was read is not written: {e}");
    rewritten.clear();
    let count = codec::encode(&value, &options, rewritten).map_err(text)?;
    // Bytes that came beside the message may go inside it.
    if count > given.iter().filter(|b| b.is_none()).count() {
        return Err("buffers were made up".into());
    }
    // Buffers are numbered anew in the order of the tree, so with two of them the order may differ: both hold the same bytes.
    let again = codec::decode_owned(rewritten.clone().into(), &mut buffers(), &options)
        .map_err(|e| format!("what was written is not read: {e}"))?;
    if !identical(&value, &again) {
        return Err(format!("{value:?} comes back as {again:?}"));
    }
    Ok(())
}

fn storm(seed: u64, rounds: u64) {
    let json = vectors();
    let corpus: Vec<Vec<u8>> = ["values", "hostile"]
        .iter()
        .flat_map(|key| list(&json, key))
        .flat_map(|entry| std::iter::once(&entry["hex"]).chain(list(entry, "also")))
        .map(|form| hex(text(form)))
        .collect();
    let mut random = Random(seed);
    let (mut message, mut rewritten) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        message.clear();
        message.extend_from_slice(&corpus[random.below(corpus.len())]);
        mutate(&mut message, &corpus, &mut random);
        if let Err(why) = try_one(&message, &mut rewritten) {
            panic!("round {round} of seed {seed}: {why}\nmessage: {}", show(&message));
        }
    }
    println!(r#"{{"row":"codec mutations","trials":{rounds},"failures":0,"seed":{seed}}}"#);
}

#[test]
fn mutated_messages_are_read_or_refused() {
    storm(1, 200_000);
}

#[test]
#[ignore = "long: `make torture`"]
fn mutated_messages_are_read_or_refused_for_long() {
    for seed in 2..12 {
        storm(seed, 5_000_000);
    }
}
