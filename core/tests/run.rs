//! `offloop run` and the commands that talk to it, as processes: this very program is the server.
#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

mod clients;

use clients::{Clients, ask};
use offloop::cluster::worker;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Ends a hang; nothing is measured by it.
const WATCHDOG: Duration = Duration::from_secs(60);
const MODE: &str = "OFFLOOP_TEST_MODE";

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + WATCHDOG;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(ms(5));
    }
}

// ---- the server's part ----

#[test]
fn worker_part() {
    let Ok(mode) = std::env::var(MODE) else { return };
    be_server(&mode);
}

fn end(code: i32) -> ! {
    // SAFETY: ends a process of the test, without the harness.
    unsafe { libc::_exit(code) }
}

/// `mode`, or what the file has that it names with `@`.
fn be_server(mode: &str) -> ! {
    let read = mode.strip_prefix('@').map(|file| std::fs::read_to_string(file).unwrap());
    let mode = read.as_deref().map_or(mode, str::trim);
    if mode == "fails" {
        eprintln!("cannot load the configuration: no such file");
        end(7);
    }
    // SAFETY: inherited, and used here alone.
    let listener = || TcpListener::from(unsafe { OwnedFd::from_raw_fd(3) });
    let answer = |listener: &TcpListener, text: &str| {
        let Ok((mut connection, _)) = listener.accept() else { return false };
        let mut request = [0; 4];
        connection.set_nonblocking(false).unwrap();
        let _ = connection.read_exact(&mut request);
        let _ = connection.write_all(text.as_bytes());
        true
    };
    if mode == "talks" {
        println!("\nhello from {}", std::process::id());
        eprint!("it has no end");
    }
    if mode == "writes" {
        std::fs::write(std::env::var_os("FILE").unwrap(), std::process::id().to_string()).unwrap();
    }
    if mode == "plain" {
        let listener = listener();
        listener.set_nonblocking(false).unwrap();
        loop {
            answer(&listener, &format!("plain {}", std::process::id()));
        }
    }
    let worker = worker::attach().unwrap().expect("of a cluster");
    let worker = worker.supervisor();
    if mode == "broken" {
        worker.fail("SyntaxError: unexpected end of input");
        end(1);
    }
    if mode == "never" {
        std::thread::sleep(WATCHDOG);
        end(9);
    }
    if mode == "late" {
        eventually("it may go on", || std::fs::exists(std::env::var_os("FILE").unwrap()).unwrap().then_some(()));
    }
    worker.on_stall(|_| Some("at wait (server.rs:7)\nat main".to_owned()));
    let listener = listener();
    worker.ready();
    let text = format!("{mode} {} {}", worker.id().generation, std::process::id());
    while mode == "stubborn" || !worker.is_draining() {
        worker.beat();
        if !worker.is_spare() && answer(&listener, &text) {
            worker.served(1);
            if mode == "stalls" {
                std::thread::sleep(WATCHDOG);
            }
        } else {
            std::thread::sleep(ms(1));
        }
    }
    worker.drained();
    end(0)
}

// ---- the commands ----

/// A place of its own for each test.
struct Place(PathBuf);

impl Place {
    fn new() -> Place {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let at = std::env::temp_dir().join(format!("ofl-run-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&at).unwrap();
        Place(at)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        let new = self.0.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &path).unwrap();
        path
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("offloop/{name}.sock"))
    }

    fn offloop(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offloop"));
        command.args(args).env("XDG_RUNTIME_DIR", &self.0).stdin(Stdio::null());
        for name in ["PORT", "WEB_CONCURRENCY", MODE] {
            command.env_remove(name);
        }
        command
    }

    /// Status, output and errors of a command that ends.
    fn ask(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let done = self.offloop(args).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap())
    }

    /// What a command answers that succeeds.
    fn json(&self, args: &[&str]) -> Value {
        let (status, out, err) = self.ask(&[args, &["--json"]].concat());
        assert_eq!(status, Some(0), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    /// `offloop run` with this program as the server.
    fn command(&self, mode: &str, args: &[&str]) -> Command {
        let exe = std::env::current_exe().unwrap().into_os_string();
        let mut command = self.offloop(&["run"]);
        command.args(["--min-ready", "0.05"]).args(args).arg("--").arg(exe);
        command.args(["--exact", "worker_part", "--nocapture", "--test-threads=1"]).env(MODE, mode).env("WEB_CONCURRENCY", "2");
        command
    }

    fn start(&self, mode: &str, args: &[&str]) -> Running {
        running(self.command(mode, &[&["--name", "t", "--listen", "127.0.0.1:0"], args].concat()))
    }

    /// One that does not come up: its status and what it said.
    fn refused(&self, mut command: Command) -> (Option<i32>, String) {
        let done = command.output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A run process.
struct Running {
    child: Child,
    lines: Receiver<String>,
    said: Arc<Mutex<String>>,
}

fn running(mut command: Command) -> Running {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let err = BufReader::new(child.stderr.take().unwrap());
    let (send, lines) = channel();
    let said = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&said);
    std::thread::spawn(move || {
        for line in err.lines().map_while(Result::ok) {
            own.lock().unwrap().push_str(&format!("{line}\n"));
            if send.send(line).is_err() {
                break;
            }
        }
    });
    Running { child, lines, said }
}

impl Running {
    fn line(&self, part: &str) -> String {
        loop {
            match self.lines.recv_timeout(WATCHDOG) {
                Ok(line) if line.contains(part) => return line,
                Ok(_) => {}
                Err(_) => panic!("it does not say {part}: {}", self.said.lock().unwrap()),
            }
        }
    }

    /// All workers are ready; where it listens.
    fn ready(&self) -> SocketAddr {
        let line = self.line("ready at ");
        line.rsplit_once("ready at ").unwrap().1.parse().unwrap()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    fn ended(mut self) -> ExitStatus {
        eventually("the run process ends", || self.child.try_wait().unwrap())
    }

    fn stop(self) -> Option<i32> {
        self.signal(libc::SIGTERM);
        self.ended().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn pids(status: &Value) -> Vec<i32> {
    status["workers"].as_array().unwrap().iter().map(|w| i32::try_from(w["pid"].as_i64().unwrap()).unwrap()).collect()
}

/// It is there, and more than what its parent has not asked about yet.
fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| !text.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

// ---- what goes well ----

#[test]
fn sighup_and_reload_replace_the_workers_and_no_request_fails() {
    let place = Place::new();
    let run = place.start("serves", &[]);
    let at = run.ready();
    let clients = Clients::start(3, at);
    for generation in 2..=5 {
        let before = clients.asked();
        eventually("requests are answered", || (clients.asked() > before + 50).then_some(()));
        if generation % 2 == 0 {
            run.signal(libc::SIGHUP);
            run.line(&format!("reload to generation {generation} is done: 2 replaced"));
        } else {
            let done = place.json(&["reload", "t"]);
            assert_eq!((&done["generation"], &done["replaced"], &done["forced"]), (&json!(generation), &json!(2), &json!(0)));
        }
    }
    let failed = clients.end();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(ask(at).unwrap().starts_with("serves 5 "));
    assert_eq!(run.stop(), Some(0));
    assert!(TcpStream::connect(at).is_err() && !place.socket("t").exists(), "nothing is left");
}

#[test]
fn a_cluster_is_shown_scaled_and_stopped_by_its_name() {
    let place = Place::new();
    assert_eq!(place.ask(&["ps"]), (Some(0), "no cluster runs\n".into(), String::new()));
    let run = place.start("serves", &[]);
    run.ready();
    assert_eq!(std::fs::metadata(place.socket("t")).unwrap().permissions().mode() & 0o777, 0o600);
    let status = place.json(&["ps"]);
    assert_eq!(
        (&status["name"], &status["state"], &status["ready"], &status["pid"]),
        (&json!("t"), &json!("running"), &json!(2), &json!(run.child.id()))
    );
    assert!(pids(&status).len() == 2 && pids(&status).iter().all(|pid| lives(*pid)), "{status}");
    assert!(status["workers"][0]["served"] == 0 && status["workers"][0]["loop_delay_ms"].is_number(), "{status}");
    assert!(status["workers"][0]["memory"].as_u64().unwrap() > 0 && status["workers"][0]["cpu_ms"].is_number(), "{status}");
    let (_, table, _) = place.ask(&["ps", "t"]);
    assert!(
        table.contains("t: running, 2 of 2 workers ready at 127.0.0.1:") && table.contains(&format!("  {}  ready ", pids(&status)[1])),
        "{table}"
    );
    let mut events = place.offloop(&["events", "t"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = BufReader::new(events.stdout.take().unwrap()).lines();
    let state: Value = serde_json::from_str(&heard.next().unwrap().unwrap()).unwrap();
    assert_eq!(state, json!({"event": "state", "name": "t", "wanted": 2, "ready": 2, "generation": 1}));
    let killed = pids(&status)[0];
    // SAFETY: a worker that was seen alive.
    unsafe { libc::kill(killed, libc::SIGKILL) };
    let exit = heard.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).find(|e| e["event"] == "exit").unwrap();
    assert_eq!((&exit["cause"], &exit["signal"]), (&json!("crash"), &json!(9)));
    eventually("another takes its place", || (place.json(&["ps", "t"])["ready"] == 2).then_some(()));
    assert_eq!(place.json(&["ps", "t"])["workers"][0]["restarts"], 1);
    assert_eq!(place.json(&["scale", "t", "3"])["workers"], 3);
    assert_eq!(pids(&place.json(&["ps", "t"])).len(), 3);
    assert_eq!(place.ask(&["scale", "t", "1"]), (Some(0), "t: 1 ready\n".into(), String::new()));
    assert_eq!(pids(&place.json(&["ps", "t"])).len(), 1);
    let (_, metrics, _) = place.ask(&["metrics", "t"]);
    for row in [
        "offloop_cluster_workers{cluster=\"t\",state=\"ready\"} 1\n",
        "offloop_cluster_worker_exits_total{cluster=\"t\",cause=\"crash\"} 1\n",
        "offloop_cluster_worker_exits_total{cluster=\"t\",cause=\"scale\"} 2\n",
        "# TYPE offloop_cluster_worker_memory_bytes gauge\n",
    ] {
        assert!(metrics.contains(row), "{row}{metrics}");
    }
    assert_eq!(place.ask(&["stop", "t"]), (Some(0), "t: stopped\n".into(), String::new()));
    assert_eq!(run.ended().code(), Some(0));
    assert_eq!(serde_json::from_str::<Value>(&heard.last().unwrap().unwrap()).unwrap()["event"], "stopped");
    assert!(events.wait().unwrap().success());
    let (status, _, err) = place.ask(&["reload", "t"]);
    assert!(status == Some(1) && err.starts_with("offloop: not found: no cluster of this name runs"), "{err}");
}

/// A terminal, and what was written to it.
struct Terminal {
    own: File,
    theirs: OwnedFd,
    seen: String,
}

impl Terminal {
    fn open(columns: u16) -> Terminal {
        let (mut own, mut theirs) = (-1, -1);
        let null = std::ptr::null_mut();
        let size = libc::winsize { ws_row: 20, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: two numbers to be written; a name and attributes are not asked for.
        assert_eq!(unsafe { libc::openpty(&raw mut own, &raw mut theirs, null, std::ptr::null(), &raw const size) }, 0);
        // SAFETY: both were opened here.
        let (own, theirs) = unsafe { (File::from_raw_fd(own), OwnedFd::from_raw_fd(theirs)) };
        Terminal { own, theirs, seen: String::new() }
    }

    fn start(&self, mut command: Command) -> Child {
        let end = || Stdio::from(self.theirs.try_clone().unwrap());
        command.stdin(end()).stdout(end()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Reads on until all of `parts` were seen since the last call; what was seen.
    fn until(&mut self, parts: &[&str]) -> String {
        while !parts.iter().all(|part| self.seen.contains(part)) {
            let mut ready = libc::pollfd { fd: self.own.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one valid entry.
            assert_eq!(unsafe { libc::poll(&raw mut ready, 1, 60_000) }, 1, "{parts:?} is not in {:?}", self.seen);
            let mut bytes = [0; 4096];
            let n = self.own.read(&mut bytes).unwrap();
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
        std::mem::take(&mut self.seen)
    }

    fn modes(&self) -> [u32; 4] {
        // SAFETY: plain data, all-zero is valid.
        let mut modes: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `modes` is valid for writing.
        assert_eq!(unsafe { libc::tcgetattr(self.theirs.as_raw_fd(), &raw mut modes) }, 0);
        [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
    }
}

const LEAVES: &str = "\x1b[?1049l";

#[test]
fn top_draws_a_table_until_a_key_a_signal_or_the_end_and_puts_the_terminal_back() {
    let place = Place::new();
    let run = place.start("serves", &[]);
    let at = run.ready();
    ask(at).unwrap();
    let pid = pids(&place.json(&["ps"]))[1].to_string();
    let wait = |mut top: Child| eventually("top ends", || top.try_wait().unwrap());
    let signal = |top: &Child, signal: i32| {
        // SAFETY: a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(top.id().cast_signed(), signal) }, 0);
    };

    let mut terminal = Terminal::open(120);
    let before = terminal.modes();
    for (key, status) in [(Some(b"q"), 0), (Some(b"\x03"), 0), (None, 128 + libc::SIGTERM)] {
        let top = terminal.start(place.offloop(&["top", "--interval", "0.05"]));
        // The second look has rates.
        let seen = terminal.until(&[
            "\x1b[?1049h",
            "t: running, 2 of 2 workers ready at ",
            " requests/s, 1 in all",
            &pid,
            "0 requests/s, 1 in all",
        ]);
        assert!(seen.contains("loop delay  CPU %       memory  restarts"), "{seen}");
        assert_ne!(terminal.modes(), before, "keys come one by one");
        match key {
            Some(key) => terminal.own.write_all(key).unwrap(),
            None => signal(&top, libc::SIGTERM),
        }
        assert_eq!(wait(top).code(), Some(status));
        terminal.until(&[LEAVES]);
        assert_eq!(terminal.modes(), before);
    }

    // It fits what it is in, and follows.
    let top = terminal.start(place.offloop(&["top", "t", "--interval", "3600"]));
    // To the end of the picture: what is read later is of the next one.
    terminal.until(&["t: running, 2 of 2", "restarts\x1b[K", "\x1b[J"]);
    let size = libc::winsize { ws_row: 2, ws_col: 10, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: `size` is what this request reads.
    assert_eq!(unsafe { libc::ioctl(terminal.theirs.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }, 0);
    signal(&top, libc::SIGWINCH);
    let small = terminal.until(&["\x1b[H", "\x1b[J"]);
    let small = small.rsplit_once("\x1b[H").unwrap().1;
    assert!(small.starts_with("t: running\x1b[K\r") && small.matches('\n').count() == 1 && !small.contains(&pid), "{small:?}");
    terminal.own.write_all(b"xq").unwrap();
    assert_eq!(wait(top).code(), Some(0));
    terminal.until(&[LEAVES]);

    let top = terminal.start(place.offloop(&["top", "t", "--interval", "0.05"]));
    terminal.until(&["\x1b[J"]);
    assert_eq!(run.stop(), Some(0));
    assert_eq!(wait(top).code(), Some(0));
    terminal.until(&[LEAVES, "t: the cluster has ended"]);
    assert_eq!(terminal.modes(), before);
    let mut top = terminal.start(place.offloop(&["top", "t"]));
    assert_eq!(top.wait().unwrap().code(), Some(1));
    let mut err = String::new();
    top.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("no cluster of this name runs"), "{err}");
    assert_eq!(terminal.modes(), before);
}

#[test]
fn top_without_a_terminal_says_so_and_gives_json() {
    let place = Place::new();
    let (status, out, err) = place.ask(&["top"]);
    assert!(status == Some(2) && out.is_empty() && err.contains("no terminal: `offloop ps`"), "{out}{err}");
    let (status, _, err) = place.ask(&["top", "--json"]);
    assert!(status == Some(1) && err.contains("no cluster runs"), "{err}");
    let run = place.start("serves", &[]);
    let at = run.ready();
    let clients = Clients::start(1, at);
    let (status, out, err) = place.ask(&["top", "--json", "--interval", "0.3", "--count", "3"]);
    assert_eq!(clients.end(), Vec::<String>::new());
    assert_eq!(status, Some(0), "{err}");
    let looks: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((looks.len(), &looks[0]["requests_per_s"], &looks[0]["workers"][0]["cpu_percent"]), (3, &Value::Null, &Value::Null));
    assert!(looks[2]["requests_per_s"].as_f64().unwrap() > 0.0 && looks[2]["workers"][1]["loop_delay_ms"].is_number(), "{out}");
    let other = running(place.command("serves", &["--name", "other", "--listen", "127.0.0.1:0"]));
    other.ready();
    let (status, _, err) = place.ask(&["top", "--json"]);
    assert!(status == Some(1) && err.contains("several clusters: say which (names=other t)"), "{err}");
    assert_eq!((other.stop(), run.stop()), (Some(0), Some(0)));
}

#[test]
fn metrics_are_served_where_an_option_or_the_file_says() {
    let place = Place::new();
    let run = place.start("serves", &["--metrics", "127.0.0.1:0"]);
    run.ready();
    let at: SocketAddr = run.line("metrics at ").rsplit_once("metrics at ").unwrap().1.parse().unwrap();
    assert_eq!(place.json(&["ps"])["metrics"], at.to_string());
    let get = |path: &str| {
        let mut connection = TcpStream::connect(at).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let families = |text: &str| text.lines().filter(|line| line.starts_with("# TYPE ")).map(str::to_owned).collect::<Vec<_>>();
    let text = get("/metrics");
    assert!(text.contains("offloop_cluster_workers{cluster=\"t\",state=\"ready\"} 2\n"), "{text}");
    assert_eq!(families(&text), families(&place.ask(&["metrics", "t"]).1));
    assert_eq!(serde_json::from_str::<Value>(&get("/status")).unwrap()["name"], "t");
    // One that is in use.
    let (status, err) = place.refused(place.command("serves", &["--name", "u", "--metrics", &at.to_string()]));
    assert!(
        status == Some(3) && err.contains(&format!("listen={at}, option=metrics")) && err.contains("another program listens there"),
        "{err}"
    );
    let (status, err) = place.refused(place.command("serves", &["--metrics", "nonsense"]));
    assert!(status == Some(2) && err.contains("nonsense"), "{err}");
    assert_eq!(run.stop(), Some(0));
    assert!(TcpStream::connect(at).is_err());
    place.file("offloop.toml", "metrics = \"127.0.0.1:0\"\n");
    let mut from_file = place.command("serves", &["--json", "--name", "t", "--listen", "127.0.0.1:0"]);
    from_file.current_dir(&place.0);
    let run = running(from_file);
    let started: Value = serde_json::from_str(&run.line("\"started\"")).unwrap();
    assert!(started["metrics"].as_str().unwrap().starts_with("127.0.0.1:"), "{started}");
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn a_spare_is_shown_and_takes_the_place_of_the_only_worker() {
    let place = Place::new();
    let run = place.start("serves", &["-w", "1", "--spares", "1"]);
    let at = run.ready();
    let shown = |pid: i32| {
        eventually("a spare waits", || {
            let status = place.json(&["ps"]);
            let rows = status["workers"].as_array().unwrap();
            let spare = rows.iter().find(|w| w["state"] == "spare" && w["pid"] != pid)?["pid"].as_i64().unwrap();
            assert_eq!((&status["ready"], &status["live"], &status["spares"]), (&json!(1), &json!(1), &json!(1)));
            Some((i32::try_from(rows[0]["pid"].as_i64().unwrap()).unwrap(), i32::try_from(spare).unwrap()))
        })
    };
    let (worker, spare) = shown(0);
    let (_, table, _) = place.ask(&["ps", "t"]);
    assert!(table.contains("1 of 1 workers ready and 1 spare at") && table.contains(&format!("  1024  {spare:>9}  spare ")), "{table}");
    for _ in 0..20 {
        assert_eq!(ask(at).unwrap(), format!("serves 1 {worker}"));
    }
    // SAFETY: a process of this test.
    assert_eq!(unsafe { libc::kill(worker, libc::SIGKILL) }, 0);
    run.line("a spare takes the place of worker 0");
    assert_eq!(ask(at).unwrap(), format!("serves 1 {spare}"));
    let (now, next) = shown(spare);
    assert_eq!(now, spare);
    let (_, metrics, _) = place.ask(&["metrics", "t"]);
    assert!(metrics.contains("offloop_cluster_activated_total{cluster=\"t\"} 1") && metrics.contains("state=\"spare\"} 1"), "{metrics}");
    assert_eq!(run.stop(), Some(0));
    assert!(!lives(spare) && !lives(next));
}

#[test]
fn a_program_that_knows_nothing_has_no_spare_and_that_is_said() {
    let place = Place::new();
    let run = place.start("plain", &["-w", "1", "--spares", "1", "--ready-after", "0.1"]);
    run.line("no spare is started: a program that knows nothing of its cluster cannot wait (spares=1, slot=0)");
    let status = place.json(&["ps"]);
    assert_eq!((pids(&status).len(), &status["counts"]["spawned"]), (1, &json!(1)));
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn a_program_that_knows_nothing_is_served_reloaded_and_ended_by_sigterm() {
    let place = Place::new();
    let run = place.start("plain", &["--ready-after", "0.1", "--hang-timeout", "0.2"]);
    let at = run.ready();
    let first = ask(at).unwrap();
    assert!(first.starts_with("plain "), "{first}");
    // It shows no beat, for longer than others may.
    std::thread::sleep(ms(500));
    assert_eq!(place.json(&["ps", "t"])["counts"]["unresponsive"], 0);
    let before = pids(&place.json(&["ps", "t"]));
    assert_eq!(place.json(&["reload", "t"])["forced"], 0);
    let after = pids(&place.json(&["ps", "t"]));
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    ask(at).unwrap();
    assert_eq!(run.stop(), Some(0));
    assert!(after.iter().all(|pid| !lives(*pid)));
}

/// `command` as a service manager starts it: with this socket as fd 3, and its own process id in `LISTEN_PID`.
fn activated(command: &Command, socket: &TcpListener) -> Command {
    let mut sh = Command::new("/bin/sh");
    sh.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => sh.env(name, value),
            None => sh.env_remove(name),
        };
    }
    let fd = socket.as_raw_fd();
    // SAFETY: dup2 is async-signal-safe; the copy is not closed at the exec.
    unsafe { sh.pre_exec(move || if libc::dup2(fd, 3) == 3 { Ok(()) } else { Err(std::io::Error::last_os_error()) }) };
    sh.stdin(Stdio::null());
    sh
}

#[test]
fn a_service_manager_gives_the_socket_and_hears_how_it_goes() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.0.join("notify")).unwrap();
    manager.set_read_timeout(Some(WATCHDOG)).unwrap();
    let hears = |wanted: &str| loop {
        let mut bytes = [0; 512];
        let len = manager.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
        match text.as_str() {
            "WATCHDOG=1" if wanted != "WATCHDOG=1" => {}
            text if text.starts_with(wanted) => break,
            text => panic!("{text}, and not {wanted}"),
        }
    };
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let mut command = place.command("serves", &["--name", "t"]);
    command.env("NOTIFY_SOCKET", place.0.join("notify")).env("WATCHDOG_USEC", "200000");
    let run = running(activated(&command, &socket));
    assert_eq!(run.ready(), at);
    hears("READY=1\nSTATUS=t: 2 workers are ready at");
    ask(at).unwrap();
    for pid in pids(&place.json(&["ps", "t"])) {
        let env = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
        assert!(!env.contains("NOTIFY_SOCKET") && !env.contains("WATCHDOG_"), "{env}");
    }
    run.signal(libc::SIGHUP);
    hears("RELOADING=1\nMONOTONIC_USEC=");
    hears("READY=1\nSTATUS=generation 2");
    ask(at).unwrap();
    hears("WATCHDOG=1");
    run.signal(libc::SIGTERM);
    hears("STOPPING=1");
    assert_eq!(run.ended().code(), Some(0));
}

#[test]
fn what_workers_print_comes_in_whole_lines_with_their_slot_and_process() {
    let place = Place::new();
    let file = place.0.join("log");
    let run = place.start("talks", &["-w", "2", "--log", file.to_str().unwrap()]);
    run.ready();
    let workers = pids(&place.json(&["ps", "t"]));
    let hello = |slot: usize| format!("[{slot}:{0}] hello from {0}\n", workers[slot]);
    let (status, lines, _) = place.ask(&["logs", "t"]);
    assert!(status == Some(0) && (0..2).all(|slot| lines.contains(&hello(slot))), "{lines}");
    let mut follow = place.offloop(&["logs", "t", "-f", "-n", "0", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut followed =
        BufReader::new(follow.stdout.take().unwrap()).lines().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    // It follows as soon as a line of a new worker comes.
    let said = std::thread::spawn(move || followed.find(|line| line["text"].as_str().unwrap().starts_with("hello")).unwrap());
    while !said.is_finished() {
        place.json(&["reload", "t"]);
    }
    let said = said.join().unwrap();
    assert!(said["stream"] == "out" && said["text"] == json!(format!("hello from {}", said["pid"])), "{said}");
    assert_eq!(run.stop(), Some(0));
    assert!(follow.wait().unwrap().success());
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        (0..2).all(|slot| text.contains(&hello(slot)) && text.contains(&format!("[{slot}:{}] it has no end", workers[slot]))),
        "{text}"
    );
    assert!(text.lines().all(|line| line.starts_with("[0:") || line.starts_with("[1:")), "{text}");
}

#[test]
fn workers_have_the_niceness_core_user_and_limits_that_are_said() {
    let place = Place::new();
    // SAFETY: a plain query.
    let uid = unsafe { libc::geteuid() }.to_string();
    let mut command =
        place.offloop(&["run", "--name", "t", "-w", "1", "--ready-after", "0.1", "--limit", "nofile=99", "--limit", "core=0"]);
    command.args(["--nice", "3", "--oom-score", "100", "--pin-cpus", "--user", &uid, "--"]);
    let script = "ulimit -n; ulimit -c; nice; cat /proc/self/oom_score_adj; id -u; grep Cpus_allowed_list /proc/self/status; exec sleep 60";
    command.args(["sh", "-c", script]);
    let run = running(command);
    // SAFETY: a plain query.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } + 3;
    let said = eventually("it prints all", || {
        let (_, lines, _) = place.ask(&["logs", "t"]);
        (lines.lines().count() == 6).then_some(lines)
    });
    let said: Vec<_> = said.lines().map(|line| line.split_once("] ").unwrap().1).collect();
    assert_eq!(said[..5], ["99", "0", &nice.to_string(), "100", &uid]);
    assert!(said[5].split_whitespace().last().unwrap().parse::<u32>().is_ok(), "one core: {}", said[5]);
    assert_eq!(run.stop(), Some(0));
}

/// `command` with these limits of open files.
fn limited(command: &mut Command, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        command
            .pre_exec(move || if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) })
    };
}

#[test]
fn it_may_have_more_files_open_than_its_workers_who_get_what_it_was_given() {
    let place = Place::new();
    for (more, given) in [(&[][..], "40 4000"), (&["--limit", "nofile=77"], "77 77")] {
        let mut command = place.offloop(&["run", "--name", "t", "-w", "16", "--ready-after", "0.05"]);
        command.args(more).args(["--", "sh", "-c", "echo $(ulimit -Sn) $(ulimit -Hn); exec sleep 60"]);
        limited(&mut command, 40, 4000);
        let run = running(command);
        run.line("16 workers are ready");
        let said = eventually("each prints", || {
            let (_, lines, _) = place.ask(&["logs", "t"]);
            (lines.lines().count() == 16).then_some(lines)
        });
        assert!(said.lines().all(|line| line.ends_with(&format!("] {given}"))), "{said}");
        let own = std::fs::read_to_string(format!("/proc/{}/limits", run.child.id())).unwrap();
        let files: Vec<_> = own.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap().split_whitespace().collect();
        assert_eq!(files[..2], ["4000", "4000"]);
        assert_eq!(run.stop(), Some(0));
    }
    let mut command = place.offloop(&["run", "-w", "16", "--ready-after", "0.05", "--", "sleep", "60"]);
    limited(&mut command, 40, 60);
    let run = running(command);
    run.line("Too many open files");
    run.line("this process may have 60 files open");
    run.line("LimitNOFILE=");
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn what_a_worker_has_started_ends_with_it() {
    let place = Place::new();
    let file = place.0.join("child");
    let mut command = place.offloop(&["run", "--name", "t", "-w", "1", "--ready-after", "0.1", "--", "sh", "-c"]);
    command.arg(format!("sleep 600 & echo $! > {0}.new; mv {0}.new {0}; wait", file.display()));
    let run = running(command);
    let child: i32 = eventually("it has a child", || std::fs::read_to_string(&file).ok()?.trim().parse().ok());
    assert!(lives(child));
    assert_eq!(run.stop(), Some(0));
    eventually("so has that", || (!lives(child)).then_some(()));
}

/// The children of a process that have ended, and that it has not reaped.
fn zombies_of(parent: i32) -> Vec<String> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats.filter(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(&format!("Z {parent} ")))).collect()
}

#[test]
fn as_process_1_it_reaps_what_workers_leave_behind_and_knows_how_each_worker_ended() {
    let place = Place::new();
    let alone = ["--pid", "--fork", "--mount-proc", "--kill-child"];
    let tried = Command::new("unshare").args(alone).arg("true").output();
    match &tried {
        Ok(done) if done.status.success() => {}
        why => return eprintln!("not tried: unshare gives no pid namespace here: {why:?}"),
    }
    let file = place.0.join("left");
    // Out of its group, which ends with it, and orphaned at once.
    let script = "for i in 1 2 3; do (setsid sh -c 'sleep 0.2; echo x >> \"$0\"' \"$0\" &); done; sleep 0.1; exit 7";
    let run = place.offloop(&["run", "--json", "--name", "t", "-w", "4", "--ready-after", "0.05", "--", "sh", "-c", script]);
    let mut command = Command::new("unshare");
    command.args(alone).arg(run.get_program()).args(run.get_args()).arg(&file).env("XDG_RUNTIME_DIR", &place.0).stdin(Stdio::null());
    let run = running(command);
    for _ in 0..8 {
        let exit: Value = serde_json::from_str(&run.line("\"event\":\"exit\"")).unwrap();
        assert_eq!((&exit["exit_code"], &exit["signal"]), (&json!(7), &Value::Null), "{exit}");
    }
    eventually("orphans have ended", || (std::fs::read_to_string(&file).ok()?.lines().count() >= 24).then_some(()));
    let unshare = run.child.id();
    let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
    let first: i32 = children.trim().parse().unwrap();
    assert!(lives(first));
    eventually("no zombie is left", || zombies_of(first).is_empty().then_some(()));
    // Process 1 of its namespace gets signals of its kind only if it takes them.
    // SAFETY: a child of a child that was seen alive.
    assert_eq!(unsafe { libc::kill(first, libc::SIGTERM) }, 0);
    run.line("\"stopped\"");
    assert_eq!(run.ended().code(), Some(0));
}

#[test]
fn a_change_of_a_file_reloads() {
    let place = Place::new();
    let sources = place.0.join("sources");
    std::fs::create_dir(&sources).unwrap();
    let watch = format!("--watch={}", sources.display());
    let run = place.start("serves", &["-w", "1", &watch]);
    let at = run.ready();
    assert!(ask(at).unwrap().starts_with("serves 1 "));
    std::fs::write(sources.join(".hidden"), "x").unwrap();
    std::fs::write(sources.join("app.mjs"), "x").unwrap();
    run.line("app.mjs has changed: reloading");
    run.line("generation 2 is done");
    assert!(ask(at).unwrap().starts_with("serves 2 "));
    std::fs::write(sources.join("app.mjs"), "y").unwrap();
    run.line("app.mjs has changed: reloading");
    run.line("generation 3 is done");
    assert!(ask(at).unwrap().starts_with("serves 3 "));
    assert_eq!(run.stop(), Some(0));
    let (status, err) = place.refused(place.command("serves", &["--watch=/no/such/directory"]));
    assert!(status == Some(1) && err.contains("/no/such/directory"), "{err}");
}

#[test]
fn what_workers_write_as_they_start_reloads_them_a_few_times_only() {
    let place = Place::new();
    let sources = place.0.join("sources");
    std::fs::create_dir(&sources).unwrap();
    let (watch, file) = (format!("--watch={}", sources.display()), format!("FILE={}", sources.join("last-start.json").display()));
    let run = place.start("writes", &["-w", "1", &watch, "--env", &file]);
    run.ready();
    let said = run.line("seem to write it themselves");
    assert!(said.contains("last-start.json has changed again and again"), "{said}");
    eventually("the last reload is done", || (place.json(&["ps", "t"])["generation"] == 6).then_some(()));
    for generation in [7, 8] {
        std::fs::write(sources.join("app.mjs"), generation.to_string()).unwrap();
        run.line("app.mjs has changed: reloading");
        run.line(&format!("generation {generation} is done"));
    }
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn a_first_start_that_fails_waits_for_a_change() {
    let place = Place::new();
    let mode = place.file("mode", "broken");
    let (watch, server) = (format!("--watch={}", mode.display()), format!("@{}", mode.display()));
    let run = place.start(&server, &["-w", "1", &watch]);
    run.line("waiting for a change");
    place.file("mode", "serves");
    let at = run.ready();
    assert!(ask(at).unwrap().starts_with("serves "));
    eventually("it reloads", || (place.json(&["ps", "t"])["generation"] == 2).then_some(()));
    // Saved by a rename again, and broken.
    place.file("mode", "broken");
    run.line("reload failed, the old version goes on");
    assert!(ask(at).unwrap().starts_with("serves "));
    assert_eq!(run.stop(), Some(0));
    let mode = place.file("mode", "broken");
    let run = place.start(&server, &["-w", "1", &format!("--watch={}", mode.display())]);
    run.line("waiting for a change");
    assert_eq!(run.stop(), Some(0), "it can be stopped then");
}

#[test]
fn who_floods_waits_and_the_cluster_goes_on() {
    let place = Place::new();
    let script = "while :; do echo 0123456789012345678901234567890123456789; done";
    let mut command = place.offloop(&["run", "-n", "t", "-w", "1", "--ready-after", "0.1", "--", "sh", "-c", script]);
    // Nobody reads it.
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    eventually("it runs", || (place.ask(&["ps", "t", "--json"]).1.contains("\"running\"")).then_some(()));
    assert_eq!(place.json(&["reload", "t"])["replaced"], 1);
    let (status, lines, _) = place.ask(&["logs", "t", "-n", "3"]);
    assert_eq!((status, lines.lines().count()), (Some(0), 3));
    drop(child.stdout.take());
    assert_eq!(place.ask(&["stop", "t"]).0, Some(0));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_is_not_said_comes_from_port_and_web_concurrency() {
    let place = Place::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = place.command("serves", &["--name", "t", "--env", "GIVEN=1", "--cwd", place.0.to_str().unwrap()]);
    command.env("PORT", port.to_string()).env("WEB_CONCURRENCY", "3");
    let run = running(command);
    assert_eq!(run.line("ready at "), format!("offloop: t: 3 workers are ready at :{port}"));
    let worker = pids(&place.json(&["ps", "t"]))[0];
    let env = std::fs::read(format!("/proc/{worker}/environ")).unwrap();
    assert!(env.split(|b| *b == 0).any(|v| v == b"GIVEN=1"));
    assert_eq!(std::fs::read_link(format!("/proc/{worker}/cwd")).unwrap(), place.0.canonicalize().unwrap());
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn a_file_has_the_names_of_the_options_and_arguments_go_before() {
    let place = Place::new();
    let exe = std::env::current_exe().unwrap();
    let command = ["--exact", "worker_part", "--nocapture", "--test-threads=1"];
    let file = format!(
        "name = \"t\"\nworkers = 3\nlisten = \"127.0.0.1:0\"\nmin-ready = 0.05\ncommand = [{:?}, \"{}\"]\n[env]\n{MODE} = \"serves\"\n",
        exe,
        command.join("\", \"")
    );
    place.file("offloop.toml", &file);
    let mut from_file = place.offloop(&["run"]);
    from_file.current_dir(&place.0);
    let run = running(from_file);
    run.line("t: 3 workers are ready at 127.0.0.1:");
    assert_eq!(run.stop(), Some(0));
    let mut both = place.offloop(&["run", "-w", "1", "--name", "other"]);
    both.current_dir(&place.0);
    let run = running(both);
    run.line("other: 1 worker is ready at 127.0.0.1:");
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn the_doctor_tells_what_it_finds() {
    let place = Place::new();
    let (status, out, err) = place.ask(&["doctor"]);
    assert!(status == Some(0) && out.contains(&format!("ok    control sockets: in {}", place.0.join("offloop").display())), "{out}{err}");
    let rows: Vec<Value> = place.ask(&["doctor", "--json"]).1.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(rows.iter().any(|row| row["name"] == "kernel" && row["finding"] == "ok"), "{rows:?}");
    std::fs::set_permissions(place.0.join("offloop"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (status, out, err) = place.ask(&["doctor"]);
    assert!(status == Some(1) && out.contains("bad   control sockets: invalid") && err.contains("clusters do not run here"), "{out}{err}");
}

#[test]
fn its_own_words_are_json_where_that_is_asked_for() {
    let place = Place::new();
    let run = running(place.command("serves", &["--json", "--listen", "127.0.0.1:0"]));
    let started: Value = serde_json::from_str(&run.line("\"started\"")).unwrap();
    assert_eq!(started["workers"], 2);
    assert_eq!(place.json(&["ps"])["name"], started["name"], "a name is made of the program's");
    run.signal(libc::SIGINT);
    serde_json::from_str::<Value>(&run.line("\"stopped\"")).unwrap();
    assert_eq!(run.ended().code(), Some(0));
}

// ---- what goes wrong ----

#[test]
fn where_a_loop_stands_is_told_below_the_line_that_says_so() {
    let place = Place::new();
    let run = place.start("stalls", &["-w", "1", "--hang-timeout", "0.4"]);
    let at = run.ready();
    let mut events = place.offloop(&["events", "t"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = BufReader::new(events.stdout.take().unwrap()).lines();
    heard.next().unwrap().unwrap();
    std::net::TcpStream::connect(at).unwrap().write_all(b"ping").unwrap();
    run.line("offloop: worker 0 does not respond: its event loop stands still");
    assert_eq!(
        [run.lines.recv_timeout(WATCHDOG).unwrap(), run.lines.recv_timeout(WATCHDOG).unwrap()],
        ["    at wait (server.rs:7)", "    at main"]
    );
    let said =
        heard.by_ref().map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()).find(|e| e["event"] == "unresponsive").unwrap();
    assert_eq!((&said["cause"], &said["stack"]), (&json!("blocked"), &json!("at wait (server.rs:7)\nat main")));
    run.line("worker 0 did not respond: signal 6");
    run.signal(libc::SIGTERM);
    run.ended();
    drop(heard);
    events.wait().unwrap();

    let run = running(place.command("stalls", &["--json", "-w", "1", "--hang-timeout", "0.4", "--listen", "127.0.0.1:0"]));
    let started: Value = serde_json::from_str(&run.line("\"started\"")).unwrap();
    let at: SocketAddr = started["listen"][0].as_str().unwrap().parse().unwrap();
    std::net::TcpStream::connect(at).unwrap().write_all(b"ping").unwrap();
    let said: Value = serde_json::from_str(&run.line("\"unresponsive\"")).unwrap();
    assert_eq!(said["stack"], "at wait (server.rs:7)\nat main");
    run.stop();
}

#[test]
fn what_cannot_start_says_why_and_what_to_do() {
    let place = Place::new();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let quick = ["--ready-timeout", "0.5"];
    let typo = place.file("typo.toml", "wrokers = 1\n").display().to_string();
    let wrong = place.file("wrong.toml", "workers = 0\n").display().to_string();
    let says_json = place.file("json.toml", "json = true\nworkers = 1000\nspares = 25\n").display().to_string();
    let broken = place.file("broken.toml", "workers = \n").display().to_string();
    let with = |mode: &str, args: &[&str]| place.command(mode, &[&quick[..], args].concat());
    let program = |words: &[&str]| {
        let mut command = place.offloop(&["run", "--ready-timeout", "0.5", "--"]);
        command.args(words);
        command
    };
    // Root may bind any port, unless it is taken away from it.
    let mut privileged = with("serves", &["--listen", "127.0.0.1:80"]);
    // SAFETY: a plain call in the child; who may not do it has no such right anyway.
    unsafe {
        privileged.pre_exec(|| {
            const CAP_NET_BIND_SERVICE: libc::c_ulong = 10;
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0);
            Ok(())
        })
    };
    let open = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").is_ok_and(|first| first.trim() == "0");
    let mut cases = vec![
        (with("serves", &["--listen", &taken]), 3, vec!["Address already in use", &taken, "ss -ltnp"]),
        (program(&["/no/such/program"]), 3, vec!["not found", "/no/such/program", "is it installed"]),
        (program(&["no-such-program-at-all"]), 3, vec!["not found", "no-such-program-at-all"]),
        (with("serves", &["--cwd", "/no/such/directory"]), 3, vec!["working directory is not there", "/no/such/directory"]),
        (
            with("fails", &["-w", "1"]),
            3,
            vec!["cannot load the configuration: no such file", "worker ended before it was ready", "exit_code=7"],
        ),
        (with("broken", &[]), 3, vec!["SyntaxError: unexpected end of input"]),
        (with("never", &[]), 3, vec!["not ready in time", "no server of it listens", "npm start"]),
        (with("serves", &["-w", "0"]), 2, vec!["0 is outside 1 to 1024 workers"]),
        (with("serves", &["-w", "10000"]), 2, vec!["10000 is outside 1 to 1024 workers"]),
        (with("serves", &["--spares", "-1"]), 2, vec!["unexpected argument '-1'"]),
        (with("serves", &["--spares", "1024"]), 2, vec!["1024 is not in 0..1024"]),
        (with("serves", &["-w", "1000", "--spares", "25"]), 2, vec!["option=--spares, value=25, min=0, max=24"]),
        (with("serves", &["--spares", "1", "--balance", "reuseport"]), 2, vec!["option=--spares", "balance=reuseport"]),
        (with("serves", &["-w", "some"]), 2, vec!["neither a number nor auto"]),
        (with("serves", &["--listen", "example.org:80"]), 2, vec!["not an address to listen at"]),
        (with("serves", &["--name", "../x"]), 2, vec!["is no name"]),
        (with("serves", &["--env", "=x"]), 2, vec!["variable has no name"]),
        (with("serves", &["--lisen", "80"]), 2, vec!["--listen"]),
        (place.offloop(&["run"]), 2, vec!["<COMMAND>"]),
        (with("serves", &["--config", &typo]), 2, vec!["there is no option wrokers; the nearest is workers", "typo.toml"]),
        (with("serves", &["--config", &wrong]), 2, vec!["0 is outside 1 to 1024 workers", "wrong.toml"]),
        (with("serves", &["--config", &broken]), 2, vec!["broken.toml"]),
        (with("serves", &["--config", "/no/such.toml"]), 2, vec!["not found", "/no/such.toml"]),
        (with("serves", &["--max-age", "0.1"]), 2, vec!["'--max-age <SECONDS>': 0.1 is outside 1 to 2592000 seconds"]),
        (
            with("serves", &["--hang-timeout", "0.01"]),
            2,
            vec!["'--hang-timeout <SECONDS>': 0.01 is outside 0.04 to 2592000 seconds, and not 0"],
        ),
        (with("serves", &["--ready-after", "-1"]), 2, vec!["-1"]),
        (place.offloop(&["run", "--ready-timeout", "0", "--", "x"]), 2, vec!["'--ready-timeout <SECONDS>': 0 is outside 0.001 to"]),
        (with("serves", &["--log", ""]), 2, vec!["path of the log is empty", "option=--log"]),
        (with("serves", &["--user", "nobody-of-this-name"]), 2, vec!["no such user or group (user=nobody-of-this-name)"]),
        (
            with("serves", &["--json", "--listen", &taken]),
            3,
            vec!["{\"event\":\"failed\",\"status\":3,\"error\":{\"code\":\"ERR_OFFLOOP_OS\"", "ss -ltnp"],
        ),
        (
            with("serves", &["--config", &says_json]),
            2,
            vec!["{\"event\":\"failed\",\"status\":2,\"error\":{\"code\":\"ERR_OFFLOOP_INVALID\"", "option=--spares"],
        ),
    ];
    if !open {
        cases.push((privileged, 3, vec!["Permission denied", "127.0.0.1:80", "CAP_NET_BIND_SERVICE"]));
    }
    for (command, status, words) in cases {
        let shown = format!("{command:?}");
        let (ended, err) = place.refused(command);
        assert_eq!(ended, Some(status), "{shown}: {err}");
        for word in words {
            assert!(err.contains(word), "{shown} does not say {word}: {err}");
        }
    }
    assert!(std::fs::read_dir(place.0.join("offloop")).unwrap().next().is_none(), "no socket is left");
}

#[test]
fn a_name_is_one_clusters_and_a_stale_socket_is_nobodys() {
    let place = Place::new();
    let run = place.start("serves", &[]);
    run.ready();
    let (status, err) = place.refused(place.command("serves", &["--name", "t"]));
    assert!(status == Some(1) && err.contains("a cluster of this name runs") && err.contains("--name"), "{err}");
    let workers = pids(&place.json(&["ps", "t"]));
    run.signal(libc::SIGKILL);
    assert_eq!(run.ended().signal(), Some(libc::SIGKILL));
    eventually("no worker is left", || workers.iter().all(|pid| !lives(*pid)).then_some(()));
    assert!(place.socket("t").exists(), "who is killed cannot clean up");
    let (status, _, err) = place.ask(&["reload", "t"]);
    assert!(status == Some(1) && err.contains("ended without a farewell"), "{err}");
    assert_eq!(place.ask(&["ps"]).1, "no cluster runs\n");
    let next = place.start("serves", &[]);
    next.ready();
    assert_eq!(place.json(&["ps"])["state"], "running");
    assert_eq!(next.stop(), Some(0));
}

#[test]
fn a_reload_during_the_start_comes_when_that_is_over() {
    let place = Place::new();
    let file = place.0.join("go");
    let start = |more: &[&str]| {
        let args = ["--name", "t", "--listen", "127.0.0.1:0", "--ready-timeout", "50"];
        let mut command = place.command("late", &[&args, more].concat());
        command.env("FILE", &file);
        running(command)
    };
    let run = start(&[]);
    eventually("it can be asked", || (place.ask(&["ps", "t"]).0 == Some(0)).then_some(()));
    let mut asked = place.offloop(&["reload", "t"]).stdout(Stdio::piped()).spawn().unwrap();
    run.line("reload: it comes when the start is over");
    run.signal(libc::SIGHUP);
    run.line("reload: it comes when the start is over");
    place.file("go", "");
    run.ready();
    eventually("it is answered", || asked.try_wait().unwrap());
    let done = asked.wait_with_output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success() && text.starts_with("t: generation 2, 2 replaced"), "{text}");
    assert_eq!(place.json(&["ps", "t"])["generation"], 2, "both meant one");
    assert_eq!(run.stop(), Some(0));
    // One that does not come to it.
    std::fs::remove_file(&file).unwrap();
    let run = start(&["--json"]);
    eventually("it can be asked", || (place.ask(&["ps", "t"]).0 == Some(0)).then_some(()));
    let mut asked = place.offloop(&["reload", "t"]).stderr(Stdio::piped()).spawn().unwrap();
    run.line("{\"event\":\"note\",\"text\":\"reload: it comes");
    run.signal(libc::SIGTERM);
    run.signal(libc::SIGTERM);
    eventually("it is answered", || asked.try_wait().unwrap());
    let done = asked.wait_with_output().unwrap();
    let text = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.code() == Some(1) && text.contains("closed: the cluster has ended before it had started"), "{text}");
    run.ended();
}

#[test]
fn what_is_no_socket_is_named_and_never_removed() {
    let place = Place::new();
    std::fs::DirBuilder::new().mode(0o700).create(place.0.join("offloop")).unwrap();
    let (control, own) = (place.socket("t"), place.0.join("app.sock"));
    for path in [&control, &own] {
        std::fs::write(path, "mine").unwrap();
    }
    let (status, err) = place.refused(place.command("serves", &["--name", "t"]));
    assert!(status == Some(1) && err.contains("is no socket: remove it, or choose another --name"), "{err}");
    assert!(err.contains(&format!("path={}", control.display())), "{err}");
    let (status, _, err) = place.ask(&["reload", "t"]);
    assert!(status == Some(1) && err.contains("is no socket: remove it"), "{err}");
    let at = format!("unix:{}", own.display());
    let (status, err) = place.refused(place.command("serves", &["--listen", &at]));
    assert!(status == Some(3) && err.contains("found=something that is no socket") && err.contains(&at), "{err}");
    assert!(err.contains("remove it, or choose another path") && !err.contains("ss -ltnp"), "{err}");
    for path in [&control, &own] {
        assert_eq!(std::fs::read_to_string(path).unwrap(), "mine");
    }
}

#[test]
fn a_reload_to_a_broken_version_and_one_during_another_fail_and_the_old_goes_on() {
    let place = Place::new();
    let mode = place.file("mode", "good");
    let run = place.start(&format!("@{}", mode.display()), &["--ready-timeout", "20"]);
    let at = run.ready();
    place.file("mode", "fails");
    let (status, _, err) = place.ask(&["reload", "t"]);
    assert!(status == Some(1) && err.contains("\n  | cannot load the configuration: no such file"), "{err}");
    place.file("mode", "broken");
    let (status, out, err) = place.ask(&["reload", "t"]);
    assert!((status, out.as_str()) == (Some(1), "") && err.contains("SyntaxError: unexpected end of input"), "{err}");
    run.line("reload failed, the old version goes on");
    assert!(ask(at).unwrap().starts_with("good 1 "));
    // One that takes its time.
    place.file("mode", "never");
    let slow = running(place.offloop(&["reload", "t"]));
    eventually("the reload is under way", || (place.json(&["ps", "t"])["live"] == 3).then_some(()));
    let (status, _, err) = place.ask(&["reload", "t"]);
    assert!(status == Some(1) && err.contains("in use: a reload is under way"), "{err}");
    run.signal(libc::SIGHUP);
    run.line("a reload is under way");
    assert!(ask(at).unwrap().starts_with("good 1 "));
    place.file("mode", "good");
    let canary = *pids(&place.json(&["ps", "t"])).iter().max().unwrap();
    // SAFETY: a worker that was seen alive.
    unsafe { libc::kill(canary, libc::SIGKILL) };
    assert_eq!(slow.ended().code(), Some(1));
    assert_eq!(place.json(&["reload", "t"])["replaced"], 2);
    assert!(ask(at).unwrap().starts_with("good 5 "), "{}", ask(at).unwrap());
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once_and_who_does_not_finish_is_told() {
    let place = Place::new();
    for (signal, status) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let run = place.start("stubborn", &[]);
        run.ready();
        let workers = pids(&place.json(&["ps", "t"]));
        run.signal(signal);
        run.line("stopping: 2 workers have to finish");
        assert_eq!(place.json(&["ps", "t"])["state"], "stopping");
        run.signal(signal);
        assert_eq!(run.ended().code(), Some(status));
        assert!(workers.iter().all(|pid| !lives(*pid)));
    }
    let run = place.start("stubborn", &["--drain-timeout", "0.1", "--kill-grace", "0.1"]);
    run.ready();
    let (status, out, _) = place.ask(&["stop", "t"]);
    assert_eq!((status, out.as_str()), (Some(0), "t: stopped, and workers had to be killed\n"));
    assert_eq!(run.ended().code(), Some(4));
    let run = place.start("stubborn", &[]);
    run.ready();
    assert_eq!(place.ask(&["stop", "t", "--now"]).0, Some(0));
    run.ended();
}

#[test]
fn clients_that_say_nonsense_or_nothing_harm_nobody() {
    let place = Place::new();
    let run = place.start("serves", &["-w", "1"]);
    let at = run.ready();
    let connect = || UnixStream::connect(place.socket("t")).unwrap();
    for nonsense in [&b"hello\n"[..], b"{}\n", b"{\"do\":\"dance\"}\n", b"\xff\xfe\0\n", b"{\"do\":\"scale\",\"workers\":0}\n", b"\n"] {
        let mut client = connect();
        client.write_all(nonsense).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["ok"] == false && answer["error"]["code"] == "ERR_OFFLOOP_INVALID", "{answer}");
    }
    // Too much without an end; gone in the middle; one that never says anything; more than there is room for.
    let mut flood = connect();
    let _ = (0..100).try_for_each(|_| flood.write_all(&[b'x'; 4096]));
    let mut rest = [0];
    assert!(!matches!(flood.read(&mut rest), Ok(n) if n > 0), "it is told nothing");
    drop({
        let mut gone = connect();
        gone.write_all(b"{\"do\":").unwrap();
        gone
    });
    let silent: Vec<UnixStream> = (0..60).map(|_| connect()).collect();
    assert_eq!(place.json(&["ps", "t"])["ready"], 1);
    // Who does not read what it asked for.
    let mut deaf = connect();
    deaf.write_all(b"{\"do\":\"events\"}\n").unwrap();
    assert_eq!(place.json(&["reload", "t"])["replaced"], 1);
    drop(silent);
    ask(at).unwrap();
    assert_eq!(run.stop(), Some(0));
}

#[test]
fn what_stays_beside_eight_workers_is_printed() {
    let place = Place::new();
    let run = place.start("serves", &["-w", "8"]);
    run.ready();
    let pid = run.child.id();
    let number = |file: &str, key: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(key))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .unwrap_or(0)
    };
    let cpu = || offloop::sys::process::cpu_time(pid.cast_signed()).unwrap();
    let (before, since) = (cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let share = (cpu() - before).as_secs_f64() * 100.0 / since.elapsed().as_secs_f64();
    println!(
        "offloop run beside 8 workers: {} kB PSS, {} threads, {share:.2} % CPU",
        number("smaps_rollup", "Pss:"),
        number("status", "Threads:")
    );
    assert!(number("smaps_rollup", "Pss:") <= 15 << 10, "more than 15 MiB");
    assert_eq!(run.stop(), Some(0));
}
