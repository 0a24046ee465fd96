//! Preprocessing against Pillow's bytes and the reference's pixels (`fixtures/oracle/preprocess`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use llamavid_models::Error;
use llamavid_models::preprocess::{Fit, Preprocessing, RgbImage};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle");

struct Picture {
    data: Vec<u8>,
    width: usize,
    height: usize,
}

impl Picture {
    fn from_tensor(rgb: &Tensor) -> Self {
        let (height, width, _) = rgb.dims3().unwrap();
        Self { data: bytes(rgb), width, height }
    }

    /// Bytes that follow no pattern the resize could hide.
    fn noise(width: usize, height: usize) -> Self {
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Self { data: (0..3 * width * height).map(|_| byte()).collect(), width, height }
    }

    fn view(&self) -> RgbImage<'_> {
        RgbImage { data: &self.data, width: self.width, height: self.height, stride: 3 * self.width }
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn fit_of(mode: &str) -> Fit {
    match mode {
        "crop" => Fit::Crop,
        "pad" => Fit::Pad,
        other => panic!("mode {other}"),
    }
}

fn recorded() -> (serde_json::Value, HashMap<String, Tensor>) {
    let folder = Path::new(FIXTURES).join("preprocess");
    let cases = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
    (cases, candle_core::safetensors::load(folder.join("tensors.safetensors"), &Device::Cpu).unwrap())
}

#[test]
fn bytes_equal_the_reference() {
    let (cases, tensors) = recorded();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 20, "only {} cases", cases.len());
    for case in cases {
        let name = case["tensors"].as_str().unwrap();
        let size = case["size"].as_u64().unwrap() as usize;
        let picture = Picture::from_tensor(&tensors[&format!("{}/rgb", case["picture"].as_str().unwrap())]);
        let preprocessing = Preprocessing::clip(size, fit_of(case["mode"].as_str().unwrap()));
        let resized = preprocessing.resize(&picture.view()).unwrap();
        let expected = bytes(&tensors[&format!("{name}/uint8")]);
        let wrong = resized.iter().zip(&expected).filter(|(actual, expected)| actual != expected).count();
        assert_eq!((resized.len(), wrong), (expected.len(), 0), "{name}");

        let mut pixels = vec![0f32; 3 * size * size];
        preprocessing.pixels(&picture.view(), &mut pixels).unwrap();
        if let Some(expected) = tensors.get(&format!("{name}/pixel_values")) {
            let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(pixels, expected, "{name}");
        }
        let mean = pixels.iter().map(|value| f64::from(*value)).sum::<f64>() / pixels.len() as f64;
        assert!((mean - case["mean"].as_f64().unwrap()).abs() < 1e-4, "{name}: mean {mean}");
    }
}

#[test]
fn padding_equals_a_picture_that_is_padded_beforehand() {
    for (width, height, size) in
        [(50, 21, 28), (21, 50, 28), (333, 4, 56), (4, 333, 56), (1, 90, 14), (9, 8, 70)]
    {
        let picture = Picture::noise(width, height);
        let side = width.max(height);
        let mut square = Picture { data: [122, 116, 104].repeat(side * side), width: side, height: side };
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        for (y, row) in picture.data.chunks_exact(3 * width).enumerate() {
            square.data[3 * ((top + y) * side + left)..][..row.len()].copy_from_slice(row);
        }
        let padded = Preprocessing::clip(size, Fit::Pad).resize(&picture.view()).unwrap();
        let expected = Preprocessing::clip(size, Fit::Crop).resize(&square.view()).unwrap();
        assert_eq!(padded, expected, "{width}x{height} to {size}");
    }
}

/// FNV-1a of the bytes: tells pictures apart without storing them.
fn digest(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Digests of what Pillow 13.0.0 makes of `Picture::noise`: cropped, and padded with (122, 116, 104).
#[test]
fn odd_shapes_equal_pillow() {
    for (width, height, size, cropped, padded) in [
        (1, 1, 224, 0x571d852f877e2725, 0x571d852f877e2725),
        (3, 2000, 224, 0xc18989a68f7501b3, 0x183e060ab63abab9),
        (2000, 3, 224, 0x48f98781e93c7181, 0xacf23042f6cb73eb),
        (1, 3000, 56, 0x5b4c6b46e83b8fb5, 0x12b53bf481051e25),
        (2, 1, 14, 0x6525389e16c54d31, 0xcc9521293d80587a),
        (7, 5, 14, 0x250c8033951a851c, 0x1e6ecdf396d85aa3),
        (8, 9, 15, 0xa485b28710ad6d84, 0xa8054231dea915cf),
        (1280, 720, 224, 0x390f05abb7d50261, 0xac9ca2fded497387),
        (223, 500, 224, 0xbbac891adae36f66, 0x1f9f7f18a892b190),
        (225, 224, 224, 0xdc3fe4d8a6b8962a, 0x6ea68d45b023f34e),
    ] {
        let picture = Picture::noise(width, height);
        for (fit, expected) in [(Fit::Crop, cropped), (Fit::Pad, padded)] {
            let resized = Preprocessing::clip(size, fit).resize(&picture.view()).unwrap();
            assert_eq!(digest(&resized), expected, "{width}x{height} to {size}, {fit:?}");
        }
    }
}

#[test]
fn video_frames_equal_the_reference() {
    for case in ["video-mean", "video-grid2"] {
        let file = Path::new(FIXTURES).join(case).join("tensors.safetensors");
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).unwrap();
        // The recorded case takes every frame.
        let (frames, expected) = (&tensors["video0/all_frames"], &tensors["video0/pixel_values"]);
        let (count, _, size, _) = expected.dims4().unwrap();
        assert_eq!(frames.dim(0).unwrap(), count);
        for index in 0..count {
            let picture = Picture::from_tensor(&frames.get(index).unwrap());
            let mut pixels = vec![0f32; 3 * size * size];
            Preprocessing::clip(size, Fit::Crop).pixels(&picture.view(), &mut pixels).unwrap();
            let expected: Vec<f32> = expected.get(index).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(pixels, expected, "{case}, frame {index}");
        }
    }
}

#[test]
fn stride_is_obeyed() {
    for (width, height) in [(31, 17), (700, 200)] {
        let picture = Picture::noise(width, height);
        let stride = 3 * width + 13;
        let mut data = vec![255; stride * (height - 1) + 3 * width];
        for (y, row) in picture.data.chunks_exact(3 * width).enumerate() {
            data[y * stride..][..row.len()].copy_from_slice(row);
        }
        for fit in [Fit::Crop, Fit::Pad] {
            let preprocessing = Preprocessing::clip(42, fit);
            let strided = RgbImage { data: &data, width, height, stride };
            assert_eq!(
                preprocessing.resize(&strided).unwrap(),
                preprocessing.resize(&picture.view()).unwrap()
            );
        }
    }
}

#[test]
fn one_colour_stays_one_colour() {
    for (width, height) in [(1, 1), (2, 1), (3, 2000), (2000, 3), (1, 100_000), (100_000, 1), (640, 480)] {
        let picture = Picture { data: [10, 128, 250].repeat(width * height), width, height };
        let resized = Preprocessing::clip(224, Fit::Crop).resize(&picture.view()).unwrap();
        assert!(resized == [10, 128, 250].repeat(224 * 224), "{width}x{height}");

        let padded = Preprocessing::clip(224, Fit::Pad).resize(&picture.view()).unwrap();
        assert_eq!(padded.len(), resized.len());
        // The corner of a long picture shows the padding.
        let corner: [u8; 3] = if width.max(height) > 1000 { [122, 116, 104] } else { [10, 128, 250] };
        let shown = if (width, height) == (2, 1) || (width, height) == (640, 480) {
            None
        } else {
            Some(&padded[..3])
        };
        assert!(shown.is_none_or(|shown| shown == corner), "{width}x{height}: {:?}", &padded[..3]);
    }
}

#[test]
fn same_size_changes_nothing() {
    let picture = Picture::noise(56, 56);
    for fit in [Fit::Crop, Fit::Pad] {
        assert_eq!(Preprocessing::clip(56, fit).resize(&picture.view()).unwrap(), picture.data);
    }
}

#[test]
fn bad_arguments_are_named() {
    let preprocessing = Preprocessing::clip(14, Fit::Crop);
    let data = vec![0; 30];
    let message = |image: RgbImage| match preprocessing.resize(&image) {
        Err(Error::Argument(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(message(RgbImage { data: &data, width: 0, height: 5, stride: 0 }).contains("0x5"));
    assert!(message(RgbImage { data: &data, width: 3, height: 0, stride: 9 }).contains("3x0"));
    assert!(message(RgbImage { data: &data, width: 3, height: 2, stride: 8 }).contains("stride of 8"));
    assert!(message(RgbImage { data: &data, width: 3, height: 4, stride: 9 }).contains("30 bytes"));
    assert!(
        message(RgbImage { data: &data, width: usize::MAX, height: 2, stride: 9 }).contains("stride of 9")
    );
    assert!(message(RgbImage { data: &data, width: 1, height: usize::MAX, stride: 9 }).contains("30 bytes"));
    assert!(Preprocessing::clip(0, Fit::Crop).resize(&Picture::noise(2, 2).view()).is_err());

    let picture = Picture::noise(4, 4);
    let wrong_length = preprocessing.pixels(&picture.view(), &mut [0.0; 587]);
    assert!(wrong_length.unwrap_err().to_string().contains("587"));
}

#[test]
fn configuration_reads_as_it_writes() {
    let preprocessing = Preprocessing::clip(224, Fit::Pad);
    let text = serde_json::to_string(&preprocessing).unwrap();
    assert!(text.contains(r#""fit":"pad""#), "{text}");
    assert_eq!(serde_json::from_str::<Preprocessing>(&text).unwrap(), preprocessing);
}
