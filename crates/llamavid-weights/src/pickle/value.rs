//! What a pickle holds: plain values, and calls that nobody makes.

use std::borrow::Cow;

use crate::error::shown;

/// A value on the pickle machine's stack. Anything with a size lives in [`Pickle::objects`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Object(u32),
}

/// A value with a size. Containers may hold themselves, so a reader limits how deep it goes.
#[derive(Debug)]
pub(crate) enum Object<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    /// A `str` of Python 2: text or bytes, as the reader needs.
    ByteString(&'a [u8]),
    /// An integer beyond 64 bits, little-endian two's complement.
    Long(&'a [u8]),
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// A class or function, by name.
    Global(&'a str, &'a str),
    /// An object that the file keeps outside the pickle.
    Persistent(Value),
    /// What a call would have made.
    Call(Box<Call>),
}

/// A call that was not made, with everything that would have been put into its result.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) callable: Value,
    pub(crate) arguments: Value,
    pub(crate) state: Option<Value>,
    pub(crate) items: Vec<Value>,
    pub(crate) pairs: Vec<(Value, Value)>,
}

/// A pickle that was read, and nothing more than read.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(crate) objects: Vec<Object<'a>>,
    pub(crate) root: Value,
    /// Bytes of the input that belong to the pickle.
    pub(crate) length: usize,
}

impl<'a> Pickle<'a> {
    pub(crate) fn object(&self, value: Value) -> Option<&Object<'a>> {
        match value {
            Value::Object(index) => self.objects.get(index as usize),
            _ => None,
        }
    }

    pub(crate) fn integer(&self, value: Value) -> Option<i64> {
        match value {
            Value::Int(integer) => Some(integer),
            _ => None,
        }
    }

    /// A size, count or position.
    pub(crate) fn size(&self, value: Value) -> Option<usize> {
        self.integer(value).and_then(|integer| usize::try_from(integer).ok())
    }

    pub(crate) fn text(&self, value: Value) -> Option<&'a str> {
        match self.object(value)? {
            Object::Text(text) => Some(text),
            Object::ByteString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Bytes, also where protocol 2 writes them as `_codecs.encode(text, 'latin1')`.
    pub(crate) fn bytes(&self, value: Value) -> Option<Cow<'a, [u8]>> {
        match self.object(value)? {
            Object::Bytes(bytes) | Object::ByteString(bytes) => Some(Cow::Borrowed(bytes)),
            Object::Call(_) => {
                let (("_codecs", "encode"), &[text, codec, ..]) = self.call(value)? else { return None };
                if !matches!(self.text(codec)?, "latin1" | "latin-1") {
                    return None;
                }
                let bytes: Result<Vec<u8>, _> =
                    self.text(text)?.chars().map(|letter| u8::try_from(u32::from(letter))).collect();
                bytes.ok().map(Cow::Owned)
            }
            _ => None,
        }
    }

    pub(crate) fn global(&self, value: Value) -> Option<(&'a str, &'a str)> {
        match self.object(value)? {
            Object::Global(module, name) => Some((module, name)),
            _ => None,
        }
    }

    /// Name and arguments of a call that was not made.
    pub(crate) fn call(&self, value: Value) -> Option<((&'a str, &'a str), &[Value])> {
        let Object::Call(call) = self.object(value)? else { return None };
        let Object::Tuple(arguments) = self.object(call.arguments)? else { return None };
        Some((self.global(call.callable)?, arguments))
    }

    /// State that would have been set on a call's result.
    pub(crate) fn state(&self, value: Value) -> Option<Value> {
        match self.object(value)? {
            Object::Call(call) => call.state,
            _ => None,
        }
    }

    /// A tuple or list, or a `torch.Size` of one.
    pub(crate) fn sequence(&self, value: Value) -> Option<&[Value]> {
        match self.object(value)? {
            Object::Tuple(values) | Object::List(values) => Some(values),
            Object::Call(_) => {
                let (("torch", "Size"), &[values]) = self.call(value)? else { return None };
                match self.object(values)? {
                    Object::Tuple(values) | Object::List(values) => Some(values),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// A tuple or list of sizes.
    pub(crate) fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        self.sequence(value)?.iter().map(|value| self.size(*value)).collect()
    }

    /// Keys and values of a dict or an `OrderedDict`, in order.
    pub(crate) fn pairs(&self, value: Value) -> Option<Vec<(Value, Value)>> {
        match self.object(value)? {
            Object::Dict(pairs) => Some(pairs.clone()),
            Object::Call(call) => {
                let (("collections", "OrderedDict" | "defaultdict"), arguments) = self.call(value)? else {
                    return None;
                };
                let mut pairs = Vec::new();
                // Python 2 writes the pairs as an argument, a list of lists.
                let written = arguments.first().and_then(|first| self.sequence(*first)).unwrap_or_default();
                for pair in written {
                    let &[key, value] = self.sequence(*pair)? else { return None };
                    pairs.push((key, value));
                }
                pairs.extend_from_slice(&call.pairs);
                Some(pairs)
            }
            _ => None,
        }
    }

    /// Names of the classes and functions that the pickle mentions, once each, the first ten.
    pub(crate) fn globals(&self) -> Vec<String> {
        let mut names = Vec::new();
        for object in &self.objects {
            if let Object::Global(module, name) = object {
                let name = format!("{}.{}", shown(module), shown(name));
                if !names.contains(&name) {
                    names.push(name);
                }
                if names.len() == 10 {
                    break;
                }
            }
        }
        names
    }
}
