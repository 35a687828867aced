//! Layout of a lane: the memory between a process pool and one worker process.
//!
//! Four memfds and three eventfds, which the worker inherits by the numbers that the variable [`ENV`] names:
//! `<requests>,<replies>,<payloads>,<shared>,<worker's bell>,<pool's bell>,<waiter's bell>`. All integers are little-endian.
//!
//! ```text
//!  requests     0 fixed part │ 128 tail │ 192 order │ request places │ freed │ taken │ request cells │ setup   the pool writes
//!  replies    128 head │ 192 worker sleeps │ 256 pool sleeps │ 320 words │ run times │ reply places │
//!             returned │ frames │ frame places │ reply cells │ results                                     both write
//!  payloads     long requests of all workers of the pool                                                   the pool writes
//!  shared       memory that requests refer to                                                              everybody writes
//! ```
//!
//! * `requests` is sealed against writing (`F_SEAL_FUTURE_WRITE`) after the pool has mapped it: a worker reads it only.
//! * A worker maps `payloads` privately: a page that it writes is its own copy, which it gives up before it returns the ticket.
//! * A worker maps `shared` when a request first refers to it, by a form of its language.
//! * The fixed part is written before the worker exists: [`Header`]. `check` is FNV-1a over bytes 8…119, `layout` is [`LAYOUT`].
//! * A task has an index below `tasks`, a *place* and a *cell* for its request and for its reply, and a word that says where it stands
//!   (the states of [`crate::pool::word`]).
//! * A place is `at` (u64), `len` (u64), `ticket` (u32), 0 (u32). Requests up to [`CELL`] lie in the task's cell, replies up to [`SHORT`]
//!   behind its first 16 bytes, and `ticket` is 0. Longer ones lie at `at` of `payloads` (requests) or of `results` (replies) under a ticket, 1 to [`TICKETS`]: who has read them adds 1 to
//!   the ticket's word (u32) in `returned` (requests) or `freed` (replies). When that equals the number of uses, wrapping, the ticket is
//!   free again.
//! * `order` is a ring of as many indices (u32) as the next power of two from `tasks` on. The pool writes a request, then its word, then an
//!   index, then stores `tail` with Release; the worker loads it with Acquire, and stores the count that it has read to `head` with
//!   Release. An index is given again only when `head` has passed it.
//! * A reply and its run time (u64, ns) come before the word's DONE or FAILED, which is stored with Release and loaded with Acquire.
//! * Progress of a running task lies in its reply cell: `sequence` (u64, odd while something is written), `len` (u64), up to [`SHORT`] bytes.
//!   The task begins with 0, and its reply leaves it odd.
//! * Frames of a running task follow each other: its worker writes one to `results`, its place to `frame places`, and then adds 1 to the task's
//!   word (u32, wrapping at [`STOP`]) in `frames`. The next may follow when the task's word in `taken` equals it. [`STOP`] in that word: nobody
//!   takes any, from the beginning where the call is no stream. The last frame may be followed by the reply at once.
//! * `worker sleeps` and `pool sleeps` are not 0 from before the last look of a sleeper until somebody rings its bell (`SeqCst` fences
//!   between store and look on both sides). `pool sleeps` says which: [`POOL_BELL`], or [`WAITER_BELL`] while somebody waits for a task.

use super::fnv::{check_sum, layout_of};
use crate::error::{Error, ErrorKind, Result};

/// `OFLLANE` and the major version's digit, as bytes.
pub const MAGIC: u64 = u64::from_le_bytes(*b"OFLLANE1");
/// Another major version is refused.
pub const MAJOR: u16 = 1;
/// Grows when bytes that were 0 get a meaning that may be ignored.
pub const MINOR: u16 = 0;
/// Bytes of the fixed part.
pub const FIXED_LEN: usize = 128;
/// Bytes of a cell.
pub const CELL: usize = 2048;
/// Long requests, and long replies, that may be out at once.
pub const TICKETS: usize = 256;
/// Bytes of a place.
pub const PLACE: usize = 24;
/// Most tasks of a lane.
pub const MAX_TASKS: usize = 8192;
/// Longest setup.
pub const MAX_SETUP: usize = 256 << 20;
/// The variable of the worker's environment that names the fds.
pub const ENV: &str = "OFFLOOP_LANE";
/// Longest reply, or progress, that lies in a cell.
pub const SHORT: usize = CELL - 16;

/// `pool sleeps`: the pool's thread.
pub const POOL_BELL: u32 = 1;
/// `pool sleeps`: a thread that waits for one task, and looks after the others meanwhile.
pub const WAITER_BELL: u32 = 2;

/// In a word of `taken`: no more frames are taken. Counts are below it.
pub const STOP: u32 = 1 << 31;

/// Fds of a lane.
pub const FDS: usize = 7;

/// Offsets in `requests`.
pub mod request {
    /// u64.
    pub const TAIL: usize = 128;
    /// u32 each.
    pub const ORDER: usize = 192;
}

/// Offsets in `replies`.
pub mod reply {
    /// u64.
    pub const HEAD: usize = 128;
    /// u32.
    pub const WORKER_SLEEPS: usize = 192;
    /// u32.
    pub const POOL_SLEEPS: usize = 256;
    /// u32 each.
    pub const WORDS: usize = 320;
}

/// Counts the changes of [`Map`].
const MAP: usize = 3;

/// Changes with any offset that does not follow from the header.
pub const LAYOUT: u64 = layout_of(&[
    MAP,
    FIXED_LEN,
    CELL,
    TICKETS,
    PLACE,
    request::TAIL,
    request::ORDER,
    reply::HEAD,
    reply::WORKER_SLEEPS,
    reply::POOL_SLEEPS,
    reply::WORDS,
]);

/// The fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Minor layout version of the pool.
    pub minor: u16,
    /// Tasks that the lane holds at once, 1 to [`MAX_TASKS`].
    pub tasks: u32,
    /// Tasks that the worker may run at once.
    pub concurrency: u32,
    /// Bytes of the setup.
    pub setup: u64,
    /// Bytes of `payloads`.
    pub payloads: u64,
    /// Bytes of `results`.
    pub results: u64,
    /// Bytes of `shared`.
    pub shared: u64,
}

/// Where everything lies, from a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the picture above has the names")]
pub struct Map {
    pub tasks: usize,
    pub order_len: usize,
    pub request_places: usize,
    pub freed: usize,
    pub taken: usize,
    pub request_cells: usize,
    pub setup: usize,
    /// Bytes of `requests`.
    pub requests: usize,
    pub run: usize,
    pub reply_places: usize,
    pub returned: usize,
    pub frames: usize,
    pub frame_places: usize,
    pub reply_cells: usize,
    pub results: usize,
    /// Bytes of `replies`.
    pub replies: usize,
}

const fn line(at: usize) -> usize {
    at.next_multiple_of(64)
}

impl Header {
    /// Where everything lies.
    #[must_use]
    pub const fn map(&self) -> Map {
        let tasks = self.tasks as usize;
        let order_len = tasks.next_power_of_two();
        let request_places = line(request::ORDER + 4 * order_len);
        let freed = line(request_places + PLACE * tasks);
        let taken = line(freed + 4 * (TICKETS + 1));
        let request_cells = line(taken + 4 * tasks);
        let setup = request_cells + CELL * tasks;
        let run = line(reply::WORDS + 4 * tasks);
        let reply_places = line(run + 8 * tasks);
        let returned = line(reply_places + PLACE * tasks);
        let frames = line(returned + 4 * (TICKETS + 1));
        let frame_places = line(frames + 4 * tasks);
        let reply_cells = line(frame_places + PLACE * tasks);
        let results = (reply_cells + CELL * tasks).next_multiple_of(4096);
        Map {
            tasks,
            order_len,
            request_places,
            freed,
            taken,
            request_cells,
            setup,
            requests: setup + self.setup as usize,
            run,
            reply_places,
            returned,
            frames,
            frame_places,
            reply_cells,
            results,
            replies: results + self.results as usize,
        }
    }

    /// The fixed part's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut out = [0; FIXED_LEN];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_le_bytes());
        put(8, &MAJOR.to_le_bytes());
        put(10, &self.minor.to_le_bytes());
        put(12, &self.tasks.to_le_bytes());
        put(16, &LAYOUT.to_le_bytes());
        put(24, &self.concurrency.to_le_bytes());
        put(32, &self.setup.to_le_bytes());
        put(40, &self.payloads.to_le_bytes());
        put(48, &self.results.to_le_bytes());
        put(56, &self.shared.to_le_bytes());
        let check = check_sum(&out[8..120]);
        out[120..].copy_from_slice(&check.to_le_bytes());
        out
    }

    /// Reads a private copy of a fixed part; `lens` is what `fstat` says of requests, replies and payloads.
    ///
    /// # Errors
    /// `Corrupt` when the bytes are no lane, or contradict each other or the memfds; `Version` for another layout.
    pub fn decode(bytes: &[u8; FIXED_LEN], lens: [usize; 3]) -> Result<Header> {
        fn take<const N: usize>(bytes: &[u8; FIXED_LEN], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        let u16_at = |at| u16::from_le_bytes(take(bytes, at));
        let u32_at = |at| u32::from_le_bytes(take(bytes, at));
        let u64_at = |at| u64::from_le_bytes(take(bytes, at));
        let corrupt = |what: &'static str| Error::new(ErrorKind::Corrupt, what);
        if u64_at(0) & !(0xFF << 56) != MAGIC & !(0xFF << 56) {
            return Err(corrupt("not a lane of a process pool").with("magic", format_args!("{:#018x}", u64_at(0))));
        }
        if u64_at(0) != MAGIC || u16_at(8) != MAJOR || u64_at(16) != LAYOUT {
            return Err(Error::new(ErrorKind::Version, "pool and worker have different layouts of a lane; update the older one")
                .with("magic", format_args!("{:#018x}", u64_at(0)))
                .with("major", u16_at(8))
                .with("known", MAJOR));
        }
        let sum = check_sum(&bytes[8..120]);
        if u64_at(120) != sum {
            return Err(corrupt("lane does not match its check sum").with("check", u64_at(120)).with("want", sum));
        }
        let header = Header {
            minor: u16_at(10),
            tasks: u32_at(12),
            concurrency: u32_at(24),
            setup: u64_at(32),
            payloads: u64_at(40),
            results: u64_at(48),
            shared: u64_at(56),
        };
        let sizes = [header.setup, header.payloads, header.results, header.shared];
        if !(1..=MAX_TASKS).contains(&(header.tasks as usize)) || header.concurrency == 0 || sizes.iter().any(|n| *n > 1 << 46) {
            return Err(corrupt("lane has impossible sizes").with("tasks", header.tasks).with("setup", header.setup));
        }
        let map = header.map();
        if lens != [map.requests, map.replies, header.payloads as usize] {
            return Err(corrupt("lane and memfds differ in size").with("requests", lens[0]).with("want", map.requests));
        }
        Ok(header)
    }
}

/// The numbers that [`ENV`] names.
///
/// # Errors
/// `Invalid`.
pub fn parse_env(text: &str) -> Result<[i32; FDS]> {
    let mut numbers = [-1; FDS];
    let mut parts = text.split(',');
    for number in &mut numbers {
        *number = parts.next().and_then(|s| s.parse().ok()).unwrap_or(-1);
    }
    let distinct = (0..FDS).all(|i| numbers[i] >= 0 && !numbers[..i].contains(&numbers[i]));
    if !distinct || parts.next().is_some() {
        return Err(Error::invalid("variable does not name seven fds").with("name", ENV).with("value", text));
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: Header = Header { minor: 0, tasks: 33, concurrency: 1, setup: 5, payloads: 1 << 30, results: 1 << 20, shared: 1 << 29 };

    fn lens(header: &Header) -> [usize; 3] {
        [header.map().requests, header.map().replies, header.payloads as usize]
    }

    /// Written down when the layout was: a change of it shows here.
    #[test]
    fn a_lane_begins_with_these_bytes() {
        let bytes = SAMPLE.encode();
        assert_eq!(bytes[..16], *b"OFLLANE1\x01\0\0\0\x21\0\0\0");
        assert_eq!(u64::from_le_bytes(bytes[16..24].try_into().expect("8")), GOLDEN_LAYOUT);
        assert_eq!(u64::from_le_bytes(bytes[120..].try_into().expect("8")), GOLDEN_CHECK);
        assert_eq!(Header::decode(&bytes, lens(&SAMPLE)).expect("valid"), SAMPLE);
    }

    const GOLDEN_LAYOUT: u64 = 7_012_824_519_643_238_857;
    const GOLDEN_CHECK: u64 = 11_275_532_704_384_194_377;

    #[test]
    fn parts_do_not_overlap_and_are_aligned() {
        for tasks in [1, 2, 33, 34, 4096, MAX_TASKS as u32] {
            let m = Header { tasks, ..SAMPLE }.map();
            let n = m.tasks;
            assert!(m.order_len.is_power_of_two() && m.order_len >= n);
            let requests = [
                (request::TAIL, 8),
                (request::ORDER, 4 * m.order_len),
                (m.request_places, PLACE * n),
                (m.freed, 4 * (TICKETS + 1)),
                (m.taken, 4 * n),
                (m.request_cells, CELL * n),
                (m.setup, 5),
                (m.requests, 0),
            ];
            let replies = [
                (reply::HEAD, 8),
                (reply::WORKER_SLEEPS, 4),
                (reply::POOL_SLEEPS, 4),
                (reply::WORDS, 4 * n),
                (m.run, 8 * n),
                (m.reply_places, PLACE * n),
                (m.returned, 4 * (TICKETS + 1)),
                (m.frames, 4 * n),
                (m.frame_places, PLACE * n),
                (m.reply_cells, CELL * n),
                (m.results, 1 << 20),
                (m.replies, 0),
            ];
            for parts in [&requests[..], &replies[..]] {
                for pair in parts.windows(2) {
                    assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{tasks}: {pair:?}");
                }
            }
            for at in
                [m.request_places, m.freed, m.request_cells, m.run, m.reply_places, m.returned, m.frame_places, m.reply_cells, m.results]
            {
                assert!(at.is_multiple_of(64), "{at}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        for at in 0..FIXED_LEN {
            for bit in 0..8 {
                let mut bad = SAMPLE.encode();
                bad[at] ^= 1 << bit;
                let e = Header::decode(&bad, lens(&SAMPLE)).expect_err("flipped");
                assert!(matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::Version), "{at} {bit}: {e}");
            }
        }
    }

    #[test]
    fn lies_with_a_valid_check_sum_are_refused() {
        let lies = [
            Header { tasks: 0, ..SAMPLE },
            Header { tasks: MAX_TASKS as u32 + 1, ..SAMPLE },
            Header { concurrency: 0, ..SAMPLE },
            Header { setup: u64::MAX, ..SAMPLE },
            Header { results: 1 << 47, ..SAMPLE },
            Header { shared: 1 << 47, ..SAMPLE },
            Header { payloads: 1, ..SAMPLE },
            Header { setup: 6, ..SAMPLE },
        ];
        for lie in lies {
            assert_eq!(Header::decode(&lie.encode(), lens(&SAMPLE)).expect_err("refused").kind(), ErrorKind::Corrupt, "{lie:?}");
        }
        let newer = Header { minor: 9, ..SAMPLE };
        assert_eq!(Header::decode(&newer.encode(), lens(&newer)).expect("a newer minor is read"), newer);
    }

    #[test]
    fn the_variable_names_seven_numbers() {
        assert_eq!(parse_env("3,4,5,6,7,8,9").expect("seven"), [3, 4, 5, 6, 7, 8, 9]);
        for bad in ["", "3", "3,4,5,6,7,8", "3,4,5,6,7,8,", "3,4,5,6,7,8,9,10", "3,4,5,6,7,8,8", "-1,4,5,6,7,8,9", "3, 4,5,6,7,8,9"] {
            assert_eq!(parse_env(bad).expect_err(bad).kind(), ErrorKind::Invalid);
        }
    }
}
