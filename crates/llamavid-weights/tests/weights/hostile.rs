//! Files made to harm: none of them may run code, panic, or take memory that the file does not justify.

use candle_core::Device;
use llamavid_weights::{Checkpoint, Error, ErrorKind, pickle};
use tempfile::TempDir;
use zip::CompressionMethod;

use crate::writer::{Pickler, Tensor, counting, legacy_file, on_disk, zip_file, zip_with};

fn open(bytes: &[u8]) -> llamavid_weights::Result<Checkpoint> {
    let folder = TempDir::new().unwrap();
    Checkpoint::open_file(&on_disk(&folder, "weights.bin", bytes))
}

fn refused(bytes: &[u8], kind: ErrorKind, named: &str) -> Error {
    let error = open(bytes).expect_err(named);
    assert_eq!(error.kind(), kind, "{error}");
    let text = error.to_string();
    assert!(text.contains(named), "expected `{named}` in: {text}");
    assert!(text.contains("weights.bin") && text.len() < 2000, "{text}");
    error
}

/// `os.system("touch …")` in the ways a pickle can ask for it.
fn calls(marker: &str) -> Vec<Vec<u8>> {
    let command = format!("touch {marker}");
    vec![
        Pickler::new(2).global("os", "system").text(&command).raw(&[0x85, b'R']).stop(),
        Pickler::new(4).global("os", "system").text(&command).raw(&[0x85, b'R']).stop(),
        Pickler::new(2).global("os", "system").text(&command).raw(&[0x85, 0x81]).stop(),
        Pickler::new(2).raw(b"(").text(&command).raw(b"ios\nsystem\n").stop(),
        Pickler::new(2).raw(b"(").global("os", "system").text(&command).raw(b"o").stop(),
        Pickler::new(2).global("os", "system").text(&command).raw(&[0x85, b'R', b'}', b'b']).stop(),
        Pickler::new(4).global("os", "system").text(&command).raw(&[0x85, b'}', 0x92]).stop(),
    ]
}

#[test]
fn calls_are_not_made() {
    let folder = TempDir::new().unwrap();
    let marker = folder.path().join("pwned");
    for pickle in calls(marker.to_str().unwrap()) {
        refused(&zip_file(&pickle, &[]), ErrorKind::Invalid, "os.system");
        refused(&pickle, ErrorKind::Invalid, "os.system");
        refused(&legacy_file(&pickle, &[], true), ErrorKind::Invalid, "os.system");
        let path = on_disk(&folder, "features.pkl", &pickle);
        assert!(pickle::read_features(&path).unwrap_err().to_string().contains("os.system"));
        assert!(!marker.exists());
    }
}

#[test]
fn calls_beside_weights_stay_inert() {
    let tensor = Tensor::new("w", "FloatStorage", "0", &[2]);
    let pickle = Pickler::new(2).raw(b"}(").text("w").tensor(&tensor, false).text("evil");
    let pickle = pickle.global("os", "system").text("false").raw(&[0x85, b'R', b'u']).stop();
    let checkpoint = open(&zip_file(&pickle, &[("0", counting(2))])).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["w"]);
}

/// A zip of one f32 storage of 4 elements, with a tensor changed by `change`.
fn changed(change: impl Fn(&mut Tensor)) -> Vec<u8> {
    let mut tensor = Tensor::new("some.weight", "FloatStorage", "0", &[2, 2]);
    change(&mut tensor);
    zip_file(&Pickler::new(2).state_dict(&[tensor], false).stop(), &[("0", counting(4))])
}

#[test]
fn sizes_are_checked_before_memory_is_taken() {
    type Change = fn(&mut Tensor);
    let huge = 1i64 << 62;
    assert!(open(&changed(|_| {})).is_ok());
    let cases: [(&str, Change); 13] = [
        ("offset", |tensor| tensor.offset = 1),
        ("offset beyond", |tensor| tensor.offset = i64::MAX),
        ("negative offset", |tensor| tensor.offset = -1),
        ("negative size", |tensor| tensor.shape = vec![-2, -2]),
        ("negative stride", |tensor| tensor.strides = vec![-1, 1]),
        ("large stride", |tensor| tensor.strides = vec![i64::MAX, i64::MAX]),
        ("large shape", |tensor| tensor.shape = vec![1 << 62, 1 << 62]),
        ("zero among large", |tensor| {
            tensor.shape = vec![0, 1 << 62, 1 << 62];
            tensor.strides = vec![1, 1, 1];
        }),
        ("repeated", |tensor| {
            tensor.shape = vec![1 << 40];
            tensor.strides = vec![0];
        }),
        ("ranks", |tensor| tensor.strides = vec![1]),
        ("many ranks", |tensor| {
            tensor.shape = vec![1; 4000];
            tensor.strides = vec![1; 4000];
        }),
        ("stored too many", |tensor| tensor.stored = 5),
        ("no storage", |tensor| tensor.storage = "../../data.pkl".to_string()),
    ];
    for (what, change) in cases {
        let error = open(&changed(change)).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{what}: {error}");
        assert!(error.to_string().contains("some.weight"), "{what}: {error}");
    }
    // A reference that announces more than the entry has.
    let announced = Tensor { stored: huge as usize, ..Tensor::new("w", "FloatStorage", "0", &[4]) };
    refused(
        &zip_file(&Pickler::new(2).state_dict(&[announced], false).stop(), &[("0", counting(4))]),
        ErrorKind::Invalid,
        "expected a storage",
    );
}

#[test]
fn malformed_pickles() {
    let deep = [vec![0x80, 2], b"]".repeat(3_000_000), b".".to_vec()].concat();
    let endless = [vec![0x80, 2], b"N0".repeat(5_000_000), b".".to_vec()].concat();
    let looped = Pickler::new(2).raw(b"}q\x00(").text("model").raw(b"h\x00u").stop();
    let listed = Pickler::new(2).raw(b"]q\x00h\x00a").stop();
    let pickles: Vec<Vec<u8>> = vec![
        vec![0x80, 2],
        vec![0x80, 9, b'.'],
        Pickler::new(2).stop(),
        Pickler::new(2).raw(b"t").stop(),
        Pickler::new(2).raw(b"R").stop(),
        Pickler::new(2).raw(b"NNR").stop(),
        Pickler::new(2).raw(b"(NNu").stop(),
        Pickler::new(2).raw(b"}(Nu").stop(),
        Pickler::new(2).raw(b"N(Nu").stop(),
        Pickler::new(2).raw(b"h\x05").stop(),
        Pickler::new(2).raw(b"q\x05").stop(),
        Pickler::new(2).raw(b"X\xff\xff\xff\xff").stop(),
        Pickler::new(4).raw(&[0x8d]).raw(&u64::MAX.to_le_bytes()).stop(),
        Pickler::new(4).raw(&[0x8e]).raw(&(u64::MAX / 2).to_le_bytes()).stop(),
        Pickler::new(5).raw(&[0x96]).raw(&(1u64 << 40).to_le_bytes()).stop(),
        Pickler::new(2).raw(&[0x8b]).raw(&u32::MAX.to_le_bytes()).stop(),
        Pickler::new(2).raw(b"X\x02\0\0\0\xff\xfe").stop(),
        Pickler::new(2).raw(b"cos").stop(),
        Pickler::new(2).raw(b"g99999999999999999999\n").stop(),
        Pickler::new(2).raw(b"p-1\n").stop(),
        Pickler::new(2).raw(&[0x82, 1]).stop(),
        Pickler::new(5).raw(&[0x97]).stop(),
        Pickler::new(2).raw(b"S'a'\n").stop(),
        Pickler::new(2).raw(b"\xf0").stop(),
        Pickler::new(2).raw(b"(((((.").stop(),
        Pickler::new(4).raw(b"NN\x93").stop(),
        deep,
        endless,
        looped,
        listed,
    ];
    for pickle in pickles {
        for file in [zip_file(&pickle, &[]), legacy_file(&pickle, &[], true), pickle.clone()] {
            let error = open(&file).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported), "{error}");
            assert!(error.to_string().len() < 1000, "{error}");
        }
    }
}

#[test]
fn long_names_do_not_flood_messages() {
    let long = "x".repeat(1_000_000);
    let named = Pickler::new(2).text(&long);
    refused(&zip_file(&named.clone().stop(), &[]), ErrorKind::Invalid, "expected a dict");
    let global = Pickler::new(4).global(&long, &long).stop();
    refused(&zip_file(&global, &[]), ErrorKind::Invalid, "xxx");
    let tensor = Tensor::new(&long, "FloatStorage", "0", &[2]);
    let dict = Pickler::new(2).state_dict(&[tensor], false).stop();
    refused(&zip_file(&dict, &[("0", counting(2))]), ErrorKind::Invalid, "a name of 1000000 bytes");
    let tensor = Tensor::new("w", "FloatStorage", &long, &[2]);
    let dict = Pickler::new(2).state_dict(&[tensor], false).stop();
    refused(&zip_file(&dict, &[("0", counting(2))]), ErrorKind::Invalid, "is missing");
}

#[test]
fn other_files_are_told_apart() {
    refused(b"", ErrorKind::Invalid, "empty");
    refused(b"<!DOCTYPE html><html>", ErrorKind::Invalid, "DOCTYPE");
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", ErrorKind::Invalid, "Git LFS");
    refused(b"GGUF\x03\0\0\0", ErrorKind::Invalid, "cut short");
    refused(&[b"a".repeat(257), b"ustar".to_vec(), vec![0; 300]].concat(), ErrorKind::Unsupported, "tar");
    refused(b"PK\x03\x04 and no more", ErrorKind::Invalid, "zip");
}

#[test]
fn byte_order_and_programs() {
    let dict = Pickler::new(2).state_dict(&[Tensor::new("w", "FloatStorage", "0", &[2])], false).stop();
    let file =
        |more: &[(&str, &[u8])]| zip_with(&dict, &[("0", counting(2))], more, CompressionMethod::Stored);
    open(&file(&[("byteorder", b"little")])).unwrap();
    refused(&file(&[("byteorder", b"big")]), ErrorKind::Unsupported, "big-endian");
    refused(&file(&[("byteorder", b"middle")]), ErrorKind::Invalid, "middle");
    refused(&file(&[("constants.pkl", b"")]), ErrorKind::Unsupported, "TorchScript");
    refused(&file(&[("more/data.pkl", b"")]), ErrorKind::Invalid, "several data.pkl");
    let stream = Pickler::new(2).state_dict(&[Tensor::new("w", "FloatStorage", "0", &[2])], true).stop();
    refused(&legacy_file(&stream, &[("0", 2, counting(2))], false), ErrorKind::Unsupported, "big-endian");
    refused(&legacy_file(&stream, &[("0", 3, counting(3))], true), ErrorKind::Invalid, "found 3");
    refused(
        &legacy_file(&stream, &[("1", 2, counting(2))], true),
        ErrorKind::Invalid,
        "belongs to no tensor",
    );
    refused(&legacy_file(&stream, &[("0", 2, counting(1))], true), ErrorKind::Invalid, "cut off");
    let view = Tensor { view: Some((1, 2)), ..Tensor::new("w", "FloatStorage", "0", &[2]) };
    let stream = Pickler::new(2).state_dict(&[view], true).stop();
    refused(&legacy_file(&stream, &[("0", 2, counting(2))], true), ErrorKind::Invalid, "leaves its storage");
}

/// Sets the sizes that a zip's central directory declares for an entry.
fn declare(file: &mut [u8], entry: &str, compressed: Option<u32>, size: u32) {
    let mut at = 0;
    while let Some(found) = file[at..].windows(4).position(|window| window == b"PK\x01\x02") {
        at += found;
        let length = u16::from_le_bytes([file[at + 28], file[at + 29]]) as usize;
        if file[at + 46..at + 46 + length].ends_with(entry.as_bytes()) {
            if let Some(compressed) = compressed {
                file[at + 20..at + 24].copy_from_slice(&compressed.to_le_bytes());
            }
            file[at + 24..at + 28].copy_from_slice(&size.to_le_bytes());
        }
        at += 4;
    }
}

#[test]
fn zip_bombs() {
    let count = 1_000_000;
    let bomb = |declared: Option<u32>, shape: i64| {
        let tensor = Tensor::new("w", "FloatStorage", "0", &[shape]);
        let dict = Pickler::new(2).state_dict(&[tensor], false).stop();
        let zeros = [("0", vec![0; count * 4])];
        let mut file = zip_with(&dict, &zeros, &[], CompressionMethod::Deflated);
        if let Some(declared) = declared {
            declare(&mut file, "data/0", None, declared);
        }
        open(&file).and_then(|checkpoint| checkpoint.read("w", &Device::Cpu))
    };
    bomb(None, count as i64).unwrap();
    // It inflates to more than it declares, to less, and it declares more than it could be.
    for (declared, shape) in
        [(16, 4), (count as u32 * 4 + 4, count as i64 + 1), (u32::MAX - 3, (1 << 30) - 1)]
    {
        let error = bomb(Some(declared), shape).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("declare"), "{error}");
    }
    // A pickle that is large only when inflated.
    let pickle = vec![b'N'; 70 << 20];
    refused(&zip_with(&pickle, &[], &[], CompressionMethod::Deflated), ErrorKind::Invalid, "inflates to");
    // A stored entry that declares more than the file.
    let mut file = changed(|tensor| tensor.stored = 1 << 28);
    declare(&mut file, "data/0", Some(1 << 30), 1 << 30);
    refused(&file, ErrorKind::Invalid, "leave the file");
}

#[test]
fn damaged_safetensors() {
    let file = |header: &str, data: usize| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.extend(vec![0; data]);
        file
    };
    for (header, data) in [
        (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,8]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#, 8),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551615]}}"#,
            8,
        ),
        (r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,16],"data_offsets":[0,0]}}"#, 0),
        ("{", 8),
        ("{}", 8),
    ] {
        refused(&file(header, data), ErrorKind::Invalid, "");
    }
    let mut long = file("{}", 0);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&long, ErrorKind::Invalid, "safetensors");
}

/// Opens and reads everything; only errors are allowed to come of it.
fn survives(bytes: &[u8]) -> bool {
    let Ok(checkpoint) = open(bytes) else { return false };
    checkpoint.names().all(|name| checkpoint.read(name, &Device::Cpu).is_ok())
}

fn samples() -> Vec<Vec<u8>> {
    let tensors = [
        Tensor::new("a", "FloatStorage", "0", &[2, 3]),
        Tensor { strides: vec![1, 2], ..Tensor::new("b", "HalfStorage", "1", &[2, 2]) },
    ];
    let mut samples = Vec::new();
    for protocol in [2, 4] {
        let zipped =
            Pickler::new(protocol).raw(b"}").text("model").state_dict(&tensors, false).raw(b"s").stop();
        let storages = [("0", counting(6)), ("1", vec![0; 8])];
        samples.push(zip_with(&zipped, &storages, &[("byteorder", b"little")], CompressionMethod::Stored));
        samples.push(zip_with(&zipped, &storages, &[], CompressionMethod::Deflated));
        let stream = Pickler::new(protocol).state_dict(&tensors, true).stop();
        samples.push(legacy_file(&stream, &[("0", 6, counting(6)), ("1", 4, vec![0; 8])], true));
    }
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut safetensors = (header.len() as u64).to_le_bytes().to_vec();
    safetensors.extend(header.bytes());
    safetensors.extend([0; 8]);
    samples.push(safetensors);
    samples
}

#[test]
fn truncation_is_an_error_at_every_byte() {
    for sample in samples() {
        assert!(survives(&sample));
        for length in 0..sample.len() {
            assert!(!survives(&sample[..length]), "cut to {length} of {} bytes", sample.len());
        }
    }
}

#[test]
fn flipped_bytes_never_panic() {
    for sample in samples() {
        for at in 0..sample.len() {
            for change in [0xff, 0x01, 0x80] {
                let mut damaged = sample.clone();
                damaged[at] ^= change;
                survives(&damaged);
            }
        }
    }
}

/// Files of the oracle, cut at many places.
#[test]
fn truncated_oracle_files() {
    for name in [
        "video-mean/eva_vit_g.pth",
        "video-mean/model/pytorch_model-00003-of-00003.bin",
        "video-mean/stage1_initial.safetensors",
    ] {
        let whole = std::fs::read(crate::oracle::oracle().join(name)).unwrap();
        assert!(survives(&whole));
        for step in 0..200 {
            let length = whole.len() * step / 200;
            assert!(!survives(&whole[..length]), "{name} cut to {length}");
        }
        assert!(!survives(&whole[..whole.len() - 1]));
    }
}
