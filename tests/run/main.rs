//! Servers that know nothing of offloop, under `offloop run`: each is reloaded while `offloop bench http` asks it, and not one request may fail.
//!
//! `cargo test -p offloop-tests --test run -- [part of a server's name]…`. One line of JSON per row: trials are reloads. `OFFLOOP_TORTURE=1` takes the figures of the long run,
//! `OFFLOOP_REQUIRE=node,python` makes a host that cannot run a failure instead of a reason; a server that is not installed is a reason in any case.

#![allow(clippy::print_stdout, reason = "a test harness reports")]

use offloop_tests::driver::{Program, program};
use offloop_tests::row::Row;
use offloop_tests::{root, target_dir};
use serde_json::Value;
use std::ffi::OsString;
use std::net::TcpListener;
use std::path::PathBuf;

struct Server {
    name: &'static str,
    lang: &'static str,
    /// `PYTHON` is the interpreter, `PORT` the port; what begins with `tests/` lies in the tree.
    command: &'static [&'static str],
    /// What has to be installed for it, as the interpreter asks for it.
    needs: Option<&'static str>,
    balance: &'static str,
}

const SERVERS: &[Server] = &[
    Server { name: "node http", lang: "node", command: &["node", "tests/run/server.js", "PORT"], needs: None, balance: "shared" },
    Server { name: "python asyncio", lang: "python", command: &["PYTHON", "tests/run/streams.py", "PORT"], needs: None, balance: "shared" },
    Server { name: "node http, ip-hash", lang: "node", command: &["node", "tests/run/server.js", "PORT"], needs: None, balance: "ip-hash" },
    Server {
        name: "python asyncio, round-robin",
        lang: "python",
        command: &["PYTHON", "tests/run/streams.py", "PORT"],
        needs: None,
        balance: "round-robin",
    },
    Server {
        name: "uvicorn",
        lang: "python",
        command: &["PYTHON", "-m", "uvicorn", "--app-dir", "tests/run", "--log-level", "warning", "--port", "PORT", "app:app"],
        needs: Some("uvicorn"),
        balance: "shared",
    },
    Server {
        name: "uvicorn --fd",
        lang: "python",
        command: &["PYTHON", "-m", "uvicorn", "--app-dir", "tests/run", "--log-level", "warning", "--fd", "{fd}", "app:app"],
        needs: Some("uvicorn"),
        balance: "shared",
    },
    Server {
        name: "gunicorn",
        lang: "python",
        command: &[
            "PYTHON",
            "-m",
            "gunicorn",
            "--no-control-socket",
            "--chdir",
            "tests/run",
            "--log-level",
            "warning",
            "-b",
            "127.0.0.1:PORT",
            "app:wsgi",
        ],
        needs: Some("gunicorn"),
        balance: "shared",
    },
];

struct Figures {
    reloads: u64,
    every: &'static str,
}

const SMOKE: Figures = Figures { reloads: 2, every: "0.3" };
const TORTURE: Figures = Figures { reloads: 20, every: "1" };

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let required = std::env::var("OFFLOOP_REQUIRE").unwrap_or_default();
    let figures = if std::env::var_os("OFFLOOP_TORTURE").is_some() { TORTURE } else { SMOKE };
    let mut failed = false;
    for server in SERVERS.iter().filter(|s| words.is_empty() || words.iter().any(|word| s.name.contains(word.as_str()))) {
        match there(server) {
            Err((why, lacks)) if !lacks && required.split(',').any(|lang| lang == server.lang) => {
                println!("run {}: cannot run: {why}", server.name);
                failed = true;
            }
            Err((why, _)) => println!("run {}: skipped: {why}", server.name),
            Ok(command) => {
                if let Err(why) = reload(server, &command, &figures) {
                    println!("run {}: {why}", server.name);
                    failed = true;
                }
            }
        }
    }
    std::process::ExitCode::from(u8::from(failed))
}

/// The server's command, or why it cannot run here, and whether it is only not installed.
fn there(server: &Server) -> Result<Vec<OsString>, (String, bool)> {
    let host = program(server.lang, &Program { rust: "", c: "", scripts: "tests/reload/host" }).map_err(|why| (why, false))?;
    let python = host.get_program().to_owned();
    if let Some(module) = server.needs {
        let known =
            std::process::Command::new(&python).args(["-c", &format!("import {module}")]).output().map_err(|e| (e.to_string(), false))?;
        if !known.status.success() {
            return Err((format!("{module} is not installed; run `{} -m pip install {module}`", python.display()), true));
        }
    }
    let word = |word: &&str| match *word {
        "PYTHON" => python.clone(),
        word if word.starts_with("tests/") => root().join(word).into_os_string(),
        word => word.into(),
    };
    Ok(server.command.iter().map(word).collect())
}

fn reload(server: &Server, command: &[OsString], figures: &Figures) -> Result<(), String> {
    let mut row = Row::begin(format!("run {} reload", server.name), figures.reloads, 0);
    let outcome = load(server, command, figures);
    let result = outcome.and_then(|report| {
        let number = |path: &str| report.pointer(path).and_then(Value::as_u64).ok_or_else(|| format!("report has no {path}: {report}"));
        let events = report.pointer("/events").and_then(Value::as_array).ok_or("report has no events")?;
        let ended_well = events.iter().filter(|event| event["ok"] == true).count();
        row.trials = ended_well as u64;
        row.count("requests", number("/requests")?);
        row.count("failed", number("/failed")?);
        row.count("raced", number("/raced")?);
        if number("/failed")? == 0 && ended_well == events.len() { Ok(()) } else { Err(report.to_string()) }
    });
    row.end(result)
}

/// The report of one load with its reloads.
fn load(server: &Server, command: &[OsString], figures: &Figures) -> Result<Value, String> {
    let offloop = target_dir().join("release/offloop");
    if !offloop.exists() {
        return Err(format!("{} is not there; run `make core`", offloop.display()));
    }
    // Nobody else takes a port that has just been given away, as a rule; where somebody does, the server says so.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).map_err(|e| e.to_string())?.port();
    let place: PathBuf = std::env::temp_dir().join(format!("ofl-servers-{}-{port}", std::process::id()));
    std::fs::create_dir_all(&place).map_err(|e| e.to_string())?;
    let (bin, dir) = (offloop.display(), place.display());
    // A reload needs workers that are ready.
    let run = format!(
        "export XDG_RUNTIME_DIR='{dir}'; n=0; until '{bin}' ps t --json | grep -q '\"state\":\"running\"'; do n=$((n+1)); [ $n -lt 600 ] || exit 1; sleep 0.05; done; exec '{bin}' reload t > /dev/null"
    );
    let (url, times) = (format!("http://127.0.0.1:{port}/"), figures.reloads.to_string());
    let mut args: Vec<OsString> =
        ["offloop", "bench", "http", &url, "-c", "8", "--every", figures.every, "--run", &run, "--times", &times, "--json", "--"]
            .map(OsString::from)
            .to_vec();
    args.extend(["env".into(), format!("XDG_RUNTIME_DIR={dir}").into()]);
    let hooks = |name: &str, path: &str| OsString::from(format!("{name}={}", root().join(path).display()));
    args.extend([
        hooks("OFFLOOP_NODE_PRELOAD", "bindings-node/lib/register.cjs"),
        hooks("OFFLOOP_PYTHON_HOOKS", "bindings-python/python/offloop/_site"),
    ]);
    args.extend([
        offloop.clone().into_os_string(),
        "run".into(),
        "-n".into(),
        "t".into(),
        "-w".into(),
        "2".into(),
        "--min-ready".into(),
        "0.1".into(),
        "--balance".into(),
        server.balance.into(),
    ]);
    if server.command.contains(&"{fd}") {
        args.extend(["--listen".into(), format!("127.0.0.1:{port}").into()]);
    }
    args.push("--".into());
    args.extend(command.iter().map(|word| word.to_string_lossy().replace("PORT", &port.to_string()).into()));
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let status = offloop::cli::run(args, &mut out, &mut errors);
    let left = std::fs::read_dir(place.join("offloop")).map_or(0, Iterator::count);
    let _ = std::fs::remove_dir_all(&place);
    let text = String::from_utf8_lossy(&out);
    let said = || format!("exit {status}\n{text}\n{}", String::from_utf8_lossy(&errors));
    let report: Value = text.lines().last().and_then(|line| serde_json::from_str(line).ok()).ok_or_else(said)?;
    if status != 0 || left > 0 {
        return Err(format!("{left} sockets are left; {}", said()));
    }
    Ok(report)
}
