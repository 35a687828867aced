//! The runner's side of a worker: how it starts, what it says, what it notes down.

use offloop::Channel;
use offloop::ring::RingBuffer;
use offloop_tests::driver::{Program, program};
use offloop_tests::inherit::inherit;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The number under which a worker finds its notes; the ring's fds follow.
const FIRST: RawFd = 100;

/// How to start a language's worker.
fn command(lang: &str) -> Result<Command, String> {
    program(lang, &Program { rust: "pair-worker", c: "conformance/pair-worker-c", scripts: "tests/pairs/worker" })
}

fn io(what: &str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {e}")
}

/// The file that workers write down in how far they are.
pub(crate) struct Progress(File);

impl Progress {
    pub(crate) fn new() -> Result<Progress, String> {
        // SAFETY: a plain call with a NUL-terminated name; the fd is new and ours.
        let file = unsafe {
            let fd = libc::memfd_create(c"progress".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(io("memfd_create")(std::io::Error::last_os_error()));
            }
            File::from(OwnedFd::from_raw_fd(fd))
        };
        file.set_len(32).map_err(io("set_len"))?;
        Ok(Progress(file))
    }

    fn word(&self, at: u64) -> Result<u64, String> {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).map_err(io("progress"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Records that this incarnation of the producer has pushed.
    pub(crate) fn pushed(&self) -> Result<u64, String> {
        self.word(0)
    }

    pub(crate) fn reset_pushed(&self) -> Result<(), String> {
        self.0.write_all_at(&[0; 8], 0).map_err(io("progress"))
    }

    /// Incarnation and number of the record that the consumer expects next.
    pub(crate) fn seen(&self) -> Result<(u64, u64), String> {
        Ok((self.word(16)?, self.word(24)?))
    }

    /// Waits until the producer has pushed `records`, or somebody died young.
    pub(crate) fn await_pushed(&self, records: u64, workers: &mut [&mut Worker], patience: Duration) -> Result<(), String> {
        let until = Instant::now() + patience;
        while self.pushed()? < records {
            for worker in workers.iter_mut() {
                worker.check_alive()?;
            }
            if Instant::now() > until {
                return Err(format!("nothing moves: the producer has pushed {} of {records}", self.pushed()?));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Waits until the consumer has gone on by `records`, or the producer died young.
    pub(crate) fn await_records(&self, records: u64, workers: &mut [&mut Worker], patience: Duration) -> Result<(), String> {
        let (mut at, mut gone, until) = (self.seen()?, 0, Instant::now() + patience);
        while gone < records {
            let now = self.seen()?;
            gone += if now.0 == at.0 { now.1.saturating_sub(at.1) } else { now.1 };
            at = now;
            for worker in workers.iter_mut() {
                worker.check_alive()?;
            }
            if Instant::now() > until {
                return Err(format!("nothing moves: the consumer expects {}:{}, the producer has pushed {}", at.0, at.1, self.pushed()?));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

/// A running worker.
pub(crate) struct Worker {
    name: String,
    child: Child,
    lines: Receiver<String>,
    /// What it said and nobody asked for yet.
    said: Vec<String>,
}

impl Worker {
    /// Whether a language's worker can run.
    pub(crate) fn hello(lang: &str) -> Result<(), String> {
        let out = command(lang)?.arg("role=hello").stderr(Stdio::null()).output().map_err(io("worker does not start"))?;
        match String::from_utf8_lossy(&out.stdout).trim() {
            "rings" => Ok(()),
            why if !why.is_empty() => Err(why.to_owned()),
            _ => Err(format!("its worker ends with {}", out.status)),
        }
    }

    pub(crate) fn start(lang: &str, ring: &RingBuffer, progress: Option<&Progress>, args: &str) -> Result<Worker, String> {
        Worker::start_with(lang, &ring.fds().map_err(|e| e.to_string())?, progress, args)
    }

    /// A worker that has this end of a channel.
    pub(crate) fn start_talk(lang: &str, end: &Channel, args: &str) -> Result<Worker, String> {
        Worker::start_with(lang, &[end.socket().map_err(|e| e.to_string())?], None, args)
    }

    fn start_with(lang: &str, fds: &[RawFd], progress: Option<&Progress>, args: &str) -> Result<Worker, String> {
        // SAFETY: the caller keeps them open for the call.
        let mut passed: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| unsafe { BorrowedFd::borrow_raw(*fd) }).collect();
        // Without notes the number is taken by what is there anyway.
        passed.insert(0, progress.map_or(passed[0], |p| p.0.as_fd()));
        let mut command = command(lang)?;
        command.args(args.split(' ')).arg(format!("fds={}", fds.len())).stdin(Stdio::null()).stdout(Stdio::piped());
        inherit(&mut command, &passed, FIRST).map_err(io("fds"))?;
        let name = format!("{lang} worker ({args})");
        let mut child = command.spawn().map_err(io(&name))?;
        let (stdout, (send, lines)) = (child.stdout.take().expect("stdout was asked to be piped"), channel());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Worker { name, child, lines, said: Vec::new() })
    }

    /// Keeps a line; a failed check is an error.
    fn hear(&mut self, line: String) -> Result<(), String> {
        match line.strip_prefix("fail ") {
            Some(why) => Err(format!("{}: {why}", self.name)),
            None => {
                self.said.push(line);
                Ok(())
            }
        }
    }

    /// Waits for a line that begins with `word`.
    fn await_line(&mut self, word: &str, patience: Duration) -> Result<String, String> {
        let until = Instant::now() + patience;
        loop {
            if let Some(line) = self.said.iter().find(|l| l.starts_with(word)) {
                return Ok(line.clone());
            }
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.hear(line)?,
                Err(RecvTimeoutError::Timeout) => return Err(format!("{}: never said {word:?}; the watchdog ended it", self.name)),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_err(io(&self.name))?;
                    return Err(format!("{}: ended without {word:?}: {status}", self.name));
                }
            }
        }
    }

    /// Waits until it has its place in the ring.
    pub(crate) fn ready(&mut self, patience: Duration) -> Result<(), String> {
        self.await_line("ready", patience).map(drop)
    }

    /// Waits for its end, and gives how many records it had.
    pub(crate) fn done(&mut self, patience: Duration) -> Result<u64, String> {
        self.ends("done ", patience)
    }

    /// Waits until it says that the other end of its channel died, and gives how many messages came before.
    pub(crate) fn saw_death(&mut self, patience: Duration) -> Result<u64, String> {
        self.ends("died ", patience)
    }

    fn ends(&mut self, word: &str, patience: Duration) -> Result<u64, String> {
        let line = self.await_line(word, patience)?;
        let records = line.strip_prefix(word).and_then(|n| n.parse().ok());
        let records = records.ok_or_else(|| format!("{}: {line:?} is no end", self.name))?;
        let status = self.child.wait().map_err(io(&self.name))?;
        if status.success() { Ok(records) } else { Err(format!("{}: {status}", self.name)) }
    }

    /// It has not given up by itself.
    fn check_alive(&mut self) -> Result<(), String> {
        if self.child.try_wait().map_err(io(&self.name))?.is_none() {
            return Ok(());
        }
        self.await_line("\0", Duration::from_secs(1)).map(drop)
    }

    /// Everything that an ended worker said.
    pub(crate) fn all(&mut self) -> Result<&[String], String> {
        while let Ok(line) = self.lines.recv() {
            self.hear(line)?;
        }
        Ok(&self.said)
    }

    /// SIGKILL; afterwards the kernel has taken its locks away.
    pub(crate) fn kill(&mut self) -> Result<(), String> {
        self.child.kill().map_err(io(&self.name))?;
        self.child.wait().map_err(io(&self.name))?;
        Ok(())
    }

    /// Everything that an ended consumer said about whole incarnations; gives how many records came again.
    pub(crate) fn collect(&mut self, seen: &mut BTreeMap<u64, u64>) -> Result<u64, String> {
        self.all()?;
        for line in &self.said {
            let numbers: Vec<u64> = line.split(' ').skip(1).filter_map(|n| n.parse().ok()).collect();
            if let (true, [inc, records]) = (line.starts_with("inc "), &numbers[..]) {
                let before = seen.insert(*inc, *records);
                if before.is_some_and(|b| b != *records) {
                    return Err(format!("{}: incarnation {inc} had {before:?} records, then {records}", self.name));
                }
            }
        }
        Ok(self.said.iter().filter(|l| *l == "again").count() as u64)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is gone after this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
