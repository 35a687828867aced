//! An open-loop HTTP/1.1 load generator on one thread.
//!
//! Requests leave on a schedule that was fixed beforehand, whatever the server does, and a latency counts from the moment a request *should*
//! have left: a server that stalls is charged for every request that its stall delayed (no coordinated omission, after G. Tene).
//! One request at a time per connection; connections are kept alive and opened as needed, as browsers and proxies do.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// One route and when its requests leave, counted from the start.
#[derive(Clone, Debug)]
pub struct Route {
    /// The path, `/health`.
    pub path: String,
    /// Ascending offsets.
    pub arrivals: Vec<Duration>,
}

/// One answered request.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it should have left.
    pub at: Duration,
    /// From then until its last byte came.
    pub latency: Duration,
}

/// What came of a route.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Answered with 200.
    pub samples: Vec<Sample>,
    /// Answered otherwise, or cut off.
    pub failed: usize,
    /// Not answered when the run ended, by the time it should have left.
    pub unanswered: Vec<Duration>,
}

/// What a run measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// Per route.
    pub routes: Vec<Outcome>,
    /// How long it ran.
    pub wall: Duration,
    /// CPU time that the generator itself used.
    pub cpu: Duration,
    /// How late the generator itself sent, at worst.
    pub sent_late: Duration,
}

/// A schedule of evenly spaced requests.
#[must_use]
pub fn steady(per_second: f64, length: Duration) -> Vec<Duration> {
    let n = (per_second * length.as_secs_f64()).floor() as u32;
    (0..n).map(|i| Duration::from_secs_f64((f64::from(i) + 0.5) / per_second)).collect()
}

/// A schedule of independent arrivals (exponential gaps), the same for the same seed.
#[must_use]
pub fn poisson(per_second: f64, length: Duration, seed: u64) -> Vec<Duration> {
    // SplitMix64 (Steele, Lea, Flood 2014): short, and good enough for gaps.
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    };
    let mut out = Vec::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - uniform()).ln() / per_second;
        if at >= length.as_secs_f64() {
            return out;
        }
        out.push(Duration::from_secs_f64(at));
    }
}

struct Connection {
    stream: TcpStream,
    /// Route and time of the request under way.
    busy: Option<(usize, Duration)>,
    input: Vec<u8>,
    /// What is still to come of the body, once the head has been read; and whether the status was 200.
    body_left: Option<(usize, bool)>,
}

/// Runs the schedules against `addr`, waits at most `tail` for what is late, and calls `tick` about five times a second with the time that has passed.
///
/// # Errors
/// When the server cannot be reached, or the system has no descriptors left.
pub fn run(addr: SocketAddr, routes: &[Route], tail: Duration, tick: &mut dyn FnMut(Duration)) -> io::Result<Report> {
    let mut schedule: Vec<(Duration, usize)> =
        routes.iter().enumerate().flat_map(|(r, route)| route.arrivals.iter().map(move |at| (*at, r))).collect();
    schedule.sort_unstable();
    let last = schedule.last().map_or(Duration::ZERO, |(at, _)| *at);
    let requests: Vec<Vec<u8>> = routes.iter().map(|r| format!("GET {} HTTP/1.1\r\nHost: {addr}\r\n\r\n", r.path).into_bytes()).collect();
    let mut generator = Generator::new(addr, routes.len())?;
    let cpu_before = thread_cpu();
    let start = Instant::now();
    let mut next = 0;
    let mut next_tick = Duration::ZERO;
    loop {
        let now = start.elapsed();
        while let Some((at, route)) = schedule.get(next).copied().filter(|(at, _)| *at <= now) {
            generator.sent_late = generator.sent_late.max(start.elapsed().saturating_sub(at));
            generator.send(route, at, &requests[route])?;
            next += 1;
        }
        if now >= next_tick {
            tick(now);
            next_tick = now + Duration::from_millis(200);
        }
        let all_sent = next == schedule.len();
        if all_sent && (generator.in_flight == 0 || now >= last + tail) {
            break;
        }
        let until = schedule.get(next).map_or(last + tail, |(at, _)| *at).min(next_tick);
        generator.poll(until.saturating_sub(start.elapsed()), &|| start.elapsed())?;
    }
    let wall = start.elapsed();
    for connection in generator.connections.iter().flatten() {
        if let Some((route, at)) = connection.busy {
            generator.outcomes[route].unanswered.push(at);
        }
    }
    Ok(Report { routes: generator.outcomes, wall, cpu: thread_cpu().saturating_sub(cpu_before), sent_late: generator.sent_late })
}

struct Generator {
    addr: SocketAddr,
    epoll: OwnedFd,
    connections: Vec<Option<Connection>>,
    idle: Vec<usize>,
    in_flight: usize,
    outcomes: Vec<Outcome>,
    sent_late: Duration,
}

impl Generator {
    fn new(addr: SocketAddr, routes: usize) -> io::Result<Generator> {
        // SAFETY: a plain call.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave us this fd.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let outcomes = vec![Outcome::default(); routes];
        Ok(Generator { addr, epoll, connections: Vec::new(), idle: Vec::new(), in_flight: 0, outcomes, sent_late: Duration::ZERO })
    }

    fn open(&mut self) -> io::Result<usize> {
        let stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let at = self.connections.iter().position(Option::is_none).unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        watch(self.epoll.as_raw_fd(), stream.as_raw_fd(), at)?;
        self.connections[at] = Some(Connection { stream, busy: None, input: Vec::new(), body_left: None });
        Ok(at)
    }

    fn send(&mut self, route: usize, at: Duration, request: &[u8]) -> io::Result<()> {
        // A kept-alive connection may have been closed by the server meanwhile: the next one is tried, then a new one.
        while let Some(i) = self.idle.pop() {
            if let Some(connection) = &mut self.connections[i] {
                if matches!(connection.stream.write(request), Ok(n) if n == request.len()) {
                    connection.busy = Some((route, at));
                    self.in_flight += 1;
                    return Ok(());
                }
                self.connections[i] = None;
            }
        }
        let i = self.open()?;
        let connection = self.connections[i].as_mut().expect("opened above");
        connection.stream.write_all(request)?;
        connection.busy = Some((route, at));
        self.in_flight += 1;
        Ok(())
    }

    fn poll(&mut self, timeout: Duration, now: &dyn Fn() -> Duration) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 128];
        let spec = libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos().into() };
        // SAFETY: `events` has room for the count given, `spec` outlives the call, a null mask leaves signals alone.
        let n = unsafe {
            libc::epoll_pwait2(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as libc::c_int, &raw const spec, std::ptr::null())
        };
        if n < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        for event in &events[..n as usize] {
            self.read(event.u64 as usize, now);
        }
        Ok(())
    }

    fn read(&mut self, i: usize, now: &dyn Fn() -> Duration) {
        let Some(connection) = &mut self.connections[i] else { return };
        let mut chunk = [0u8; 65536];
        let open = loop {
            match connection.stream.read(&mut chunk) {
                Ok(0) => break false,
                Ok(n) => connection.take(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        if let (Some((0, good)), Some((route, at))) = (connection.body_left, connection.busy) {
            connection.body_left = None;
            connection.busy = None;
            connection.input.clear();
            self.in_flight -= 1;
            if good {
                self.outcomes[route].samples.push(Sample { at, latency: now().saturating_sub(at) });
            } else {
                self.outcomes[route].failed += 1;
            }
            if open {
                self.idle.push(i);
            }
        }
        if !open {
            if let Some((route, _)) = connection.busy {
                self.outcomes[route].failed += 1;
                self.in_flight -= 1;
            }
            self.connections[i] = None;
            self.idle.retain(|x| *x != i);
        }
    }
}

impl Connection {
    fn take(&mut self, bytes: &[u8]) {
        if let Some((left, _)) = &mut self.body_left {
            *left = left.saturating_sub(bytes.len());
            return;
        }
        self.input.extend_from_slice(bytes);
        if let Some((status, body, length)) = parse(&self.input) {
            self.body_left = Some(((body + length).saturating_sub(self.input.len()), status == "200"));
        }
    }
}

fn watch(epoll: RawFd, fd: RawFd, token: usize) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32 | libc::EPOLLRDHUP as u32, u64: token as u64 };
    // SAFETY: both fds are open, `event` outlives the call.
    if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// CPU time of this thread, user and system.
fn thread_cpu() -> Duration {
    // SAFETY: `rusage` is plain data, all-zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a valid out pointer.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    let part = |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
    part(usage.ru_utime) + part(usage.ru_stime)
}

/// One request on a connection of its own: the body.
///
/// # Errors
/// When the server cannot be reached or answers something else than 200.
pub fn get(addr: SocketAddr, path: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut all = Vec::new();
    let mut chunk = [0u8; 65536];
    loop {
        // A server may keep the connection open whatever it was asked: the length says where the body ends.
        if let Some((status, body, length)) = parse(&all)
            && all.len() >= body + length
        {
            let answer = all[body..body + length].to_vec();
            return if status == "200" {
                Ok(answer)
            } else {
                Err(io::Error::other(format!("{path}: {status} {}", String::from_utf8_lossy(&answer))))
            };
        }
        match stream.read(&mut chunk)? {
            0 => return Err(io::Error::other(format!("{path}: the answer ends early"))),
            n => all.extend_from_slice(&chunk[..n]),
        }
    }
}

/// Status, where the body begins, and its length; `None` while the head is not whole.
fn parse(bytes: &[u8]) -> Option<(String, usize, usize)> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    Some((head.split(' ').nth(1).unwrap_or_default().to_owned(), end + 4, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_keep_their_rate() {
        assert_eq!(steady(100.0, Duration::from_secs(2)).len(), 200);
        let p = poisson(100.0, Duration::from_secs(100), 1);
        assert!((9_500..10_500).contains(&p.len()), "{}", p.len());
        assert_eq!(p, poisson(100.0, Duration::from_secs(100), 1));
        assert!(p.is_sorted());
    }

    #[test]
    fn a_stalled_server_is_charged_from_the_intended_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr");
        // Accepts both connections, answers nobody before all have asked.
        std::thread::spawn(move || {
            let mut open: Vec<TcpStream> = (0..2).map(|_| listener.accept().expect("accept").0).collect();
            for stream in &mut open {
                stream.read_exact(&mut [0u8; 20]).expect("request");
            }
            for stream in &mut open {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").expect("answer");
            }
            std::thread::sleep(Duration::from_secs(3600));
        });
        let route = Route { path: "/health".into(), arrivals: vec![Duration::ZERO, Duration::from_millis(50)] };
        let report = run(addr, &[route], Duration::from_secs(20), &mut |_| {}).expect("run");
        let samples = &report.routes[0].samples;
        assert_eq!((samples.len(), report.routes[0].failed, report.routes[0].unanswered.len()), (2, 0, 0));
        let first = samples.iter().find(|s| s.at.is_zero()).expect("the first request");
        assert!(first.latency >= Duration::from_millis(50), "{:?}", first.latency);
    }
}
