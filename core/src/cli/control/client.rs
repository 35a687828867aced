//! The commands' end: asks a cluster by its name, and shows what it says.

use super::super::Stop;
use super::place;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::net;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long a cluster may take for an answer that it has ready.
const ANSWER: Duration = Duration::from_secs(10);

pub(in crate::cli) fn commands() -> [Command; 7] {
    let name =
        || Arg::new("name").value_name("NAME").required(true).value_parser(place::name).help("The cluster, as `offloop ps` shows it");
    let json = || Arg::new("json").long("json").action(ArgAction::SetTrue).help("One JSON object a line");
    [
        Command::new("ps").about("Show the clusters that run here, and their workers").args([name().required(false), json()]),
        Command::new("reload")
            .about("Replace a cluster's workers one by one without losing a request, and wait until that is done")
            .args([name(), json()]),
        Command::new("scale").about("Change the number of a cluster's workers, and wait until they are ready").args([
            name(),
            Arg::new("workers")
                .value_name("N")
                .required(true)
                .value_parser(value_parser!(u32).range(1..=crate::supervisor::MAX_WORKERS as i64))
                .help("Workers, 1 to 1024"),
            json(),
        ]),
        Command::new("stop").about("End a cluster when its workers have finished, and wait for that").args([
            name(),
            Arg::new("now").long("now").action(ArgAction::SetTrue).help("At once: what workers have in hand is lost"),
            json(),
        ]),
        Command::new("events").about("Show what happens in a cluster, one JSON object a line, until it ends").args([name(), json()]),
        Command::new("logs").about("Show what a cluster's workers have printed last").args([
            name(),
            Arg::new("follow")
                .short('f')
                .long("follow")
                .action(ArgAction::SetTrue)
                .help("Go on with what they print, until the cluster ends"),
            Arg::new("lines")
                .short('n')
                .long("lines")
                .value_name("N")
                .value_parser(value_parser!(u32))
                .help("At most the last N lines [default: all that are kept, 5000 or 512 KiB]"),
            json(),
        ]),
        Command::new("metrics").about("Show a cluster's numbers as Prometheus reads them").args([name(), json()]),
    ]
}

fn name(args: &ArgMatches) -> &str {
    args.get_one::<String>("name").expect("clap requires it")
}

pub(super) struct Line {
    from: BufReader<UnixStream>,
    name: String,
    patience: Option<Duration>,
}

impl Line {
    /// Asks, and gives the first answer.
    pub(super) fn ask(name: &str, request: &Value, patience: Option<Duration>) -> Result<(Line, Value)> {
        let path = place::to_find(name)?;
        let gone = |e: &std::io::Error| match e.kind() {
            std::io::ErrorKind::ConnectionRefused if net::is_other(&path) => place::taken(&path),
            std::io::ErrorKind::ConnectionRefused => {
                Error::new(ErrorKind::NotFound, "the cluster of this name has ended without a farewell").with("name", name)
            }
            _ => Error::os("connect", e.raw_os_error().unwrap_or(0)).with("path", path.display()),
        };
        let mut stream = UnixStream::connect(&path).map_err(|e| gone(&e))?;
        stream.set_read_timeout(patience).and_then(|()| stream.set_write_timeout(Some(ANSWER))).map_err(|e| gone(&e))?;
        let lost = || Error::new(ErrorKind::PeerDied, "the cluster has ended before it answered").with("name", name);
        // One that takes nobody more has answered, and hung up, perhaps.
        let sent = writeln!(stream, "{request}");
        let mut line = Line { from: BufReader::new(stream), name: name.to_owned(), patience };
        let first = match line.next() {
            Err(_) if sent.is_err() => return Err(lost()),
            first => first?.ok_or_else(lost)?,
        };
        if first["ok"] == json!(true) {
            return Ok((line, first));
        }
        let told = &first["error"];
        let code = told["code"].as_str().unwrap_or_default();
        let kind = crate::error::ERROR_TABLE.iter().find(|row| row.code == code).map_or(ErrorKind::Corrupt, |row| row.kind);
        let text = told["text"].as_str().unwrap_or("the answer is none");
        // The kind's own word comes with every error's text.
        Err(Error::new(kind, text.strip_prefix(kind.row().text).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(text).to_owned()))
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<Value>> {
        let mut text = String::new();
        match self.from.read_line(&mut text) {
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|_| Error::new(ErrorKind::Corrupt, "the cluster's answer is no JSON").with("name", &self.name)),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Err(Error::new(ErrorKind::Timeout, "the cluster does not answer")
                    .with("name", &self.name)
                    .with("waited_s", self.patience.unwrap_or_default().as_secs()))
            }
            Err(_) => Ok(None),
        }
    }
}

/// What a command answers: the whole as JSON, where that is asked for, or the text.
fn answer(args: &ArgMatches, out: &mut dyn Write, done: &Value, text: impl FnOnce() -> String) -> std::result::Result<(), Stop> {
    if args.get_flag("json") {
        writeln!(out, "{done}")?;
    } else {
        write!(out, "{}", text())?;
    }
    Ok(())
}

pub(in crate::cli) fn reload(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let (_, done) = Line::ask(name(args), &json!({"do": "reload"}), None)?;
    answer(args, out, &done, || {
        let forced = match done["forced"].as_u64() {
            None | Some(0) => String::new(),
            Some(n) => format!(", {n} did not finish in time"),
        };
        let took = seconds(&done["took_ms"]);
        format!("{}: generation {}, {} replaced in {took:.1} s{forced}\n", name(args), done["generation"], done["replaced"])
    })
}

pub(in crate::cli) fn scale(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let workers = *args.get_one::<u32>("workers").expect("clap requires it");
    let (_, done) = Line::ask(name(args), &json!({"do": "scale", "workers": workers}), None)?;
    answer(args, out, &done, || format!("{}: {workers} ready\n", name(args)))
}

pub(in crate::cli) fn stop(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let (_, done) = Line::ask(name(args), &json!({"do": "stop", "fast": args.get_flag("now")}), None)?;
    let how = if done["status"] == json!(0) { "stopped" } else { "stopped, and workers had to be killed" };
    answer(args, out, &done, || format!("{}: {how}\n", name(args)))
}

pub(in crate::cli) fn events(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let (mut line, mut first) = Line::ask(name(args), &json!({"do": "events"}), None)?;
    first.as_object_mut().map(|first| first.remove("ok"));
    writeln!(out, "{first}")?;
    out.flush()?;
    while let Some(event) = line.next()? {
        writeln!(out, "{event}")?;
        out.flush()?;
    }
    Ok(())
}

pub(in crate::cli) fn logs(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let follow = args.get_flag("follow");
    let request = json!({"do": "logs", "lines": args.get_one::<u32>("lines"), "follow": follow});
    let (mut line, _) = Line::ask(name(args), &request, None)?;
    while let Some(printed) = line.next()? {
        if args.get_flag("json") {
            writeln!(out, "{printed}")?;
        } else {
            writeln!(out, "[{}:{}] {}", printed["slot"], printed["pid"], printed["text"].as_str().unwrap_or_default())?;
        }
        if follow {
            out.flush()?;
        }
    }
    Ok(())
}

pub(in crate::cli) fn metrics(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let (_, done) = Line::ask(name(args), &json!({"do": "metrics"}), Some(ANSWER))?;
    answer(args, out, &done, || done["text"].as_str().unwrap_or_default().to_owned())
}

pub(in crate::cli) fn ps(args: &ArgMatches, out: &mut dyn Write) -> std::result::Result<(), Stop> {
    let status = json!({"do": "status"});
    let mut found = Vec::new();
    match args.get_one::<String>("name") {
        Some(name) => found.push(Line::ask(name, &status, Some(ANSWER))?.1),
        None => {
            for name in place::all()? {
                match Line::ask(&name, &status, Some(ANSWER)) {
                    Ok((_, answer)) => found.push(answer),
                    // One that runs, and cannot answer now.
                    Err(e) if e.kind() == ErrorKind::Full => return Err(e.into()),
                    // Those that are gone, or say nothing, are nobody's to show.
                    Err(_) => {}
                }
            }
        }
    }
    if args.get_flag("json") {
        for cluster in &found {
            writeln!(out, "{cluster}")?;
        }
        return Ok(());
    }
    if found.is_empty() {
        writeln!(out, "no cluster runs")?;
    }
    for cluster in &found {
        show(cluster, out)?;
    }
    Ok(())
}

fn seconds(ms: &Value) -> f64 {
    ms.as_f64().unwrap_or(0.0) / 1e3
}

fn words(list: &Value, between: &str) -> String {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join(between)
}

/// A length of time in two digits or three.
pub(super) fn age(ms: &Value) -> String {
    let s = seconds(ms);
    match s as u64 {
        0..=9 => format!("{s:.1} s"),
        10..=119 => format!("{s:.0} s"),
        120..=7199 => format!("{:.0} min", s / 60.0),
        7200..=172_799 => format!("{:.0} h", s / 3600.0),
        _ => format!("{:.0} d", s / 86400.0),
    }
}

pub(super) fn mebibytes(n: Option<f64>) -> String {
    n.map_or_else(|| "-".to_owned(), |n| format!("{:.1} MiB", n / 1024.0 / 1024.0))
}

/// A cluster in one line.
pub(super) fn headline(cluster: &Value) -> String {
    let text = |key: &str| cluster[key].as_str().unwrap_or("?").to_owned();
    let listen = words(&cluster["listen"], ", ");
    let at = if listen.is_empty() { String::new() } else { format!(" at {listen}") };
    let spares = cluster["spares"].as_u64().filter(|n| *n > 0).map_or_else(String::new, |n| format!(" and {n} spare"));
    format!(
        "{}: {}, {} of {} workers ready{spares}{at}, generation {}, up {}, pid {}",
        text("name"),
        text("state"),
        cluster["ready"],
        cluster["wanted"],
        cluster["generation"],
        age(&cluster["up_ms"]),
        cluster["pid"]
    )
}

fn show(cluster: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "{}", headline(cluster))?;
    writeln!(out, "  {}", words(&cluster["command"], " "))?;
    writeln!(out, "  slot        pid  state           gen      since  restarts       memory     cpu s")?;
    for worker in cluster["workers"].as_array().into_iter().flatten() {
        let number = |key: &str| worker[key].as_u64().unwrap_or(0);
        let memory = mebibytes(worker["memory"].as_f64());
        let cpu = worker["cpu_ms"].as_f64().map_or_else(|| "-".to_owned(), |n| format!("{:.2}", n / 1e3));
        writeln!(
            out,
            "  {:>4}  {:>9}  {:<12}  {:>5}  {:>9}  {:>8}  {memory:>11}  {cpu:>8}",
            number("slot"),
            number("pid"),
            worker["state"].as_str().unwrap_or("?"),
            number("generation"),
            age(&worker["since_ms"]),
            number("restarts")
        )?;
    }
    Ok(())
}
