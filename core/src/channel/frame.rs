//! Values to records and back (`wire::channel`).

use super::{INLINE_MAX, Options};
use crate::buffer::{Bytes, TransferBuffer};
use crate::codec;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::socket::MAX_FDS;
use crate::sys::{mem, poll};
use crate::value::Value;
use crate::wire::channel::{ALIGN, HEAD_LEN, Head, Kind, MAX_BUFFERS, SPILLED, u64_at};
use crate::wire::value::REFERENCE_MIN;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bodies of at least so many bytes are kept, and their long payloads are parts of them.
const KEEP_FROM: usize = 4096;

/// A record, and the fds that go before it.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
    /// Buffers that the value gives up once this is sent.
    pub(super) buffers: usize,
    /// Bytes that are kept for it until it is sent: the message, whether it is spilled or not, and the buffers that move.
    pub(super) kept: usize,
}

/// What a frame is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purpose {
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) id: u64,
}

impl Options {
    /// Only buffers travel beside the value: bytes of any length are shorter than this.
    fn codec(&self) -> codec::Options {
        codec::Options { max_bytes: self.max_message, out_of_band: Some(usize::MAX), ..codec::Options::default() }
    }

    pub(super) fn check_message(&self, len: usize) -> Result<()> {
        if len > self.max_message {
            return Err(Error::new(ErrorKind::TooLarge, "message is longer than the limit")
                .with("len", len)
                .with("max_message", self.max_message));
        }
        Ok(())
    }
}

fn check_fds(fds: usize) -> Result<()> {
    if fds > MAX_FDS {
        return Err(Error::new(ErrorKind::TooLarge, "message has too many fds and buffers").with("fds", fds).with("max_fds", MAX_FDS));
    }
    Ok(())
}

fn check_buffers(buffers: usize) -> Result<()> {
    if buffers > MAX_BUFFERS {
        return Err(Error::new(ErrorKind::TooLarge, "message has too many buffers")
            .with("buffers", buffers)
            .with("max_buffers", MAX_BUFFERS));
    }
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
}

/// Moves nothing: the value is whole until its frame is sent.
pub(super) fn build(purpose: Purpose, value: &Value, fds: &[BorrowedFd<'_>], options: &Options, max_record: usize) -> Result<Frame> {
    let mut bytes = vec![0; HEAD_LEN];
    let buffers = codec::encode(value, &options.codec(), &mut bytes)?;
    check_buffers(buffers)?;
    let body_len = bytes.len() - HEAD_LEN;
    let mut own = Vec::new();
    let mut moving = 0;
    if buffers > 0 {
        pad(&mut bytes);
        let mut copied = Vec::new();
        codec::each_buffer(value, &mut |buffer| {
            let len = buffer.len();
            let shared = buffer.view()?.0.is_shared();
            let copy = len == 0 || (!shared && len <= INLINE_MAX);
            bytes.extend_from_slice(&((len as u64) << 1 | u64::from(copy)).to_le_bytes());
            if copy {
                copied.push(buffer);
                return Ok(());
            }
            // The memfd is on its way and this process's mapping is not needed for it.
            check_fds(own.len() + fds.len() + 1)?;
            moving += len;
            own.push(if shared { memfd(buffer)? } else { memfd(&buffer.to_shared()?)? });
            Ok(())
        })?;
        for buffer in copied {
            buffer.append_to(&mut bytes)?;
            pad(&mut bytes);
        }
    }
    options.check_message(bytes.len() - HEAD_LEN)?;
    let kept = bytes.len() + moving;
    // Whoever receives it would end the channel for it.
    mem::check_possible(kept)?;
    let mut flags = purpose.flags;
    if bytes.len() > max_record {
        let payload = &bytes[HEAD_LEN..];
        let mut spilled = TransferBuffer::alloc_shared(payload.len())?;
        spilled.write_at(0, payload)?;
        own.insert(0, memfd(&spilled)?);
        flags |= SPILLED;
        let len = payload.len() as u64;
        bytes.truncate(HEAD_LEN);
        bytes.extend_from_slice(&len.to_le_bytes());
    }
    check_fds(own.len() + fds.len())?;
    for fd in fds {
        own.push(poll::duplicate(*fd)?);
    }
    let head =
        Head { kind: purpose.kind, flags, fds: own.len() as u16, buffers: buffers as u32, id: purpose.id, body_len: body_len as u64 };
    bytes[..HEAD_LEN].copy_from_slice(&head.encode());
    Ok(Frame { bytes, fds: own, buffers, kept })
}

fn memfd(buffer: &TransferBuffer) -> Result<OwnedFd> {
    let fd = buffer.fd().expect("a shared buffer has an fd");
    // SAFETY: `buffer` keeps the fd open for the borrow.
    poll::duplicate(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// What a frame carried.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) value: Value,
    pub(super) fds: Vec<OwnedFd>,
    /// Bytes of the message, whether it was spilled or not, and of the buffers that moved.
    pub(super) bytes: usize,
}

fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// An fd that is not what the record says is damage, not a wrong argument.
fn damage(e: Error) -> Error {
    if e.kind() == ErrorKind::Invalid { corrupt("buffer of a message is no sealed memory of its length").with("error", e) } else { e }
}

/// Reads what follows the head, from a private copy. On error the fds are closed.
pub(super) fn read(head: &Head, mut payload: Vec<u8>, fds: Vec<OwnedFd>, options: &Options) -> Result<Content> {
    let mut fds = fds.into_iter();
    if head.flags & SPILLED != 0 {
        let file = fds.next().ok_or_else(|| corrupt("record was spilled without an fd"))?;
        if payload.len() != 8 {
            return Err(corrupt("spilled record is not as long as it must be").with("len", payload.len()));
        }
        let len = usize::try_from(u64_at(&payload, 0)).unwrap_or(usize::MAX);
        options.check_message(len)?;
        mem::check_possible(len)?;
        payload = mem::read_sealed(file.as_fd(), len).map_err(damage)?;
    }
    let len = payload.len();
    options.check_message(len)?;
    let body_len = usize::try_from(head.body_len).unwrap_or(usize::MAX);
    let buffers = head.buffers as usize;
    if body_len > len || (buffers == 0 && body_len != len) {
        return Err(corrupt("record is not as long as its parts").with("len", len).with("body_len", body_len));
    }
    let mut beside = Vec::new();
    let mut bytes = len;
    if buffers > 0 {
        // A buffer costs much more memory than its entry: no more of them are made than there may be, and than the body has names for.
        let most = MAX_BUFFERS.min(body_len / REFERENCE_MIN);
        if buffers > most {
            return Err(corrupt("record has more buffers than its body can name").with("buffers", buffers).with("max_buffers", most));
        }
        let table = body_len.next_multiple_of(ALIGN);
        let mut at = table + buffers * 8;
        if at > len {
            return Err(corrupt("record ends inside its table of buffers").with("len", len).with("buffers", buffers));
        }
        beside.reserve_exact(buffers);
        for i in 0..buffers {
            let entry = u64_at(&payload, table + i * 8);
            let want = usize::try_from(entry >> 1).unwrap_or(usize::MAX);
            if entry & 1 == 1 {
                if want > len - at {
                    return Err(corrupt("record ends inside a buffer").with("want", want).with("left", len - at));
                }
                beside.push(Some(TransferBuffer::from_slice(&payload[at..at + want])?));
                at = (at + want).next_multiple_of(ALIGN);
                if at > len {
                    return Err(corrupt("record ends inside its padding").with("len", len));
                }
                continue;
            }
            let fd = fds.next().ok_or_else(|| corrupt("record has more buffers than fds").with("buffers", buffers))?;
            // Together: a message that can never be there would be tried for ever.
            mem::check_possible(bytes.saturating_add(mem::file_len(fd.as_fd())?))?;
            let buffer = TransferBuffer::attach(fd.as_fd()).map_err(damage)?;
            if buffer.len() != want {
                return Err(corrupt("buffer is not as long as its record says").with("len", buffer.len()).with("want", want));
            }
            bytes += want;
            beside.push(Some(buffer));
        }
        if at != len {
            return Err(corrupt("record goes on after its buffers").with("len", len).with("end", at));
        }
    }
    let value = if body_len < KEEP_FROM {
        codec::decode(&payload[..body_len], &mut beside, &options.codec())?
    } else {
        payload.truncate(body_len);
        codec::decode_owned(Bytes::from(payload), &mut beside, &options.codec())?
    };
    Ok(Content { value, fds: fds.collect(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::channel::FAILED;
    use serde_json::{Value as Json, json};
    use std::path::Path;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn a_message_has_no_more_buffers_than_there_may_be() {
        let message = Purpose { kind: Kind::Message, flags: 0, id: 0 };
        let (options, mut empty) = (Options::default(), Vec::new());
        empty.resize_with(MAX_BUFFERS, || Value::Buffer(TransferBuffer::alloc(0).expect("no memory")));
        let mut value = Value::Array(empty);
        let frame = build(message, &value, &[], &options, usize::MAX).expect("as many as there may be");
        let head = Head::decode(frame.bytes.first_chunk().expect("a head")).expect("head");
        let content = read(&head, frame.bytes[HEAD_LEN..].to_vec(), Vec::new(), &options).expect("as many as there may be");
        assert!(matches!(content.value, Value::Array(items) if items.len() == MAX_BUFFERS));
        let Value::Array(items) = &mut value else { panic!("list") };
        items.push(Value::Buffer(TransferBuffer::alloc(0).expect("no memory")));
        let e = build(message, &value, &[], &options, usize::MAX).expect_err("one too many");
        assert_eq!(e.to_string(), "too large: message has too many buffers (buffers=65537, max_buffers=65536)");
    }

    #[test]
    fn buffers_that_the_body_cannot_name_are_not_made() {
        let read = |buffers: usize, body_len: usize| {
            let head = Head { kind: Kind::Message, flags: 0, fds: 0, buffers: buffers as u32, id: 0, body_len: body_len as u64 };
            let table = vec![1u64.to_le_bytes(); buffers].concat();
            let payload = [vec![0xc0; body_len.next_multiple_of(ALIGN)], table].concat();
            read(&head, payload, Vec::new(), &Options::default()).expect_err("no message")
        };
        for (buffers, body_len, most) in [(1, 1, 0), (3, 8, 2), (1 << 20, 1 << 10, 256), (MAX_BUFFERS + 1, 1 << 20, MAX_BUFFERS)] {
            let e = read(buffers, body_len);
            let told = format!("corrupt: record has more buffers than its body can name (buffers={buffers}, max_buffers={most})");
            assert_eq!(e.to_string(), told);
        }
        assert!(read(2, 8).to_string().contains("message goes on"), "as many as it has names for are read");
    }

    /// What goes over a channel, byte by byte. A difference is another layout and needs a new version; `OFFLOOP_BLESS=1` rewrites the file.
    #[test]
    fn records_are_golden() {
        let buffer = |bytes: &[u8], shared: bool| {
            let buffer = TransferBuffer::from_slice(bytes).expect("memory");
            Value::Buffer(if shared { buffer.to_shared().expect("memory") } else { buffer })
        };
        let message = Purpose { kind: Kind::Message, flags: 0, id: 0 };
        let request = Purpose { kind: Kind::Request, flags: 0, id: 1 };
        let failed = Purpose { kind: Kind::Reply, flags: FAILED, id: 0x0102_0304_0506_0708 };
        let map = Value::map([("n", Value::Int(21)), ("text", Value::str("grün"))]);
        let buffers = Value::Array(vec![buffer(b"copied", false), buffer(b"shared", true), buffer(b"", true), buffer(b"12345678", false)]);
        let cases: [(&str, Purpose, Value, usize); 6] = [
            ("nil", message, Value::Nil, 4096),
            ("request", request, map, 4096),
            ("failed reply", failed, Value::str("no"), 4096),
            ("buffers", message, buffers, 4096),
            ("longer than a record may be", request, Value::str("x".repeat(200)), 64),
            ("a buffer, longer than a record may be", message, buffer(&[7; 100], false), 64),
        ];
        let options = Options::default();
        let mut golden = Vec::new();
        for (name, purpose, value, max_record) in cases {
            let frame = build(purpose, &value, &[], &options, max_record).expect(name);
            let files: Vec<Json> = frame.fds.iter().map(|fd| json!(mem::file_len(fd.as_fd()).expect("fstat"))).collect();
            golden.push(json!({ "name": name, "max_record": max_record, "hex": hex(&frame.bytes), "fds": files }));
            let head = Head::decode(frame.bytes.first_chunk().expect("a head")).expect(name);
            let content = read(&head, frame.bytes[HEAD_LEN..].to_vec(), frame.fds, &options).expect(name);
            let bytes = |value: &Value| {
                let mut all = Vec::new();
                codec::encode(value, &codec::Options::default(), &mut all).expect(name);
                all
            };
            assert_eq!(bytes(&content.value), bytes(&value), "{name}: what is read is what was written");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors/channel.json");
        let text = serde_json::to_string_pretty(&golden).expect("json") + "\n";
        if std::env::var_os("OFFLOOP_BLESS").is_some() {
            std::fs::write(&path, &text).expect("write");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("vectors"), text, "the layout of records changed");
    }
}
