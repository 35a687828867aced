//! `offloop bench http`: a load that counts every request that fails, while a server is reloaded, killed or scaled.
//!
//! [`target`] says what is asked and by whom, [`load`] sends, [`response`] reads, [`event`] runs commands meanwhile, [`tally`] counts, [`report`] tells.

mod event;
mod load;
mod report;
mod response;
mod tally;
mod target;
#[cfg(test)]
mod tests;

use super::Stop;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::stream::{self, Peer};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use event::{Event, Server};
use load::Plan;
use response::Look;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use target::{Mix, Url};

/// How often a server that starts is asked whether it accepts.
const ASK: Duration = Duration::from_millis(10);
/// How long one such question may take.
const ANSWER: Duration = Duration::from_millis(200);

pub(super) fn command() -> Command {
    let seconds =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("SECONDS").value_parser(duration).help(help);
    let ms = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("MS").default_value(default).value_parser(milliseconds).help(help)
    };
    let http = Command::new("http")
        .about("Load an HTTP/1.1 server and count each request that is not answered by a complete 2xx; nothing is sent twice")
        .override_usage("offloop bench http [OPTIONS] <URL> [-- COMMAND...]")
        .args([
            Arg::new("url").value_name("URL").required(true).value_parser(url).help("http://host[:port]/path; IPv6 in brackets"),
            Arg::new("connections")
                .short('c')
                .long("connections")
                .value_name("N")
                .default_value("16")
                .value_parser(value_parser!(u32).range(1..=10_000))
                .help("Clients, each with one request at a time, 1 to 10000"),
            seconds("duration", "Begin no request after so long [default: 10, unless -n or --times says when to end]").short('d'),
            Arg::new("requests")
                .short('n')
                .long("requests")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("Begin no more than so many requests"),
            Arg::new("mix")
                .long("mix")
                .value_name("MIX")
                .default_value("new=8,keep=4,slow-body=2,slow-read=2")
                .value_parser(Mix::parse)
                .help("How the clients behave, by weight"),
            seconds("timeout", "Until a request that has not ended is a failed one").default_value("10"),
            ms("pause", "0", "Between a response and the client's next request"),
            ms("failure-pause", "10", "The same behind a request that failed, unless --pause is longer"),
            seconds("idle-limit", "A connection that carried nothing for so long may be closed: counted apart, as `raced`")
                .default_value("30"),
            Arg::new("unix-socket")
                .long("unix-socket")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help("Connect there; the URL says what to ask for"),
            Arg::new("header")
                .short('H')
                .long("header")
                .value_name("NAME: VALUE")
                .action(ArgAction::Append)
                .value_parser(field)
                .help("A further field of each request"),
            Arg::new("check-body").long("check-body").value_name("TEXT").help("A body without this text is a failure"),
            Arg::new("count-header")
                .long("count-header")
                .value_name("NAME")
                .value_parser(field_name)
                .help("Count the answers by the value of this field, as of one that names the worker"),
            Arg::new("every")
                .long("every")
                .value_name("SECONDS")
                .action(ArgAction::Append)
                .value_parser(duration)
                .help("How often the --run with the same place runs, first after so long; may be given several times"),
            Arg::new("run")
                .long("run")
                .value_name("COMMAND")
                .action(ArgAction::Append)
                .help("A shell command to run during the load; {pid} is the server's that COMMAND... started"),
            Arg::new("times")
                .long("times")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("Run each --run so often at most; without -d and -n the load ends then"),
            seconds("settle", "How long after the end of a --run its effects are counted as of its time").default_value("1"),
            seconds("interval", "Tell rate, p99 and failures each so long"),
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("The report as one JSON object; with --interval one more for each line"),
            seconds("start-timeout", "How long the server that COMMAND... starts may take until it accepts").default_value("30"),
            Arg::new("command")
                .value_name("COMMAND")
                .last(true)
                .num_args(1..)
                .value_parser(value_parser!(OsString))
                .help("Start this server, wait until it accepts, and end it after the load: SIGTERM, after 10 s SIGKILL"),
        ]);
    Command::new("bench").about("Measure a server").subcommand_required(true).arg_required_else_help(true).subcommand(http)
}

fn number(text: &str, unit: &str, max: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text} is no number of {unit}"))?;
    if (0.0..=max).contains(&number) { Ok(number) } else { Err(format!("{text} is outside 0 to {max} {unit}")) }
}

fn duration(text: &str) -> Result<Duration, String> {
    number(text, "seconds", 1e7).map(Duration::from_secs_f64)
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    number(text, "milliseconds", 1e7).map(|ms| Duration::from_secs_f64(ms / 1e3))
}

fn url(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|e| e.to_string())
}

fn field_name(text: &str) -> Result<String, String> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !text.is_empty() && text.bytes().all(token) { Ok(text.to_owned()) } else { Err(format!("{text:?} is no name of a field")) }
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("{text:?} has no colon"))?;
    let name = field_name(name)?;
    if ["connection", "content-length", "transfer-encoding", "expect", "upgrade"].iter().any(|own| name.eq_ignore_ascii_case(own)) {
        return Err(format!("{name} is up to the client"));
    }
    let value = value.trim_matches([' ', '\t']);
    if value.bytes().any(|b| (b < b' ' && b != b'\t') || b == 0x7f) {
        return Err(format!("value of {name} has a control character"));
    }
    Ok((name, value.to_owned()))
}

/// The commands and their times. `{pid}` is put in once there is one.
fn events(args: &ArgMatches) -> Result<Vec<Event>> {
    let every: Vec<Duration> = args.get_many("every").unwrap_or_default().copied().collect();
    let commands: Vec<&String> = args.get_many("run").unwrap_or_default().collect();
    if every.len() != commands.len() {
        return Err(Error::invalid("each --run needs one --every").with("every", every.len()).with("run", commands.len()));
    }
    if every.iter().any(Duration::is_zero) {
        return Err(Error::invalid("--every is 0 seconds"));
    }
    if args.contains_id("times") && every.is_empty() {
        return Err(Error::invalid("--times says how often a --run runs, and there is none"));
    }
    if commands.iter().any(|c| c.contains("{pid}")) && !args.contains_id("command") {
        return Err(Error::invalid("{pid} is that of a server that is started here, and no command to start one is given"));
    }
    Ok(commands.into_iter().zip(every).map(|(command, every)| Event { command: command.clone(), every }).collect())
}

/// The first of `peers` that accepts.
fn accepting(peers: &[Peer]) -> Result<Option<Peer>> {
    for peer in peers {
        if stream::accepts(peer, ANSWER)? {
            return Ok(Some(peer.clone()));
        }
    }
    Ok(None)
}

/// Starts a server and waits until it accepts. Also returns at which of `peers`, and how long it took.
fn start(command: &[OsString], peers: &[Peer], url: &Url, patience: Duration) -> Result<(Server, Peer, Duration)> {
    // Its answers would be taken for those of the server that could not have its place.
    if accepting(peers)?.is_some() {
        return Err(
            Error::new(ErrorKind::Exists, "somebody accepts connections there before the server was started").with("url", &url.text)
        );
    }
    let began = Instant::now();
    let server = Server::start(command)?;
    loop {
        if let Some(peer) = accepting(peers)? {
            return Ok((server, peer, began.elapsed()));
        }
        if let Some(exit) = server.child.wait(Some(ASK))? {
            return Err(Error::new(ErrorKind::StartFailed, "server ended before it accepted a connection")
                .with("ended", event::how(exit))
                .with("url", &url.text));
        }
        if began.elapsed() >= patience {
            return Err(Error::new(ErrorKind::Timeout, "server accepts no connection")
                .with("waited_s", patience.as_secs_f64())
                .with("url", &url.text));
        }
    }
}

pub(super) fn http(args: &ArgMatches, out: &mut dyn Write) -> Result<(), Stop> {
    let get = |name: &str| *args.get_one::<Duration>(name).expect("it has a default");
    let url: &Url = args.get_one("url").expect("clap requires it");
    let mix: &Mix = args.get_one("mix").expect("it has a default");
    let connections = *args.get_one::<u32>("connections").expect("it has a default") as usize;
    let as_json = args.get_flag("json");
    let shares = mix.share(connections).map_err(Stop::Usage)?;
    let mut events = events(args).map_err(Stop::Usage)?;
    let interval = args.get_one::<Duration>("interval").copied();
    if interval.is_some_and(|i| i < Duration::from_millis(10)) {
        return Err(Stop::Usage(Error::invalid("interval is below 0.01 seconds")));
    }
    let peers = match args.get_one::<PathBuf>("unix-socket") {
        Some(path) => target::unix(path).map_err(Stop::Usage)?,
        None => url.peers()?,
    };
    let counted: Option<&String> = args.get_one("count-header");
    let ends = args.contains_id("requests") || args.contains_id("times");
    let ten = Some(Duration::from_secs(10)).filter(|_| !ends);

    let started = match args.get_many::<OsString>("command") {
        Some(command) => {
            let command: Vec<OsString> = command.cloned().collect();
            Some(start(&command, &peers, url, get("start-timeout"))?)
        }
        None => None,
    };
    if let Some((server, ..)) = &started {
        let pid = server.child.pid().to_string();
        events.iter_mut().for_each(|e| e.command = e.command.replace("{pid}", &pid));
    }
    // Without an answer each request finds out for itself.
    let found = match &started {
        Some((_, peer, _)) => Some(peer.clone()),
        None if peers.len() == 1 => None,
        None => accepting(&peers)?,
    };
    let plan = Plan {
        url: url.clone(),
        peer: found.unwrap_or_else(|| peers[0].clone()),
        fields: args.get_many("header").unwrap_or_default().cloned().collect(),
        shares,
        duration: args.get_one("duration").copied().or(ten),
        requests: args.get_one("requests").copied(),
        timeout: get("timeout"),
        pause: get("pause"),
        failure_pause: get("failure-pause"),
        idle_limit: get("idle-limit"),
        look: Look::new(counted.cloned(), args.get_one::<String>("check-body").map(String::as_str)),
        counts: counted.is_some(),
        events,
        times: args.get_one("times").copied(),
        settle: get("settle"),
        interval,
    };
    if interval.is_some() && !as_json {
        writeln!(out, "{}", report::LINE_HEAD)?;
        out.flush()?;
    }
    let outcome = load::run(&plan, started.as_ref().map(|(server, ..)| server), &mut |from, to, tally| {
        writeln!(out, "{}", report::line(from, to, &tally.recent, as_json))?;
        out.flush()
    })?;
    let server = match &started {
        Some((server, _, took)) => Some(report::ServerEnd::of(server, *took, &outcome)?),
        None => None,
    };
    let report = report::Report { plan: &plan, outcome: &outcome, server: server.as_ref(), field: counted.map(String::as_str) };
    if as_json {
        writeln!(out, "{}", report.json())?;
    } else {
        report.text(out)?;
    }
    out.flush()?;
    let commands_failed = outcome.runs.iter().any(|run| !run.ended.as_ref().is_some_and(|(_, ended)| ended.went_well()));
    if outcome.tally.all().failed() > 0 || commands_failed { Err(Stop::Told) } else { Ok(()) }
}
