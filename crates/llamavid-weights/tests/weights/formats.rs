//! What torch can write, written by hand where the oracle has no example of it.

use std::path::Path;

use candle_core::{DType, Device};
use half::{bf16, f16};
use llamavid_weights::{Checkpoint, ErrorKind};
use tempfile::TempDir;
use zip::CompressionMethod;

use crate::writer::{Pickler, Tensor, counting, f32_bytes, legacy_file, on_disk, zip_file, zip_with};

/// Opens a file with this content.
fn open(bytes: &[u8]) -> llamavid_weights::Result<Checkpoint> {
    let folder = TempDir::new().unwrap();
    // The map keeps the file alive after its folder is gone.
    Checkpoint::open_file(&on_disk(&folder, "weights.bin", bytes))
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = checkpoint.read(name, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bytes<const N: usize, T: Copy>(values: &[T], encode: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| encode(*value)).collect()
}

/// (storage class, dtype here, bytes of 0, 1, 2, 3)
fn element_types() -> Vec<(&'static str, DType, Vec<u8>)> {
    let numbers = [0u8, 1, 2, 3];
    vec![
        ("DoubleStorage", DType::F64, bytes(&numbers, |n| f64::from(n).to_le_bytes())),
        ("FloatStorage", DType::F32, bytes(&numbers, |n| f32::from(n).to_le_bytes())),
        ("HalfStorage", DType::F16, bytes(&numbers, |n| f16::from_f32(f32::from(n)).to_le_bytes())),
        ("BFloat16Storage", DType::BF16, bytes(&numbers, |n| bf16::from_f32(f32::from(n)).to_le_bytes())),
        ("LongStorage", DType::I64, bytes(&numbers, |n| i64::from(n).to_le_bytes())),
        ("IntStorage", DType::I32, bytes(&numbers, |n| i32::from(n).to_le_bytes())),
        ("ShortStorage", DType::I16, bytes(&numbers, |n| i16::from(n).to_le_bytes())),
        ("CharStorage", DType::I16, numbers.to_vec()),
        ("ByteStorage", DType::U8, numbers.to_vec()),
    ]
}

#[test]
fn every_element_type_in_both_formats() {
    for protocol in 2..=5 {
        for (class, dtype, stored) in element_types() {
            let tensor = Tensor::new("w", class, "0", &[2, 2]);
            let pickle = Pickler::new(protocol).state_dict(std::slice::from_ref(&tensor), false).stop();
            let stream = Pickler::new(protocol).state_dict(&[tensor], true).stop();
            for file in
                [zip_file(&pickle, &[("0", stored.clone())]), legacy_file(&stream, &[("0", 4, stored)], true)]
            {
                let checkpoint = open(&file).unwrap();
                assert_eq!(checkpoint.dtype("w").unwrap(), dtype, "{class}");
                assert_eq!(checkpoint.shape("w").unwrap(), [2, 2]);
                assert_eq!(values(&checkpoint, "w"), [0., 1., 2., 3.], "{class}, protocol {protocol}");
            }
        }
    }
}

#[test]
fn signs_and_truth() {
    let tensors = [Tensor::new("b", "BoolStorage", "0", &[3]), Tensor::new("c", "CharStorage", "1", &[2])];
    let pickle = Pickler::new(2).state_dict(&tensors, false).stop();
    let checkpoint = open(&zip_file(&pickle, &[("0", vec![0, 1, 255]), ("1", vec![0x80, 0xff])])).unwrap();
    assert_eq!(values(&checkpoint, "b"), [0., 1., 1.]);
    assert_eq!(values(&checkpoint, "c"), [-128., -1.]);
}

#[test]
fn kinds_that_are_not_read_are_named_when_asked_for() {
    let tensors = [
        Tensor::new("complex", "ComplexFloatStorage", "0", &[1]),
        Tensor::new("w", "FloatStorage", "1", &[2]),
    ];
    let quantised = Pickler::new(2)
        .raw(b"}(")
        .text("q")
        .global("torch._utils", "_rebuild_qtensor")
        .raw(b")R")
        .text("w")
        .tensor(&tensors[1], false)
        .raw(b"u")
        .stop();
    let zipped = Pickler::new(2).state_dict(&tensors, false).stop();
    let stream = Pickler::new(2).state_dict(&tensors, true).stop();
    for (file, key, named) in [
        (zip_file(&zipped, &[("0", vec![0; 8]), ("1", counting(2))]), "complex", "ComplexFloatStorage"),
        (
            legacy_file(&stream, &[("0", 1, vec![0; 8]), ("1", 2, counting(2))], true),
            "complex",
            "ComplexFloatStorage",
        ),
        (zip_file(&quantised, &[("1", counting(2))]), "q", "qtensor"),
    ] {
        let checkpoint = open(&file).unwrap();
        assert_eq!(values(&checkpoint, "w"), [0., 1.]);
        let error = checkpoint.read(key, &Device::Cpu).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(named) && error.to_string().contains(key), "{error}");
    }
}

#[test]
fn views_of_one_storage() {
    // 0..12 as a 3 × 4 matrix.
    let view = |name: &str, offset: i64, shape: &[i64], strides: &[i64]| Tensor {
        offset,
        strides: strides.to_vec(),
        stored: 12,
        ..Tensor::new(name, "FloatStorage", "0", shape)
    };
    let tensors = [
        view("transposed", 0, &[4, 3], &[1, 4]),
        view("columns", 1, &[3, 2], &[4, 1]),
        view("row", 8, &[4], &[1]),
        view("every_other", 0, &[2, 2], &[8, 2]),
        view("repeated", 5, &[2, 3], &[0, 0]),
        view("scalar", 7, &[], &[]),
        view("empty", 0, &[0, 5], &[5, 1]),
        view("one_row", 4, &[1, 4], &[999_999, 1]),
    ];
    let zipped = Pickler::new(2).state_dict(&tensors, false).stop();
    let stream = Pickler::new(2).state_dict(&tensors, true).stop();
    let deflated = zip_with(&zipped, &[("0", counting(12))], &[], CompressionMethod::Deflated);
    for file in [
        zip_file(&zipped, &[("0", counting(12))]),
        deflated,
        legacy_file(&stream, &[("0", 12, counting(12))], true),
    ] {
        let checkpoint = open(&file).unwrap();
        assert_eq!(values(&checkpoint, "transposed"), [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]);
        assert_eq!(values(&checkpoint, "columns"), [1., 2., 5., 6., 9., 10.]);
        assert_eq!(values(&checkpoint, "row"), [8., 9., 10., 11.]);
        assert_eq!(values(&checkpoint, "every_other"), [0., 2., 8., 10.]);
        assert_eq!(values(&checkpoint, "repeated"), [5.; 6]);
        assert_eq!(values(&checkpoint, "scalar"), [7.]);
        assert_eq!(checkpoint.shape("scalar").unwrap(), Vec::<usize>::new());
        assert_eq!(checkpoint.read("empty", &Device::Cpu).unwrap().dims(), [0, 5]);
        assert_eq!(values(&checkpoint, "one_row"), [4., 5., 6., 7.]);
    }
}

#[test]
fn legacy_views_start_inside_their_storage() {
    let tensor =
        Tensor { stored: 10, offset: 1, view: Some((4, 3)), ..Tensor::new("w", "FloatStorage", "7", &[2]) };
    let pickle = Pickler::new(2).state_dict(&[tensor], true).stop();
    assert_eq!(
        values(&open(&legacy_file(&pickle, &[("7", 10, counting(10))], true)).unwrap(), "w"),
        [5., 6.]
    );
}

#[test]
fn wrapped_weights() {
    let weight = Tensor::new("w", "FloatStorage", "0", &[2]);
    let namespace = |pickler: Pickler| {
        pickler
            .global("argparse", "Namespace")
            .raw(&[b')', 0x81])
            .raw(b"}(")
            .text("lr")
            .raw(b"G")
            .raw(&0.5f64.to_be_bytes())
            .raw(b"ub")
    };
    let wrapped = namespace(Pickler::new(2).raw(b"}(").text("args")).text("epoch").int(70000);
    let wrapped = wrapped.text("model").state_dict(std::slice::from_ref(&weight), false).raw(b"u").stop();
    let twice = Pickler::new(2).raw(b"}(").text("model").raw(b"}(").text("state_dict");
    let twice = twice.state_dict(std::slice::from_ref(&weight), false).raw(b"uu").stop();
    // An OrderedDict with `_metadata`, and a parameter in it.
    let ordered = Pickler::new(2)
        .global("collections", "OrderedDict")
        .raw(b")R(")
        .text("w")
        .global("torch._utils", "_rebuild_parameter")
        .raw(b"(")
        .tensor(&weight, false)
        .raw(&[0x88])
        .global("collections", "OrderedDict")
        .raw(b")RtRu")
        .raw(b"}(")
        .text("_metadata")
        .raw(b"Nub")
        .stop();
    // Python 2: pairs as an argument.
    let python2 = Pickler::new(2).global("collections", "OrderedDict").raw(b"(](](").raw(b"U\x01w");
    let python2 = python2.tensor(&weight, false).raw(b"eetR").stop();
    // A tensor with attributes.
    let attributes = Pickler::new(2)
        .raw(b"}")
        .text("w")
        .global("torch._tensor", "_rebuild_from_type_v2")
        .raw(b"(")
        .global("torch._utils", "_rebuild_tensor_v2")
        .global("torch", "Tensor")
        .raw(b"((")
        .text("storage")
        .global("torch", "FloatStorage")
        .text("0")
        .text("cpu")
        .int(2)
        .raw(b"tQ")
        .int(0)
        .ints(&[2])
        .ints(&[1])
        .raw(&[0x89, b'N', b't'])
        .raw(b"}tRs")
        .stop();
    // Bytes that say themselves what they are.
    let untyped = Pickler::new(2)
        .raw(b"}")
        .text("w")
        .global("torch._utils", "_rebuild_tensor_v3")
        .raw(b"((")
        .text("storage")
        .global("torch.storage", "UntypedStorage")
        .text("0")
        .text("cpu")
        .int(8)
        .raw(b"tQ")
        .int(0)
        .ints(&[2])
        .ints(&[1])
        .raw(&[0x89, b'N'])
        .global("torch", "float32")
        .raw(b"tRs")
        .stop();
    for (what, pickle) in [
        ("wrapped", wrapped),
        ("twice", twice),
        ("ordered", ordered),
        ("python2", python2),
        ("attributes", attributes),
        ("untyped", untyped),
    ] {
        let checkpoint =
            open(&zip_file(&pickle, &[("0", counting(2))])).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"], "{what}");
        assert_eq!(values(&checkpoint, "w"), [0., 1.], "{what}");
    }
}

#[test]
fn safetensors_types() {
    let header = concat!(
        r#"{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"I8","shape":[1,3],"data_offsets":[4,7]},"#,
        r#""c":{"dtype":"F8_E5M2","shape":[1],"data_offsets":[7,8]},"d":{"dtype":"BOOL","shape":[],"data_offsets":[8,9]}}"#
    );
    // Padded to 128 bytes and more, so that the first byte may be that of a pickle.
    for padding in [0, 1, 7] {
        let header = format!("{header}{}", " ".repeat(padding));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend([0, 0x3c, 0, 0x40, 1, 0xfe, 3, 9, 1]);
        let checkpoint = open(&file).unwrap();
        assert_eq!(values(&checkpoint, "a"), [1., 2.]);
        assert_eq!(values(&checkpoint, "b"), [1., -2., 3.]);
        assert_eq!(values(&checkpoint, "d"), [1.]);
        assert_eq!(checkpoint.read("c", &Device::Cpu).unwrap_err().kind(), ErrorKind::Unsupported);
    }
    let minimal = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let header = format!("{minimal}{}", " ".repeat(128 - minimal.len()));
    let mut file = 128u64.to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend(2f32.to_le_bytes());
    assert_eq!(file[0], 0x80);
    assert_eq!(values(&open(&file).unwrap(), "a"), [2.]);
}

fn small_zip(names: &[&str], first: f32) -> Vec<u8> {
    let tensors: Vec<Tensor> = names
        .iter()
        .enumerate()
        .map(|(i, name)| Tensor::new(name, "FloatStorage", &i.to_string(), &[1]))
        .collect();
    let pickle = Pickler::new(2).state_dict(&tensors, false).stop();
    let keys: Vec<String> = (0..names.len()).map(|key| key.to_string()).collect();
    let storages: Vec<(&str, Vec<u8>)> = keys.iter().map(|key| (key.as_str(), f32_bytes(&[first]))).collect();
    zip_file(&pickle, &storages)
}

fn write_index(folder: &Path, map: &[(&str, &str)]) {
    let map: serde_json::Map<String, serde_json::Value> =
        map.iter().map(|(name, shard)| (name.to_string(), serde_json::json!(shard))).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("pytorch_model.bin.index.json"), index.to_string()).unwrap();
}

#[test]
fn the_index_decides_between_shards() {
    let folder = TempDir::new().unwrap();
    on_disk(&folder, "one.bin", &small_zip(&["a", "both"], 1.));
    on_disk(&folder, "two.bin", &small_zip(&["both", "unlisted"], 2.));
    write_index(folder.path(), &[("a", "one.bin"), ("both", "one.bin"), ("unlisted", "two.bin")]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    assert_eq!(values(&checkpoint, "both"), [1.]);
    write_index(folder.path(), &[("a", "one.bin"), ("both", "two.bin")]);
    let checkpoint = Checkpoint::open_folder(folder.path()).unwrap();
    assert_eq!(values(&checkpoint, "both"), [2.]);
    assert!(checkpoint.contains("unlisted"));
}

#[cfg(unix)]
#[test]
fn index_errors_name_the_cause() {
    let folder = TempDir::new().unwrap();
    let outside = on_disk(&folder, "outside.bin", &small_zip(&["a"], 1.));
    let inside = folder.path().join("model");
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join("one.bin"), small_zip(&["a"], 1.)).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link.bin")).unwrap();
    std::os::unix::fs::symlink("one.bin", inside.join("alias.bin")).unwrap();

    write_index(&inside, &[("a", "alias.bin")]);
    Checkpoint::open_folder(&inside).unwrap();

    for shard in [
        "../outside.bin",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/one.bin",
        "a\\b",
        "C:one.bin",
        "a\0b",
        "link.bin",
        "one.bin/",
    ] {
        write_index(&inside, &[("a", shard)]);
        let error = Checkpoint::open_folder(&inside).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{shard:?}: {error}");
        assert!(error.to_string().contains("index.json"), "{error}");
    }
    write_index(&inside, &[("a", "absent.bin")]);
    let error = Checkpoint::open_folder(&inside).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("absent.bin"), "{error}");

    write_index(&inside, &[("a", "one.bin"), ("b", "one.bin")]);
    let error = Checkpoint::open_folder(&inside).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("one.bin") && error.to_string().contains("`b`"), "{error}");

    for index in ["", "{}", "[]", r#"{"weight_map":{}}"#, r#"{"weight_map":{"a":1}}"#, &"[".repeat(100_000)] {
        std::fs::write(inside.join("pytorch_model.bin.index.json"), index).unwrap();
        assert_eq!(Checkpoint::open_folder(&inside).unwrap_err().kind(), ErrorKind::Invalid);
    }
}

/// `snapshots/REVISION` of the Hugging Face cache is a folder of links to `blobs`, and so is a pulled model's.
#[cfg(unix)]
#[test]
fn hugging_face_cache() {
    let cache = TempDir::new().unwrap();
    std::fs::create_dir(cache.path().join("blobs")).unwrap();
    std::fs::write(cache.path().join("blobs/abcd"), small_zip(&["a"], 1.)).unwrap();
    for (name, allowed) in [("snapshots/0123", true), ("llamavid/model", true), ("others/model", false)] {
        let folder = cache.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink("../../blobs/abcd", folder.join("one.bin")).unwrap();
        write_index(&folder, &[("a", "one.bin")]);
        match Checkpoint::open_folder(&folder) {
            Ok(checkpoint) => assert_eq!((allowed, values(&checkpoint, "a")), (true, vec![1.]), "{name}"),
            Err(error) => assert_eq!((allowed, error.kind()), (false, ErrorKind::Invalid), "{name}: {error}"),
        }
    }
}

#[test]
fn folders_without_weights() {
    let folder = TempDir::new().unwrap();
    let error = Checkpoint::open_folder(folder.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("pytorch_model.bin.index.json"), "{error}");
    let absent = folder.path().join("absent");
    assert_eq!(Checkpoint::open_folder(&absent).unwrap_err().kind(), ErrorKind::Missing);
    assert_eq!(Checkpoint::open_file(&absent).unwrap_err().kind(), ErrorKind::Missing);
    assert_eq!(Checkpoint::open_file(folder.path()).unwrap_err().kind(), ErrorKind::Invalid);
    on_disk(&folder, "pytorch_model.bin", &small_zip(&["a"], 3.));
    assert_eq!(values(&Checkpoint::open_folder(folder.path()).unwrap(), "a"), [3.]);
}

#[test]
fn overlays_and_views() {
    let folder = TempDir::new().unwrap();
    let base = Checkpoint::open_file(&on_disk(&folder, "base.bin", &small_zip(&["m.a", "m.b"], 1.))).unwrap();
    let later = Checkpoint::open_file(&on_disk(&folder, "later.bin", &small_zip(&["m.b", "c"], 2.))).unwrap();
    let both = base.overlaid_with(later);
    assert_eq!(both.names().collect::<Vec<_>>(), ["c", "m.a", "m.b"]);
    let view = both.under("m.");
    assert_eq!(view.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((values(&view, "a"), values(&view, "b")), (vec![1.], vec![2.]));
    let error = view.read("x", &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("`m.x`"), "{error}");
}
