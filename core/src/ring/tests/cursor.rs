//! A face that follows the protocol itself hands its place over and back.

use super::*;

#[test]
fn handles_go_on_where_a_cursor_stands() {
    let (ring, mut p, mut c) = ring(4096);
    for record in [b"one", b"two"] {
        p.try_push(record).expect("push");
    }
    // What a face does that has popped the first record, and pushed none.
    let mut read = c.cursor(0).expect("one lane");
    read.at += record_extent(3);
    read.count += 1;
    read.peer = p.cursor().expect("one lane").at;
    c.set_cursor(0, read).expect("a place in the lane");
    p.set_cursor(p.cursor().expect("one lane")).expect("its own place");
    assert_eq!(pop(&mut c).expect("record"), b"two");
    p.try_push(b"three").expect("push");
    assert_eq!(pop(&mut c).expect("record"), b"three");
    drop(c);
    assert!(pop(&mut ring.consumer(ConsumerOptions::default()).expect("successor")).is_none());
}

#[test]
fn what_such_a_face_has_committed_is_published() {
    let (_ring, mut p, mut c) = ring(4096);
    let at = p.try_claim_ptr(8).expect("claim").expect("room");
    // SAFETY: the claim has 8 bytes behind its record word.
    unsafe { at.as_ptr().sub(8).cast::<u64>().write(record_word(RECORD_DATA, 8)) };
    let mut written = p.cursor().expect("one lane");
    written.at += record_extent(8);
    written.count += 1;
    p.set_cursor(written).expect("a place in the lane");
    assert!(pop(&mut c).is_none(), "not published yet");
    drop(p);
    assert_eq!(pop(&mut c).expect("record").len(), 8);
}

#[test]
fn places_that_cannot_be_are_refused() {
    let (_ring, mut p, mut c) = ring(4096);
    let (writer, reader) = (p.cursor().expect("one lane"), c.cursor(0).expect("one lane"));
    for at in [4, 4104, u32::MAX - 7] {
        assert_eq!(kind(p.set_cursor(Cursor { at, ..writer })), ErrorKind::Corrupt);
        assert_eq!(kind(c.set_cursor(0, Cursor { at, ..reader })), ErrorKind::Corrupt);
    }
    assert!(p.try_push(b"unharmed").expect("push"));
    assert_eq!(pop(&mut c).expect("record"), b"unharmed");
    assert!(c.cursor(1).is_none());
    assert_eq!(kind(c.set_cursor(1, reader)), ErrorKind::Unsupported);
    let slots = RingBuffer::builder(Kind::Mpmc).capacity(4096).create().expect("ring");
    let mut c = slots.consumer(ConsumerOptions::default()).expect("consumer");
    assert!(c.cursor(0).is_none());
    assert_eq!(kind(c.set_cursor(0, reader)), ErrorKind::Unsupported);
}

#[test]
fn each_lane_of_many_has_a_cursor_and_a_turn() {
    let ring = RingBuffer::builder(Kind::Mpsc).capacity(4096).max_participants(3).create().expect("ring");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    let mut producers = [(); 2].map(|()| ring.producer(ProducerOptions::default()).expect("producer"));
    for (p, record) in producers.iter_mut().zip([b"a", b"b"]) {
        p.try_push(record).expect("push");
        p.try_push(&record.to_ascii_uppercase()).expect("push");
    }
    // What a face does that has popped the first record of the second lane.
    let mut read = c.cursor(1).expect("a second lane");
    read.at += record_extent(1);
    read.count += 1;
    read.peer = producers[1].cursor().expect("one lane").at;
    c.set_cursor(1, read).expect("a place in the lane");
    assert!(c.cursor(2).is_none());
    c.turn_to(1);
    let rest: Vec<_> = std::iter::from_fn(|| pop(&mut c)).collect();
    assert_eq!(rest, [b"B", b"a", b"A"]);
    drop(c);
    assert_eq!(ring.stat().expect("stat").lanes.iter().map(|lane| lane.popped).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_reader_of_copies_goes_on_where_a_face_stands() {
    let ring = RingBuffer::builder(Kind::Broadcast).capacity(4096).on_full(OnFull::Overwrite).create().expect("ring");
    let mut c = ring.consumer(ConsumerOptions::default()).expect("consumer");
    let mut p = ring.producer(ProducerOptions::default()).expect("producer");
    for record in [b"one", b"two"] {
        p.try_push(record).expect("push");
    }
    let mut read = c.cursor(0).expect("one lane");
    read.at += record_extent(3);
    read.count += 1;
    c.set_cursor(0, read).expect("a place in the lane");
    assert_eq!(pop(&mut c).expect("record"), b"two");
    assert_eq!(kind(c.set_cursor(0, Cursor { at: 4, ..read })), ErrorKind::Corrupt);
    for n in 0..400u32 {
        assert!(p.try_push(&n.to_le_bytes()).expect("push"));
    }
    // What was lost is counted from the place that the face had come to.
    let rest = std::iter::from_fn(|| pop(&mut c)).count() as u64;
    assert_eq!(rest + c.lost(), 400);
    // Half-turns of the position that the face did not see are a lap.
    let read = c.cursor(0).expect("one lane");
    c.set_cursor(0, Cursor { high: read.high.wrapping_sub(2), ..read }).expect("a place in the lane");
    p.try_push(b"new").expect("push");
    assert!(pop(&mut c).is_some());
    assert_eq!(c.cursor(0).expect("one lane").high, read.high);
}
