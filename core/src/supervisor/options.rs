//! Options of a supervisor: one table with defaults and limits.

use crate::error::{Error, Result};
use std::time::Duration;

/// Most slots of one supervisor.
pub const MAX_WORKERS: usize = 1024;
/// Longest duration of an option: 30 days, so that a unit mix-up is refused.
pub const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Least `max_age`.
const MIN_AGE: Duration = Duration::from_secs(1);
/// Least `max_memory`: no process has less.
const MIN_MEMORY: u64 = 1 << 20;

/// Which workers leave first when their number goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleDown {
    /// Those that were started last.
    #[default]
    Youngest,
    /// Those that were started first.
    Oldest,
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

macro_rules! durations {
    ($($(#[$doc:meta])* $name:ident = $default:expr, $min:expr;)*) => {
        /// How workers are kept alive. `Supervisor::builder()` fills it; docs/supervision.md has the table.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Options {
            $($(#[$doc])* pub $name: Duration,)*
            /// Workers from the start on, 0 to [`MAX_WORKERS`]. Default 1.
            pub workers: usize,
            /// Workers that are started beside those, loaded, and wait: as soon as a worker has ended, one takes its place, and another is started. With the workers no more than [`MAX_WORKERS`].
            /// Not with `once`. Default 0.
            pub spares: usize,
            /// Most workers that start at once, 1 to [`MAX_WORKERS`]. Default: usable cores (affinity and cgroup quota).
            pub max_starting: Option<usize>,
            /// Unstable exits within `window` after which the supervisor is degraded, 1 to 10,000. Default: 5 or twice the workers, whichever is more.
            pub max_failures: Option<usize>,
            /// Sent to a suspect, whose runtime writes its stacks: 1 to 64. Default: none.
            pub dump_signal: Option<i32>,
            /// A worker that lives for so long without having attached is taken as ready, is not judged by beats, and is asked to finish by `SIGTERM`: for
            /// programs that know nothing of a supervisor. One that attaches later is judged by what it says from there on. 1 ms to `boot_timeout`. Default:
            /// none is.
            pub ready_after: Option<Duration>,
            /// Which workers leave first. Default: the youngest.
            pub scale_down: ScaleDown,
            /// A worker that has ended, or could not be started, is not wanted any more: none takes its place, and its end counts for neither back-off nor degradation. Default: false.
            pub once: bool,
            /// A worker that was ready for so long, ±10 %, is replaced: at least 1 s. Default: none is.
            pub max_age: Option<Duration>,
            /// A worker that has more memory (bytes, PSS) at three looks in a row, one a second, is replaced: at least 1 MiB. Default: none is.
            pub max_memory: Option<u64>,
            /// A worker that has served so many requests ([`Worker::served`](super::Worker::served)), ±10 %, is replaced: at least 1. Default: none is.
            pub max_requests: Option<u64>,
        }

        impl Default for Options {
            fn default() -> Options {
                Options {
                    $($name: $default,)*
                    workers: 1,
                    spares: 0,
                    max_starting: None,
                    max_failures: None,
                    dump_signal: None,
                    ready_after: None,
                    scale_down: ScaleDown::Youngest,
                    once: false,
                    max_age: None,
                    max_memory: None,
                    max_requests: None,
                }
            }
        }

        impl Options {
            fn durations(&self) -> [(&'static str, Duration, Duration); [$(stringify!($name)),*].len()] {
                [$((stringify!($name), self.$name, $min)),*]
            }
        }

        impl super::Builder {
            $($(#[$doc])* pub fn $name(mut self, $name: Duration) -> Self {
                self.options.$name = $name;
                self
            })*
        }
    };
}

durations! {
    /// From the start of a worker until it is ready. Default 30 s.
    boot_timeout = ms(30_000), ms(1);
    /// How often a worker shows that it lives, and how often that is looked at. Default 1 s, at least 10 ms.
    beat = ms(1000), ms(10);
    /// A ready worker whose loop shows nothing for so long is suspect; 0: never. Default 10 s, at least four times `beat`.
    hang_timeout = ms(10_000), ms(0);
    /// From the suspicion, and the dump of its stacks, to `SIGABRT`. Default 2 s.
    abort_grace = ms(2000), ms(0);
    /// What a worker that leaves (scale, retire) has to finish its work. Default 30 s.
    drain_timeout = ms(30_000), ms(0);
    /// From `SIGTERM` or `SIGABRT` to `SIGKILL`; 0: `SIGKILL` in place of `SIGTERM`. Default 2 s.
    kill_grace = ms(2000), ms(0);
    /// What a worker whose supervisor died has to finish its work. Default 5 s.
    orphan_grace = ms(5000), ms(0);
    /// A worker that replaces another has to be ready for so long before that one is asked to finish. Default 0.
    min_ready = ms(0), ms(0);
    /// A worker that ends before it was ready for so long is unstable. Default 5 s.
    min_uptime = ms(5000), ms(0);
    /// A worker that was ready for so long starts without delay again. Default 30 s.
    stable_uptime = ms(30_000), ms(0);
    /// Delay before the second restart of a slot; the first has none, each further one twice as much, ±20 %. Default 100 ms.
    back_off = ms(100), ms(1);
    /// Longest delay before its jitter. Default 30 s, at least `back_off`.
    max_back_off = ms(30_000), ms(1);
    /// In which `max_failures` are counted. Default 60 s.
    window = ms(60_000), ms(1);
    /// How often a degraded supervisor tries one worker. Default 30 s.
    probe_interval = ms(30_000), ms(1);
}

fn out_of_range(option: &'static str, value: impl std::fmt::Display, min: impl std::fmt::Display, max: impl std::fmt::Display) -> Error {
    Error::invalid("option is out of range").with("option", option).with("value", value).with("min", min).with("max", max)
}

pub(super) fn check_workers(value: usize) -> Result<()> {
    if value > MAX_WORKERS { Err(out_of_range("workers", value, 0, MAX_WORKERS)) } else { Ok(()) }
}

pub(super) fn check_duration(option: &'static str, value: Duration, min: Duration) -> Result<()> {
    if (min..=MAX_DURATION).contains(&value) {
        return Ok(());
    }
    Err(Error::invalid("option is out of range")
        .with("option", option)
        .with("value_ms", value.as_secs_f64() * 1000.0)
        .with("min_ms", min.as_secs_f64() * 1000.0)
        .with("max_ms", MAX_DURATION.as_millis()))
}

impl Options {
    /// # Errors
    /// `Invalid` where the spares are too many beside so many workers, or would never be used.
    pub(super) fn check_spares(&self, workers: usize) -> Result<()> {
        if self.once && self.spares > 0 {
            return Err(Error::invalid("no spare takes the place of a worker that is started once").with("option", "spares"));
        }
        let max = MAX_WORKERS.saturating_sub(workers);
        if self.spares > max { Err(out_of_range("spares", self.spares, 0, max)) } else { Ok(()) }
    }

    /// Checks every option.
    ///
    /// # Errors
    /// `Invalid`, naming the option, its value and the limits.
    pub fn check(&self) -> Result<()> {
        for (name, value, min) in self.durations() {
            check_duration(name, value, min)?;
        }
        check_workers(self.workers)?;
        self.check_spares(self.workers)?;
        if !self.hang_timeout.is_zero() {
            check_duration("hang_timeout", self.hang_timeout, self.beat * 4)?;
        }
        if let Some(after) = self.ready_after {
            check_duration("ready_after", after, ms(1))?;
            check_duration("boot_timeout", self.boot_timeout, after)?;
        }
        check_duration("max_back_off", self.max_back_off, self.back_off)?;
        if let Some(age) = self.max_age {
            check_duration("max_age", age, MIN_AGE)?;
        }
        match self {
            Options { max_starting: Some(n), .. } if !(1..=MAX_WORKERS).contains(n) => Err(out_of_range("max_starting", n, 1, MAX_WORKERS)),
            Options { max_failures: Some(n), .. } if !(1..=10_000).contains(n) => Err(out_of_range("max_failures", n, 1, 10_000)),
            Options { dump_signal: Some(n), .. } if !(1..=64).contains(n) => Err(out_of_range("dump_signal", n, 1, 64)),
            Options { max_memory: Some(n), .. } if *n < MIN_MEMORY => Err(out_of_range("max_memory", n, MIN_MEMORY, u64::MAX)),
            Options { max_requests: Some(0), .. } => Err(out_of_range("max_requests", 0, 1, u64::MAX)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_range_is_named_with_its_limits() {
        Options::default().check().expect("the defaults");
        let text = |change: &dyn Fn(&mut Options)| {
            let mut options = Options::default();
            change(&mut options);
            options.check().expect_err("refused").to_string()
        };
        let range = "invalid: option is out of range";
        assert_eq!(text(&|o| o.workers = 1025), format!("{range} (option=workers, value=1025, min=0, max=1024)"));
        assert_eq!(text(&|o| o.beat = ms(9)), format!("{range} (option=beat, value_ms=9, min_ms=10, max_ms=2592000000)"));
        assert_eq!(
            text(&|o| o.hang_timeout = ms(3999)),
            format!("{range} (option=hang_timeout, value_ms=3999, min_ms=4000, max_ms=2592000000)")
        );
        assert_eq!(
            text(&|o| o.max_back_off = ms(99)),
            format!("{range} (option=max_back_off, value_ms=99, min_ms=100, max_ms=2592000000)")
        );
        assert!(text(&|o| o.boot_timeout = Duration::MAX).contains("option=boot_timeout"));
        assert!(text(&|o| (o.workers, o.spares) = (1000, 25)).contains("option=spares, value=25, min=0, max=24"));
        assert!(text(&|o| (o.once, o.spares) = (true, 1)).contains("option=spares"));
        assert!(text(&|o| o.max_starting = Some(0)).contains("option=max_starting, value=0, min=1"));
        assert!(text(&|o| o.max_failures = Some(0)).contains("option=max_failures, value=0, min=1"));
        assert!(text(&|o| o.dump_signal = Some(65)).contains("option=dump_signal, value=65, min=1, max=64"));
        assert!(text(&|o| o.max_age = Some(ms(999))).contains("option=max_age, value_ms=999, min_ms=1000"));
        assert!(text(&|o| o.max_memory = Some(1 << 19)).contains("option=max_memory, value=524288, min=1048576"));
        assert!(text(&|o| o.max_requests = Some(0)).contains("option=max_requests, value=0, min=1"));
        assert!(text(&|o| o.ready_after = Some(Duration::ZERO)).contains("option=ready_after, value_ms=0, min_ms=1"));
        assert!(text(&|o| o.ready_after = Some(ms(30_001))).contains("option=boot_timeout, value_ms=30000, min_ms=30001"));
        let off = Options { hang_timeout: Duration::ZERO, ..Options::default() };
        off.check().expect("0 is off");
    }
}
