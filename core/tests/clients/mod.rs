//! Clients of a server that answers what it is sent: one connection per request, without a pause, and nothing is sent twice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

pub(crate) fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(at)?;
    connection.write_all(b"ping")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    if answer.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(answer) }
}

/// Some of them, until they are told to end.
pub(crate) struct Clients {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<String>>>,
}

impl Clients {
    pub(crate) fn start(n: usize, at: SocketAddr) -> Clients {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let client = |_| {
            let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match ask(at) {
                        Ok(_) => drop(asked.fetch_add(1, Ordering::Relaxed)),
                        Err(e) => failed.push(e.to_string()),
                    }
                }
                failed
            })
        };
        let threads = (0..n).map(client).collect();
        Clients { over, asked, threads }
    }

    /// Requests that were answered.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Ends them; what failed.
    pub(crate) fn end(self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}
