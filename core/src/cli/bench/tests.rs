//! The command against servers that misbehave on purpose, each in its own way and as often as is counted.

use crate::cli::tests::offloop;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// What a server does with a request.
enum Do {
    /// Writes this and reads on.
    Write(String),
    /// Writes this and closes.
    WriteAndClose(String),
    /// Writes this, and resets the connection.
    WriteAndReset(String),
    /// Nothing, as long as the client waits.
    Nothing,
}

/// What a server knows of a request.
struct Asked {
    /// How many came before it, over all connections, and on its own.
    before: usize,
    before_here: usize,
    head: String,
    body: usize,
}

trait Stream: Read + Write + AsRawFd + Send + 'static {}
impl<T: Read + Write + AsRawFd + Send + 'static> Stream for T {}

/// Reads a request; `None` at the end of the connection.
fn read_request(stream: &mut dyn Stream) -> Option<(String, usize)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().expect("a length"));
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some((head, length))
}

fn serve(mut stream: impl Stream, count: &Mutex<usize>, script: &(impl Fn(Asked) -> Do + ?Sized)) {
    let mut before_here = 0;
    while let Some((head, body)) = read_request(&mut stream) {
        let before = {
            let mut count = count.lock().expect("lock");
            *count += 1;
            *count - 1
        };
        match script(Asked { before, before_here, head, body }) {
            Do::Write(text) => drop(stream.write_all(text.as_bytes())),
            Do::WriteAndClose(text) => {
                let _ = stream.write_all(text.as_bytes());
                return;
            }
            Do::WriteAndReset(text) => {
                let _ = stream.write_all(text.as_bytes());
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                // SAFETY: the fd is the stream's, `linger` is readable.
                let rc = unsafe {
                    let len = size_of::<libc::linger>() as libc::socklen_t;
                    libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), len)
                };
                assert_eq!(rc, 0);
                return;
            }
            Do::Nothing => while stream.read(&mut [0; 64]).is_ok_and(|n| n > 0) {},
        }
        before_here += 1;
    }
}

/// A server that lives as long as the process of the tests. Returns its URL.
fn server_at(address: &str, script: impl Fn(Asked) -> Do + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind(address).expect("bind");
    let url = format!("http://{}/path?query", listener.local_addr().expect("address"));
    let (script, count) = (Arc::new(script), Arc::new(Mutex::new(0)));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (script, count) = (Arc::clone(&script), Arc::clone(&count));
            let stream: TcpStream = stream.expect("accept");
            stream.set_nodelay(true).expect("nodelay");
            std::thread::spawn(move || serve(stream, &count, &*script));
        }
    });
    url
}

fn server(script: impl Fn(Asked) -> Do + Send + Sync + 'static) -> String {
    server_at("127.0.0.1:0", script)
}

/// Exit status and report.
fn bench(args: &[&str]) -> (u8, Value) {
    let (status, out, err) = offloop(&[&["bench", "http", "--json", "--failure-pause", "0"], args].concat());
    assert_eq!(err, "", "{args:?}");
    let report: Value = serde_json::from_str(out.lines().last().expect("a report")).expect("JSON");
    let n = |name: &str| report[name].as_u64().expect("a number");
    // Each request is counted once.
    assert_eq!(n("requests"), report["latency_ms"]["count"].as_u64().expect("a number") + n("failed") + n("raced"), "{report}");
    let kinds = report["failures"].as_object().expect("kinds").values();
    assert_eq!(kinds.map(|n| n.as_u64().expect("a number")).sum::<u64>(), n("failed"));
    (status, report)
}

/// The kinds of failure that were seen, with their counts.
fn failures(report: &Value) -> Vec<(String, u64)> {
    let kinds = report["failures"].as_object().expect("kinds").iter();
    kinds.map(|(kind, n)| (kind.clone(), n.as_u64().expect("a number"))).filter(|(_, n)| *n > 0).collect()
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("offloop-bench-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&path).expect("folder");
    path
}

#[test]
fn a_healthy_server_has_no_failure_whichever_way_it_is_asked() {
    let url = server(|asked| {
        assert!(asked.head.starts_with("GET /path?query HTTP/1.1\r\n") || asked.head.starts_with("POST /path?query HTTP/1.1\r\n"));
        assert!(asked.head.contains("\r\nHost: 127.0.0.1:") && asked.head.contains("\r\nX-Own: a: b\r\n"), "{}", asked.head);
        if asked.head.starts_with("POST") {
            assert_eq!(asked.body, 16384);
        }
        match asked.before % 4 {
            0 => Do::Write(OK.to_owned()),
            1 => Do::Write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n".to_owned()),
            2 => Do::Write(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n30000\r\n{}\r\n0\r\n\r\n", "x".repeat(0x30000))),
            _ => Do::WriteAndClose("HTTP/1.0 200 OK\r\n\r\nuntil the end".to_owned()),
        }
    });
    let (status, report) = bench(&[&url, "-c", "8", "-n", "200", "--mix", "new=3,keep=3,slow-body,slow-read", "-H", "X-Own: a: b"]);
    assert_eq!((status, failures(&report), report["requests"].as_u64()), (0, vec![], Some(200)), "{report}");
    for client in ["new", "keep", "slow-body", "slow-read"] {
        assert!(report["clients"][client]["requests"].as_u64() > Some(0), "{report}");
    }
    assert_eq!(report["examples"], Value::Array(vec![]));
}

#[test]
fn each_kind_of_failure_is_counted_as_what_it_is_for_each_kind_of_client() {
    type Script = fn() -> Do;
    let cases: &[(&str, &str, Script)] = &[
        ("reset", "", || Do::WriteAndReset(String::new())),
        ("reset", "", || Do::WriteAndReset("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab".to_owned())),
        ("closed", "before a byte", || Do::WriteAndClose(String::new())),
        ("truncated", "within the response", || Do::WriteAndClose("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcd".to_owned())),
        ("truncated", "within the response", || Do::WriteAndClose("HTTP/1.1 200".to_owned())),
        ("malformed", "no HTTP/1.x status line", || Do::WriteAndClose("SSH-2.0-OpenSSH_9.2\r\n".to_owned())),
        ("malformed", "behind the response", || Do::Write(format!("{OK}more"))),
        ("malformed", "content-length is no number", || Do::Write("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n".to_owned())),
        ("malformed", "head is longer", || Do::Write(format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(70_000)))),
        ("status", "status 500", || Do::Write("HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nok".to_owned())),
        ("status", "status 302", || Do::WriteAndClose("HTTP/1.1 302 Found\r\nLocation: /\r\nConnection: close\r\n\r\nok".to_owned())),
        ("status", "status 101", || Do::Write("HTTP/1.1 101 Switching Protocols\r\n\r\n".to_owned())),
        ("body", "has not the text", || Do::Write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nko".to_owned())),
    ];
    for (kind, told, script) in cases {
        for client in ["new", "keep", "slow-body", "slow-read"] {
            let url = server(|asked| if asked.before % 3 == 1 { script() } else { Do::Write(OK.to_owned()) });
            let (status, report) = bench(&[&url, "-c", "1", "-n", "8", "--mix", client, "--check-body", "ok"]);
            assert_eq!((status, failures(&report)), (1, vec![((*kind).to_owned(), 3)]), "{kind} {client}: {report}");
            assert_eq!(report["clients"][client]["failed"], 3);
            let examples = report["examples"].as_array().expect("examples");
            assert_eq!(examples.len(), 3);
            for example in examples {
                assert_eq!((&example["kind"], &example["client"], &example["raced"]), (&(*kind).into(), &client.into(), &false.into()));
                assert!(example["detail"].as_str().expect("text").contains(told), "{example}");
            }
        }
    }
}

#[test]
fn a_request_that_is_never_answered_times_out_and_another_one_is_sent() {
    for client in ["new", "keep", "slow-body", "slow-read"] {
        let url = server(|asked| match asked.before {
            0 => Do::Nothing,
            1 => Do::Write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf".to_owned()),
            _ => Do::Write(OK.to_owned()),
        });
        let (status, report) = bench(&[&url, "-c", "1", "-n", "4", "--mix", client, "--timeout", "1.5"]);
        assert_eq!((status, failures(&report)), (1, vec![("timeout".to_owned(), 2)]), "{client}: {report}");
        let (first, second) = (&report["examples"][0], &report["examples"][1]);
        assert!(first["took_ms"].as_f64() >= Some(1500.0) && first["detail"] == "without a byte of the response", "{first}");
        assert_eq!(second["detail"], "within the response");
    }
    // Nor is one whose connection nobody takes: the listener's queue is full.
    let listener = UnixListener::bind(folder("full").join("socket")).expect("bind");
    let path = listener.local_addr().expect("address").as_pathname().expect("a path").to_owned();
    // SAFETY: a plain call; the queue's length may be set anew.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let _fills = std::os::unix::net::UnixStream::connect(&path).expect("connect");
    let args = ["http://h/", "--unix-socket", path.to_str().expect("text"), "-c", "1", "-n", "1", "--mix", "new", "--timeout", "0.1"];
    let (status, report) = bench(&args);
    assert_eq!((status, failures(&report)), (1, vec![("timeout".to_owned(), 1)]));
    assert_eq!(report["examples"][0]["detail"], "while it connected");
}

#[test]
fn nobody_there_is_refused() {
    let free = TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address");
    let (status, report) = bench(&[&format!("http://{free}/"), "-c", "2", "-n", "6", "--mix", "new,keep"]);
    assert_eq!((status, failures(&report)), (1, vec![("refused".to_owned(), 6)]));
    assert_eq!(report["p99_ratio"], Value::Null);
    let nowhere = ["http://h/", "--unix-socket", "/nowhere/at-all", "-n", "3", "-c", "1", "--mix", "keep"];
    let (status, report) = bench(&nowhere);
    assert_eq!((status, failures(&report)), (1, vec![("refused".to_owned(), 3)]));
}

#[test]
fn a_connection_is_used_again_until_its_response_says_close() {
    let opened = |mix: &str, answer: &'static str| {
        let (status, report) = bench(&[&server(move |_| Do::Write(answer.to_owned())), "-c", "1", "-n", "6", "--mix", mix]);
        assert_eq!((status, report["failed"].as_u64()), (0, Some(0)), "{report}");
        report["connections_opened"].as_u64()
    };
    assert_eq!(
        (opened("keep", OK), opened("slow-body", OK), opened("slow-read", OK), opened("new", OK)),
        (Some(1), Some(1), Some(1), Some(6))
    );
    let last = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!((opened("keep", last), opened("slow-body", last), opened("slow-read", last)), (Some(6), Some(6), Some(6)));
}

#[test]
fn a_connection_that_is_closed_without_a_word_fails_the_next_request_unless_it_is_seen_first() {
    let closes = || server(|_| Do::WriteAndClose(OK.to_owned()));
    let (status, report) = bench(&[&closes(), "-c", "1", "-n", "10", "--mix", "keep"]);
    // The request may reach the other end before its close is done, or not.
    let sum: u64 = failures(&report).iter().filter(|(kind, _)| ["reset", "closed"].contains(&kind.as_str())).map(|(_, n)| n).sum();
    assert_eq!((status, sum, report["failed"].as_u64(), report["raced"].as_u64()), (1, 5, Some(5), Some(0)), "{report}");
    assert_eq!(report["examples"][0]["requests_before"], 1);
    let (status, report) = bench(&[&closes(), "-c", "1", "-n", "3", "--mix", "keep", "--pause", "300"]);
    assert_eq!((status, report["failed"].as_u64(), report["connections_opened"].as_u64()), (0, Some(0), Some(3)));
    assert!(report["closed_idle"].as_u64() >= Some(2), "{report}");
}

#[test]
fn a_close_that_meets_a_connection_idle_beyond_the_limit_is_raced_and_no_failure() {
    let resets = || server(|asked| if asked.before_here == 0 { Do::Write(OK.to_owned()) } else { Do::WriteAndReset(String::new()) });
    let (status, report) = bench(&[&resets(), "-c", "1", "-n", "6", "--mix", "keep", "--pause", "30", "--idle-limit", "0.03"]);
    assert_eq!((status, report["failed"].as_u64(), report["raced"].as_u64()), (0, Some(0), Some(3)), "{report}");
    assert_eq!((&report["examples"][0]["raced"], &report["examples"][0]["kind"]), (&true.into(), &"reset".into()));
    assert!(report["examples"][0]["idle_ms"].as_f64() >= Some(30.0));
    // The same below the limit; and what had begun to be answered is a failure however idle it was.
    let (status, report) = bench(&[&resets(), "-c", "1", "-n", "6", "--mix", "keep", "--pause", "30"]);
    assert_eq!((status, failures(&report), report["raced"].as_u64()), (1, vec![("reset".to_owned(), 3)], Some(0)));
    for (ends, kind) in [(Do::WriteAndClose as fn(String) -> Do, "truncated"), (Do::WriteAndReset, "reset")] {
        let begins = server(move |asked| if asked.before_here == 0 { Do::Write(OK.to_owned()) } else { ends("HTTP/1.1 2".to_owned()) });
        let (_, report) = bench(&[&begins, "-c", "1", "-n", "6", "--mix", "keep", "--pause", "30", "--idle-limit", "0.03"]);
        assert_eq!((failures(&report), report["raced"].as_u64()), (vec![(kind.to_owned(), 3)], Some(0)));
    }
}

#[test]
fn bytes_that_nobody_asked_for_fail_the_next_request() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        read_request(&mut stream).expect("a request");
        stream.write_all(OK.as_bytes()).expect("write");
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(OK.as_bytes()).expect("write");
        assert!(read_request(&mut stream).is_none(), "nothing is sent on such a connection");
        let (mut stream, _) = listener.accept().expect("accept");
        read_request(&mut stream).expect("a request");
        stream.write_all(OK.as_bytes()).expect("write");
    });
    let (status, report) = bench(&[&url, "-c", "1", "-n", "3", "--mix", "keep", "--pause", "1000"]);
    assert_eq!((status, failures(&report)), (1, vec![("malformed".to_owned(), 1)]), "{report}");
    assert_eq!(report["examples"][0]["detail"], "bytes came before the request");
    server.join().expect("server");
}

#[test]
fn an_answer_before_the_whole_body_is_one_and_its_connection_is_not_used_again() {
    for (status_line, failed) in [("HTTP/1.1 200 OK", 0), ("HTTP/1.1 413 Too Large", 3)] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let url = format!("http://{}/", listener.local_addr().expect("address"));
        let server = std::thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().expect("accept");
                stream.read_exact(&mut [0; 300]).expect("a part");
                stream.write_all(format!("{status_line}\r\nContent-Length: 0\r\n\r\n").as_bytes()).expect("write");
                // The client closes.
                while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
            }
        });
        let (_, report) = bench(&[&url, "-c", "1", "-n", "3", "--mix", "slow-body"]);
        let want = if failed > 0 { vec![("status".to_owned(), failed)] } else { vec![] };
        assert_eq!((failures(&report), report["connections_opened"].as_u64()), (want, Some(3)), "{report}");
        server.join().expect("server");
    }
}

#[test]
fn slow_bodies_and_slow_readers_take_their_time() {
    let (status, report) = bench(&[&server(|_| Do::Write(OK.to_owned())), "-c", "1", "-n", "2", "--mix", "slow-body"]);
    assert!(status == 0 && report["took_s"].as_f64() >= Some(0.1), "seven steps of 7.1 ms each: {report}");
    let url = server(|_| Do::Write(format!("HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n{}", "x".repeat(400))));
    let (status, report) = bench(&[&url, "-c", "1", "-n", "2", "--mix", "slow-read"]);
    // 441 bytes are seven pieces, so six steps of 5 ms.
    assert!(status == 0 && report["took_s"].as_f64() >= Some(0.06), "{report}");
}

#[test]
fn unix_sockets_and_ipv6_are_asked_the_same() {
    let path = folder("unix").join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.expect("accept");
            std::thread::spawn(move || {
                serve(stream, &Mutex::new(0), &|asked: Asked| {
                    assert!(asked.head.contains(" /a?b HTTP/1.1\r\n") && asked.head.contains("\r\nHost: some.name\r\n"), "{}", asked.head);
                    Do::Write(OK.to_owned())
                });
            });
        }
    });
    let (status, report) = bench(&["http://some.name/a?b", "--unix-socket", path.to_str().expect("text"), "-n", "40"]);
    assert_eq!((status, report["requests"].as_u64()), (0, Some(40)), "{report}");
    if TcpListener::bind("[::1]:0").is_ok() {
        let url = server_at("[::1]:0", |asked| {
            assert!(asked.head.contains("\r\nHost: [::1]:"), "{}", asked.head);
            Do::Write(OK.to_owned())
        });
        assert!(url.starts_with("http://[::1]:"));
        assert_eq!(bench(&[&url, "-n", "20", "-c", "4", "--mix", "new,keep"]).0, 0);
        // A name with two addresses, of which one is nobody's.
        let name = url.replace("[::1]", "localhost");
        if crate::cli::bench::target::Url::parse(&name).and_then(|u| u.peers()).is_ok_and(|p| p.len() > 1) {
            let (_, report) = bench(&[&name, "-n", "5", "-c", "1", "--mix", "new", "-H", "Host: [::1]:0"]);
            assert_eq!(report["failed"], 0, "{report}");
        }
    }
}

#[test]
fn answers_are_counted_by_the_value_of_a_field() {
    let url = server(|asked| {
        let worker = if asked.before % 4 == 3 { "b" } else { "a" };
        Do::Write(format!("HTTP/1.1 200 OK\r\nX-Worker: {worker}\r\nContent-Length: 2\r\n\r\nok"))
    });
    let (status, report) = bench(&[&url, "-c", "1", "-n", "40", "--mix", "new", "--count-header", "x-worker"]);
    let answers = &report["answers"];
    assert_eq!((status, answers["requests_max_min"].as_f64(), answers["connections_max_min"].as_f64()), (0, Some(3.0), Some(3.0)));
    assert_eq!((&answers["values"][0]["value"], &answers["values"][0]["requests"]), (&"a".into(), &30.into()));
    assert_eq!((&answers["values"][1]["connections"], &answers["field"]), (&10.into(), &"x-worker".into()));
    // One connection is that of its first answer.
    let (_, report) = bench(&[&url, "-c", "1", "-n", "8", "--mix", "keep", "--count-header", "x-worker"]);
    let values = &report["answers"]["values"];
    assert_eq!((&values[0]["connections"], &values[1]["requests"], &values[1]["connections"]), (&1.into(), &2.into(), &0.into()));
    assert_eq!(report["answers"]["connections_max_min"], Value::Null);
}

#[test]
fn commands_run_on_their_schedule_and_what_they_do_to_latency_is_told() {
    let folder = folder("events");
    let (sign, log) = (folder.join("sign"), folder.join("log"));
    let slow = sign.clone();
    let url = server(move |_| {
        if slow.exists() {
            std::thread::sleep(Duration::from_millis(30));
        }
        Do::Write(OK.to_owned())
    });
    let command = format!("read nothing; echo x >> {}; : > {1}; sleep 0.2; rm {1}", log.display(), sign.display());
    let args = [&url, "-c", "2", "--mix", "new,keep", "--every", "0.3", "--run", &command, "--times", "2", "--settle", "0.05"];
    let (status, report) = bench(&args);
    assert_eq!((status, report["events"].as_array().map(Vec::len)), (0, Some(2)), "{report}");
    assert_eq!(std::fs::read_to_string(&log).expect("log"), "x\nx\n");
    for event in report["events"].as_array().expect("events") {
        assert!(event["ok"] == true && event["ended"] == "exit 0" && event["command"] == command.as_str(), "{event}");
        assert!(event["took_ms"].as_f64() >= Some(200.0) && event["max_ms"].as_f64() >= Some(30.0) && event["at_s"].as_f64() >= Some(0.3));
    }
    assert!(report["during_ms"]["max"].as_f64() >= Some(30.0) && report["steady_ms"]["count"].as_u64() > Some(0), "{report}");
    let ratio = report["during_ms"]["p99"].as_f64().expect("p99") / report["steady_ms"]["p99"].as_f64().expect("p99");
    assert!((report["p99_ratio"].as_f64().expect("a ratio") / ratio - 1.0).abs() < 0.01, "{report}");
}

#[test]
fn a_command_that_fails_fails_the_run_and_one_that_does_not_end_is_skipped_and_killed() {
    let url = server(|_| Do::Write(OK.to_owned()));
    let args = [&url, "-c", "1", "--mix", "keep", "--pause", "5", "--every", "0.02", "--run", "exit 3", "--times", "3", "--settle", "0"];
    let (status, report) = bench(&args);
    assert_eq!((status, report["failed"].as_u64(), report["events"].as_array().map(Vec::len)), (1, Some(0), Some(3)), "{report}");
    assert_eq!((&report["events"][2]["ended"], &report["events"][2]["ok"]), (&"exit 3".into(), &false.into()));
    // No oftener, though the load goes on.
    let args = [&url, "-c", "1", "--mix", "keep", "--pause", "5", "--every", "0.02", "--run", "true", "--times", "2", "-d", "0.3"];
    let (status, report) = bench(&args);
    assert_eq!((status, report["events"].as_array().map(Vec::len)), (0, Some(2)), "{report}");
    assert!(report["took_s"].as_f64() >= Some(0.3), "{report}");
    let args = [&url, "-c", "1", "--mix", "keep", "--pause", "5", "--every", "0.05", "--run", "exec sleep 0.5", "-d", "0.4"];
    let (status, report) = bench(&args);
    assert_eq!((status, report["events"].as_array().map(Vec::len)), (0, Some(1)), "it is waited for: {report}");
    assert!(report["events_skipped"].as_u64() > Some(0), "{report}");
}

/// Not a test: the server of those below, when it is started as a process of its own.
#[test]
fn serves_if_it_is_told_where() {
    let Some(address) = std::env::var_os("OFFLOOP_BENCH_TEST_SERVER") else { return };
    server_at(address.to_str().expect("text"), |_| Do::Write(OK.to_owned()));
    loop {
        std::thread::park();
    }
}

/// The arguments that start a server of `address`.
fn command(address: &str) -> [String; 6] {
    let exe = std::env::current_exe().expect("a path").to_str().expect("text").to_owned();
    let name = "cli::bench::tests::serves_if_it_is_told_where";
    ["--".into(), "env".into(), format!("OFFLOOP_BENCH_TEST_SERVER={address}"), exe, name.into(), "--exact".into()]
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").to_string()
}

#[test]
fn a_server_is_started_asked_and_ended() {
    let address = free_address();
    let (url, command) = (format!("http://{address}/"), command(&address));
    let mut args = vec![
        url.as_str(),
        "-n",
        "50",
        "-c",
        "2",
        "--mix",
        "new,keep",
        "--pause",
        "5",
        "--every",
        "0.01",
        "--run",
        "kill -0 {pid}",
        "--times",
        "1",
    ];
    args.extend(command.iter().map(String::as_str));
    let (status, report) = bench(&args);
    let server = &report["server"];
    assert_eq!(
        (status, report["requests"].as_u64(), &server["ended"], &server["killed"]),
        (0, Some(50), &"signal 15".into(), &false.into())
    );
    assert_eq!(report["events"][0]["command"], format!("kill -0 {}", server["pid"]));
    assert!(TcpStream::connect(&address).is_err(), "it is gone");
    // One that ends by itself is told of.
    let mut args = vec![url.as_str(), "-d", "1", "-c", "1", "--mix", "new", "--every", "0.1", "--run", "kill -9 {pid}", "--times", "1"];
    args.extend(command.iter().map(String::as_str));
    let (status, report) = bench(&args);
    assert_eq!((status, &report["server"]["ended"]), (1, &"signal 9".into()), "{report}");
    assert!(report["server"]["ended_by_itself_at_s"].as_f64() >= Some(0.1) && report["failures"]["refused"].as_u64() > Some(0), "{report}");
}

#[test]
fn a_server_that_cannot_be_asked_is_an_error() {
    let taken = server(|_| Do::Write(OK.to_owned()));
    let free = format!("http://{}/", free_address());
    for (args, told) in [
        (&[taken.as_str(), "--", "sleep", "1000"][..], "offloop: exists: somebody accepts connections there"),
        (&[&free, "--", "sh", "-c", "exit 7"], "offloop: start failed: server ended before it accepted a connection (ended=exit 7"),
        (&[&free, "--start-timeout", "0.05", "--", "sleep", "1000"], "offloop: timeout: server accepts no connection (waited_s=0.05"),
        (&[&free, "--", "/nowhere/at-all"], "offloop: not found: no such program"),
        (&["http://no-such-host.invalid/"], "offloop: not found: host has no address (host=no-such-host.invalid"),
    ] {
        let (status, out, err) = offloop(&[&["bench", "http"], args].concat());
        assert!(status == 1 && out.is_empty() && err.starts_with(told), "{args:?}: {status} {out}{err}");
    }
}

#[test]
fn a_command_line_that_says_no_such_thing_is_refused() {
    for (args, told) in [
        (&["https://h/"][..], "unsupported: scheme is not http"),
        (&["http://h/", "-c", "0"], "0"),
        (&["http://h/", "-c", "10001"], "10001"),
        (&["http://h/", "-n", "0"], "0"),
        (&["http://h/", "-d", "x"], "x is no number of seconds"),
        (&["http://h/", "-d", "NaN"], "NaN is outside"),
        (&["http://h/", "--timeout", "-1"], "-1"),
        (&["http://h/", "--mix", "old"], "old is none of"),
        (&["http://h/", "-c", "3"], "fewer connections than behaviours in the mix (connections=3, behaviours=4)"),
        (&["http://h/", "--interval", "0.001"], "interval is below"),
        (&["http://h/", "-H", "no colon"], "has no colon"),
        (&["http://h/", "-H", "a b: c"], "no name of a field"),
        (&["http://h/", "-H", "a: b\r\nc: d"], "control character"),
        (&["http://h/", "-H", "Connection: close"], "up to the client"),
        (&["http://h/", "--count-header", "x worker"], "no name of a field"),
        (&["http://h/", "--every", "1"], "each --run needs one --every (every=1, run=0)"),
        (&["http://h/", "--run", "true", "--every", "0"], "--every is 0 seconds"),
        (&["http://h/", "--times", "1"], "there is none"),
        (&["http://h/", "--every", "1", "--run", "kill {pid}"], "no command to start one is given"),
        (&["http://h/", "--unix-socket", &"x".repeat(108)], "path is too long for a socket"),
        (&[], "<URL>"),
    ] {
        let (status, out, err) = offloop(&[&["bench", "http"], args].concat());
        assert!(status == 2 && out.is_empty() && err.contains(told), "{args:?}: {status} {out}{err}");
    }
}

#[test]
fn the_text_says_what_json_says() {
    let url = server(|asked| {
        let text = if asked.before == 3 { "HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nok" } else { OK };
        Do::Write(text.replace("Length: 2", "Length: 2\r\nX-W: one"))
    });
    let args = [
        "-c",
        "1",
        "-n",
        "8",
        "--mix",
        "keep",
        "--pause",
        "40",
        "--interval",
        "0.1",
        "--count-header",
        "x-w",
        "--every",
        "0.05",
        "--run",
        "exit 9",
    ];
    let (status, out, err) = offloop(&[&["bench", "http", &url], &args[..]].concat());
    assert_eq!((status, err.as_str()), (1, ""));
    for told in [
        "requests/s     p99 ms     max ms    failed   raced\n",
        "1 connections (1 keep), ",
        "failed (12.5000 %): 1 status\n",
        "\nkeep                  8          1       0 ",
        "answers by x-w: 1 values, max/min 1.00 by requests, 1.00 by connections\n",
        "  keep       status: status 503 after ",
        ", request 4 of its connection, idle ",
        "`exit 9`: exit 9\n",
        "\nduring ",
        "p99 during the commands is ",
    ] {
        assert!(out.contains(told), "{told:?} in {out}");
    }
    let lines: Vec<String> = offloop(&[&["bench", "http", &url, "--json"], &args[..]].concat()).1.lines().map(str::to_owned).collect();
    assert!(lines.len() > 2, "{lines:?}");
    for line in &lines[..lines.len() - 1] {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["at_s"].as_f64() > Some(0.0) && line["requests_per_s"].as_f64().is_some() && line["url"].is_null(), "{line}");
    }
}
