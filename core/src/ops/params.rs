//! Options of ops: declared in a table, checked in one place, read without error handling.

use crate::error::{Error, ErrorKind, Result};
use crate::value::Value;

/// What an option may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParamType {
    /// A boolean.
    Bool,
    /// An integer in a range, both ends included.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A finite number in a range, both ends included.
    Float {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// Text.
    Str,
    /// One of these words.
    Enum(&'static [&'static str]),
    /// Bytes.
    Bytes,
    /// A list of texts.
    StrList,
    /// Any value; the op documents and checks its shape: TypeScript type, Python type.
    Any(&'static str, &'static str),
}

/// What an option is when the caller leaves it out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// The caller must give it.
    Required,
    /// Absent; the getters' `opt_` forms return `None`.
    Absent,
    /// A boolean.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text, or a word of an enum.
    Str(&'static str),
}

/// One option of an op.
#[derive(Clone, Copy, Debug)]
pub struct ParamDef {
    /// Lower snake case; Node's camelCase form is accepted as well.
    pub name: &'static str,
    /// Type and range.
    pub ty: ParamType,
    /// Default.
    pub default: Default,
    /// One sentence with the unit.
    pub about: &'static str,
}

impl ParamDef {
    /// The name in Node: `max_pixels` → `maxPixels`.
    #[must_use]
    pub fn camel(&self) -> String {
        let mut out = String::new();
        let mut up = false;
        for c in self.name.chars() {
            if c == '_' {
                up = true;
            } else {
                out.push(if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c });
            }
        }
        out
    }

    fn matches(&self, key: &str) -> bool {
        if key == self.name {
            return true;
        }
        // camelCase without allocating: walk both, `_x` matches `X`.
        let mut k = key.chars();
        let mut up = false;
        for c in self.name.chars() {
            if c == '_' {
                up = true;
                continue;
            }
            let want = if std::mem::take(&mut up) { c.to_ascii_uppercase() } else { c };
            if k.next() != Some(want) {
                return false;
            }
        }
        k.next().is_none()
    }

    fn check(&self, op: &str, v: &Value) -> Result<Value> {
        let bad_type = |want: &str| {
            Error::invalid("option has the wrong type")
                .with("op", op)
                .with("option", self.name)
                .with("want", want)
                .with("got", v.type_name())
        };
        let out_of_range = |value: &dyn std::fmt::Display, min: &dyn std::fmt::Display, max: &dyn std::fmt::Display| {
            Error::invalid("option is out of range")
                .with("op", op)
                .with("option", self.name)
                .with("value", value)
                .with("min", min)
                .with("max", max)
        };
        match self.ty {
            ParamType::Bool => v.as_bool().map(Value::Bool).ok_or_else(|| bad_type("bool")),
            ParamType::Int { min, max } => {
                let i = match v {
                    Value::Float(f) if v.as_int().is_none() => return Err(out_of_range(f, &min, &max)),
                    Value::Big(_) => return Err(out_of_range(&"beyond 64 bits", &min, &max)),
                    _ => v.as_int().ok_or_else(|| bad_type("int"))?,
                };
                if (min..=max).contains(&i) { Ok(Value::Int(i)) } else { Err(out_of_range(&i, &min, &max)) }
            }
            ParamType::Float { min, max } => {
                let f = v.as_float().ok_or_else(|| bad_type("number"))?;
                if f >= min && f <= max { Ok(Value::Float(f)) } else { Err(out_of_range(&f, &min, &max)) }
            }
            ParamType::Str => v.as_str().map(|s| Value::from(s.to_owned())).ok_or_else(|| bad_type("string")),
            ParamType::Enum(words) => {
                let s = v.as_str().ok_or_else(|| bad_type("string"))?;
                let word = words.iter().find(|w| **w == s).ok_or_else(|| {
                    Error::invalid("option is not one of its words")
                        .with("op", op)
                        .with("option", self.name)
                        .with("value", s.chars().take(80).collect::<String>())
                        .with("want", words.join(" "))
                })?;
                Ok(Value::str(*word))
            }
            ParamType::Bytes => match v {
                Value::Bytes(_) | Value::Buffer(_) | Value::Typed(_) => Ok(v.deep_clone()?.into_bytes().map(Value::Bytes)?),
                Value::Str(s) => Ok(s.as_bytes().to_vec().into()),
                _ => Err(bad_type("bytes")),
            },
            ParamType::StrList => match v {
                Value::Array(items) if items.iter().all(|i| i.as_str().is_some()) => v.deep_clone(),
                _ => Err(bad_type("list of strings")),
            },
            ParamType::Any(..) => v.deep_clone(),
        }
    }
}

/// The checked options of one call.
#[derive(Debug)]
pub struct Params {
    defs: &'static [ParamDef],
    /// Small, because it lies in every task and most have none.
    given: Option<Box<Given>>,
}

#[derive(Debug)]
enum Given {
    /// By the place in the table.
    Checked(Vec<Option<Value>>),
    /// What a plugin reads: the caller's tree as it came.
    Raw(Value),
}

impl Params {
    /// Checks `given` (nil or a map with text keys) against an op's table. A nil value counts as absent.
    ///
    /// # Errors
    /// `Invalid` that names the op, the option, the value and the limit.
    pub fn check(op: &str, defs: &'static [ParamDef], given: &Value) -> Result<Params> {
        // Most calls have no options: no allocation then.
        let mut out: Vec<Option<Value>> = Vec::new();
        match given {
            Value::Nil => {}
            Value::Map(pairs) => {
                for (key, value) in pairs {
                    let key = key
                        .as_str()
                        .ok_or_else(|| Error::invalid("option name is not text").with("op", op).with("got", key.type_name()))?;
                    let at = defs.iter().position(|d| d.matches(key)).ok_or_else(|| {
                        let known = defs.iter().map(|d| d.name).collect::<Vec<_>>().join(" ");
                        Error::invalid("unknown option")
                            .with("op", op)
                            .with("option", key.chars().take(80).collect::<String>())
                            .with("known", known)
                    })?;
                    if matches!(value, Value::Nil) {
                        continue;
                    }
                    if out.is_empty() {
                        out.resize_with(defs.len(), || None);
                    }
                    if out[at].is_some() {
                        return Err(Error::invalid("option is given twice").with("op", op).with("option", defs[at].name));
                    }
                    out[at] = Some(defs[at].check(op, value)?);
                }
            }
            other => return Err(Error::invalid("options are not a map").with("op", op).with("got", other.type_name())),
        }
        for (i, d) in defs.iter().enumerate() {
            if d.default == Default::Required && out.get(i).is_none_or(Option::is_none) {
                return Err(Error::invalid("option is missing").with("op", op).with("option", d.name));
            }
        }
        let given = (!out.is_empty()).then(|| Box::new(Given::Checked(out)));
        Ok(Params { defs, given })
    }

    /// No options.
    pub(crate) const NONE: Params = Params { defs: &[], given: None };

    /// Options of a plugin's op: not in a table, read by the plugin itself.
    #[must_use]
    pub fn raw(value: Value) -> Params {
        Params { defs: &[], given: Some(Box::new(Given::Raw(value))) }
    }

    /// The tree of [`Params::raw`].
    #[must_use]
    pub fn as_raw(&self) -> Option<&Value> {
        match self.given.as_deref()? {
            Given::Raw(value) => Some(value),
            Given::Checked(_) => None,
        }
    }

    fn find(&self, name: &str) -> (Option<&Value>, Default) {
        let at = self
            .defs
            .iter()
            .position(|d| d.name == name)
            .unwrap_or_else(|| panic!("op reads option {name}, which its table does not have"));
        let given = match self.given.as_deref() {
            Some(Given::Checked(given)) => given.get(at).and_then(Option::as_ref),
            _ => None,
        };
        (given, self.defs[at].default)
    }

    /// Whether the caller gave it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).0.is_some()
    }

    /// The value as given, if it was.
    #[must_use]
    pub fn any(&self, name: &str) -> Option<&Value> {
        self.find(name).0
    }

    /// A boolean with a default.
    #[must_use]
    pub fn bool(&self, name: &str) -> bool {
        match self.find(name) {
            (Some(Value::Bool(b)), _) => *b,
            (None, Default::Bool(b)) => b,
            other => panic!("option {name} is no bool: {other:?}"),
        }
    }

    /// An integer, or `None` when it is absent and has no default.
    #[must_use]
    pub fn opt_int(&self, name: &str) -> Option<i64> {
        match self.find(name) {
            (Some(v), _) => v.as_int(),
            (None, Default::Int(i)) => Some(i),
            _ => None,
        }
    }

    /// An integer with a default.
    #[must_use]
    pub fn int(&self, name: &str) -> i64 {
        self.opt_int(name).unwrap_or_else(|| panic!("option {name} has no default"))
    }

    /// A number, or `None`.
    #[must_use]
    pub fn opt_float(&self, name: &str) -> Option<f64> {
        match self.find(name) {
            (Some(v), _) => v.as_float(),
            (None, Default::Float(f)) => Some(f),
            _ => None,
        }
    }

    /// A number with a default.
    #[must_use]
    pub fn float(&self, name: &str) -> f64 {
        self.opt_float(name).unwrap_or_else(|| panic!("option {name} has no default"))
    }

    /// Text, or `None`.
    #[must_use]
    pub fn opt_str(&self, name: &str) -> Option<&str> {
        match self.find(name) {
            (Some(v), _) => v.as_str(),
            (None, Default::Str(s)) => Some(s),
            _ => None,
        }
    }

    /// Text or a word of an enum, with a default.
    #[must_use]
    pub fn str(&self, name: &str) -> &str {
        self.opt_str(name).unwrap_or_else(|| panic!("option {name} has no default"))
    }

    /// Bytes, or `None`.
    #[must_use]
    pub fn opt_bytes(&self, name: &str) -> Option<&[u8]> {
        match self.find(name).0 {
            Some(Value::Bytes(b)) => Some(b),
            _ => None,
        }
    }

    /// A list of texts; empty when absent.
    #[must_use]
    pub fn str_list(&self, name: &str) -> Vec<&str> {
        match self.find(name).0 {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }
}

/// `Unsupported` for a value that a build or a library cannot do.
#[allow(dead_code, reason = "families use it by feature")]
pub(crate) fn unsupported(op: &str, what: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, what).with("op", op)
}
