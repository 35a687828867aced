//! What `offloop run` is told, by its arguments and by variables of the environment.

use super::super::control::place;
use crate::cluster::{Address, Balance, Builder, Cluster, Log, Rotation};
use crate::error::{Error, Result};
use crate::supervisor::{self, MAX_WORKERS};
use crate::sys::confine::{self, Confine};
use crate::sys::cpu;
use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a loop shows at most that it turns, in seconds; it stands still when it has not shown so four times.
const SHORTEST_BEAT: f64 = 0.01;

/// What workers may be told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Workers {
    Auto,
    Number(usize),
}

/// Everything that is said.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) command: Vec<OsString>,
    pub(super) workers: usize,
    pub(super) spares: usize,
    pub(super) listen: Vec<Address>,
    /// Where numbers are to be had.
    pub(super) metrics: Option<Address>,
    pub(super) balance: Balance,
    /// `None`: one that is made of the command.
    pub(super) name: Option<String>,
    pub(super) env: Vec<(OsString, Option<OsString>)>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) supervision: supervisor::Options,
    /// `None`: it depends on the program.
    pub(super) ready_after: Option<Duration>,
    pub(super) log: Log,
    pub(super) json: bool,
    pub(super) confine: Confine,
    pub(super) pin_cpus: bool,
    /// Reloads when something changes there.
    pub(super) watch: Vec<PathBuf>,
}

pub(in crate::cli) fn command() -> Command {
    let seconds = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("SECONDS").default_value(default).value_parser(seconds(0.0)).help(help)
    };
    Command::new("run")
        .about("Run N copies of a server on the same sockets, and keep them alive")
        .override_usage("offloop run [OPTIONS] -- <COMMAND>...")
        .after_help(
            "SIGHUP reloads without losing a request; SIGTERM and SIGINT let workers finish, a second one ends them at once.\n\
             Exit status: 0 stopped as asked, 1 failure, 2 not understood, 3 not started, 4 stopped, but workers had to be killed,\n\
             128 + N stopped at once by signal N.",
        )
        .args([
            Arg::new("workers")
                .short('w')
                .long("workers")
                .value_name("N")
                .default_value("auto")
                .value_parser(workers)
                .help("Workers, 1 to 1024; auto: $WEB_CONCURRENCY, or the usable cores"),
            Arg::new("spares")
                .long("spares")
                .value_name("N")
                .default_value("0")
                .value_parser(value_parser!(u32).range(0..MAX_WORKERS as i64))
                .help("Workers beside those that load and wait: when one has ended, a spare takes its place at once"),
            Arg::new("listen")
                .short('l')
                .long("listen")
                .value_name("ADDRESS")
                .action(ArgAction::Append)
                .value_parser(address)
                .help("PORT, HOST:PORT, unix:PATH, or fd:NUMBER of a socket that this command inherits and that listens; bound before the first worker starts; several are fds 3, 4, … [default: $PORT, if it is set]"),
            Arg::new("balance")
                .short('b')
                .long("balance")
                .value_name("STRATEGY")
                .default_value("shared")
                .value_parser(PossibleValuesParser::new(Balance::names()))
                .help("How connections come to workers; but for shared and reuseport the command accepts, and passes them to programs that it has hooks in"),
            Arg::new("name").short('n').long("name").value_name("NAME").value_parser(place::name).help("What other commands know it by [default: that of the script]"),
            Arg::new("env")
                .short('e')
                .long("env")
                .value_name("NAME=VALUE")
                .action(ArgAction::Append)
                .value_parser(value_parser!(OsString))
                .help("A further variable of the workers; NAME= is an empty one, NAME alone takes it away"),
            Arg::new("cwd").long("cwd").value_name("DIRECTORY").value_parser(value_parser!(PathBuf)).help("Where workers run"),
            seconds("ready-timeout", "30", "From a worker's start until it listens").value_parser(self::seconds(0.001)),
            Arg::new("ready-after")
                .long("ready-after")
                .value_name("SECONDS")
                .value_parser(seconds_or_0(0.001))
                .help("A worker that says nothing is taken as ready when it still lives after so long; 0: never [default: 1; 10 for programs of Node.js and Python, which offloop has hooks in]"),
            seconds("min-ready", "1", "How long a new worker has to be ready before the old one is asked to finish"),
            seconds("drain-timeout", "30", "What a worker has to finish its requests"),
            seconds("kill-grace", "2", "From SIGTERM to SIGKILL after that"),
            seconds("hang-timeout", "10", "A worker whose event loop stands still for so long is replaced; 0: none is")
                .value_parser(seconds_or_0(4.0 * SHORTEST_BEAT)),
            Arg::new("log")
                .long("log")
                .value_parser(value_parser!(OsString))
                .value_name("WHERE")
                .default_value("prefixed")
                .help("What workers print: prefixed or raw to the outputs of this command, none, or the path of a file"),
            Arg::new("log-size")
                .long("log-size")
                .value_name("MIB")
                .default_value("10")
                .value_parser(value_parser!(u32).range(1..=1 << 20))
                .help("A log file that would grow beyond it is followed by the next"),
            Arg::new("log-keep")
                .long("log-keep")
                .value_name("N")
                .default_value("5")
                .value_parser(value_parser!(u32).range(0..=1000))
                .help("Older log files that are kept: FILE.1, the youngest, to FILE.N"),
            Arg::new("max-age")
                .long("max-age")
                .value_name("SECONDS")
                .value_parser(self::seconds(1.0))
                .help("A worker that was ready for so long, ±10 %, is replaced"),
            Arg::new("max-memory")
                .long("max-memory")
                .value_name("MIB")
                .value_parser(value_parser!(u32).range(1..))
                .help("A worker that has more memory (PSS) at three looks in a row, one a second, is replaced"),
            Arg::new("max-requests")
                .long("max-requests")
                .value_name("N")
                .value_parser(value_parser!(u64).range(1..))
                .help("A worker that has answered so many requests, ±10 %, is replaced; those of HTTP in Node.js, under uvicorn and http.server are counted"),
            Arg::new("pin-cpus").long("pin-cpus").action(ArgAction::SetTrue).help("Each worker runs on one core, by its slot, the usable cores counted round"),
            Arg::new("user")
                .long("user")
                .value_name("USER[:GROUP]")
                .help("Whose workers are, by names or numbers, without supplementary groups; the command itself stays who it is"),
            Arg::new("limit")
                .long("limit")
                .value_name("NAME=N")
                .action(ArgAction::Append)
                .value_parser(|text: &str| confine::parse_limit(text).map_err(|e| e.to_string()))
                .help("A soft and hard limit of the workers: as, core, cpu, data, fsize, memlock, nofile, nproc, rss, stack; N or unlimited"),
            Arg::new("oom-score")
                .long("oom-score")
                .value_name("N")
                .allow_negative_numbers(true)
                .value_parser(value_parser!(i32).range(-1000..=1000))
                .help("oom_score_adj of the workers, -1000 to 1000: how much rather than others they are killed when memory runs out"),
            Arg::new("nice")
                .long("nice")
                .value_name("N")
                .default_value("0")
                .allow_negative_numbers(true)
                .value_parser(value_parser!(i32).range(-40..=40))
                .help("Added to the niceness of the workers"),
            Arg::new("metrics")
                .long("metrics")
                .value_name("ADDRESS")
                .value_parser(address)
                .help("Where HTTP requests get numbers: /metrics for Prometheus, / a page that shows them. Whoever can connect reads them: 127.0.0.1:PORT or unix:PATH"),
            Arg::new("watch")
                .long("watch")
                .value_name("PATH")
                .action(ArgAction::Append)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value(".")
                .value_parser(value_parser!(PathBuf))
                .help("While developing: a change of a file there reloads; of a directory also what is below, but for node_modules, target, logs, databases and the like [default of PATH: .]"),
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Options by their names, and `command`, as TOML; what is given here goes before [default: offloop.toml, if it is there]"),
            Arg::new("json").long("json").action(ArgAction::SetTrue).help("What it says itself is one JSON object a line"),
            Arg::new("command")
                .value_name("COMMAND")
                .last(true)
                .num_args(1..)
                .value_parser(value_parser!(OsString))
                .help("The server and its arguments; {fd} is replaced by the number of the first listening socket, {fd1} by that of the second"),
        ])
}

/// Seconds from `min` on.
fn seconds(min: f64) -> impl Fn(&str) -> std::result::Result<Duration, String> + Clone + Send + Sync {
    move |text| {
        let seconds: f64 = text.parse().map_err(|_| format!("{text} is no number of seconds"))?;
        let max = supervisor::MAX_DURATION.as_secs_f64();
        let is_in = (min..=max).contains(&seconds);
        if is_in { Ok(Duration::from_secs_f64(seconds)) } else { Err(format!("{text} is outside {min} to {max} seconds")) }
    }
}

fn seconds_or_0(min: f64) -> impl Fn(&str) -> std::result::Result<Duration, String> + Clone + Send + Sync {
    let others = seconds(min);
    move |text| if text.parse() == Ok(0.0) { Ok(Duration::ZERO) } else { others(text).map_err(|e| format!("{e}, and not 0")) }
}

fn workers(text: &str) -> std::result::Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    let number: usize = text.parse().map_err(|_| format!("{text} is neither a number nor auto"))?;
    if (1..=MAX_WORKERS).contains(&number) {
        Ok(Workers::Number(number))
    } else {
        Err(format!("{number} is outside 1 to {MAX_WORKERS} workers"))
    }
}

fn address(text: &str) -> std::result::Result<Address, String> {
    text.parse::<Address>().map_err(|e| e.to_string())
}

/// `NAME=VALUE`, or the name of one that workers do not get.
fn variable(text: &OsStr) -> Result<(OsString, Option<OsString>)> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
        None => (bytes, None),
    };
    if name.is_empty() {
        return Err(Error::invalid("variable has no name").with("env", text.display()));
    }
    Ok((OsString::from_vec(name.to_vec()), value))
}

/// How many workers `auto` is.
fn automatic(said: Option<&OsStr>) -> Result<usize> {
    let Some(text) = said.filter(|text| !text.is_empty()) else { return Ok(cpu::usable_cores().min(MAX_WORKERS)) };
    let number = text.to_str().and_then(|text| text.trim().parse().ok()).filter(|n| (1..=MAX_WORKERS).contains(n));
    number.ok_or_else(|| {
        Error::invalid("WEB_CONCURRENCY is no number of workers").with("value", text.display()).with("min", 1).with("max", MAX_WORKERS)
    })
}

/// Where it listens when nothing is said.
fn default_listen(port: Option<&OsStr>) -> Result<Vec<Address>> {
    let Some(text) = port.filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    let number = text.to_str().and_then(|text| text.parse::<u16>().ok());
    let number = number.ok_or_else(|| Error::invalid("PORT is no port: --listen says where to listen").with("value", text.display()))?;
    Ok(vec![Address::Any(number)])
}

/// What `name` may be when nobody gives one: that of the script.
pub(super) fn default_name(command: &[OsString]) -> String {
    let stem = |text: &OsString| Path::new(text).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let program = command.first().map(stem).unwrap_or_default();
    let interprets = ["node", "python", "bun", "deno", "ruby", "sh", "bash"]
        .iter()
        .any(|name| program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') == *name);
    let script = command.iter().skip(1).find(|arg| !arg.as_bytes().starts_with(b"-")).filter(|_| interprets);
    place::name_of(&script.map_or(program, stem))
}

impl Run {
    /// What is not said by arguments is said by the file, if there is one.
    pub(super) fn of(args: &ArgMatches, file: Option<&ArgMatches>) -> Result<Run> {
        let said = |args: &ArgMatches, name: &str| args.value_source(name) == Some(ValueSource::CommandLine);
        let by = |name: &str| file.filter(|file| !said(args, name) && said(file, name)).unwrap_or(args);
        let get = |name: &str| *by(name).get_one::<Duration>(name).expect("it has a default");
        let command: Vec<OsString> = by("command").get_many("command").unwrap_or_default().cloned().collect();
        if command.first().is_none_or(|program| program.is_empty()) {
            return Err(Error::invalid("there is no <COMMAND> to run: offloop run [OPTIONS] -- <COMMAND>..."));
        }
        let listen: Vec<Address> = by("listen").get_many("listen").unwrap_or_default().cloned().collect();
        let hang = get("hang-timeout");
        let beat = Duration::from_secs(1);
        let supervision = supervisor::Options {
            boot_timeout: get("ready-timeout"),
            min_ready: get("min-ready"),
            drain_timeout: get("drain-timeout"),
            kill_grace: get("kill-grace"),
            hang_timeout: hang,
            max_age: by("max-age").get_one("max-age").copied(),
            max_memory: by("max-memory").get_one::<u32>("max-memory").map(|mib| u64::from(*mib) << 20),
            max_requests: by("max-requests").get_one("max-requests").copied(),
            beat: if hang.is_zero() { beat } else { beat.min(hang / 4) },
            ..Builder::default_supervision()
        };
        let run = Run {
            command,
            workers: match by("workers").get_one("workers").expect("it has a default") {
                Workers::Number(n) => *n,
                Workers::Auto => automatic(std::env::var_os("WEB_CONCURRENCY").as_deref())?,
            },
            spares: *by("spares").get_one::<u32>("spares").expect("it has a default") as usize,
            listen: if listen.is_empty() { default_listen(std::env::var_os("PORT").as_deref())? } else { listen },
            metrics: by("metrics").get_one("metrics").cloned(),
            balance: by("balance").get_one::<String>("balance").expect("it has a default").parse()?,
            name: by("name").get_one::<String>("name").cloned(),
            env: by("env").get_many::<OsString>("env").unwrap_or_default().map(|text| variable(text)).collect::<Result<_>>()?,
            cwd: by("cwd").get_one("cwd").cloned(),
            supervision,
            ready_after: by("ready-after").get_one("ready-after").copied(),
            log: {
                let size = u64::from(*by("log-size").get_one::<u32>("log-size").expect("it has a default")) << 20;
                let keep = *by("log-keep").get_one::<u32>("log-keep").expect("it has a default");
                Log::parse(by("log").get_one::<OsString>("log").expect("it has a default"), Rotation { size, keep })
            },
            json: by("json").get_flag("json"),
            confine: {
                let ids = by("user").get_one::<String>("user").map(|text| confine::parse_user(text)).transpose()?;
                Confine {
                    nice: *by("nice").get_one("nice").expect("it has a default"),
                    uid: ids.map(|ids| ids.0),
                    gid: ids.map(|ids| ids.1),
                    limits: by("limit").get_many("limit").unwrap_or_default().cloned().collect(),
                    oom_score: by("oom-score").get_one("oom-score").copied(),
                    ..Confine::default()
                }
            },
            pin_cpus: by("pin-cpus").get_flag("pin-cpus"),
            watch: by("watch").get_many("watch").unwrap_or_default().cloned().collect(),
        };
        // What each option may be was seen; they may not go together.
        run.builder().check().map_err(|e| e.option_named(|name| Some(format!("--{}", name.replace('_', "-")))))?;
        Ok(run)
    }

    /// What can be judged without trying.
    pub(super) fn builder(&self) -> Builder {
        let builder = Cluster::builder().workers(self.workers).spares(self.spares).balance(self.balance);
        builder.supervision(self.supervision.clone()).confine(self.confine.clone()).log(self.log.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn what_is_not_said_comes_from_the_environment() {
        assert_eq!(automatic(Some("3".as_ref())).expect("a number"), 3);
        assert!(automatic(None).expect("cores") >= 1 && automatic(Some("".as_ref())).expect("cores") >= 1);
        for bad in ["0", "1025", "many", "-1"] {
            assert!(automatic(Some(bad.as_ref())).expect_err(bad).to_string().contains("WEB_CONCURRENCY"));
        }
        assert_eq!(default_listen(Some("8080".as_ref())).expect("a port"), [Address::Any(8080)]);
        assert_eq!(default_listen(None).expect("none"), []);
        assert!(default_listen(Some("http".as_ref())).expect_err("no port").to_string().contains("value=http"));
    }

    #[test]
    fn a_name_is_made_of_the_script() {
        for (command, name) in [
            ("node server.js", "server"),
            ("/usr/bin/node --no-warnings ./src/api.mjs --port 3", "api"),
            ("python3.11 app.py", "app"),
            ("uvicorn app:app", "uvicorn"),
            ("./bin/my server", "my"),
            ("/", "cluster"),
        ] {
            assert_eq!(default_name(&words(command)), name);
        }
    }

    #[test]
    fn variables_are_given_emptied_and_taken_away() {
        let of = |text: &str| variable(text.as_ref()).expect(text);
        assert_eq!(of("A=b=c"), ("A".into(), Some("b=c".into())));
        assert_eq!((of("A="), of("A")), (("A".into(), Some("".into())), ("A".into(), None)));
        assert!(variable("=x".as_ref()).is_err());
    }
}
