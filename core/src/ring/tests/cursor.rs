//! A face that follows the protocol itself hands its place over and back.

use super::*;

#[test]
fn handles_go_on_where_a_cursor_stands() {
    let (ring, mut p, mut c) = ring(4096);
    for record in [b"one", b"two"] {
        p.try_push(record).expect("push");
    }
    // What a face does that has popped the first record, and pushed none.
    let mut read = c.cursor().expect("one lane");
    read.at += record_extent(3);
    read.count += 1;
    read.peer = p.cursor().expect("one lane").at;
    c.set_cursor(read).expect("a place in the lane");
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
    let (writer, reader) = (p.cursor().expect("one lane"), c.cursor().expect("one lane"));
    for at in [4, 4104, u32::MAX - 7] {
        assert_eq!(kind(p.set_cursor(Cursor { at, ..writer })), ErrorKind::Corrupt);
        assert_eq!(kind(c.set_cursor(Cursor { at, ..reader })), ErrorKind::Corrupt);
    }
    assert!(p.try_push(b"unharmed").expect("push"));
    assert_eq!(pop(&mut c).expect("record"), b"unharmed");
    let many = RingBuffer::builder(Kind::Mpsc).capacity(4096).create().expect("ring");
    let mut c = many.consumer(ConsumerOptions::default()).expect("consumer");
    assert!(c.cursor().is_none());
    assert_eq!(kind(c.set_cursor(reader)), ErrorKind::Unsupported);
}
