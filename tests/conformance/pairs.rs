//! Callers and workers of every two languages: the same calls through all of them, from a table.

use offloop::Value;
use offloop::codec;
use offloop::value::{DType, TypedArray};
use offloop_tests::driver::{Driver, worker};
use offloop_tests::root;
use serde_json::Value as Json;
use std::path::Path;
use std::time::{Duration, Instant};

/// A watchdog, not an assertion.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a long value.
const LONG: usize = 1 << 20;

/// What one language makes of things, as the worker that has them says.
struct Made {
    lang: &'static str,
    /// The class of the error that its function `fail` fails with.
    class: &'static str,
    /// What its stack names; nothing in a language that has none.
    stack: &'static str,
    /// What an array of `f32`, and bytes, are there.
    array: &'static str,
    bytes: &'static str,
}

const MADE: &[Made] = &[
    Made { lang: "rust", class: "TypeError", stack: "", array: "typed array", bytes: "bytes" },
    Made { lang: "c", class: "OffloopError", stack: "", array: "typed", bytes: "bytes" },
    Made { lang: "node", class: "TypeError", stack: "worker.mjs", array: "Float32Array", bytes: "Uint8Array" },
    Made { lang: "python", class: "TypeError", stack: "worker.py", array: "ndarray", bytes: "bytes" },
];

/// Calls that were made.
pub(crate) type Calls = usize;

/// A driver with a pool of another language's workers.
struct Caller {
    driver: Driver,
    deadline: Instant,
    calls: Calls,
}

impl Caller {
    fn call(&mut self, name: &str, message: &str) -> Result<String, String> {
        self.calls += 1;
        self.driver.call(&format!("pool.call pool=p op={name} message={message}"), self.deadline)
    }

    /// A call whose function gives something.
    fn give(&mut self, name: &str, message: &str) -> Result<String, String> {
        let reply = self.call(name, message)?;
        let short = || crate::readable(&reply).chars().take(400).collect::<String>();
        reply.strip_prefix("ok message=").map(str::to_owned).ok_or_else(|| format!("{name}: {}", short()))
    }

    /// What a stream of `count` says, one value after the other.
    fn stream(&mut self, name: &str, options: &str, wanted: &[&str]) -> Result<(), String> {
        self.calls += 1;
        self.driver.call(&format!("stream.open stream={name} pool=p op=count {options}"), self.deadline)?;
        for want in wanted {
            let reply = self.driver.call(&format!("stream.next stream={name}"), self.deadline)?;
            if !reply.starts_with(want) {
                return Err(format!("a stream with {options}: wanted {want}, got {}", crate::readable(&reply)));
            }
        }
        Ok(())
    }

    /// A call that fails, with what its outcome has to say.
    fn fail(&mut self, name: &str, message: &str, says: &[&str]) -> Result<(), String> {
        let reply = self.call(name, message)?;
        let reply = crate::readable(&reply);
        match says.iter().find(|text| !reply.contains(**text)) {
            None if reply.starts_with("err ") => Ok(()),
            missing => Err(format!("{name}: wanted an error with {missing:?}, got {reply}")),
        }
    }
}

fn message(value: &Value) -> Result<String, String> {
    let mut bytes = Vec::new();
    codec::encode(value, &codec::Options::default(), &mut bytes).map_err(|e| e.to_string())?;
    Ok(crate::hex(&bytes))
}

fn map(key: &str, value: Value) -> Result<String, String> {
    message(&Value::Map(vec![(Value::str(key.to_owned()), value)]))
}

/// The messages that one vector may come back as: a language that has no such type makes another one of it, once.
fn forms<'a>(entry: &'a Json, langs: [&str; 2]) -> Vec<&'a str> {
    let own = |lang: &str| if langs.contains(&lang) { entry.get(lang).and_then(Json::as_str) } else { None };
    let all: Vec<&str> = [own("node"), own("python")].into_iter().flatten().collect();
    if all.is_empty() { entry.get("hex").and_then(Json::as_str).into_iter().collect() } else { all }
}

/// Runs the table between two languages, and gives the number of calls.
pub(crate) fn run(from: &str, to: &str, names: &Path) -> Result<Calls, String> {
    let deadline = Instant::now() + PATIENCE;
    let made = MADE.iter().find(|made| made.lang == to).ok_or_else(|| format!("nothing is known of {to}"))?;
    let mut caller = Caller { driver: Driver::start(from, &[], names, deadline)?, deadline, calls: 0 };
    let (file, command) = worker(to)?;
    let new = format!("pool.new pool=p worker=process max_workers=1 of={to} file={file} command={}", command.join(","));
    let reply = caller.driver.call(&new, deadline)?;
    if reply.trim() != "ok" {
        return Err(crate::readable(&reply));
    }

    // Every value of the vectors.
    let text = std::fs::read_to_string(root().join("tests/vectors/codec.json")).map_err(|e| e.to_string())?;
    let vectors: Json = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let entries = vectors["values"].as_array().ok_or("the vectors have no values")?;
    for entry in entries.iter().filter(|entry| entry.get("beside").is_none()) {
        let sent = entry["hex"].as_str().ok_or("a vector without its message")?;
        let got = caller.give("echo", sent).map_err(|why| format!("{}: {why}", entry["name"]))?;
        let forms = forms(entry, [from, to]);
        if !forms.contains(&got.as_str()) {
            return Err(format!("{}: {sent} came back as {got}, not as {}", entry["name"], forms.join(" or ")));
        }
    }

    // Long ones, which lie in shared memory, and what they are there.
    let bytes: Vec<u8> = (0..LONG).map(|i| (i * 7 % 251) as u8).collect();
    let elements: Vec<u8> = (0..LONG / 4).flat_map(|i| (i as f32 / 8.0).to_le_bytes()).collect();
    let array = TypedArray { dtype: DType::F32, shape: vec![LONG as u64 / 4], bytes: elements.into() };
    for (value, what) in [(Value::Bytes(bytes.into()), made.bytes), (Value::from(array), made.array)] {
        let sent = message(&value)?;
        if caller.give("echo", &sent)? != sent {
            return Err(format!("{what} of 1 MiB came back as something else"));
        }
        if caller.give("what", &sent)? != message(&Value::str(what.to_owned()))? {
            return Err(format!("1 MiB is no {what} there"));
        }
    }

    // Values while it runs.
    caller.stream("s", "p.n=3", &["ok int=0", "ok int=1", "ok int=2", "ok end=1"])?;
    caller.stream("f", "p.n=1 p.text=broken", &["ok int=0", "err", "ok end=1"])?;

    // What goes wrong.
    let broken = map("text", Value::str("broken"))?;
    caller.fail("fail", &broken, &[&format!("name={:?}", made.class), "broken", made.stack])?;
    caller.fail("no_such_function", "c0", &["kind=NotFound", "no_such_function"])?;
    caller.fail("exit", &map("code", Value::Int(3))?, &["kind=WorkerLost", "exit_code=3"])?;
    if caller.give("echo", "07")? != "07" {
        return Err("the next worker gives something else".into());
    }
    let reply = caller.driver.call("pool.close pool=p", deadline)?;
    if reply.trim() != "ok" {
        return Err(crate::readable(&reply));
    }
    caller.driver.finish(deadline)?;
    Ok(caller.calls)
}
