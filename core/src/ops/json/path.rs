//! JSONPath (RFC 9535): the grammar, checked for well-typedness, as a small tree.

use crate::error::{Error, Result};

/// Nesting of parentheses, filters and function arguments in one query.
const MAX_NESTING: usize = 64;
/// RFC 7493's range of exact integers, the range of indices in RFC 9535.
const MAX_INT: i64 = (1 << 53) - 1;

#[derive(Debug, PartialEq)]
pub(super) struct Query {
    /// Begins at `$`; otherwise at `@`.
    pub(super) absolute: bool,
    pub(super) segments: Vec<Segment>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Segment {
    pub(super) descend: bool,
    pub(super) selectors: Vec<Selector>,
}

#[derive(Debug, PartialEq)]
pub(super) enum Selector {
    Name(Box<[u8]>),
    Wild,
    Index(i64),
    Slice(Option<i64>, Option<i64>, i64),
    Filter(Expr),
}

#[derive(Debug, PartialEq)]
pub(super) enum Expr {
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Exists(Query),
    Compare(Operand, Cmp, Operand),
    /// `match` (whole text) or `search` (a part), by an I-Regexp.
    Regex {
        whole: bool,
        text: Operand,
        pattern: Operand,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// Something of RFC 9535's ValueType.
#[derive(Debug, PartialEq)]
pub(super) enum Operand {
    Null,
    Bool(bool),
    /// The number's own text.
    Number(Box<str>),
    Str(Box<str>),
    Singular(Query),
    Length(Box<Operand>),
    Count(Query),
    Value(Query),
}

impl Query {
    /// At most one node for any document.
    pub(super) fn is_singular(&self) -> bool {
        self.segments.iter().all(|s| !s.descend && matches!(s.selectors[..], [Selector::Name(_) | Selector::Index(_)]))
    }
}

/// What a function call yields.
enum Call {
    Value(Operand),
    Logical(Expr),
}

/// Parses a whole query, `$…`.
pub(super) fn query(text: &str) -> Result<Query> {
    let mut p = Parser { text, pos: 0, nesting: 0 };
    if !p.eat("$") {
        return p.fail("a query begins with $");
    }
    let query = Query { absolute: true, segments: p.segments()? };
    p.end(query)
}

/// Parses the expression of a filter, what stands between `?` and `]`.
pub(super) fn filter(text: &str) -> Result<Expr> {
    let mut p = Parser { text, pos: 0, nesting: 0 };
    p.space();
    let expr = p.or()?;
    p.space();
    p.end(expr)
}

struct Parser<'a> {
    text: &'a str,
    pos: usize,
    nesting: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, why: &'static str) -> Result<T> {
        let shown: String = self.text.chars().take(200).collect();
        Err(Error::invalid("not a JSONPath expression").with("path", shown).with("at", self.pos).with("why", why))
    }

    fn end<T>(&self, parsed: T) -> Result<T> {
        if self.pos == self.text.len() { Ok(parsed) } else { self.fail("unexpected text") }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn eat(&mut self, token: &str) -> bool {
        let yes = self.text[self.pos..].starts_with(token);
        if yes {
            self.pos += token.len();
        }
        yes
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.pos += 1;
        }
    }

    fn nest<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.nesting == MAX_NESTING {
            return self.fail("nested too deeply");
        }
        self.nesting += 1;
        let out = inner(self);
        self.nesting -= 1;
        out
    }

    fn segments(&mut self) -> Result<Vec<Segment>> {
        let mut out = Vec::new();
        loop {
            // White space belongs to the query only when a segment follows.
            let before = self.pos;
            self.space();
            let descend = self.eat("..");
            if self.eat("[") {
                out.push(Segment { descend, selectors: self.nest(Self::bracket)? });
            } else if descend || self.eat(".") {
                let selector = if self.eat("*") { Selector::Wild } else { Selector::Name(self.shorthand()?) };
                out.push(Segment { descend, selectors: vec![selector] });
            } else {
                self.pos = before;
                return Ok(out);
            }
        }
    }

    fn shorthand(&mut self) -> Result<Box<[u8]>> {
        let rest = &self.text[self.pos..];
        let first = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
        if !rest.starts_with(first) {
            return self.fail("member name, * or [ expected");
        }
        let len = rest.find(|c: char| !first(c) && !c.is_ascii_digit()).unwrap_or(rest.len());
        self.pos += len;
        Ok(rest.as_bytes()[..len].into())
    }

    fn bracket(&mut self) -> Result<Vec<Selector>> {
        let mut out = Vec::new();
        loop {
            self.space();
            out.push(self.selector()?);
            self.space();
            if self.eat("]") {
                return Ok(out);
            }
            if !self.eat(",") {
                return self.fail("comma or ] expected");
            }
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        match self.peek() {
            Some(b'\'' | b'"') => Ok(Selector::Name(self.string()?.into_bytes().into())),
            Some(b'*') => {
                self.pos += 1;
                Ok(Selector::Wild)
            }
            Some(b'?') => {
                self.pos += 1;
                self.space();
                Ok(Selector::Filter(self.nest(Self::or)?))
            }
            Some(b'-' | b'0'..=b'9' | b':') => self.index_or_slice(),
            _ => self.fail("selector expected"),
        }
    }

    fn index_or_slice(&mut self) -> Result<Selector> {
        let start = self.opt_int()?;
        let after = self.pos;
        self.space();
        if !self.eat(":") {
            self.pos = after;
            return match start {
                Some(i) => Ok(Selector::Index(i)),
                None => self.fail("index expected"),
            };
        }
        self.space();
        let end = self.opt_int()?;
        let after = self.pos;
        self.space();
        let mut step = 1;
        if self.eat(":") {
            let after = self.pos;
            self.space();
            match self.opt_int()? {
                Some(s) => step = s,
                None => self.pos = after,
            }
        } else {
            self.pos = after;
        }
        Ok(Selector::Slice(start, end, step))
    }

    fn opt_int(&mut self) -> Result<Option<i64>> {
        let rest = &self.text[self.pos..];
        let digits = rest.strip_prefix('-').unwrap_or(rest);
        let len = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let whole = &rest[..rest.len() - digits.len() + len];
        if whole.is_empty() {
            return Ok(None);
        }
        if len == 0 {
            return self.fail("digit expected");
        }
        if whole == "-0" || (digits.starts_with('0') && len > 1) {
            return self.fail("integer with a leading zero");
        }
        match whole.parse::<i64>() {
            Ok(i) if i.abs() <= MAX_INT => {
                self.pos += whole.len();
                Ok(Some(i))
            }
            _ => self.fail("integer is out of range"),
        }
    }

    fn string(&mut self) -> Result<String> {
        let quote = self.peek().expect("the caller saw a quote") as char;
        self.pos += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.text[self.pos..].chars().next() else { return self.fail("string without an end") };
            match c {
                _ if c == quote => {
                    self.pos += 1;
                    return Ok(out);
                }
                '\\' => {
                    self.pos += 1;
                    out.push(self.escape(quote)?);
                }
                '\0'..='\x1F' => return self.fail("control character in a string"),
                _ => {
                    out.push(c);
                    self.pos += c.len_utf8();
                }
            }
        }
    }

    fn escape(&mut self, quote: char) -> Result<char> {
        let Some(c) = self.peek() else { return self.fail("string without an end") };
        let plain = match c {
            b'b' => '\x08',
            b'f' => '\x0C',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'/' => '/',
            b'\\' => '\\',
            _ if c as char == quote => quote,
            b'u' => {
                let high = self.unit()?;
                let point = match high {
                    0xD800..0xDC00 if self.peek() == Some(b'\\') && self.text.as_bytes().get(self.pos + 1) == Some(&b'u') => {
                        self.pos += 1;
                        match self.unit()? {
                            low @ 0xDC00..0xE000 => 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00),
                            _ => return self.fail("lone surrogate"),
                        }
                    }
                    _ => high,
                };
                return match char::from_u32(point) {
                    Some(c) => Ok(c),
                    None => self.fail("lone surrogate"),
                };
            }
            _ => return self.fail("unknown escape"),
        };
        self.pos += 1;
        Ok(plain)
    }

    /// `uXXXX`, from the `u`.
    fn unit(&mut self) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.pos + 1..self.pos + 5);
        match digits.and_then(|d| d.iter().try_fold(0, |n, &d| Some(n << 4 | (d as char).to_digit(16)?))) {
            Some(unit) => {
                self.pos += 5;
                Ok(unit)
            }
            None => self.fail("four hex digits expected after \\u"),
        }
    }

    fn or(&mut self) -> Result<Expr> {
        let mut all = vec![self.and()?];
        while self.operator("||") {
            all.push(self.and()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::Or(all) })
    }

    fn and(&mut self) -> Result<Expr> {
        let mut all = vec![self.basic()?];
        while self.operator("&&") {
            all.push(self.basic()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Expr::And(all) })
    }

    /// The operator with white space around it; nothing is consumed when it does not follow.
    fn operator(&mut self, token: &str) -> bool {
        let before = self.pos;
        self.space();
        if self.eat(token) {
            self.space();
            return true;
        }
        self.pos = before;
        false
    }

    fn basic(&mut self) -> Result<Expr> {
        if self.eat("!") {
            self.space();
            let inner = if self.peek() == Some(b'(') { self.paren()? } else { self.test()? };
            return Ok(Expr::Not(Box::new(inner)));
        }
        if self.peek() == Some(b'(') {
            return self.paren();
        }
        let start = self.pos;
        match self.peek() {
            Some(b'$' | b'@') => {
                let query = self.relative()?;
                match self.comparison()? {
                    None => Ok(Expr::Exists(query)),
                    Some(_) if !query.is_singular() => {
                        self.pos = start;
                        self.fail("only a singular query can be compared")
                    }
                    Some(op) => Ok(Expr::Compare(Operand::Singular(query), op, self.comparable()?)),
                }
            }
            Some(b'a'..=b'z') if self.at_function() => match (self.call()?, self.comparison()?) {
                (Call::Logical(expr), None) => Ok(expr),
                (Call::Value(left), Some(op)) => Ok(Expr::Compare(left, op, self.comparable()?)),
                (Call::Logical(_), Some(_)) => self.fail("a logical function cannot be compared"),
                (Call::Value(_), None) => self.fail("comparison expected after a function that yields a value"),
            },
            _ => {
                let left = self.literal()?;
                match self.comparison()? {
                    Some(op) => Ok(Expr::Compare(left, op, self.comparable()?)),
                    None => self.fail("a literal must be compared"),
                }
            }
        }
    }

    fn paren(&mut self) -> Result<Expr> {
        self.pos += 1;
        self.space();
        let expr = self.nest(Self::or)?;
        self.space();
        if self.eat(")") { Ok(expr) } else { self.fail(") expected") }
    }

    /// What `!` may stand before: a query, or a function that yields a truth.
    fn test(&mut self) -> Result<Expr> {
        match self.peek() {
            Some(b'$' | b'@') => Ok(Expr::Exists(self.relative()?)),
            Some(b'a'..=b'z') if self.at_function() => match self.call()? {
                Call::Logical(expr) => Ok(expr),
                Call::Value(_) => self.fail("a function that yields a value must be compared"),
            },
            _ => self.fail("query or function expected"),
        }
    }

    fn relative(&mut self) -> Result<Query> {
        let absolute = self.peek() == Some(b'$');
        self.pos += 1;
        Ok(Query { absolute, segments: self.segments()? })
    }

    fn comparison(&mut self) -> Result<Option<Cmp>> {
        for (token, op) in [("==", Cmp::Eq), ("!=", Cmp::Ne), ("<=", Cmp::Le), (">=", Cmp::Ge), ("<", Cmp::Lt), (">", Cmp::Gt)] {
            if self.operator(token) {
                return Ok(Some(op));
            }
        }
        Ok(None)
    }

    fn comparable(&mut self) -> Result<Operand> {
        match self.peek() {
            Some(b'$' | b'@') => {
                let query = self.relative()?;
                if query.is_singular() { Ok(Operand::Singular(query)) } else { self.fail("only a singular query can be compared") }
            }
            Some(b'a'..=b'z') if self.at_function() => match self.call()? {
                Call::Value(v) => Ok(v),
                Call::Logical(_) => self.fail("a logical function cannot be compared"),
            },
            _ => self.literal(),
        }
    }

    fn literal(&mut self) -> Result<Operand> {
        if let Some(b'\'' | b'"') = self.peek() {
            return Ok(Operand::Str(self.string()?.into()));
        }
        for (word, value) in [("true", Operand::Bool(true)), ("false", Operand::Bool(false)), ("null", Operand::Null)] {
            if self.eat(word) {
                return if self.peek().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    self.fail("unknown word")
                } else {
                    Ok(value)
                };
            }
        }
        let bytes = self.text.as_bytes();
        let start = self.pos;
        let mut at = start;
        let digits = |at: &mut usize| {
            let from = *at;
            while bytes.get(*at).is_some_and(u8::is_ascii_digit) {
                *at += 1;
            }
            *at - from
        };
        if bytes.get(at) == Some(&b'-') {
            at += 1;
        }
        let first = at;
        let len = digits(&mut at);
        if len == 0 {
            return self.fail("literal, query or function expected");
        }
        if len > 1 && bytes[first] == b'0' {
            return self.fail("number with a leading zero");
        }
        if bytes.get(at) == Some(&b'.') {
            at += 1;
            if digits(&mut at) == 0 {
                return self.fail("digit expected");
            }
        }
        if let Some(b'e' | b'E') = bytes.get(at) {
            at += 1;
            if let Some(b'+' | b'-') = bytes.get(at) {
                at += 1;
            }
            if digits(&mut at) == 0 {
                return self.fail("digit expected");
            }
        }
        self.pos = at;
        Ok(Operand::Number(self.text[start..at].into()))
    }

    /// Whether a function's name and `(` stand here; `true`, `false` and `null` are no functions.
    fn at_function(&self) -> bool {
        let rest = &self.text[self.pos..];
        let len = rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')).unwrap_or(rest.len());
        rest[len..].starts_with('(')
    }

    fn call(&mut self) -> Result<Call> {
        let open = self.text[self.pos..].find('(').expect("at_function saw it");
        let name = &self.text[self.pos..self.pos + open];
        if !matches!(name, "length" | "count" | "match" | "search" | "value") {
            return self.fail("unknown function");
        }
        self.pos += open + 1;
        self.space();
        let call = self.nest(|p| {
            Ok(match name {
                "length" => Call::Value(Operand::Length(Box::new(p.comparable()?))),
                "count" => Call::Value(Operand::Count(p.nodes()?)),
                "value" => Call::Value(Operand::Value(p.nodes()?)),
                _ => {
                    let text = p.comparable()?;
                    if !p.operator(",") {
                        return p.fail("comma expected");
                    }
                    Call::Logical(Expr::Regex { whole: name == "match", text, pattern: p.comparable()? })
                }
            })
        })?;
        self.space();
        if self.eat(")") { Ok(call) } else { self.fail(") expected") }
    }

    fn nodes(&mut self) -> Result<Query> {
        match self.peek() {
            Some(b'$' | b'@') => self.relative(),
            _ => self.fail("query expected"),
        }
    }
}
