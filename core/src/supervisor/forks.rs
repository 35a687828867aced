//! The supervisor's side of its zygote: starts it, asks it for workers, hears of their ends.
//!
//! One zygote at a time is asked. When it dies, its workers go on, and the next start makes another one; the former is kept until all that
//! it was asked for is settled. A request that is not wanted any more stays until it is answered: then its worker is killed.

use super::driver::{Source, Tokens};
use super::event::{Event, WorkerId};
use super::zygote::RESERVED;
use super::{Launch, Zygote as Made, ZygoteLauncher};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::fork::PrivateFd;
use crate::sys::poll::Epoll;
use crate::sys::probe::{Call, has};
use crate::sys::process::{self, Child, Exit, Spec};
use crate::sys::socket::{self, Received, Sent};
use crate::sys::{clock, mem};
use crate::wire::zygote::{CODE, DUMPED, ENV, HEAD, MAX_FDS, MAX_TEXT, Message, NEW_GROUP, UNKNOWN, VERSION};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Datagrams of one zygote in one round of the thread.
const PER_ROUND: usize = 256;
/// How long a worker that nobody wants, and that was killed, is waited for.
const KILLED: Duration = Duration::from_millis(100);

/// Everything that one worker gets.
pub(super) struct Kit {
    pub(super) spec: Spec<'static>,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) fds: Vec<(PrivateFd, RawFd)>,
}

/// Starts a program with more variables and fds than its `spec` has.
fn exec(spec: Spec<'_>, extra: Vec<(OsString, OsString)>, fds: &[(BorrowedFd<'_>, RawFd)]) -> Result<Child> {
    let mut spec: Spec<'_> = spec;
    spec.fds.extend(fds);
    let mut env = spec.env.take().unwrap_or_else(process::own_env);
    // This process's own is not the worker's.
    env.retain(|(name, _)| name != ENV && extra.iter().all(|(other, _)| other != name));
    env.extend(extra);
    spec.env = Some(env);
    spec.death_signal = spec.death_signal.or(Some(libc::SIGKILL));
    process::spawn(&spec)
}

impl Kit {
    pub(super) fn exec(self) -> Result<Child> {
        let fds: Vec<_> = self.fds.iter().map(|(fd, number)| (fd.as_fd(), *number)).collect();
        exec(self.spec, self.env, &fds)
    }
}

/// What the driver has to know.
pub(super) enum News {
    /// The worker is there, by the zygote of that number.
    Started(WorkerId, Child, u64),
    Failed(WorkerId, Error),
    /// It is to be started without a zygote.
    Exec(WorkerId, Kit),
    Exited(WorkerId, Exit),
    /// Nothing more will be heard of the workers of this zygote.
    Gone(u64),
    Event(Event),
}

struct Request {
    id: WorkerId,
    token: u64,
    kit: Kit,
}

/// One process that forks workers.
struct Zygote {
    child: Child,
    socket: PrivateFd,
    sources: [u64; 2],
    since: u64,
    ready: bool,
    /// Its own last words.
    text: Option<String>,
    exit: Option<Exit>,
    hung_up: bool,
    /// Until it is ready.
    waiting: VecDeque<Request>,
    /// Tokens without an answer.
    sent: HashSet<u64>,
}

/// The zygotes of one supervisor.
pub(super) struct Forks {
    launch: ZygoteLauncher,
    machine: u64,
    all: BTreeMap<u64, Zygote>,
    /// Who is asked.
    current: Option<u64>,
    last: u64,
    last_token: u64,
    /// Whom the tokens of live workers belong to, and the zygote that was asked.
    asked: HashMap<u64, (WorkerId, u64)>,
    /// No worker can be forked.
    refused: bool,
    ending: bool,
    pub(super) news: VecDeque<News>,
    /// Workers that were forked, and zygotes that were started.
    pub(super) forked: u64,
    pub(super) started: u64,
}

fn exit_of(how: u32, value: i32) -> Exit {
    Exit { code: (how == CODE).then_some(value), signal: (how != CODE && how != UNKNOWN).then_some(value), core_dumped: how == DUMPED }
}

impl Forks {
    pub(super) fn new(launch: ZygoteLauncher) -> Forks {
        Forks {
            launch,
            machine: 0,
            all: BTreeMap::new(),
            current: None,
            last: 0,
            last_token: 0,
            asked: HashMap::new(),
            refused: false,
            ending: false,
            news: VecDeque::new(),
            forked: 0,
            started: 0,
        }
    }

    /// Starts the first zygote, so that it is ready when a worker is wanted. If it cannot be started, the first worker says why.
    pub(super) fn begin(&mut self, machine: u64, epoll: &Epoll, tokens: &mut Tokens) {
        self.machine = machine;
        // Without these a worker that is no child of this process could be signalled under a number that is another's by then.
        let pidfds = [Call::PidfdOpen, Call::PidfdSendSignal, Call::WaitPidfd].into_iter().all(has);
        if pidfds {
            let _ = self.start(epoll, tokens);
        } else {
            self.refuse("this system has no pidfds, or a policy denies them".to_owned());
        }
    }

    fn refuse(&mut self, text: String) {
        self.refused = true;
        self.news.push_back(News::Event(Event::ZygoteRefused { text }));
    }

    fn start(&mut self, epoll: &Epoll, tokens: &mut Tokens) -> Result<u64> {
        let Made { launch, setup } = catch_unwind(AssertUnwindSafe(|| (self.launch)()))
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "the function that launches the zygote panicked")))?;
        let Launch { spec, env: mut extra, fds: own } = launch;
        let mut theirs = None;
        let socket = PrivateFd::open(|| {
            let (own, other) = socket::pair()?;
            theirs = Some(other);
            Ok(own)
        })?;
        let theirs = theirs.expect("the pair was made");
        let (memory, map) = mem::create_sealed(c"offloop-zygote", setup.len())?;
        // SAFETY: the mapping is as long as the setup, and nobody else has it yet.
        unsafe { map.as_mut_ptr().copy_from_nonoverlapping(setup.as_ptr(), setup.len()) };
        let null =
            std::fs::File::open("/dev/null").map_err(|e| Error::os("open", e.raw_os_error().unwrap_or(0)).with("path", "/dev/null"))?;
        let mut fds: Vec<(BorrowedFd<'_>, RawFd)> = own.iter().map(|(fd, number)| (fd.as_fd(), *number)).collect();
        let kept = (3..RESERVED).filter(|n| !own.iter().any(|(_, number)| number == n));
        fds.extend(kept.map(|number| (null.as_fd(), number)));
        fds.extend([(theirs.as_fd(), RESERVED), (memory.as_fd(), RESERVED + 1)]);
        extra.push((ENV.into(), format!("{},{},{}", RESERVED, RESERVED + 1, setup.len()).into()));
        let child = exec(spec, extra, &fds)?;
        self.last += 1;
        let serial = self.last;
        let sources = [tokens.add(Source::ZygoteExit(self.machine, serial)), tokens.add(Source::ZygoteSocket(self.machine, serial))];
        let added = epoll.add_tagged(child.exit_fd(), sources[0]).and_then(|()| epoll.add_tagged(socket.as_fd(), sources[1]));
        if let Err(error) = added {
            // Nobody would hear of it.
            let _ = child.kill(libc::SIGKILL);
            let _ = child.wait(None);
            epoll.remove(child.exit_fd());
            sources.iter().for_each(|source| tokens.remove(*source));
            return Err(error);
        }
        self.started += 1;
        self.news.push_back(News::Event(Event::ZygoteStarted { pid: child.pid() }));
        let zygote = Zygote {
            child,
            socket,
            sources,
            since: clock::monotonic_ns(),
            ready: false,
            text: None,
            exit: None,
            hung_up: false,
            waiting: VecDeque::new(),
            sent: HashSet::new(),
        };
        self.all.insert(serial, zygote);
        self.current = Some(serial);
        Ok(serial)
    }

    /// Asks for a worker: `Some` if it is to be started by exec. The answer is news.
    pub(super) fn fork(&mut self, id: WorkerId, kit: Kit, epoll: &Epoll, tokens: &mut Tokens) -> Result<Option<Kit>> {
        let fits = kit.fds.len() <= MAX_FDS && kit.fds.iter().all(|(_, number)| (0..RESERVED).contains(number));
        if self.refused || !fits {
            return Ok(Some(kit));
        }
        let serial = match self.current {
            Some(serial) => serial,
            None => self.start(epoll, tokens)?,
        };
        let Some(zygote) = self.all.get_mut(&serial) else { return Ok(Some(kit)) };
        self.last_token += 1;
        let token = self.last_token;
        self.asked.insert(token, (id, serial));
        zygote.waiting.push_back(Request { id, token, kit });
        if zygote.ready {
            self.flush(serial);
        }
        Ok(None)
    }

    /// Sends what waits.
    fn flush(&mut self, serial: u64) {
        let Some(zygote) = self.all.get_mut(&serial) else { return };
        while let Some(Request { id, token, kit }) = zygote.waiting.front() {
            let message = Message::Fork {
                token: *token,
                flags: if kit.spec.new_group { NEW_GROUP } else { 0 },
                numbers: kit.fds.iter().map(|(_, number)| *number).collect(),
                env: kit.env.clone(),
            };
            let fds: Vec<_> = kit.fds.iter().map(|(fd, _)| fd.as_fd()).collect();
            match message.encode().and_then(|bytes| socket::send(zygote.socket.as_fd(), &bytes, &fds)) {
                Ok(Sent::Whole) => {
                    zygote.sent.insert(*token);
                }
                // It goes on when an answer has made room; of its end there is an event.
                Ok(Sent::Full | Sent::Gone) => return,
                Err(error) => {
                    self.asked.remove(token);
                    self.news.push_back(News::Failed(*id, error));
                }
            }
            zygote.waiting.pop_front();
        }
    }

    /// A worker that has not started is not wanted any more. `late`: it should have been ready by now; `boot` is what it had for that.
    pub(super) fn cancel(&mut self, id: WorkerId, late: bool, boot: Duration) -> Error {
        let request = self.asked.iter().find(|(_, (asked, _))| *asked == id).map(|(token, (_, serial))| (*token, *serial));
        let unwanted = Error::new(ErrorKind::Cancelled, "worker is not wanted any more");
        let Some((token, serial)) = request else { return unwanted };
        self.asked.remove(&token);
        let Some(zygote) = self.all.get_mut(&serial) else { return unwanted };
        zygote.waiting.retain(|request| request.token != token);
        if !late {
            return unwanted;
        }
        // It hangs in what it loads, or was stopped.
        let _ = zygote.child.kill(libc::SIGKILL);
        self.current = self.current.filter(|current| *current != serial);
        Error::new(ErrorKind::StartFailed, "the process that workers are forked from did not answer in time")
            .with("boot_timeout_ms", boot.as_millis())
    }

    /// Forgets a worker.
    pub(super) fn forget(&mut self, id: WorkerId) {
        self.asked.retain(|_, (asked, _)| *asked != id);
    }

    /// Its workers' ends will be told.
    pub(super) fn is_alive(&self, serial: u64) -> bool {
        self.all.get(&serial).is_some_and(|zygote| zygote.exit.is_none() && !zygote.hung_up)
    }

    /// Reads what zygotes have said.
    pub(super) fn listen(&mut self, epoll: &Epoll, tokens: &mut Tokens) {
        let serials: Vec<u64> = self.all.keys().copied().collect();
        serials.into_iter().for_each(|serial| self.said(serial, epoll, tokens));
    }

    /// A zygote's socket has something to read.
    pub(super) fn said(&mut self, serial: u64, epoll: &Epoll, tokens: &mut Tokens) {
        let mut bytes = vec![0; HEAD + MAX_TEXT];
        for _ in 0..PER_ROUND {
            let Some(zygote) = self.all.get_mut(&serial).filter(|zygote| !zygote.hung_up) else { return };
            bytes[..HEAD].fill(0);
            let (message, fds) = match socket::peek(zygote.socket.as_fd(), &mut bytes) {
                Ok(Received::Nothing) => break,
                Ok(Received::End) => {
                    zygote.hung_up = true;
                    epoll.remove(zygote.socket.as_fd());
                    // One that lives on could not be asked.
                    let _ = zygote.child.kill(libc::SIGKILL);
                    self.current = self.current.filter(|current| *current != serial);
                    break;
                }
                Ok(Received::Datagram(len, fds)) => (Message::decode(bytes.get(..len).unwrap_or(&bytes)), fds),
                // No room for the worker's pidfd. Its lifeline ends it when it is forgotten.
                Err(error) => (Err(error), Vec::new()),
            };
            socket::skip(zygote.socket.as_fd());
            match message {
                Ok(message) => self.hear(serial, message, fds),
                Err(error) if error.kind() == ErrorKind::Os => {
                    let token = u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
                    self.answered(serial, token);
                    if let Some((id, _)) = self.asked.remove(&token) {
                        self.news.push_back(News::Failed(id, error));
                    }
                }
                Err(error) => {
                    zygote.text = Some(error.to_string());
                    let _ = zygote.child.kill(libc::SIGKILL);
                }
            }
        }
        self.flush(serial);
        self.settle(serial, epoll, tokens);
    }

    fn answered(&mut self, serial: u64, token: u64) {
        if let Some(zygote) = self.all.get_mut(&serial) {
            zygote.sent.remove(&token);
        }
    }

    fn hear(&mut self, serial: u64, message: Message, mut fds: Vec<OwnedFd>) {
        let Some(zygote) = self.all.get_mut(&serial) else { return };
        match message {
            Message::Ready { version: VERSION } => {
                zygote.ready = true;
                let after = Duration::from_nanos(clock::monotonic_ns().saturating_sub(zygote.since));
                self.news.push_back(News::Event(Event::ZygoteReady { pid: zygote.child.pid(), after }));
            }
            Message::Ready { version } => {
                let error = Error::new(ErrorKind::Version, "zygote has another version of offloop").with("version", version);
                zygote.text = Some(error.with("want", VERSION).to_string());
                let _ = zygote.child.kill(libc::SIGKILL);
            }
            Message::Refused(text) => {
                let waiting = std::mem::take(&mut zygote.waiting);
                self.current = None;
                self.refuse(text);
                for Request { id, token, kit } in waiting {
                    self.asked.remove(&token);
                    self.news.push_back(News::Exec(id, kit));
                }
            }
            Message::Failed(text) => zygote.text = Some(text),
            Message::Started { token, pid } => {
                self.answered(serial, token);
                let Some(pidfd) = fds.pop() else { return };
                let child = Child::adopt(pid, pidfd);
                match self.asked.get(&token) {
                    Some((id, _)) => {
                        self.forked += 1;
                        self.news.push_back(News::Started(*id, child, serial));
                    }
                    None => {
                        let _ = child.kill(libc::SIGKILL);
                        let _ = child.wait(Some(KILLED));
                    }
                }
            }
            Message::NoFork { token, errno } => {
                self.answered(serial, token);
                if let Some((id, _)) = self.asked.remove(&token) {
                    self.news.push_back(News::Failed(id, Error::os("fork", errno)));
                }
            }
            Message::Exited { token, how, value } => {
                // Of a worker that was killed before it could say that it is there, this is the answer.
                let unanswered = zygote.sent.remove(&token);
                match self.asked.remove(&token) {
                    Some((id, _)) if unanswered => {
                        let error = Error::new(ErrorKind::StartFailed, "worker ended before it began");
                        self.news.push_back(News::Failed(id, with_exit(error, exit_of(how, value))));
                    }
                    Some((id, _)) => self.news.push_back(News::Exited(id, exit_of(how, value))),
                    None => {}
                }
            }
            Message::Fork { .. } => {
                let _ = zygote.child.kill(libc::SIGKILL);
            }
        }
    }

    /// A zygote has ended.
    pub(super) fn ended(&mut self, serial: u64, epoll: &Epoll, tokens: &mut Tokens) {
        let Some(zygote) = self.all.get_mut(&serial) else { return };
        let exit = match zygote.child.try_wait() {
            Ok(None) => return,
            Ok(Some(exit)) => exit,
            Err(_) => Exit { code: None, signal: None, core_dumped: false },
        };
        zygote.exit = Some(exit);
        epoll.remove(zygote.child.exit_fd());
        self.current = self.current.filter(|current| *current != serial);
        self.said(serial, epoll, tokens);
        self.settle(serial, epoll, tokens);
    }

    /// Lets go of a zygote that has ended, when nothing more can be heard: a worker that it has forked holds the socket until it has said so.
    fn settle(&mut self, serial: u64, epoll: &Epoll, tokens: &mut Tokens) {
        let over = |zygote: &Zygote| zygote.exit.is_some() && (zygote.hung_up || zygote.sent.is_empty());
        if !self.all.get(&serial).is_some_and(over) {
            return;
        }
        let Some(zygote) = self.all.remove(&serial) else { return };
        epoll.remove(zygote.socket.as_fd());
        zygote.sources.iter().for_each(|source| tokens.remove(*source));
        let exit = zygote.exit.unwrap_or(Exit { code: None, signal: None, core_dumped: false });
        let lost = zygote.waiting.iter().map(|request| request.token).chain(zygote.sent);
        for (id, _) in lost.filter_map(|token| self.asked.remove(&token)) {
            let error = match &zygote.text {
                Some(text) => Error::new(ErrorKind::StartFailed, text.clone()),
                None => Error::new(ErrorKind::StartFailed, "the process that workers are forked from ended before it was ready"),
            };
            self.news.push_back(News::Failed(id, with_exit(error, exit)));
        }
        self.news.push_back(News::Gone(serial));
        self.news.push_back(News::Event(Event::ZygoteEnded { pid: zygote.child.pid(), exit, text: zygote.text }));
    }

    /// Ends all, whose workers have ended; true when none is left.
    pub(super) fn end(&mut self) -> bool {
        self.current = None;
        if !self.ending {
            self.ending = true;
            for zygote in self.all.values() {
                let _ = zygote.child.kill(libc::SIGKILL);
            }
        }
        self.all.is_empty()
    }
}

fn with_exit(error: Error, exit: Exit) -> Error {
    match (exit.code, exit.signal) {
        (Some(code), _) => error.with("exit_code", code),
        (_, Some(signal)) => error.with("signal", signal),
        _ => error.with("exit", "unknown"),
    }
}
