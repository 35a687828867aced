//! The worker of the driver's clusters: `driver member <mode> <version> <at>`.

use crate::cluster::LIMIT;
use crate::{missing, param};
use offloop::channel::{Channel, Incoming};
use offloop::cluster::{self, Worker, worker};
use offloop::value::ErrorValue;
use offloop::{Error, Value};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The word that makes this program such a worker.
pub(crate) const MEMBER: &str = "member";

#[expect(clippy::disallowed_methods, reason = "the process that ends is this driver's worker")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

struct Member {
    worker: Worker,
    channel: Channel,
    version: String,
}

pub(crate) fn run(words: &[String]) -> Result<(), Error> {
    let [mode, version, at] = words else { return Err(missing("member", "mode, version, at")) };
    if mode == "quits" {
        end(3)
    }
    let worker = worker::attach()?.ok_or_else(|| missing("cluster", mode))?;
    match mode.as_str() {
        "broken" | "half" if mode == "broken" || worker.supervisor().id().slot > 0 => {
            worker.supervisor().fail("no model");
            end(1)
        }
        "never" => loop {
            std::thread::park();
        },
        _ => {}
    }
    let sockets = if at.is_empty() {
        (0..worker.fds().len()).map(|index| worker.seat(index)).collect::<Result<Vec<_>, _>>()
    } else {
        worker.listen(at, 0, None).map(|socket| vec![socket])
    };
    let sockets = sockets.unwrap_or_else(|e| {
        worker.supervisor().fail(&e.to_string());
        end(1)
    });
    let member = Arc::new(Member { channel: worker.channel()?, worker, version: version.clone() });
    let hears = Arc::clone(&member);
    std::thread::spawn(move || hears.hear());
    let (worker, open) = (&member.worker, Arc::new(AtomicUsize::new(0)));
    worker.supervisor().ready();
    while !worker.supervisor().is_draining() {
        worker.beat();
        for (socket, _) in &sockets {
            let Some(fd) = worker.accept(socket.as_fd(), Some(Duration::from_millis(2)))? else { continue };
            let (member, open) = (Arc::clone(&member), Arc::clone(&open));
            open.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                // A client that is gone needs no answer.
                let _ = member.serve(TcpStream::from(fd));
                open.fetch_sub(1, Ordering::SeqCst);
            });
        }
        if sockets.is_empty() {
            let _ = worker.supervisor().wait_drain(Some(Duration::from_millis(10)));
        }
    }
    while open.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    worker.supervisor().drained();
    end(0)
}

impl Member {
    fn serve(&self, connection: TcpStream) -> std::io::Result<()> {
        connection.set_nonblocking(false)?;
        let mut line = String::new();
        BufReader::new(&connection).read_line(&mut line)?;
        let reply = self.answer(line.trim_end()).unwrap_or_else(|e| crate::show(Err(e)));
        self.worker.supervisor().served(1);
        writeln!(&connection, "{reply}")?;
        drop(connection);
        self.worker.closed();
        Ok(())
    }

    /// A line of a connection.
    fn answer(&self, line: &str) -> Result<String, Error> {
        let (what, value) = line.split_once(' ').unwrap_or((line, ""));
        match what {
            "tell" => self.channel.send(&mut param(value), &[], None).map(|()| "ok".to_owned()),
            "ask" => Ok(crate::show(Ok(self.channel.request(&mut param(value), &[], None)?.message.value))),
            "count" => Ok(format!("ok int={}", cluster::counter(value)?.add(1))),
            "take" => Ok(format!("ok allowed={}", u8::from(cluster::limiter(value, LIMIT)?.take(b"", 1)?.allowed))),
            _ => {
                let id = self.worker.supervisor().id();
                Ok(format!("ok slot={} generation={} pid={} version={}", id.slot, id.generation, std::process::id(), self.version))
            }
        }
    }

    /// What the cluster says: `exit` and `say` are done, all else comes back.
    fn hear(&self) {
        while let Ok(incoming) = self.channel.recv(None) {
            let done = match incoming {
                Incoming::Message(mut message) => {
                    if message.value.as_str() == Some("say") {
                        // Nobody can be told of an error.
                        let _ = std::io::stdout().write_all(b"one\nhalf").and_then(|()| std::io::stdout().flush());
                    }
                    if matches!(message.value.as_str(), Some("exit" | "say")) {
                        end(3)
                    }
                    self.channel.send(&mut message.value, &[], None)
                }
                Incoming::Request(request) => self.reply(request.id, &request.message.value),
                _ => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn reply(&self, number: u64, asked: &Value) -> Result<(), Error> {
        let id = self.worker.supervisor().id();
        let mut value = match (asked.as_str(), asked.as_int()) {
            (Some("never"), _) => return Ok(()),
            (Some("fail"), _) => {
                let mut error = Value::Error(Box::new(ErrorValue::new("TypeError", "no such color")));
                return self.channel.reply(number, true, &mut error, &[], None);
            }
            (Some("pid"), _) => Value::Int(std::process::id().into()),
            (Some("slot"), _) => Value::Int(id.slot.into()),
            (Some("generation"), _) => Value::Int(id.generation.into()),
            (Some("version"), _) => Value::str(self.version.clone()),
            (_, Some(n)) => Value::Int(2 * n),
            _ => Value::Nil,
        };
        self.channel.reply(number, false, &mut value, &[], None)
    }
}
