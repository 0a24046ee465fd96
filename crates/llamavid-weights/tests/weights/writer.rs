//! Writes the files that torch and numpy write, byte by byte, and those that they never would.

use std::io::{Cursor, Write};

use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

/// A pickle under construction.
#[derive(Clone)]
pub struct Pickler {
    bytes: Vec<u8>,
    protocol: u8,
}

impl Pickler {
    pub fn new(protocol: u8) -> Self {
        Self { bytes: vec![0x80, protocol], protocol }
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        match u8::try_from(text.len()) {
            Ok(length) if self.protocol >= 4 => self.raw(&[0x8c, length]).raw(text.as_bytes()),
            _ => self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes()),
        }
    }

    pub fn int(self, value: i64) -> Self {
        match value {
            0..=0xff => self.raw(&[b'K', value as u8]),
            0x100..=0xffff => self.raw(b"M").raw(&(value as u16).to_le_bytes()),
            _ => match i32::try_from(value) {
                Ok(small) => self.raw(b"J").raw(&small.to_le_bytes()),
                Err(_) => self.raw(&[0x8a, 8]).raw(&value.to_le_bytes()),
            },
        }
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        if self.protocol >= 4 {
            self.text(module).text(name).raw(&[0x93])
        } else {
            self.raw(format!("c{module}\n{name}\n").as_bytes())
        }
    }

    pub fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.raw(b"("), |pickler, value| pickler.int(*value)).raw(b"t")
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, strides, False, OrderedDict())`
    pub fn tensor(self, tensor: &Tensor, legacy: bool) -> Self {
        let pickler = self.global("torch._utils", "_rebuild_tensor_v2").raw(b"((");
        let pickler =
            pickler.text("storage").global("torch", &tensor.class).text(&tensor.storage).text("cpu");
        let pickler = pickler.int(tensor.stored as i64);
        let pickler = match (legacy, &tensor.view) {
            (false, _) => pickler,
            (true, None) => pickler.raw(b"N"),
            (true, Some((start, length))) => {
                pickler.raw(b"(").text("view").int(*start).int(*length).raw(b"t")
            }
        };
        pickler
            .raw(b"tQ")
            .int(tensor.offset)
            .ints(&tensor.shape)
            .ints(&tensor.strides)
            .raw(&[0x89])
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    pub fn state_dict(self, tensors: &[Tensor], legacy: bool) -> Self {
        let start = self.raw(b"}(");
        tensors
            .iter()
            .fold(start, |pickler, tensor| pickler.text(&tensor.name).tensor(tensor, legacy))
            .raw(b"u")
    }

    pub fn stop(self) -> Vec<u8> {
        self.raw(b".").bytes
    }
}

/// A tensor as a pickle describes it.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub class: String,
    pub storage: String,
    pub stored: usize,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
    /// First element and length, in the legacy format.
    pub view: Option<(i64, i64)>,
}

impl Tensor {
    /// All of storage `storage`, row by row.
    pub fn new(name: &str, class: &str, storage: &str, shape: &[i64]) -> Self {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        Self {
            name: name.to_string(),
            class: class.to_string(),
            storage: storage.to_string(),
            stored: shape.iter().product::<i64>() as usize,
            offset: 0,
            shape: shape.to_vec(),
            strides,
            view: None,
        }
    }
}

/// A torch zip file of a pickle and storages.
pub fn zip_file(pickle: &[u8], storages: &[(&str, Vec<u8>)]) -> Vec<u8> {
    zip_with(pickle, storages, &[], CompressionMethod::Stored)
}

pub fn zip_with(
    pickle: &[u8],
    storages: &[(&str, Vec<u8>)],
    more: &[(&str, &[u8])],
    method: CompressionMethod,
) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    let mut put = |name: &str, bytes: &[u8]| {
        writer.start_file(format!("archive/{name}"), options).unwrap();
        writer.write_all(bytes).unwrap();
    };
    put("data.pkl", pickle);
    for (key, bytes) in storages {
        put(&format!("data/{key}"), bytes);
    }
    for (name, bytes) in more {
        put(name, bytes);
    }
    put("version", b"3\n");
    writer.finish().unwrap().into_inner()
}

/// A torch stream file; storages are (key, element count, bytes).
pub fn legacy_file(object: &[u8], storages: &[(&str, usize, Vec<u8>)], little_endian: bool) -> Vec<u8> {
    let magic = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let mut file = Pickler::new(2).raw(&[0x8a, 10]).raw(&magic).stop();
    file.extend(Pickler::new(2).int(1001).stop());
    file.extend(
        Pickler::new(2)
            .raw(b"}(")
            .text("protocol_version")
            .int(1001)
            .text("little_endian")
            .raw(&[if little_endian { 0x88 } else { 0x89 }])
            .text("type_sizes")
            .raw(b"}(")
            .text("short")
            .int(2)
            .text("int")
            .int(4)
            .text("long")
            .int(4)
            .raw(b"uu")
            .stop(),
    );
    file.extend_from_slice(object);
    let keys = storages.iter().fold(Pickler::new(2).raw(b"]("), |pickler, (key, _, _)| pickler.text(key));
    file.extend(keys.raw(b"e").stop());
    for (_, count, bytes) in storages {
        file.extend((*count as u64).to_le_bytes());
        file.extend(bytes);
    }
    file
}

pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// 0, 1, 2, … as f32.
pub fn counting(count: usize) -> Vec<u8> {
    f32_bytes(&(0..count).map(|value| value as f32).collect::<Vec<_>>())
}

/// A file with this content, that lives as long as the folder.
pub fn on_disk(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}
