//! An HTTP/1.1 response, fed in pieces of any size (RFC 9112). Pure: no socket, no clock.
//!
//! ```text
//!            ┌──────────── 1xx ───────────┐
//!            ▼                            │
//!   bytes ─► Head ── head is whole ───────┴─► Length ─► Done
//!                                          ├► Chunked ► Done
//!                                          ├► UntilClose ── the connection ends
//!                                          └► Done            (204, 304, 101, length 0)
//! ```
//!
//! It is strict: what a lenient client would repair is malformed here, because another client would not repair it.

use memchr::memchr;
use std::mem::MaybeUninit;

/// Bytes of a head, status line and fields together, at most.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Fields of a head at most.
pub(super) const MAX_FIELDS: usize = 128;
/// Interim responses (1xx) before a final one at most.
const MAX_INTERIM: u32 = 32;
/// Bytes of a chunk's size with its extensions at most.
const MAX_SIZE_LINE: u32 = 4096;

/// What a response is searched for.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The value of this field is kept.
    field: Option<String>,
    /// This is searched for in the body.
    text: Vec<u8>,
    /// For each prefix of `text` the length of its longest border (Knuth, Morris, Pratt 1977).
    borders: Vec<usize>,
}

impl Look {
    pub(super) fn new(field: Option<String>, text: Option<&str>) -> Look {
        let text = text.unwrap_or_default().as_bytes().to_vec();
        let mut borders = vec![0; text.len()];
        let mut border = 0;
        for i in 1..text.len() {
            while border > 0 && text[i] != text[border] {
                border = borders[border - 1];
            }
            border += usize::from(text[i] == text[border]);
            borders[i] = border;
        }
        Look { field, text, borders }
    }
}

/// Why bytes are no response.
pub(super) type Malformed = &'static str;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    /// The digits of a chunk's size: how many came, and what they make so far.
    Size(u32, u64),
    /// What follows the size on its line: bytes of the line so far.
    Extension(u32),
    SizeEnd(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    /// Fields after the last chunk: bytes of all, and of the line.
    Trailer(u32, u32),
    TrailerLf(u32, u32),
    UntilClose,
    Done,
}

/// What the end of the connection makes of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It is whole: either it was before, or its end is the connection's.
    Complete,
    /// Not a byte of it came.
    Nothing,
    /// It is cut.
    Truncated,
}

/// One response.
#[derive(Debug)]
pub(super) struct Response {
    state: State,
    /// A head that came in pieces.
    head: Vec<u8>,
    began: bool,
    interim: u32,
    status: u16,
    keep: bool,
    /// The value of the field that is looked for; `None`: it has none.
    value: Option<Vec<u8>>,
    /// How much of the text is matched, or that it was found.
    matched: usize,
    found: bool,
    /// The size of the chunk whose line is read.
    size: u64,
}

impl Response {
    pub(super) fn new() -> Response {
        Response {
            state: State::Head,
            head: Vec::new(),
            began: false,
            interim: 0,
            status: 0,
            keep: false,
            value: None,
            matched: 0,
            found: false,
            size: 0,
        }
    }

    /// Forgets everything but the memory that it has.
    pub(super) fn clear(&mut self) {
        let (mut head, value) = (std::mem::take(&mut self.head), self.value.take());
        head.clear();
        *self = Response { head, value, ..Response::new() };
        if let Some(value) = &mut self.value {
            value.clear();
        }
    }

    /// The status, once the final head has come.
    pub(super) fn status(&self) -> u16 {
        self.status
    }

    /// The connection may carry another request.
    pub(super) fn keeps_connection(&self) -> bool {
        self.keep
    }

    /// A byte came.
    pub(super) fn began(&self) -> bool {
        self.began
    }

    /// The value of the field that was looked for; empty without one.
    pub(super) fn value(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }

    /// The body has the text that was looked for.
    pub(super) fn has_text(&self, look: &Look) -> bool {
        self.found || look.text.is_empty()
    }

    /// Takes the next bytes; once the response is complete, how many of them belong to it.
    pub(super) fn feed(&mut self, look: &Look, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        self.began |= !bytes.is_empty();
        let mut at = 0;
        while self.state != State::Done {
            let rest = &bytes[at..];
            let Some(&byte) = rest.first() else { return Ok(None) };
            at += match self.state {
                State::Head => match self.head(look, rest)? {
                    Some(n) => n,
                    None => return Ok(None),
                },
                State::Length(left) => {
                    let n = self.body(look, rest, left);
                    self.state = if n as u64 == left { State::Done } else { State::Length(left - n as u64) };
                    n
                }
                State::UntilClose => self.body(look, rest, u64::MAX),
                State::Chunk(left) => {
                    let n = self.body(look, rest, left);
                    self.state = if n as u64 == left { State::ChunkCr } else { State::Chunk(left - n as u64) };
                    n
                }
                _ => {
                    self.state = self.chunk_line(byte)?;
                    1
                }
            };
        }
        Ok(Some(at))
    }

    /// What it means that the connection ended here.
    pub(super) fn end(&self) -> End {
        match self.state {
            State::Done | State::UntilClose => End::Complete,
            _ if !self.began => End::Nothing,
            _ => End::Truncated,
        }
    }

    /// The next byte of what lies between the data of two chunks.
    fn chunk_line(&mut self, byte: u8) -> Result<State, Malformed> {
        let wrong = "chunk's data is longer than its size, or its end is no CRLF";
        Ok(match (self.state, byte) {
            (State::Size(digits, size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 16 {
                    return Err("chunk's size has more than 16 digits");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                State::Size(digits + 1, size << 4 | u64::from(digit))
            }
            (State::Size(0, _), _) => return Err("chunk's size has no digit"),
            (State::Size(_, size), b'\r') => State::SizeEnd(size),
            (State::Size(digits, size), b';' | b' ' | b'\t') => {
                self.size = size;
                State::Extension(digits)
            }
            (State::Size(..), _) => return Err("chunk's size is no hexadecimal number"),
            (State::Extension(_), b'\r') => State::SizeEnd(self.size),
            (State::Extension(_), b'\n') => return Err("chunk's size ends without CR"),
            (State::Extension(n), _) if n == MAX_SIZE_LINE => return Err("chunk's extension is longer than 4096 bytes"),
            (State::Extension(n), _) => State::Extension(n + 1),
            (State::SizeEnd(0), b'\n') => State::Trailer(0, 0),
            (State::SizeEnd(size), b'\n') => State::Chunk(size),
            (State::SizeEnd(_), _) => return Err("chunk's size ends without LF"),
            (State::ChunkCr, b'\r') => State::ChunkLf,
            (State::ChunkLf, b'\n') => State::Size(0, 0),
            (State::ChunkCr | State::ChunkLf, _) => return Err(wrong),
            (State::Trailer(all, line), b'\r') => State::TrailerLf(all, line),
            (State::Trailer(..), b'\n') => return Err("trailer ends without CR"),
            (State::Trailer(all, _), _) if all as usize == MAX_HEAD => return Err("trailer is longer than 64 KiB"),
            (State::Trailer(all, line), _) => State::Trailer(all + 1, line + 1),
            (State::TrailerLf(_, 0), b'\n') => State::Done,
            (State::TrailerLf(all, _), b'\n') => State::Trailer(all, 0),
            (State::TrailerLf(..), _) => return Err("trailer ends without LF"),
            (state, _) => state,
        })
    }

    /// Takes up to `left` bytes of a body.
    fn body(&mut self, look: &Look, bytes: &[u8], left: u64) -> usize {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if look.text.is_empty() || self.found {
            return n;
        }
        for byte in &bytes[..n] {
            while self.matched > 0 && *byte != look.text[self.matched] {
                self.matched = look.borders[self.matched - 1];
            }
            self.matched += usize::from(*byte == look.text[self.matched]);
            if self.matched == look.text.len() {
                self.found = true;
                break;
            }
        }
        n
    }

    /// Takes bytes of a head; once it is whole, how many of them belong to it.
    fn head(&mut self, look: &Look, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let had = self.head.len();
        if had == 0 {
            // The usual case: in one piece, nothing is copied.
            if let Some(end) = end_of_head(bytes, 0) {
                self.fields(look, &bytes[..end])?;
                return Ok(Some(end));
            }
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = end_of_head(&self.head, had.saturating_sub(2)) else {
            let begins = self.head.iter().zip(b"HTTP/1.").all(|(a, b)| a == b);
            return match (begins, self.head.len() > MAX_HEAD) {
                (false, _) => Err("no HTTP/1.x status line"),
                (_, true) => Err("head is longer than 64 KiB"),
                _ => Ok(None),
            };
        };
        let head = std::mem::take(&mut self.head);
        let done = self.fields(look, &head[..end]);
        self.head = head;
        self.head.clear();
        done.map(|()| Some(end - had))
    }

    /// Reads a whole head and decides where the body ends (RFC 9112, 6.3).
    fn fields(&mut self, look: &Look, head: &[u8]) -> Result<(), Malformed> {
        if head.len() > MAX_HEAD {
            return Err("head is longer than 64 KiB");
        }
        // Empty lines before it are skipped by the parser, and are part of no response.
        if !head.starts_with(b"HTTP/1.") {
            return Err("no HTTP/1.x status line");
        }
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let complete = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, head, &mut fields);
        match complete {
            Ok(httparse::Status::Complete(n)) if n == head.len() => {}
            Ok(_) => return Err("head ends within a line"),
            Err(httparse::Error::Version) => return Err("no HTTP/1.x status line"),
            Err(httparse::Error::Status) => return Err("status line has no status"),
            Err(httparse::Error::TooManyHeaders) => return Err("head has more than 128 fields"),
            Err(_) => return Err("head has a field that is none"),
        }
        let status = parsed.code.unwrap_or_default();
        if !(100..=999).contains(&status) {
            return Err("status is below 100");
        }
        if (100..200).contains(&status) && status != 101 {
            self.interim += 1;
            return if self.interim > MAX_INTERIM { Err("more than 32 interim responses") } else { Ok(()) };
        }
        let mut length: Option<u64> = None;
        // Nothing, other codings, or chunked as the last one.
        let mut coded: Option<bool> = None;
        let (mut close, mut keep_alive, mut valued) = (false, false, false);
        for field in parsed.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                for item in field.value.split(|b| *b == b',') {
                    let n = number(item.trim_ascii())?;
                    if length.is_some_and(|other| other != n) {
                        return Err("content-length is given twice");
                    }
                    length = Some(n);
                }
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                for coding in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    if coded == Some(true) {
                        return Err("chunked is not the last transfer-encoding");
                    }
                    coded = Some(coding.eq_ignore_ascii_case(b"chunked"));
                }
            } else if field.name.eq_ignore_ascii_case("connection") {
                for option in field.value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            } else if look.field.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(field.name)) && !valued {
                valued = true;
                let value = self.value.get_or_insert_default();
                value.clear();
                value.extend_from_slice(field.value);
            }
        }
        let old = parsed.version == Some(0);
        if coded.is_some() && (length.is_some() || old) {
            return Err("transfer-encoding beside content-length, or in HTTP/1.0");
        }
        self.status = status;
        self.state = match (status, coded, length) {
            (101 | 204 | 304, ..) | (_, None, Some(0)) => State::Done,
            (_, Some(true), _) => State::Size(0, 0),
            (_, Some(false), _) | (_, None, None) => State::UntilClose,
            (_, None, Some(n)) => State::Length(n),
        };
        self.keep = !close && (keep_alive || !old) && status != 101 && self.state != State::UntilClose;
        Ok(())
    }
}

/// Behind the first empty line that begins at `from` or later.
fn end_of_head(bytes: &[u8], mut from: usize) -> Option<usize> {
    while let Some(n) = memchr(b'\n', bytes.get(from..)?) {
        from += n + 1;
        match bytes.get(from..)? {
            [b'\n', ..] => return Some(from + 1),
            [b'\r', b'\n', ..] => return Some(from + 2),
            _ => {}
        }
    }
    None
}

fn number(digits: &[u8]) -> Result<u64, Malformed> {
    let wrong = "content-length is no number";
    if digits.is_empty() {
        return Err(wrong);
    }
    digits.iter().try_fold(0u64, |n, b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 10).ok_or(wrong)?;
        n.checked_mul(10).and_then(|n| n.checked_add(digit.into())).ok_or("content-length is over 2^64")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        Look::new(Some("X-Worker".into()), Some("aab"))
    }

    /// What became of a response: bytes used, status, kept, the field's value, the text was found.
    type Seen = Result<Option<(usize, u16, bool, String, bool)>, Malformed>;

    fn seen(response: &Response, used: usize) -> (usize, u16, bool, String, bool) {
        let value = String::from_utf8_lossy(response.value()).into_owned();
        (used, response.status(), response.keeps_connection(), value, response.has_text(&look()))
    }

    /// Feeds pieces that end at `cuts`.
    fn pieces(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> (Seen, End) {
        let (look, mut response, mut from) = (look(), Response::new(), 0);
        for cut in cuts.into_iter().chain([bytes.len()]) {
            match response.feed(&look, &bytes[from..cut]) {
                Ok(None) => from = cut,
                Ok(Some(n)) => return (Ok(Some(seen(&response, from + n))), response.end()),
                Err(e) => return (Err(e), response.end()),
            }
        }
        (Ok(None), response.end())
    }

    /// The same however it is cut: whole, in two at every place, in three at every two, byte by byte.
    fn fed(bytes: &[u8]) -> (Seen, End) {
        let whole = pieces(bytes, []);
        for i in 0..=bytes.len() {
            assert_eq!(pieces(bytes, [i]), whole, "cut at {i}: {}", String::from_utf8_lossy(bytes));
            if bytes.len() < 200 {
                for j in i..=bytes.len() {
                    assert_eq!(pieces(bytes, [i, j]), whole, "cut at {i} and {j}");
                }
            }
        }
        assert_eq!(pieces(bytes, 0..bytes.len()), whole, "byte by byte: {}", String::from_utf8_lossy(bytes));
        whole
    }

    fn good(text: &str) -> (usize, u16, bool, String, bool) {
        match fed(text.as_bytes()) {
            (Ok(Some(seen)), End::Complete) => seen,
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn bad(text: impl AsRef<[u8]>) -> Malformed {
        match fed(text.as_ref()) {
            (Err(e), _) => e,
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(text.as_ref())),
        }
    }

    #[test]
    fn a_response_ends_where_its_length_or_its_chunks_say() {
        let some = |used, status, keep, value: &str, text| (used, status, keep, value.to_owned(), text);
        for (text, left, status, value, found) in [
            ("HTTP/1.1 200 OK\r\nX-Worker: 7\r\nContent-Length: 5\r\n\r\naaaab", 0, 200, "7", true),
            ("HTTP/1.1 201 OK\r\ncontent-length:5\r\n\r\naabaaXX", 2, 201, "", true),
            ("HTTP/1.1 200\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nab", 0, 200, "", false),
            ("HTTP/1.1 503 Busy\nContent-Length: 0\n\n", 0, 503, "", false),
            ("HTTP/1.1 200 OK\r\nx-worker:7 \r\nX-Worker: 8\r\nContent-Length: 0\r\n\r\n", 0, 200, "7", false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 200, "", false),
        ] {
            assert_eq!(good(text), some(text.len() - left, status, true, value, found), "{text}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n2;a=\"b\"\r\naa\r\n0A \r\nb123456789\r\n0\r\nX: y\r\nZ: \r\n\r\nHTTP";
        assert_eq!(good(chunked), some(chunked.len() - 4, 200, true, "", true));
    }

    #[test]
    fn interim_responses_and_statuses_without_a_body_are_known() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-Worker: no\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\nleft";
        assert_eq!(good(text), (text.len() - 4, 204, true, String::new(), false));
        assert_eq!(good("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n").1, 304);
        let upgrade = good("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n");
        assert!(upgrade.1 == 101 && !upgrade.2);
        assert_eq!(bad("HTTP/1.1 100 Continue\r\n\r\n".repeat(33)), "more than 32 interim responses");
        assert_eq!(fed(&b"HTTP/1.1 100 Continue\r\n\r\n".repeat(32)).1, End::Truncated);
    }

    #[test]
    fn the_connection_is_kept_as_the_version_and_its_field_say() {
        for (text, keep) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: foo, Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: closed\r\n\r\n", true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ] {
            assert_eq!(good(text).2, keep, "{text}");
        }
    }

    #[test]
    fn without_a_length_the_end_of_the_connection_is_the_end() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\nbaab",
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: br\r\n\r\nx",
        ] {
            assert_eq!(fed(text.as_bytes()), (Ok(None), End::Complete), "{text}");
            let (look, mut response) = (look(), Response::new());
            assert_eq!(response.feed(&look, text.as_bytes()), Ok(None));
            assert!(!response.keeps_connection() && response.status() == 200);
            assert_eq!(response.has_text(&look), text.contains("aab"));
        }
    }

    #[test]
    fn every_prefix_of_a_response_is_truncated() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: 1\r\n\r\n";
        let sized = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for text in [chunked, sized] {
            for cut in 0..text.len() {
                let want = if cut == 0 { End::Nothing } else { End::Truncated };
                assert_eq!(pieces(&text.as_bytes()[..cut], []), (Ok(None), want), "{cut} of {text}");
            }
            assert_eq!(good(text).0, text.len());
        }
        // A length that lies: more is promised than comes.
        assert_eq!(fed(b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\nabc"), (Ok(None), End::Truncated));
    }

    #[test]
    fn what_is_no_response_is_malformed_as_soon_as_it_shows() {
        for text in ["SSH-2.0-OpenSSH_9.2\r\n", "\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/2 200\r\n", "\0", "<html>", "HTTP/2.0 200 OK\r\n\r\n"]
        {
            assert_eq!(bad(text), "no HTTP/1.x status line", "{text:?}");
        }
        for (head, told) in [
            ("HTTP/1.1 2x0 OK\r\n\r\n", "status line has no status"),
            ("HTTP/1.1 099 OK\r\n\r\n", "status is below 100"),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "head has a field that is none"),
            ("HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n", "head has a field that is none"),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content-length is no number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", "content-length is no number"),
            ("HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", "content-length is no number"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n", "content-length is given twice"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "content-length is given twice"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551616\r\n\r\n", "content-length is over 2^64"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "transfer-encoding beside content-length, or in HTTP/1.0",
            ),
            ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding beside content-length, or in HTTP/1.0"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "chunked is not the last transfer-encoding"),
        ] {
            assert_eq!(bad(head), told, "{head}");
        }
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (body, told) in [
            ("\r\n", "chunk's size has no digit"),
            ("x\r\n", "chunk's size has no digit"),
            ("1g\r\n", "chunk's size is no hexadecimal number"),
            ("00000000000000001\r\n", "chunk's size has more than 16 digits"),
            ("1\n", "chunk's size is no hexadecimal number"),
            ("1;\n", "chunk's size ends without CR"),
            ("1\rx", "chunk's size ends without LF"),
            ("1\r\nabc\r\n", "chunk's data is longer than its size, or its end is no CRLF"),
            ("1\r\na\rx", "chunk's data is longer than its size, or its end is no CRLF"),
            ("0\r\n\n", "trailer ends without CR"),
            ("0\r\n\rx", "trailer ends without LF"),
        ] {
            assert_eq!(bad(format!("{chunked}{body}")), told, "{body:?}");
        }
    }

    #[test]
    fn what_has_no_end_is_cut_off() {
        let fields = |n: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "A: b\r\n".repeat(n));
        let once = |text: String| pieces(text.as_bytes(), []).0.map(|seen| seen.map(|s| s.1));
        assert_eq!(once(fields(127)), Ok(Some(200)));
        assert_eq!(once(fields(128)), Err("head has more than 128 fields"));
        let long = |n: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: {}\r\n\r\n", "x".repeat(n - 43));
        assert_eq!(once(long(MAX_HEAD)), Ok(Some(200)));
        assert_eq!(once(long(MAX_HEAD + 1)), Err("head is longer than 64 KiB"));
        let in_pieces = long(2 * MAX_HEAD);
        assert_eq!(pieces(in_pieces.as_bytes(), (0..in_pieces.len()).step_by(1000)).0, Err("head is longer than 64 KiB"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(once(format!("{chunked}1;{}", "x".repeat(5000))), Err("chunk's extension is longer than 4096 bytes"));
        assert_eq!(once(format!("{chunked}0\r\n{}", "A: b\r\n".repeat(20_000))), Err("trailer is longer than 64 KiB"));
    }

    #[test]
    fn a_response_that_was_cleared_is_new() {
        let (look, mut response) = (look(), Response::new());
        response.feed(&look, b"HTTP/1.1 500 Oh\r\nX-Worker: 3\r\nConnection: close\r\nContent-Length: 4\r\n\r\naab").expect("a part");
        response.clear();
        assert!(!response.began() && response.end() == End::Nothing && response.value().is_empty() && !response.has_text(&look));
        assert_eq!(response.feed(&look, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Ok(Some(38)));
        assert_eq!(seen(&response, 38), (38, 200, true, String::new(), false));
    }

    #[test]
    fn text_is_found_behind_what_looks_like_it() {
        // The border of the border of a prefix is needed here.
        let look = Look::new(None, Some("aabaaaa"));
        let mut response = Response::new();
        assert_eq!(response.feed(&look, b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\naabaaabaaaa"), Ok(Some(50)));
        assert!(response.has_text(&look));
    }

    #[test]
    fn text_is_found_wherever_it_lies() {
        // Every body of seven letters of two, every cut: as a search in the whole says.
        for bits in 0..128u32 {
            let body: String = (0..7).map(|i| if bits >> i & 1 == 0 { 'a' } else { 'b' }).collect();
            for pattern in ["a", "aab", "abab", "aabaab", "bbbbbbb"] {
                let look = Look::new(None, Some(pattern));
                for cut in 0..=7 {
                    let mut response = Response::new();
                    response.feed(&look, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n").expect("a head");
                    response.feed(&look, &body.as_bytes()[..cut]).expect("a part");
                    if cut < 7 {
                        assert_eq!(response.feed(&look, &body.as_bytes()[cut..]), Ok(Some(7 - cut)));
                    }
                    assert_eq!(response.has_text(&look), body.contains(pattern), "{pattern} in {body} cut at {cut}");
                }
            }
        }
    }
}
