use super::*;
use crate::error::ErrorKind;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::wire::metrics::{HEADER_LEN, SHARD_LEN};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

/// Who looks at all pools of the process has them for that long, and so they live on.
pub(super) static LOOKING: Mutex<()> = Mutex::new(());

fn proc_path(m: &PoolMetrics) -> String {
    format!("/proc/self/fd/{}", m.fd().expect("a memfd"))
}

#[test]
fn sums_what_all_threads_count() {
    let m = PoolMetrics::create("thread", "sums", 2);
    let (a, b) = (m.writer(0), m.writer(1));
    m.add(Counter::Submitted, 5);
    a.count(Counter::Completed, 2);
    b.count(Counter::Completed, 1);
    b.count(Counter::Failed, 2);
    a.busy(100);
    b.busy(20);
    a.wait(10);
    b.wait(30);
    a.run(1_000);
    m.set(Gauge::Queued, 9);
    m.set(Gauge::Queued, 3);
    let s = m.snapshot();
    assert_eq!([Counter::Submitted, Counter::Completed, Counter::Failed, Counter::Lost].map(|c| s.get(c)), [5, 3, 2, 0]);
    assert_eq!((s.gauge(Gauge::Queued), s.gauge(Gauge::Running)), (3, 0));
    assert_eq!(s.busy_ns, 120);
    assert_eq!((s.wait.count, s.wait.mean_ns, s.wait.max_ns), (2, 20.0, 30));
    assert_eq!((s.run.count, s.run.max_ns), (1, 1_000));
    assert!(m.snapshot().age_ns >= s.age_ns);
}

#[test]
fn a_slot_keeps_its_counts_when_the_next_thread_takes_it() {
    let m = PoolMetrics::create("thread", "reuse", 1);
    for _ in 0..3 {
        let m = Arc::clone(&m);
        std::thread::spawn(move || m.writer(0).count(Counter::Completed, 1)).join().expect("join");
    }
    assert_eq!(m.snapshot().get(Counter::Completed), 3);
}

#[test]
fn writers_beyond_the_shards_or_of_one_slot_lose_nothing() {
    let m = PoolMetrics::create("thread", "shared", 1);
    let threads: Vec<_> = [0usize, 0, 1, usize::MAX]
        .into_iter()
        .map(|slot| {
            let w = m.writer(slot);
            std::thread::spawn(move || {
                for i in 0..20_000 {
                    w.count(Counter::Completed, 1);
                    w.run(i);
                    w.busy(1);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().expect("join"));
    let s = m.snapshot();
    assert_eq!((s.get(Counter::Completed), s.run.count, s.busy_ns, s.run.max_ns), (80_000, 80_000, 80_000, 19_999));
}

#[test]
fn a_second_writer_of_a_slot_counts_in_the_common_shard() {
    let m = PoolMetrics::create("thread", "twice", 1);
    let (first, second) = (m.writer(0), m.writer(0));
    first.count(Counter::Submitted, 1);
    second.count(Counter::Submitted, 20);
    drop(first);
    m.writer(0).count(Counter::Submitted, 300);
    let bytes = std::fs::read(proc_path(&m)).expect("read");
    assert_eq!([bytes[HEADER_LEN], bytes[HEADER_LEN + SHARD_LEN]], [20, (301 % 256) as u8]);
    assert_eq!(m.snapshot().get(Counter::Submitted), 321);
}

#[test]
fn huge_durations_saturate() {
    let m = PoolMetrics::create("thread", "huge", 1);
    for w in [m.writer(0), m.writer(7)] {
        w.wait(u64::MAX);
        w.wait(0);
        w.wait(u64::MAX);
        w.busy(u64::MAX);
        w.busy(1);
    }
    let s = m.snapshot();
    assert_eq!((s.wait.count, s.wait.max_ns, s.wait.p50_ns, s.busy_ns), (6, u64::MAX, u64::MAX, u64::MAX));
    assert!(s.wait.mean_ns > 0.0 && s.wait.mean_ns.is_finite());
}

#[test]
fn totals_never_run_backwards_while_threads_write() {
    const EACH: u64 = 200_000;
    let m = PoolMetrics::create("thread", "race", 3);
    let other = Reader::open(proc_path(&m)).expect("reader");
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..3)
        .map(|slot| {
            let m = Arc::clone(&m);
            std::thread::spawn(move || {
                let w = m.writer(slot);
                for i in 0..EACH {
                    m.add(Counter::Submitted, 1);
                    w.wait(i % 5_000);
                    w.run(i << (i % 20));
                    w.count(Counter::Completed, 1);
                }
            })
        })
        .collect();
    let watch = {
        let (m, done) = (Arc::clone(&m), Arc::clone(&done));
        std::thread::spawn(move || {
            let mut last = [Snapshot::default(), Snapshot::default()];
            let mut rounds = 0u64;
            while !done.load(Ordering::Acquire) {
                for (now, last) in [m.snapshot(), other.snapshot()].into_iter().zip(&mut last) {
                    for c in Counter::ALL {
                        assert!(now.get(*c) >= last.get(*c) && now.get(*c) <= 3 * EACH, "{c:?}: {} after {}", now.get(*c), last.get(*c));
                    }
                    assert!(now.wait.count >= last.wait.count && now.run.count >= last.run.count);
                    assert!(now.wait.max_ns >= last.wait.max_ns && now.wait.max_ns < 5_000);
                    // A writer is at most one task ahead of its count of completed ones.
                    assert!(now.run.count <= now.wait.count + 3 * EACH);
                    *last = now;
                }
                rounds += 1;
            }
            (rounds, other.snapshot())
        })
    };
    threads.into_iter().for_each(|t| t.join().expect("join"));
    done.store(true, Ordering::Release);
    let (_, seen) = watch.join().expect("join");
    let s = m.snapshot();
    assert_eq!((s.get(Counter::Submitted), s.get(Counter::Completed), s.wait.count, s.run.count), (3 * EACH, 3 * EACH, 3 * EACH, 3 * EACH));
    assert_eq!((s.counters, s.wait, s.run), (seen.counters, seen.wait, seen.run));
    // Every writer records 40 times each of 0..5000: the exact median is 2499.
    assert!(s.wait.p50_ns.abs_diff(2499) <= 2499 / 64 + 1, "{}", s.wait.p50_ns);
}

#[test]
fn another_process_view_reads_names_and_numbers() {
    let m = PoolMetrics::create("thread", "thumbs é", 2);
    m.writer(1).run(77);
    m.set(Gauge::Workers, 2);
    let path = proc_path(&m);
    let r = Reader::open(&path).expect("reader");
    assert_eq!((r.header().kind.as_str(), r.header().name.as_str(), r.header().pid), ("thread", "thumbs é", std::process::id()));
    let link = std::fs::read_link(&path).expect("link");
    assert!(link.to_string_lossy().starts_with("/memfd:offloop-metrics"), "{link:?}");
    assert_eq!(r.snapshot().run, m.snapshot().run);
    // The numbers outlive the writer.
    let last = m.snapshot();
    drop(m);
    assert_eq!((r.snapshot().gauges, r.snapshot().run), (last.gauges, last.run));
}

/// A memfd with these bytes, sealed in size or not.
fn file_of(bytes: &[u8], sealed: bool) -> File {
    // SAFETY: a NUL-terminated name; the fd is new and ours.
    let fd = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)) };
    let file = File::from(fd);
    std::io::Write::write_all(&mut &file, bytes).expect("write");
    if sealed {
        // SAFETY: a plain call on an fd that we own.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) }, 0);
    }
    file
}

#[test]
fn a_reader_refuses_what_is_no_region() {
    let m = PoolMetrics::create("thread", "bytes", 1);
    m.writer(0).run(5);
    let good = std::fs::read(proc_path(&m)).expect("read");
    assert_eq!(good.len(), HEADER_LEN + 2 * SHARD_LEN);
    let kind = |bytes: &[u8], sealed| Reader::attach(&file_of(bytes, sealed)).map(|r| r.snapshot().run.count).map_err(|e| e.kind());
    assert_eq!(kind(&good, true), Ok(1));
    assert_eq!(kind(&good, false), Err(ErrorKind::Invalid));
    assert_eq!(kind(&[], true), Err(ErrorKind::Corrupt));
    assert_eq!(kind(&[1; 8], true), Err(ErrorKind::Corrupt));
    assert_eq!(kind(&good[..255], true), Err(ErrorKind::Corrupt));
    assert_eq!(kind(&good[..HEADER_LEN], true), Err(ErrorKind::Corrupt));
    assert_eq!(kind(&[0xA5; 8192], true), Err(ErrorKind::Corrupt));
    let mut unfinished = good.clone();
    unfinished[..8].fill(0);
    assert_eq!(kind(&unfinished, true), Err(ErrorKind::Corrupt));
    let mut newer = good.clone();
    newer[8] = 2;
    assert_eq!(kind(&newer, true), Err(ErrorKind::Version));
    assert_eq!(Reader::open("/nonexistent/region").expect_err("missing").kind(), ErrorKind::NotFound);
    assert_eq!(Reader::open("/proc/self/status").expect_err("no memfd").kind(), ErrorKind::Invalid);
}

#[test]
fn a_scribbled_region_gives_odd_numbers_and_no_crash() {
    let m = PoolMetrics::create("thread", "noise", 1);
    let mut bytes = std::fs::read(proc_path(&m)).expect("read");
    let mut x = 1u64;
    for b in &mut bytes[256..] {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *b = (x >> 56) as u8;
    }
    let file = file_of(&bytes, true);
    let r = Reader::attach(&file).expect("header is whole");
    let _ = r.snapshot();
    // After validation, a writer that claims more shards than there are is not followed.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 4], 36).expect("write");
    let _ = r.snapshot();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xFF; 256], 0).expect("write");
    let _ = r.snapshot();
}

#[test]
fn untouched_shards_take_no_memory() {
    let m = PoolMetrics::create("thread", "lazy", 4096);
    for slot in 0..2 {
        let w = m.writer(slot);
        for ns in [900, 1_500, 20_000, 3_000_000] {
            w.wait(ns);
            w.run(ns);
            w.busy(ns);
            w.count(Counter::Completed, 1);
        }
    }
    m.add(Counter::Submitted, 8);
    let _ = m.snapshot();
    let meta = std::fs::metadata(proc_path(&m)).expect("stat");
    let resident = std::os::unix::fs::MetadataExt::blocks(&meta) * 512;
    assert!(meta.len() > 90 << 20);
    assert!(resident <= 64 << 10, "{resident} bytes");
}

#[test]
fn lists_only_living_pools() {
    let _nobody_looks = crate::sync::lock(&LOOKING);
    let m = PoolMetrics::create("thread", "listed-7f3a", 1);
    assert!(export(Format::Json).contains("listed-7f3a"));
    assert!(export(Format::Prometheus).contains("pool=\"listed-7f3a\""));
    drop(m);
    assert!(!export(Format::Json).contains("listed-7f3a"));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "what a forked child sees is tested")]
fn a_forked_child_neither_writes_nor_lists_its_parents_pools() {
    let m = PoolMetrics::create("thread", "parent-5521", 2);
    let w = m.writer(0);
    w.count(Counter::Completed, 1);
    // SAFETY: the child only touches memory of its own, atomics and the allocator, which glibc keeps usable, and leaves by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        m.add(Counter::Submitted, 100);
        m.set(Gauge::Queued, 100);
        w.count(Counter::Completed, 100);
        w.wait(100);
        m.writer(1).run(100);
        let unlisted = !export(Format::Json).contains("parent-5521");
        let own = PoolMetrics::create("thread", "child-5521", 1);
        own.writer(0).count(Counter::Completed, 1);
        let listed = export(Format::Json);
        let good =
            unlisted && listed.contains("child-5521") && !listed.contains("parent-5521") && own.snapshot().get(Counter::Completed) == 1;
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(if good { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid out pointer, `pid` is our child.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "the child saw its parent's pools");
    let s = m.snapshot();
    assert_eq!((s.get(Counter::Submitted), s.get(Counter::Completed), s.gauge(Gauge::Queued)), (0, 1, 0));
    assert_eq!((s.wait.count, s.run.count), (0, 0));
}

/// How many ns a record costs: `cargo test --release -p offloop metrics::tests::cost -- --ignored --nocapture`.
#[test]
#[ignore = "prints a measurement"]
fn cost_of_recording() {
    let m = PoolMetrics::create("thread", "cost", 1);
    let w = m.writer(0);
    let rounds = 50_000_000u64;
    let measure = |what: &str, f: &dyn Fn(u64)| {
        let from = std::time::Instant::now();
        (0..rounds).for_each(f);
        println!("{what}: {:.2} ns", from.elapsed().as_nanos() as f64 / rounds as f64);
    };
    measure("count", &|_| w.count(Counter::Completed, 1));
    measure("wait", &|i| w.wait(i & 0xFFFF));
    measure("one task: wait + run + busy + count", &|i| {
        w.wait(i & 0xFFFF);
        w.run(i & 0xFFF);
        w.busy(i & 0xFFF);
        w.count(Counter::Completed, 1);
    });
    measure("add", &|_| m.add(Counter::Submitted, 1));
    let from = std::time::Instant::now();
    for _ in 0..10_000 {
        std::hint::black_box(m.snapshot());
    }
    println!("snapshot: {:.2} us", from.elapsed().as_nanos() as f64 / 1e7);
}
