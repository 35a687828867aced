//! Options of pools and of single tasks, with their defaults and limits.

use crate::error::{Error, Result};
use crate::pool::completion::CompletionQueue;
use crate::value::Value;
use std::time::Duration;

/// Most workers of one pool, and most overdue ones.
pub const MAX_WORKERS: usize = 1024;
/// Largest bound of a queue.
pub const MAX_QUEUE: usize = 1 << 24;
/// Longest duration of an option: 30 days, so that a unit mix-up is refused.
pub const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);

/// How a pool is made. `ThreadPool::builder()` fills it.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Most workers at once, 1 to [`MAX_WORKERS`]. Default: usable cores (affinity and cgroup quota).
    pub max_workers: Option<usize>,
    /// Workers that stay when idle. Default 0.
    pub min_workers: usize,
    /// How long a worker above `min_workers` stays idle. Default 30 s.
    pub idle_timeout: Duration,
    /// Most queued tasks, 1 to [`MAX_QUEUE`]. Default 65,536.
    pub max_queue: usize,
    /// Tasks that one worker begins before another takes its place, from 1; the other is asked for up to 10 % earlier. Default: no limit.
    /// Only workers of loops are replaced.
    pub max_tasks_per_worker: Option<u64>,
    /// How long a worker lives before another takes its place, up to 10 % less. What it runs then goes on, and it works until the other one is
    /// ready. Default: no limit. Only workers of loops are replaced.
    pub max_worker_age: Option<Duration>,
    /// Memory of one worker process (its proportional set size, bytes) beyond which another takes its place; looked at each second. What it runs
    /// then goes on. Default: no limit. Only worker processes are weighed.
    pub max_worker_memory: Option<u64>,
    /// Most replacement threads for tasks that ignore their deadline. Default: `max_workers`.
    pub max_overdue: Option<usize>,
    /// Niceness of the workers, −20 to 19. Below 0 needs privileges: without them no worker starts, and every task ends with
    /// `Os` (`EACCES`, `setpriority`). Default 0.
    pub nice: i32,
    /// Name in metrics and of threads. Default `pool`.
    pub name: String,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions {
            max_workers: None,
            min_workers: 0,
            idle_timeout: Duration::from_secs(30),
            max_queue: 65_536,
            max_tasks_per_worker: None,
            max_worker_age: None,
            max_worker_memory: None,
            max_overdue: None,
            nice: 0,
            name: "pool".to_owned(),
        }
    }
}

pub(crate) fn check_range(option: &'static str, value: usize, min: usize, max: usize) -> Result<()> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid("option is out of range").with("option", option).with("value", value).with("min", min).with("max", max))
}

pub(crate) fn check_duration(option: &'static str, value: Duration) -> Result<()> {
    if value <= MAX_DURATION {
        return Ok(());
    }
    Err(Error::invalid("option is out of range")
        .with("option", option)
        .with("value_ms", value.as_millis())
        .with("max_ms", MAX_DURATION.as_millis()))
}

impl PoolOptions {
    /// Checks every option.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        if let Some(n) = self.max_workers {
            check_range("max_workers", n, 1, MAX_WORKERS)?;
        }
        check_range("min_workers", self.min_workers, 0, self.max_workers.unwrap_or(MAX_WORKERS))?;
        check_range("max_queue", self.max_queue, 1, MAX_QUEUE)?;
        if self.max_tasks_per_worker == Some(0) {
            return Err(Error::invalid("option is out of range").with("option", "max_tasks_per_worker").with("value", 0).with("min", 1));
        }
        if self.max_worker_memory == Some(0) {
            return Err(Error::invalid("option is out of range").with("option", "max_worker_memory").with("value", 0).with("min", 1));
        }
        if let Some(age) = self.max_worker_age {
            check_duration("max_worker_age", age)?;
            if age.is_zero() {
                return Err(Error::invalid("option is out of range")
                    .with("option", "max_worker_age")
                    .with("value_ms", 0)
                    .with("min", "above 0"));
            }
        }
        check_range("max_overdue", self.max_overdue.unwrap_or(0), 0, MAX_WORKERS)?;
        check_duration("idle_timeout", self.idle_timeout)?;
        if !(-20..=19).contains(&self.nice) {
            return Err(Error::invalid("option is out of range")
                .with("option", "nice")
                .with("value", self.nice)
                .with("min", -20)
                .with("max", 19));
        }
        if self.name.len() > 64 || self.name.contains('\0') {
            return Err(Error::invalid("name is longer than its limit or contains NUL")
                .with("option", "name")
                .with("len", self.name.len())
                .with("max", 64));
        }
        Ok(())
    }
}

/// What happens to a submit when the queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// `Full` at once.
    #[default]
    Reject,
    /// Blocks this thread until there is room, at most so long (`None`: for ever), then `Full`. A batch that is longer than the
    /// queue is `Full` at once. `None` inside a function of the pool is `Invalid` when no other thread of it is left to make room.
    Wait(Option<Duration>),
    /// Takes the task beyond the bound: for an async host, whose caller awaits and holds the input anyway.
    Admit,
}

/// Where the outcome of a task goes.
#[derive(Default)]
pub enum Deliver {
    /// It stays with the [`Task`](crate::pool::Task) until it is waited for.
    #[default]
    Wait,
    /// To a queue, with a tag.
    Queue(CompletionQueue, u64),
    /// To a function, on a thread of offloop that is no pool's and holds no lock: it may wait, for tasks too.
    Callback(Box<dyn FnOnce(Result<Value>) + Send>),
}

impl std::fmt::Debug for Deliver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Deliver::Wait => f.write_str("Wait"),
            Deliver::Queue(_, tag) => write!(f, "Queue({tag})"),
            Deliver::Callback(_) => f.write_str("Callback"),
        }
    }
}

/// How one task is run.
#[derive(Debug, Default)]
pub struct SubmitOptions {
    /// −128 to 127, higher first. A waiting task gains one class per 100 ms. Default 0.
    pub priority: i8,
    /// Longest time from start to outcome.
    pub timeout: Option<Duration>,
    /// Longest wait from submit to start.
    pub queue_timeout: Option<Duration>,
    /// Tasks with one key go to one worker, in order.
    pub key: Option<String>,
    /// How often a task runs again after the loss of its worker, in front of its class or key; setting it says that a second run does no
    /// harm. Used up, the task ends as `WorkerLost` with `poison`. Each run has all of `timeout`; `queue_timeout` is over with the first
    /// start. Default 0. Only workers of loops can be lost.
    pub retries: u32,
    /// The place whose worker is to run it, below [`MAX_WORKERS`]; not with a key. Default: any. See
    /// [`ThreadPool::live_workers`](crate::pool::ThreadPool::live_workers). If that worker has gone, the next one in its place runs it.
    pub worker: Option<usize>,
    /// Keeps what [`Task::trace`](crate::pool::Task::trace) tells. Default: not.
    pub trace: bool,
    /// What to do when the queue is full.
    pub on_full: OnFull,
    /// Where the outcome goes.
    pub deliver: Deliver,
}

impl SubmitOptions {
    /// See `Core::alone`.
    pub(super) fn is_alone(&self) -> bool {
        self.timeout.is_some() || self.queue_timeout.is_some() || self.key.is_some() || self.worker.is_some()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(t) = self.timeout {
            check_duration("timeout", t)?;
        }
        if let Some(t) = self.queue_timeout {
            check_duration("queue_timeout", t)?;
        }
        if let Some(worker) = self.worker {
            check_range("worker", worker, 0, MAX_WORKERS - 1)?;
            if self.key.is_some() {
                return Err(Error::invalid("a task of one worker has no key").with("worker", worker));
            }
        }
        Ok(())
    }
}

/// The duration of a host's number, of which `per_second` make a second. Infinity is no limit.
///
/// # Errors
/// `Invalid` for what is no number, below 0 or longer than [`MAX_DURATION`], in the host's own unit.
pub fn duration(option: &'static str, value: f64, per_second: u32) -> Result<Option<Duration>> {
    if value == f64::INFINITY {
        return Ok(None);
    }
    match Duration::try_from_secs_f64(value / f64::from(per_second)) {
        Ok(duration) if duration <= MAX_DURATION => Ok(Some(duration)),
        _ => {
            // Not three hundred digits.
            let shown = if value.abs() < 1e15 || value.is_nan() { value.to_string() } else { format!("{value:e}") };
            Err(Error::invalid("option is out of range")
                .with("option", option)
                .with("value", shown)
                .with("min", 0)
                .with("max", MAX_DURATION.as_secs() * u64::from(per_second)))
        }
    }
}

/// The priority of a host's number.
///
/// # Errors
/// `Invalid` outside −128 to 127.
pub fn priority(value: i64) -> Result<i8> {
    i8::try_from(value).map_err(|_| {
        Error::invalid("option is out of range").with("option", "priority").with("value", value).with("min", -128).with("max", 127)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_hosts_are_whole_or_refused_with_their_value() {
        assert_eq!(duration("timeout", 1.5, 1).expect("seconds"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("timeout", 1.5, 1000).expect("milliseconds"), Some(Duration::from_micros(1500)));
        assert_eq!(duration("timeout", 0.0, 1).expect("at once"), Some(Duration::ZERO));
        assert_eq!(duration("timeout", 2_592_000.0, 1).expect("the limit"), Some(MAX_DURATION));
        assert_eq!(duration("timeout", f64::INFINITY, 1).expect("none"), None);
        for (value, text) in [
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-inf"),
            (-1.0, "-1"),
            (-1e-6, "-0.000001"),
            (2_592_000.5, "2592000.5"),
            (1e300, "1e300"),
        ] {
            let error = duration("timeout", value, 1).expect_err(text).to_string();
            assert_eq!(error, format!("invalid: option is out of range (option=timeout, value={text}, min=0, max=2592000)"));
        }
    }
}
