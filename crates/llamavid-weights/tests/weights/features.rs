//! Feature files: those of the oracle, and what numpy writes under other protocols.

use candle_core::{DType, Device};
use llamavid_weights::ErrorKind;
use llamavid_weights::pickle::{Features, read_features};
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
