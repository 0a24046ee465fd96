//! The pickle machine: opcodes in, objects out. It has no loops and no calls, so its time and memory are
//! bounded by the length of its input and by [`MAX_STEPS`].

use std::collections::HashMap;

use super::value::{Call, Object, Pickle, Value};
use crate::error::{Fault, shown};

/// Opcodes of one pickle; a checkpoint of 7 billion parameters has about thirty thousand.
const MAX_STEPS: usize = 8_000_000;
/// Values on the stack at one time.
const MAX_STACK: usize = 2_000_000;
/// Newest protocol, of Python 3.8 and later.
const MAX_PROTOCOL: u8 = 5;

impl<'a> Pickle<'a> {
    /// Reads one pickle from the front of `input`; bytes behind it are left alone.
    pub(crate) fn parse(input: &'a [u8]) -> Result<Self, Fault> {
        let mut machine = Machine {
            input,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            objects: Vec::new(),
        };
        for _ in 0..MAX_STEPS {
            let start = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => {
                    return Ok(Self { objects: machine.objects, root, length: machine.at });
                }
                Err(fault) => return Err(fault.at(format!("pickle, byte {start}"))),
            }
        }
        Err(Fault::invalid(format!("pickle: more than {MAX_STEPS} opcodes")))
    }
}

struct Machine<'a> {
    input: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    objects: Vec<Object<'a>>,
}

impl<'a> Machine<'a> {
    /// Runs one opcode; the pickle's value when it was the last.
    fn step(&mut self) -> Result<Option<Value>, Fault> {
        let opcode = self.byte()?;
        match opcode {
            // Frame of the stream.
            0x80 => {
                let protocol = self.byte()?;
                if protocol > MAX_PROTOCOL {
                    return Err(Fault::unsupported(format!(
                        "protocol {protocol}, the newest that is read is {MAX_PROTOCOL}"
                    )));
                }
            }
            0x95 => {
                // A frame only tells how far to read ahead.
                self.take(8)?;
            }
            b'.' => return self.pop().map(Some),

            // Stack.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // Popping a mark is how Python drops an empty group.
                if self.marks.last().is_some_and(|mark| *mark == self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => {
                self.pop_group()?;
            }
            b'2' => {
                let top = self.peek()?;
                self.push(top)?;
            }

            // Plain values.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'K' => {
                let value = self.byte()?;
                self.push(Value::Int(i64::from(value)))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            0x8a => {
                let length = usize::from(self.byte()?);
                self.long(length)?;
            }
            0x8b => {
                let length = self.length4()?;
                self.long(length)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(value))?;
            }
            b'I' => {
                let value = match self.line()? {
                    "01" => Value::Bool(true),
                    "00" => Value::Bool(false),
                    digits => Value::Int(parse(digits)?),
                };
                self.push(value)?;
            }
            b'L' => {
                let digits = self.line()?;
                self.push(Value::Int(parse(digits.trim_end_matches('L'))?))?;
            }
            b'F' => {
                let digits = self.line()?;
                self.push(Value::Float(parse(digits)?))?;
            }

            // Text and bytes.
            0x8c => {
                let length = usize::from(self.byte()?);
                self.text(length)?;
            }
            b'X' => {
                let length = self.length4()?;
                self.text(length)?;
            }
            0x8d => {
                let length = self.length8()?;
                self.text(length)?;
            }
            b'C' => {
                let length = usize::from(self.byte()?);
                self.bytes(length)?;
            }
            b'B' => {
                let length = self.length4()?;
                self.bytes(length)?;
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.bytes(length)?;
            }
            b'U' => {
                let length = usize::from(self.byte()?);
                let bytes = self.take(length)?;
                self.push_object(Object::ByteString(bytes))?;
            }
            b'T' => {
                let length = self.length4()?;
                let bytes = self.take(length)?;
                self.push_object(Object::ByteString(bytes))?;
            }
            b'S' | b'V' => {
                return Err(Fault::unsupported("text strings of protocol 0, protocols 2 to 5 are read"));
            }

            // Containers.
            b')' => self.push_object(Object::Tuple(Vec::new()))?,
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let values = self.pop_top(count)?;
                self.push_object(Object::Tuple(values))?;
            }
            b't' => {
                let values = self.pop_group()?;
                self.push_object(Object::Tuple(values))?;
            }
            b']' | 0x8f => self.push_object(Object::List(Vec::new()))?,
            b'l' | 0x91 => {
                let values = self.pop_group()?;
                self.push_object(Object::List(values))?;
            }
            b'}' => self.push_object(Object::Dict(Vec::new()))?,
            b'd' => {
                let pairs = pairs(&self.pop_group()?)?;
                self.push_object(Object::Dict(pairs))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' | 0x90 => {
                let values = self.pop_group()?;
                self.append(values)?;
            }
            b's' => {
                let pair = self.pop_top(2)?;
                self.set_items(pairs(&pair)?)?;
            }
            b'u' => {
                let pairs = pairs(&self.pop_group()?)?;
                self.set_items(pairs)?;
            }

            // Names and calls, none of them followed.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_object(Object::Global(module, name))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.as_text(module), self.as_text(name)) {
                    (Some(module), Some(name)) => self.push_object(Object::Global(module, name))?,
                    _ => return Err(Fault::invalid("a name that is not text")),
                }
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?;
            }
            0x92 => {
                let (named, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, arguments)?;
                // Kept like a state, so that nothing of the file is lost.
                self.set_state(named);
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let arguments = self.pop_group()?;
                let callable = self.new_object(Object::Global(module, name))?;
                let arguments = self.new_object(Object::Tuple(arguments))?;
                self.call(callable, arguments)?;
            }
            b'o' => {
                let group = self.pop_group()?;
                let Some((callable, arguments)) = group.split_first() else {
                    return Err(Fault::invalid("an object without a class"));
                };
                let arguments = self.new_object(Object::Tuple(arguments.to_vec()))?;
                self.call(*callable, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.peek()?;
                self.set_state(state);
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_object(Object::Persistent(id))?;
            }
            b'P' => {
                let id = self.line()?;
                let id = self.new_object(Object::Text(id))?;
                self.push_object(Object::Persistent(id))?;
            }

            // Memo.
            b'p' => {
                let index = parse(self.line()?)?;
                self.remember(index)?;
            }
            b'q' => {
                let index = u64::from(self.byte()?);
                self.remember(index)?;
            }
            b'r' => {
                let index = u64::from(u32::from_le_bytes(self.array()?));
                self.remember(index)?;
            }
            0x94 => self.remember(self.memo.len() as u64)?,
            b'g' => {
                let index = parse(self.line()?)?;
                self.recall(index)?;
            }
            b'h' => {
                let index = u64::from(self.byte()?);
                self.recall(index)?;
            }
            b'j' => {
                let index = u64::from(u32::from_le_bytes(self.array()?));
                self.recall(index)?;
            }

            0x82..=0x84 => return Err(Fault::unsupported("an entry of Python's extension registry")),
            0x97 | 0x98 => return Err(Fault::unsupported("a buffer that is kept outside the pickle")),
            other => return Err(Fault::invalid(format!("unknown opcode 0x{other:02x}"))),
        }
        Ok(None)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        match rest.get(..length) {
            Some(bytes) => {
                self.at += length;
                Ok(bytes)
            }
            None => Err(Fault::invalid(format!("expected {length} more bytes, found {}", rest.len()))),
        }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Fault::invalid(format!("expected {N} bytes")))
    }

    fn length4(&mut self) -> Result<usize, Fault> {
        let length = u32::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| Fault::invalid(format!("length {length}")))
    }

    fn length8(&mut self) -> Result<usize, Fault> {
        let length = u64::from_le_bytes(self.array()?);
        usize::try_from(length).map_err(|_| Fault::invalid(format!("length {length}")))
    }

    fn line(&mut self) -> Result<&'a str, Fault> {
        /// Longer than any name or number.
        const MAX_LINE: usize = 4096;
        let rest = self.input.get(self.at..).unwrap_or_default();
        let end = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or_else(|| Fault::invalid("a line without an end"))?)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| Fault::invalid("a name that is not UTF-8"))
    }

    fn text(&mut self, length: usize) -> Result<(), Fault> {
        let bytes = self.take(length)?;
        let text = std::str::from_utf8(bytes).map_err(|_| Fault::invalid("text that is not UTF-8"))?;
        self.push_object(Object::Text(text))
    }

    fn bytes(&mut self, length: usize) -> Result<(), Fault> {
        let bytes = self.take(length)?;
        self.push_object(Object::Bytes(bytes))
    }

    fn long(&mut self, length: usize) -> Result<(), Fault> {
        let bytes = self.take(length)?;
        if length > 8 {
            return self.push_object(Object::Long(bytes));
        }
        let negative = bytes.last().is_some_and(|last| *last >= 0x80);
        let mut full = if negative { [0xff; 8] } else { [0; 8] };
        full[..length].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(full)))
    }

    fn push(&mut self, value: Value) -> Result<(), Fault> {
        if self.stack.len() >= MAX_STACK {
            return Err(Fault::invalid(format!("more than {MAX_STACK} values on the stack")));
        }
        self.stack.push(value);
        Ok(())
    }

    fn new_object(&mut self, object: Object<'a>) -> Result<Value, Fault> {
        let index = u32::try_from(self.objects.len()).map_err(|_| Fault::invalid("too many objects"))?;
        self.objects.push(object);
        Ok(Value::Object(index))
    }

    fn push_object(&mut self, object: Object<'a>) -> Result<(), Fault> {
        let value = self.new_object(object)?;
        self.push(value)
    }

    /// Lowest height that may be popped: values below a mark belong to the group around it.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value, Fault> {
        if self.stack.len() <= self.floor() {
            return Err(Fault::invalid("the stack is empty"));
        }
        self.stack.pop().ok_or_else(|| Fault::invalid("the stack is empty"))
    }

    fn peek(&self) -> Result<Value, Fault> {
        match self.stack.last() {
            Some(value) if self.stack.len() > self.floor() => Ok(*value),
            _ => Err(Fault::invalid("the stack is empty")),
        }
    }

    fn pop_top(&mut self, count: usize) -> Result<Vec<Value>, Fault> {
        let start = self.stack.len().checked_sub(count).filter(|start| *start >= self.floor());
        Ok(self.stack.split_off(start.ok_or_else(|| Fault::invalid("the stack is empty"))?))
    }

    fn pop_group(&mut self) -> Result<Vec<Value>, Fault> {
        let mark = self.marks.pop().ok_or_else(|| Fault::invalid("a group without a mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn as_text(&self, value: Value) -> Option<&'a str> {
        let Value::Object(index) = value else { return None };
        match self.objects.get(index as usize)? {
            Object::Text(text) => Some(text),
            Object::ByteString(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The object on top of the stack.
    fn top(&mut self) -> Result<&mut Object<'a>, Fault> {
        match self.peek()? {
            Value::Object(index) => {
                self.objects.get_mut(index as usize).ok_or_else(|| Fault::invalid("no such object"))
            }
            _ => Err(Fault::invalid("a plain value where a container should be")),
        }
    }

    fn append(&mut self, mut values: Vec<Value>) -> Result<(), Fault> {
        match self.top()? {
            Object::List(list) => list.append(&mut values),
            Object::Call(call) => call.items.append(&mut values),
            _ => return Err(Fault::invalid("values for something that is no list")),
        }
        Ok(())
    }

    fn set_items(&mut self, mut pairs: Vec<(Value, Value)>) -> Result<(), Fault> {
        match self.top()? {
            Object::Dict(dict) => dict.append(&mut pairs),
            Object::Call(call) => call.pairs.append(&mut pairs),
            _ => return Err(Fault::invalid("keys for something that is no dict")),
        }
        Ok(())
    }

    fn call(&mut self, callable: Value, arguments: Value) -> Result<(), Fault> {
        let call = Call { callable, arguments, state: None, items: Vec::new(), pairs: Vec::new() };
        self.push_object(Object::Call(Box::new(call)))
    }

    /// Sets the state of the call on top; other objects need none to be read.
    fn set_state(&mut self, state: Value) {
        if let Ok(Object::Call(call)) = self.top() {
            call.state = Some(state);
        }
    }

    fn remember(&mut self, index: u64) -> Result<(), Fault> {
        let value = self.peek()?;
        self.memo.insert(index, value);
        Ok(())
    }

    fn recall(&mut self, index: u64) -> Result<(), Fault> {
        match self.memo.get(&index) {
            Some(value) => self.push(*value),
            None => Err(Fault::invalid(format!("nothing was remembered as {index}"))),
        }
    }
}

fn pairs(values: &[Value]) -> Result<Vec<(Value, Value)>, Fault> {
    let (pairs, rest) = values.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Fault::invalid("a key without a value"));
    }
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

fn parse<T: std::str::FromStr>(digits: &str) -> Result<T, Fault> {
    digits.parse().map_err(|_| Fault::invalid(format!("`{}` is no number", shown(digits))))
}
