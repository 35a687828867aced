//! The runner as a client of the servers that clusters run, and as one that ends processes from outside. Its verbs are those of `client.` in `PROTOCOL.md`.

use offloop::cluster::Address;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Threads of a load.
const CLIENTS: usize = 2;
/// Addresses that `client.everyone` comes from, one after the other.
const HOSTS: u8 = 64;

type Stream = Box<dyn ReadWrite>;

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Requests one after the other, until it is ended.
struct Load {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
    failures: Arc<Mutex<Vec<String>>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Its calls, as of a driver.
#[derive(Default)]
pub(crate) struct Client {
    next: u64,
    replies: HashMap<u64, Receiver<String>>,
    loads: HashMap<String, Load>,
}

impl Client {
    /// Begins with a line, and gives its number.
    pub(crate) fn send(&mut self, line: &str, deadline: Instant) -> u64 {
        self.next += 1;
        let mut tokens = line.split(' ');
        let verb = tokens.next().unwrap_or_default().to_owned();
        let args: HashMap<String, String> =
            tokens.filter_map(|t| t.split_once('=')).map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let (said, reply) = channel();
        self.replies.insert(self.next, reply);
        match verb.as_str() {
            "client.load" | "client.loaded" => {
                let _ = said.send(self.load(&verb, &args, deadline).unwrap_or_else(|why| refused("Driver", &why)));
            }
            _ => drop(std::thread::spawn(move || {
                let _ = said.send(run(&verb, &args, deadline).unwrap_or_else(|why| refused("Driver", &why)));
            })),
        }
        self.next
    }

    /// The reply of that number.
    pub(crate) fn reply(&mut self, id: u64, deadline: Instant) -> Result<String, String> {
        let reply = self.replies.remove(&id).ok_or("nothing was asked")?;
        reply.recv_timeout(deadline.saturating_duration_since(Instant::now())).map_err(|_| "nobody answers the client".to_owned())
    }

    fn load(&mut self, verb: &str, args: &HashMap<String, String>, deadline: Instant) -> Result<String, String> {
        let name = need(args, "load")?;
        if verb == "client.load" {
            let at = address(args)?;
            let (over, failures) = (Arc::new(AtomicBool::new(false)), Arc::default());
            let threads = (0..CLIENTS).map(|_| {
                let (over, failures, at) = (Arc::clone(&over), Arc::clone(&failures), at.clone());
                std::thread::spawn(move || ask_until(&over, &at, deadline, &failures))
            });
            let threads = threads.collect();
            self.loads.insert(name.to_owned(), Load { over, threads, failures });
            return Ok("ok".into());
        }
        let mut load = self.loads.remove(name).ok_or("there is no such load")?;
        load.over.store(true, Ordering::SeqCst);
        let asked: u64 = std::mem::take(&mut load.threads).into_iter().filter_map(|thread| thread.join().ok()).sum();
        let failures = load.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let first = failures.first().map(String::as_str).unwrap_or_default();
        Ok(format!("ok asked={asked} failed={} message={}", failures.len(), crate::hex(first.as_bytes())))
    }
}

fn need<'a>(args: &'a HashMap<String, String>, key: &str) -> Result<&'a str, String> {
    args.get(key).map(String::as_str).ok_or_else(|| format!("the line lacks {key}"))
}

/// The first of `at`, or that of `index`.
fn address(args: &HashMap<String, String>) -> Result<Address, String> {
    let index = args.get("index").and_then(|index| index.parse().ok()).unwrap_or(0);
    let at = need(args, "at")?.split(',').nth(index).ok_or("there is no such address")?;
    at.parse().map_err(|e: offloop::Error| e.to_string())
}

fn refused(kind: &str, why: &str) -> String {
    format!("err kind={kind} message={}", crate::hex(why.as_bytes()))
}

fn run(verb: &str, args: &HashMap<String, String>, deadline: Instant) -> Result<String, String> {
    let at = || address(args);
    let pids = || need(args, "pid")?.split(',').map(|pid| pid.parse::<i32>().map_err(|e| e.to_string())).collect::<Result<Vec<i32>, _>>();
    match verb {
        "client.ask" => {
            let from = args.get("from").map(|from| from.parse::<Ipv4Addr>().map_err(|e| e.to_string())).transpose()?;
            let value = args.get("value").map(|value| format!(" {value}")).unwrap_or_default();
            let line = format!("{}{value}", need(args, "what")?);
            Ok(ask(&at()?, from, &line, deadline).unwrap_or_else(|why| refused("Lost", &why)))
        }
        "client.everyone" => {
            let (at, slots) = (at()?, need(args, "slots")?.parse::<usize>().map_err(|e| e.to_string())?);
            let mut heard = HashSet::new();
            for host in (1..=HOSTS).cycle() {
                // Side by side: whoever is alone may always be served by the same one.
                let asks = [(); 4].map(|()| {
                    let at = at.clone();
                    std::thread::spawn(move || ask(&at, Some(Ipv4Addr::new(127, 0, 0, host)), "who", deadline))
                });
                for reply in asks.map(|thread| thread.join().map_err(|_| "a client has panicked".to_owned())) {
                    let reply = reply??;
                    let slot = reply.split(' ').find_map(|token| token.strip_prefix("slot="));
                    heard.insert(slot.ok_or_else(|| format!("{reply:?} is no answer"))?.to_owned());
                }
                if heard.len() >= slots || Instant::now() >= deadline {
                    break;
                }
            }
            let mut heard: Vec<String> = heard.into_iter().collect();
            heard.sort();
            Ok(format!("ok slots={}", heard.join(",")))
        }
        "client.end" => {
            for pid in pids()? {
                // SAFETY: a plain call; the process is a worker of a case.
                if unsafe { libc::kill(pid, libc::SIGKILL) } != 0 {
                    return Ok(refused("Os", &std::io::Error::last_os_error().to_string()));
                }
            }
            Ok("ok".into())
        }
        "client.left" => {
            let left = pids()?.into_iter().filter(|pid| Path::new(&format!("/proc/{pid}")).exists()).count();
            Ok(format!("ok count={left}"))
        }
        other => Err(format!("unknown verb {other}")),
    }
}

/// Asks again and again, and gives how often.
fn ask_until(over: &AtomicBool, at: &Address, deadline: Instant, failures: &Mutex<Vec<String>>) -> u64 {
    let mut asked = 0;
    while !over.load(Ordering::SeqCst) {
        asked += 1;
        let failure = match ask(at, None, "who", deadline) {
            Ok(reply) if reply.starts_with("ok ") => continue,
            Ok(other) => format!("answered {other:?}"),
            Err(why) => why,
        };
        failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
    }
    asked
}

/// Says a line to a server, and gives the line that it answers before it closes.
fn ask(at: &Address, from: Option<Ipv4Addr>, line: &str, deadline: Instant) -> Result<String, String> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let mut stream = connect(at, from, left).map_err(|e| format!("connect: {e}"))?;
    stream.write_all(format!("{line}\n").as_bytes()).map_err(|e| format!("write: {e}"))?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).map_err(|e| format!("read: {e}"))?;
    match reply.strip_suffix('\n') {
        Some(whole) => Ok(whole.to_owned()),
        None => Err(format!("the connection ended after {reply:?}")),
    }
}

fn connect(at: &Address, from: Option<Ipv4Addr>, left: Duration) -> std::io::Result<Stream> {
    let to = match at {
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(left))?;
            return Ok(Box::new(stream));
        }
        Address::Any(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), *port),
        Address::Tcp(to) => *to,
        Address::Fd(_) => return Err(std::io::Error::other("a cluster tells the address of a socket, not its number")),
    };
    let stream = match (from, to) {
        (Some(from), SocketAddr::V4(_)) => connect_from(from, to)?,
        _ => TcpStream::connect_timeout(&to, left)?,
    };
    stream.set_read_timeout(Some(left))?;
    Ok(Box::new(stream))
}

/// As `TcpStream::connect`, with an address of this end's choice.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let checked = |done: i32| if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(done) };
    let name = |ip: Ipv4Addr, port: u16| {
        // SAFETY: plain data, of which all zeros is valid.
        let mut name: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        name.sin_family = libc::AF_INET as libc::sa_family_t;
        name.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
        name.sin_port = port.to_be();
        name
    };
    let IpAddr::V4(ip) = to.ip() else { return Err(std::io::ErrorKind::Unsupported.into()) };
    let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: a plain call.
    let fd = checked(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: new and ours.
    let stream = unsafe { TcpStream::from_raw_fd(fd) };
    let (from, to) = (name(from, 0), name(ip, to.port()));
    // SAFETY: the name lives, and has that length.
    checked(unsafe { libc::bind(fd, (&raw const from).cast(), len) })?;
    // SAFETY: as above.
    checked(unsafe { libc::connect(fd, (&raw const to).cast(), len) })?;
    Ok(stream)
}
