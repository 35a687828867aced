//! Names: whose file it is, who may replace it, what is left behind. Processes that die: `core/tests/ring.rs`.

use super::*;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::PathBuf;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("offloop-ring-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("mkdir");
        Dir(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.join("r")
    }

    fn names(&self) -> usize {
        std::fs::read_dir(&self.0).expect("readdir").count()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn create(dir: &Dir) -> Result<RingBuffer> {
    RingBuffer::builder(Kind::Spsc).capacity(4096).path(dir.path()).create()
}

#[test]
fn a_name_leads_to_the_same_ring() {
    let dir = Dir::new("same");
    let ring = create(&dir).expect("create");
    let other = RingBuffer::attach_path(dir.path()).expect("attach");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let mut c = other.consumer(ConsumerOptions::default()).expect("consumer");
    let sleeper = std::thread::spawn(move || c.pop(None).expect("woken by a FIFO").to_vec());
    while word(&ring, 0, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    p.push(b"by name", None).expect("push");
    assert_eq!(sleeper.join().expect("join"), b"by name");
    assert_eq!(std::fs::metadata(dir.path()).expect("stat").permissions().mode() & 0o777, 0o600);
    let stat = RingBuffer::inspect(dir.path()).expect("inspect");
    assert_eq!((stat.kind, stat.capacity, stat.lanes[0].pushed, stat.lanes[0].popped), (Kind::Spsc, 4096, 1, 1));
    assert!(stat.participants.iter().all(|p| p.alive && p.role == Some(Role::Producer)), "the consumer left: {stat:?}");
}

#[test]
fn a_ring_without_its_name_still_wakes_who_is_attached() {
    let dir = Dir::new("removed");
    let ring = create(&dir).expect("create");
    let other = RingBuffer::attach_path(dir.path()).expect("attach");
    let mut c = other.consumer(ConsumerOptions::default()).expect("consumer");
    ring.remove().expect("remove");
    ring.remove().expect("nothing is left to do");
    assert_eq!(kind(RingBuffer::inspect(dir.path())), ErrorKind::NotFound);
    let fresh = create(&dir).expect("the name is free");
    ring.remove().expect("the name is another ring's");
    assert!(dir.path().exists());
    // This end comes after the name has gone.
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    let sleeper = std::thread::spawn(move || {
        let record = c.pop(None).expect("woken").to_vec();
        (record, c)
    });
    while word(&ring, 0, seat_word::WAITING).load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    p.push(b"who is attached stays so", None).expect("push");
    let (record, c) = sleeper.join().expect("join");
    assert_eq!(record, b"who is attached stays so");
    drop((p, ring));
    assert_eq!(dir.names(), 5, "the other ring with its doorbells, and two more while somebody is attached");
    drop((c, other));
    assert_eq!(dir.names(), 3, "the last one takes the doorbells away");
    drop(fresh);
}

#[test]
fn only_a_ring_that_nobody_is_attached_to_is_replaced() {
    let dir = Dir::new("stale");
    let ring = create(&dir).expect("create");
    assert_eq!(kind(create(&dir)), ErrorKind::Exists);
    assert!(!RingBuffer::remove_stale(dir.path()).expect("in use"));
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    p.push(b"waits", None).expect("push");
    drop((p, ring));
    let again = RingBuffer::attach_path(dir.path()).expect("attach");
    let mut c = again.consumer(ConsumerOptions::default()).expect("consumer");
    assert_eq!(pop(&mut c).expect("what was published is there"), b"waits");
    drop((c, again));
    let fresh = create(&dir).expect("a stale ring is replaced");
    assert_eq!(dir.names(), 3, "with its doorbells");
    drop(fresh);
    assert!(RingBuffer::remove_stale(dir.path()).expect("stale"));
    assert_eq!(dir.names(), 0);
}

#[test]
fn attaching_does_not_wait_for_ever_for_a_cleaner_that_was_stopped() {
    let dir = Dir::new("cleaner");
    drop(create(&dir).expect("create"));
    let file = super::super::named::open(&dir.path(), true).expect("open");
    assert!(ofd::try_lock(file.as_fd(), super::super::named::PRESENT).expect("nobody is attached"));
    assert_eq!(kind(RingBuffer::attach_path(dir.path())), ErrorKind::InUse);
    drop(file);
    RingBuffer::attach_path(dir.path()).expect("the cleaner is gone");
}

#[test]
fn racing_creators_and_cleaners_leave_one_ring() {
    let dir = Dir::new("race");
    for _ in 0..if std::env::var_os("OFFLOOP_TORTURE").is_some() { 2000 } else { 50 } {
        drop(create(&dir).expect("stale"));
        let made: Vec<_> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|_| s.spawn(|| create(&dir))).collect();
            threads.into_iter().map(|t| t.join().expect("join")).collect()
        });
        let won: Vec<_> = made.iter().filter_map(|r| r.as_ref().ok()).collect();
        assert_eq!(won.len(), 1, "{made:?}");
        assert!(made.iter().filter_map(|r| r.as_ref().err()).all(|e| e.kind() == ErrorKind::Exists));
        let attached = RingBuffer::attach_path(dir.path()).expect("attach");
        assert_eq!(attached.shared.map.header().id, won[0].shared.map.header().id);
    }
}

#[test]
fn what_is_not_this_users_ring_alone_is_refused() {
    let dir = Dir::new("refuse");
    let path = dir.path();
    let both = || (kind(RingBuffer::attach_path(&path)), kind(RingBuffer::inspect(&path)));
    let two = |k: ErrorKind| (k, k);
    assert_eq!(both(), two(ErrorKind::NotFound));
    // A ring that others may open, or under a second name.
    let ring = create(&dir).expect("create");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    assert_eq!(both(), two(ErrorKind::Invalid));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    std::fs::hard_link(&path, dir.0.join("second")).expect("link");
    assert_eq!(both(), two(ErrorKind::Invalid));
    std::fs::remove_file(dir.0.join("second")).expect("rm");
    assert!(RingBuffer::attach_path(&path).is_ok());
    ring.remove().expect("remove");
    // A symbolic link to a ring, a directory, a FIFO, a device.
    let real = RingBuffer::builder(Kind::Spsc).capacity(4096).path(dir.0.join("real")).create().expect("create");
    symlink(dir.0.join("real"), &path).expect("symlink");
    assert_eq!(both(), two(ErrorKind::Invalid));
    assert_eq!(kind(create(&dir)), ErrorKind::Invalid);
    std::fs::remove_file(&path).expect("rm");
    drop(real);
    std::fs::create_dir(&path).expect("mkdir");
    assert_eq!(both(), two(ErrorKind::Invalid));
    std::fs::remove_dir(&path).expect("rmdir");
    crate::sys::fifo::Fifo::make(&path).expect("mkfifo");
    assert_eq!(both(), two(ErrorKind::Invalid));
    std::fs::remove_file(&path).expect("rm");
    assert_eq!(kind(RingBuffer::attach_path("/dev/null")), ErrorKind::Invalid);
    assert_eq!(kind(RingBuffer::attach_path("")), ErrorKind::Invalid);
    assert_eq!(kind(RingBuffer::attach_path("/")), ErrorKind::Invalid);
    // Plain files that are no ring are neither attached to nor removed.
    for content in [vec![], vec![1; 100], vec![0; 8192]] {
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&path).expect("open");
        std::fs::write(&path, &content).expect("write");
        assert_eq!(both(), two(ErrorKind::Corrupt), "{} bytes", content.len());
        assert_eq!(kind(create(&dir)), ErrorKind::Exists);
        assert_eq!(std::fs::read(&path).expect("kept"), content);
    }
}

#[test]
fn a_doorbell_of_somebody_else_is_refused() {
    let dir = Dir::new("bell");
    let ring = create(&dir).expect("create");
    let id = u64::from_le_bytes(ring.shared.map.header().id[..8].try_into().expect("8 bytes"));
    let bell = dir.0.join(format!(".r.{id:016x}.1"));
    std::fs::remove_file(&bell).expect("a doorbell of the ring");
    std::fs::write(&bell, b"not a FIFO").expect("write");
    assert_eq!(kind(RingBuffer::attach_path(dir.path())), ErrorKind::Invalid);
    std::fs::remove_file(&bell).expect("remove");
    RingBuffer::attach_path(dir.path()).expect("what is missing is made");
    assert_eq!(dir.names(), 3);
}

#[test]
fn a_name_leads_to_the_same_file_wherever_the_process_goes() {
    for name in ["./r", "../r", "d/r"] {
        assert!(crate::ring::resolve_path(std::path::Path::new(name), false).expect("path").is_absolute(), "{name}");
    }
}
