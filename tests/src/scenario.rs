//! Scenarios: behaviour as data. Only this runner parses TOML; a driver sees lines (`tests/drivers/PROTOCOL.md`).

use offloop::ring::Kind;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use toml::Value;

/// One behaviour, in steps.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// `pool/cancel_queued`: the file without its ending.
    pub name: String,
    /// One sentence: what holds.
    pub about: String,
    /// The processes that take part, by name.
    pub actors: Vec<String>,
    /// Which languages run it together.
    pub matrix: Matrix,
    /// The pools of a host's own functions that run it, one case each: `thread`, `process`. `@pool` is the word.
    pub pools: Vec<String>,
    /// What a driver must say in `caps` of its `hello`.
    pub requires: Vec<String>,
    /// A watchdog, not an assertion.
    pub timeout: Duration,
    /// A ring that the runner makes; every actor inherits its fds, whose numbers are saved as `ring`.
    pub ring: Option<Ring>,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

/// Who runs a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// Every language by itself.
    Each,
    /// Every ordered pair of languages has the two actors.
    Pairs,
    /// Every language has the actors, with the workers of every language: `@of` and `@command`.
    Workers,
}

/// The actor that is the runner itself, as a client of what the others serve.
pub const CLIENT: &str = "client";

/// The runner's ring.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    /// Its kinds: the scenario is run with each. None is `spsc`.
    pub kinds: Vec<Kind>,
    /// Bytes of a lane, or of all slots.
    pub capacity: usize,
    /// The policy's word.
    pub on_full: Option<String>,
    /// Fds that are no ring's, which the actors inherit as well; each is saved by its name.
    pub others: Vec<String>,
}

/// What the runner does itself.
#[derive(Clone, Debug)]
pub enum Act {
    /// Writes into its ring. The fixed part of the header is otherwise as it was made.
    Scribble {
        /// A number, or `tail`, `head`, `record`.
        at: String,
        /// What it writes.
        bytes: Vec<u8>,
        /// Makes the header's check sum fit.
        check: bool,
    },
    /// Puts something at `@path`.
    Place(String),
    /// Limits the files that an actor makes to so many bytes.
    FileSize(u64),
    /// Limits the memory of an actor and its children to so many bytes.
    Memory(u64),
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// Sends a verb and checks the reply.
    Call {
        /// To whom.
        actor: String,
        /// Verb and arguments; `@name` is a saved value.
        line: String,
        /// What the reply must have.
        expect: Expect,
        /// What its message must say.
        says: Vec<String>,
        /// `name → key` of the reply.
        save: Vec<(String, String)>,
        /// The call is repeated until the reply fits: for what can only be asked for.
        until: bool,
    },
    /// Sends a verb whose reply comes later.
    Start {
        /// To whom.
        actor: String,
        /// Verb and arguments.
        line: String,
        /// What `Await` calls it.
        label: String,
    },
    /// Waits for a started verb.
    Await {
        /// The label.
        label: String,
        /// What the reply must have.
        expect: Expect,
        /// What its message must say.
        says: Vec<String>,
        /// `name → key` of the reply.
        save: Vec<(String, String)>,
    },
    /// SIGKILL.
    Kill(String),
    /// The runner's part.
    Act {
        /// Whom it is done to, if to somebody.
        actor: String,
        /// What.
        act: Act,
    },
}

/// What a reply must have: `ok` or `err`, and for each `key` a value. `key=*` is any value, `key>=n` a number, `key!=value` any other one.
#[derive(Clone, Debug)]
pub struct Expect(pub String);

impl Expect {
    /// Whether a reply (`ok k=v …`) fits.
    #[must_use]
    pub fn fits(&self, reply: &str) -> bool {
        let have: HashMap<&str, &str> = reply.split(' ').skip(1).filter_map(|t| t.split_once('=')).collect();
        self.0.split_whitespace().enumerate().all(|(i, want)| {
            if i == 0 {
                return reply.split(' ').next() == Some(want);
            }
            if let Some((key, min)) = want.split_once(">=") {
                let number = |s: &str| s.parse::<f64>().ok();
                return have.get(key).and_then(|v| number(v)).zip(number(min)).is_some_and(|(v, min)| v >= min);
            }
            if let Some((key, other)) = want.split_once("!=") {
                return have.get(key).is_some_and(|have| *have != other);
            }
            let (key, value) = want.split_once('=').unwrap_or((want, "*"));
            have.get(key).is_some_and(|have| value == "*" || *have == value)
        })
    }
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// What is wrong with it, with the step's number.
    pub fn read(base: &Path, path: &Path) -> Result<Scenario, String> {
        let name = path.strip_prefix(base).unwrap_or(path).with_extension("").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(path).map_err(|e| format!("{name}: {e}"))?;
        let table: toml::Table = text.parse().map_err(|e| format!("{name}: {e}"))?;
        let known = ["about", "actors", "matrix", "pools", "requires", "timeout_s", "ring", "step"];
        if let Some(bad) = table.keys().find(|k| !known.contains(&k.as_str())) {
            return Err(format!("{name}: unknown key {bad}"));
        }
        let mut actors = strings(table.get("actors"));
        if actors.is_empty() {
            actors.push("host".into());
        }
        let pools = strings(table.get("pools"));
        if let Some(bad) = pools.iter().find(|kind| !["thread", "process"].contains(&kind.as_str())) {
            return Err(format!("{name}: unknown pool {bad}"));
        }
        let mut steps = Vec::new();
        for (i, step) in table.get("step").and_then(Value::as_array).ok_or(format!("{name}: no steps"))?.iter().enumerate() {
            steps.push(read_step(step, &actors).map_err(|e| format!("{name}: step {}: {e}", i + 1))?);
        }
        Ok(Scenario {
            about: table.get("about").and_then(Value::as_str).ok_or(format!("{name}: no about"))?.to_owned(),
            matrix: match table.get("matrix").and_then(Value::as_str) {
                None | Some("each") => Matrix::Each,
                Some("pairs") if actors.len() == 2 => Matrix::Pairs,
                Some("workers") => Matrix::Workers,
                Some(other) => return Err(format!("{name}: matrix {other} does not fit {} actors", actors.len())),
            },
            requires: strings(table.get("requires")),
            pools,
            ring: table.get("ring").map(read_ring).transpose().map_err(|e| format!("{name}: {e}"))?,
            timeout: Duration::from_secs(u64::try_from(table.get("timeout_s").and_then(Value::as_integer).unwrap_or(60)).unwrap_or(60)),
            name,
            actors,
            steps,
        })
    }
}

fn strings(v: Option<&Value>) -> Vec<String> {
    v.and_then(Value::as_array).map(|a| a.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default()
}

fn read_ring(ring: &Value) -> Result<Ring, String> {
    let known = ["kinds", "capacity", "on_full", "others"];
    if let Some(bad) = ring.as_table().and_then(|t| t.keys().find(|k| !known.contains(&k.as_str()))) {
        return Err(format!("ring has an unknown key {bad}"));
    }
    let capacity = ring.get("capacity").and_then(Value::as_integer).and_then(|n| usize::try_from(n).ok());
    let kinds = strings(ring.get("kinds")).iter().map(|kind| kind.parse::<Kind>().map_err(|e| e.to_string())).collect::<Result<_, _>>()?;
    Ok(Ring {
        kinds,
        capacity: capacity.ok_or("ring has no capacity")?,
        on_full: ring.get("on_full").and_then(Value::as_str).map(str::to_owned),
        others: strings(ring.get("others")),
    })
}

fn read_act(table: &toml::Table) -> Result<Option<Act>, String> {
    if let Some(text) = table.get("scribble").and_then(Value::as_str) {
        let (at, hex) = text.split_once(':').ok_or("scribble is not place:hex")?;
        let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 16).ok()).collect();
        let check = table.get("check").and_then(Value::as_bool).unwrap_or(true);
        return Ok(Some(Act::Scribble { at: at.to_owned(), bytes: bytes.ok_or("scribble is not place:hex")?, check }));
    }
    if let Some(what) = table.get("place").and_then(Value::as_str) {
        return Ok(Some(Act::Place(what.to_owned())));
    }
    let number = |key: &str| table.get(key).and_then(Value::as_integer).and_then(|n| u64::try_from(n).ok());
    Ok(number("file_size").map(Act::FileSize).or_else(|| number("memory").map(Act::Memory)))
}

fn read_step(step: &Value, actors: &[String]) -> Result<Step, String> {
    let table = step.as_table().ok_or("not a table")?;
    let known =
        ["actor", "send", "expect", "says", "until", "save", "async", "await", "kill", "scribble", "check", "place", "file_size", "memory"];
    if let Some(bad) = table.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!("unknown key {bad}"));
    }
    let text = |key: &str| table.get(key).and_then(Value::as_str).map(str::to_owned);
    let client = text("send").is_some_and(|line| line.starts_with("client."));
    let actor = if client { CLIENT.to_owned() } else { text("actor").unwrap_or_else(|| actors[0].clone()) };
    if !client && !actors.contains(&actor) {
        return Err(format!("no actor {actor}"));
    }
    let save = table
        .get("save")
        .and_then(Value::as_table)
        .map(|t| t.iter().map(|(name, key)| (name.clone(), key.as_str().unwrap_or(name).to_owned())).collect::<Vec<_>>());
    let save = save.unwrap_or_default();
    let until = text("until");
    let expect = Expect(until.clone().or_else(|| text("expect")).unwrap_or_else(|| "ok".into()));
    if let Some(act) = read_act(table)? {
        return Ok(Step::Act { actor, act });
    }
    match (text("send"), text("async"), text("await"), text("kill")) {
        (Some(line), None, None, None) => {
            Ok(Step::Call { actor, line, expect, says: strings(table.get("says")), save, until: until.is_some() })
        }
        (Some(line), Some(label), None, None) => Ok(Step::Start { actor, line, label }),
        (None, None, Some(label), None) => Ok(Step::Await { label, expect, says: strings(table.get("says")), save }),
        (None, None, None, Some(actor)) => Ok(Step::Kill(actor)),
        _ => Err("needs one of send, await, kill, scribble, place, file_size, memory".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_fit_or_do_not() {
        let fits = |want: &str, reply: &str| Expect(want.into()).fits(reply);
        assert!(fits("ok", "ok a=1"));
        assert!(fits("ok a=1 b=* c>=2", "ok c=2.5 b=x a=1"));
        assert!(!fits("ok", "err kind=Full"));
        assert!(!fits("err kind=Full", "err kind=Closed"));
        assert!(!fits("ok a>=3", "ok a=2"));
        assert!(!fits("ok a=*", "ok"));
        assert!(fits("ok a!=2", "ok a=1"));
        assert!(!fits("ok a!=1", "ok a=1"));
        assert!(!fits("ok a!=1", "ok"));
    }
}
