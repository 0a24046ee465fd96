//! Feature files of both formats, and folders.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llamavid_train::data::{Error, FaultCode, Folders, Media, MovieFeatures, Record, read_features};

use crate::oracle::{of, oracle, read_json};

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A safetensors feature file.
pub fn write(path: &Path, feats: &Tensor, inputs: Option<&str>) {
    let metadata = inputs.map(|inputs| HashMap::from([("inputs".to_owned(), inputs.to_owned())]));
    safetensors::serialize_to_file([("feats", feats)], metadata, path).unwrap();
}

#[test]
fn both_formats_hold_the_same() {
    let tensors =
        candle_core::safetensors::load(oracle("long-video/tensors.safetensors"), &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["movie", "movie_short", "movie_train"] {
        let expected = &tensors[&format!("feats/{name}")];
        let (frames, rows, width) = expected.dims3().unwrap();
        let inputs: String = of(&read_json(format!("long-video/data/feats/{name}.json"))["inputs"]);
        let copy = folder.path().join("movie.safetensors");
        write(&copy, expected, Some(&inputs));
        for path in [oracle(format!("long-video/data/feats/{name}.pkl")), copy] {
            let features: MovieFeatures = read_features(&path).unwrap();
            assert_eq!(features.frames(), frames);
            assert_eq!(features.inputs, inputs);
            assert_eq!(features.tensor.dims(), [frames, rows - 1, width]);
            assert_eq!(features.tensor.dtype(), DType::F16);
            let without_class_row = expected.narrow(1, 1, rows - 1).unwrap();
            assert_eq!(values(&features.tensor), values(&without_class_row));
        }
    }
}

#[test]
fn feature_files_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F16, &Device::Cpu).unwrap();
    for (shape, inputs, problem) in [
        (vec![2, 5, 3], Some("<image>"), "1 tags"),
        (vec![2, 5, 3], Some(""), "0 tags"),
        (vec![2, 5, 3], None, "no `inputs`"),
        (vec![10, 3], Some("<image>"), "expected frames, rows and width"),
        (vec![1, 1, 3], Some("<image>"), "class row and patches"),
    ] {
        write(&path, &zeros(&shape), inputs);
        match read_features(&path).unwrap_err() {
            Error::Features { file, problem: found } => {
                assert_eq!(file, path);
                assert!(found.contains(problem), "{found}");
            }
            other => panic!("{other}"),
        }
    }
    let infinite = (zeros(&[1, 5, 3]) + f64::INFINITY).unwrap();
    write(&path, &infinite, Some("<image>"));
    assert!(read_features(&path).unwrap_err().to_string().contains("found inf"));
    write(&path, &zeros(&[2, 5, 3]), Some("<image><image>"));
    let whole = std::fs::read(&path).unwrap();
    for end in [0, 4, 8, 20, whole.len() - 1] {
        std::fs::write(&path, &whole[..end]).unwrap();
        read_features(&path).unwrap_err();
    }
    // A header of 2^63 bytes.
    std::fs::write(&path, [0, 0, 0, 0, 0, 0, 0, 128, b'{']).unwrap();
    read_features(&path).unwrap_err();
    read_features(&folder.path().join("absent.safetensors")).unwrap_err();
    read_features(folder.path()).unwrap_err();
    std::fs::write(folder.path().join("x.pkl"), b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap();
    let error = read_features(&folder.path().join("x.pkl")).unwrap_err().to_string();
    assert!(error.contains("os.system"), "{error}");
}

fn resolve(folders: &Folders, media: Media) -> Result<Option<PathBuf>, FaultCode> {
    let record = Record { id: "r".into(), media, turns: Vec::new() };
    folders.resolve(&record).map_err(|error| error.fault().unwrap().code)
}

#[test]
fn files_are_found_in_their_folders_and_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    let images = root.path().join("images");
    for path in
        ["a.jpg", "ocr_vqa/images/1.jpg", "ocr_vqa/images/2.png", "vg/images/3.jpg", "vg/VG_100K/4.jpg"]
    {
        let path = images.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    std::fs::write(root.path().join("secret.png"), "x").unwrap();
    let folders = Folders { images: Some(images.clone()), videos: Some(root.path().join("absent")) };
    let picture = |path: &str| resolve(&folders, Media::Image(path.into()));
    for (path, file) in [
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("ocr_vqa/images/1.jpg", "ocr_vqa/images/1.jpg"),
        ("ocr_vqa/images/2.jpg", "ocr_vqa/images/2.png"),
        ("vg/VG_100K/3.jpg", "vg/images/3.jpg"),
        ("vg/VG_100K_2/3.jpg", "vg/images/3.jpg"),
        ("vg/VG_100K/4.jpg", "vg/VG_100K/4.jpg"),
    ] {
        assert_eq!(picture(path).unwrap().unwrap(), images.join(file), "{path}");
    }
    for path in ["", "../secret.png", "vg/../../secret.png", "/etc/passwd", "a\0.jpg"] {
        assert_eq!(picture(path), Err(FaultCode::UnsafePath), "{path:?}");
    }
    for path in ["b.jpg", "vg", "ocr_vqa/images/3.jpg", "a.jpg/b"] {
        assert_eq!(picture(path), Err(FaultCode::MissingFile), "{path:?}");
    }
    assert_eq!(resolve(&folders, Media::None), Ok(None));
    assert_eq!(resolve(&folders, Media::Video("a.mp4".into())), Err(FaultCode::MissingFile));
    assert_eq!(resolve(&Folders::default(), Media::Image("a.jpg".into())), Err(FaultCode::MissingFile));
}
