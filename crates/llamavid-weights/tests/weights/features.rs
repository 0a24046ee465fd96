//! Feature files: those of the oracle, and what numpy writes under other protocols.

use std::io::{self, Cursor, Seek, SeekFrom, Write};

use candle_core::{DType, Device};
use llamavid_weights::ErrorKind;
use llamavid_weights::pickle::{FeatureWriter, Features, read_features};
use tempfile::TempDir;

use crate::oracle::oracle;
use crate::writer::{Pickler, on_disk};

fn read(bytes: &[u8]) -> llamavid_weights::Result<Features> {
    let folder = TempDir::new().unwrap();
    read_features(&on_disk(&folder, "features.pkl", bytes))
}

#[test]
fn same_numbers_as_the_oracle() {
    let tensors = oracle().join("long-video/tensors.safetensors");
    let tensors = candle_core::safetensors::load(tensors, &Device::Cpu).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(oracle().join("long-video/data/feats")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pkl") {
            continue;
        }
        let features = read_features(&path).unwrap();
        assert!(features.inputs.contains("<image>"));
        assert_eq!(features.feats.dtype(), DType::F16);
        let (_frames, _rows, _width) = features.feats.dims3().unwrap();
        let name = format!("feats/{}", path.file_stem().unwrap().to_str().unwrap());
        let expected = tensors.get(&name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(expected.dims(), features.feats.dims());
        let values = |tensor: &candle_core::Tensor| {
            tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(expected), values(&features.feats), "{name}");
        files += 1;
    }
    assert_eq!(files, 3);
}

/// (order, column-major, data pickled)
fn numpy(
    protocol: u8,
    dtype: &str,
    order: &str,
    column_major: bool,
    data: impl Fn(Pickler) -> Pickler,
) -> Vec<u8> {
    let pickler = Pickler::new(protocol)
        .raw(b"}(")
        .text("inputs")
        .text("<image> Ünder \u{1F600}")
        .text("feats")
        .global("numpy.core.multiarray", "_reconstruct")
        .raw(b"(")
        .global("numpy", "ndarray")
        .ints(&[0])
        .raw(b"U\x01btR(")
        .int(1)
        .ints(&[1, 2, 2])
        .global("numpy", "dtype")
        .raw(b"(")
        .text(dtype)
        .raw(&[0x89, 0x88, b't', b'R', b'('])
        .int(3)
        .text(order)
        .raw(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")
        .raw(&[if column_major { 0x88 } else { 0x89 }]);
    data(pickler).raw(b"tbu").stop()
}

fn values(features: &Features) -> Vec<f32> {
    features.feats.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// 1, -2, 3, 4 as f16.
const DATA: [u8; 8] = [0x00, 0x3c, 0x00, 0xc0, 0x00, 0x42, 0x00, 0x44];

#[test]
fn forms_of_an_array() {
    let latin1 = |pickler: Pickler| {
        let text: String = DATA.iter().map(|byte| char::from(*byte)).collect();
        pickler.global("_codecs", "encode").raw(b"(").text(&text).text("latin1").raw(b"tR")
    };
    let python2 = |pickler: Pickler| pickler.raw(b"U\x08").raw(&DATA);
    let direct = |pickler: Pickler| pickler.raw(b"C\x08").raw(&DATA);
    for features in [
        numpy(2, "f2", "<", false, latin1),
        numpy(2, "f2", "<", false, python2),
        numpy(3, "f2", "<", false, direct),
        numpy(4, "f2", "<", false, direct),
    ] {
        let features = read(&features).unwrap();
        assert_eq!(features.feats.dims(), [1, 2, 2]);
        assert_eq!(values(&features), [1., -2., 3., 4.]);
        assert_eq!(features.inputs, "<image> Ünder \u{1F600}");
    }
    assert_eq!(values(&read(&numpy(3, "f2", "<", true, direct)).unwrap()), [1., 3., -2., 4.]);

    // In memory 1, -2, 3, 4; what each order makes of it.
    let rows = [1., -2., 3., 4.];
    let columns = [1., 3., -2., 4.];
    for (order, axes, expected) in [
        ("C", None, rows),
        ("F", None, columns),
        ("K", Some([0, 1, 2]), rows),
        ("K", Some([0, 2, 1]), columns),
    ] {
        let features = read(&from_buffer(order, axes.as_ref().map(<[i64; 3]>::as_slice))).unwrap();
        assert_eq!(values(&features), expected, "{order} {axes:?}");
    }
    for axes in [&[0, 1][..], &[0, 0, 1], &[0, 1, 3], &[-1, 0, 1]] {
        assert_eq!(read(&from_buffer("K", Some(axes))).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

/// An array of shape (1, 2, 2) as protocol 5 has it.
fn from_buffer(order: &str, axes: Option<&[i64]>) -> Vec<u8> {
    let pickler = Pickler::new(5)
        .raw(b"}(")
        .text("inputs")
        .text("")
        .text("feats")
        .global("numpy._core.numeric", "_frombuffer")
        .raw(b"(")
        .raw(&[0x96])
        .raw(&8u64.to_le_bytes())
        .raw(&DATA)
        .global("numpy", "dtype")
        .raw(b"(")
        .text("f2")
        .raw(&[0x89, 0x88, b't', b'R'])
        .ints(&[1, 2, 2])
        .text(order);
    let pickler = match axes {
        Some(axes) => pickler.ints(axes),
        None => pickler,
    };
    pickler.raw(b"tRu").stop()
}

#[test]
fn errors_name_the_cause() {
    let direct = |pickler: Pickler| pickler.raw(b"C\x08").raw(&DATA);
    let infinite = |pickler: Pickler| pickler.raw(b"C\x08").raw(&[0, 0x7c, 0, 0, 0, 0, 0, 0]);
    let objects = |pickler: Pickler| pickler.raw(b"](NNNNe");
    for (file, kind, named) in [
        (numpy(3, "f2", ">", false, direct), ErrorKind::Unsupported, "big-endian"),
        (numpy(3, "O", "|", false, objects), ErrorKind::Unsupported, "`O`"),
        (numpy(3, "f2", "<", false, objects), ErrorKind::Unsupported, "objects"),
        (numpy(3, "f4", "<", false, direct), ErrorKind::Invalid, "does not fit"),
        (numpy(3, "f2", "<", false, infinite), ErrorKind::Invalid, "inf"),
        (Pickler::new(2).raw(b"}").text("inputs").text("").raw(b"s").stop(), ErrorKind::Invalid, "`feats`"),
        (Pickler::new(2).raw(b"}").text("inputs").raw(b"Ns").stop(), ErrorKind::Invalid, "`inputs`"),
        (Pickler::new(2).raw(b"]").stop(), ErrorKind::Invalid, "dict"),
        (b"".to_vec(), ErrorKind::Invalid, "features.pkl"),
    ] {
        let error = read(&file).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
    let whole = numpy(4, "f2", "<", false, direct);
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err());
    }
}

/// `pickle.load` of CPython 3.11 makes of these bytes, with numpy 1.26.4, 2.2.6 and 2.4.6 and with warnings as errors,
/// `{'feats': array([[[1, -2], [3, 4]]], dtype=float16), 'inputs': '<image>\u{dc}nder \u{1f600}'}`, an array in order that can be written to.
const LOADED_BY_PYTHON: &[u8] =
    b"\x80\x04}(X\x05\0\0\0featscnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR(K\x01\
      J\x01\0\0\0J\x02\0\0\0J\x02\0\0\0\x87cnumpy\ndtype\n(X\x02\0\0\0f2\x89\x88tR(K\x03X\x01\0\0\0<NNN\
      J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89\x8e\x08\0\0\0\0\0\0\0\0\x3c\0\xc0\0\x42\0\x44tb\
      X\x06\0\0\0inputsX\x12\0\0\0<image>\xc3\x9cnder \xf0\x9f\x98\x80u.";

#[test]
fn writes_what_python_loads() {
    let mut writer = FeatureWriter::new(Cursor::new(Vec::new()), [2, 2]).unwrap();
    writer.append(&[1., -2., 3., 4.]).unwrap();
    let written = writer.finish("<image>Ünder \u{1F600}").unwrap().into_inner();
    assert_eq!(written, LOADED_BY_PYTHON);
}

#[test]
fn what_is_written_is_read_rounded_once() {
    // Behind other bytes, and a few frames at a time.
    let mut place = Cursor::new(b"in front".to_vec());
    place.seek(SeekFrom::End(0)).unwrap();
    let mut writer = FeatureWriter::new(place, [3, 2]).unwrap();
    let numbers: Vec<f32> = (0..300 * 6).map(|index| (index as f32 - 900.) * 0.37).collect();
    for frames in numbers.chunks(7 * 6) {
        writer.append(frames).unwrap();
    }
    let inputs = format!("{}{}", "<image>".repeat(300), "ä".repeat(300));
    let written = writer.finish(&inputs).unwrap().into_inner();
    let features = read(written.strip_prefix(b"in front").unwrap()).unwrap();
    assert_eq!(features.feats.dims(), [300, 3, 2]);
    assert_eq!(features.feats.dtype(), DType::F16);
    let rounded: Vec<f32> = numbers.iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
    assert_eq!(values(&features), rounded);
    assert_eq!(features.inputs, inputs);
}

#[test]
fn what_cannot_be_written_is_refused() {
    let mut writer = FeatureWriter::new(Cursor::new(Vec::new()), [1, 2]).unwrap();
    writer.append(&[0., 65504.]).unwrap();
    let kind = |result: io::Result<()>| result.unwrap_err().kind();
    assert_eq!(kind(writer.append(&[0.])), io::ErrorKind::InvalidInput);
    for value in [65520., f32::NAN, f32::NEG_INFINITY] {
        let error = writer.append(&[0., value]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("frame 1"), "{error}");
    }
    assert_eq!(
        kind(FeatureWriter::new(Cursor::new(Vec::new()), [1 << 31, 2]).map(drop)),
        io::ErrorKind::InvalidInput
    );

    /// A disk with room for so many bytes.
    struct Disk(Cursor<Vec<u8>>, usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0.get_ref().len() + bytes.len() > self.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }
    for room in [0, 200, 210] {
        let disk = Disk(Cursor::new(Vec::new()), room);
        let written = FeatureWriter::new(disk, [1, 2]).and_then(|mut writer| {
            writer.append(&[1.; 8])?;
            writer.finish(&"<image>".repeat(8)).map(drop)
        });
        assert_eq!(kind(written), io::ErrorKind::StorageFull, "{room}");
    }
}
