//! The check of a list names each bad record, and only those.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use image::{DynamicImage, ImageFormat, RgbImage};
use llamavid_train::data::published::{
    PUBLISHED_LISTS, PublishedList, SPLIT_LISTS, STARTING_WEIGHTS, Stage, missing,
};
use llamavid_train::data::{
    CheckEvent, CheckReport, Error, FaultCode, Folders, RecordFile, SampleCheck, SampleOptions, Severity,
    check, check_each,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::features;
use crate::oracle::{oracle, template, tokenizer};

/// A folder with pictures, whole and broken, a video's file and features.
struct Data {
    root: TempDir,
    folders: Folders,
}

impl Data {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let picture =
            DynamicImage::ImageRgb8(RgbImage::from_fn(40, 30, |x, y| image::Rgb([x as u8, y as u8, 7])));
        for (name, format) in [
            ("a.png", ImageFormat::Png),
            ("b.jpg", ImageFormat::Jpeg),
            ("c.webp", ImageFormat::WebP),
            ("d.gif", ImageFormat::Gif),
        ] {
            picture.save_with_format(root.path().join(name), format).unwrap();
        }
        for (name, whole) in [("cut.png", "a.png"), ("cut.jpg", "b.jpg")] {
            let bytes = std::fs::read(root.path().join(whole)).unwrap();
            std::fs::write(root.path().join(name), &bytes[..bytes.len() - 20]).unwrap();
        }
        // Bytes behind the picture, more than are looked at first.
        let mut bytes = std::fs::read(root.path().join("b.jpg")).unwrap();
        bytes.resize(bytes.len() + 200_000, b' ');
        std::fs::write(root.path().join("tail.jpg"), bytes).unwrap();
        for (name, bytes) in [("empty.png", ""), ("page.jpg", "<html>Not found</html>"), ("clip.mp4", "x")] {
            std::fs::write(root.path().join(name), bytes).unwrap();
        }
        let feats = Tensor::zeros((2, 5, 8), DType::F16, &Device::Cpu).unwrap();
        features::write(&root.path().join("good.safetensors"), &feats, Some("<image>Hi<image>"));
        features::write(&root.path().join("bad.safetensors"), &feats, Some("<image>Hi"));
        let folder = Some(root.path().to_path_buf());
        Self { folders: Folders { images: folder.clone(), videos: folder }, root }
    }

    fn list(&self, records: &Value) -> PathBuf {
        let path = self.root.path().join("list.json");
        std::fs::write(&path, records.to_string()).unwrap();
        path
    }

    fn check(&self, records: &Value, samples: Option<&SampleCheck>) -> CheckReport {
        check(&self.list(records), &self.folders, samples).unwrap()
    }
}

fn pair(question: &str) -> Value {
    json!([{"from": "human", "value": question}, {"from": "gpt", "value": "A dog."}])
}

fn samples(name: &str, max_length: usize) -> SampleCheck {
    SampleCheck {
        template: template(name),
        tokenizer: tokenizer("text/tokenizer", None),
        options: SampleOptions { max_length, image_start_end: false },
        tokens_per_frame: 2,
    }
}

#[test]
fn good_records_pass() {
    let data = Data::new();
    let chat = json!([
        {"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "a"},
        {"from": "human", "value": "And?"}, {"from": "gpt", "value": "b"},
        {"from": "human", "value": "<image>\nThere?"}, {"from": "gpt", "value": "c"},
    ]);
    let list = json!([
        {"id": "png", "image": "a.png", "conversations": pair("<image>\nWhat?")},
        {"id": "jpg", "image": "b.jpg", "conversations": chat},
        {"id": "webp", "image": "c.webp", "conversations": pair("<image>\nWhat?")},
        {"id": "gif", "image": "d.gif", "conversations": pair("<image>\nWhat?")},
        {"id": "tail", "image": "tail.jpg", "conversations": pair("<image>\nWhat?")},
        {"id": "clip", "video": "clip.mp4", "conversations": pair("<image>\nWhat?")},
        {"id": "clip", "video": "clip.mp4", "conversations": pair("<image>\nWhat?")},
        {"id": "movie", "video": "good.safetensors", "conversations": pair("<image>\nWhat?")},
        {"id": "text", "image": null, "conversations": pair("What?")},
    ]);
    for samples in [None, Some(samples("imgsp_v1", 2048))] {
        let report = data.check(&list, samples.as_ref());
        assert_eq!(report.findings, []);
        let totals = report.totals;
        assert_eq!((totals.records, totals.images, totals.videos), (9, 5, 2));
        assert_eq!((totals.features, totals.texts, totals.bad_records), (1, 1, 0));
        let videos: Vec<usize> = report.videos.iter().map(|video| video.record).collect();
        assert_eq!(videos, [5, 6]);
        assert!(report.videos.iter().all(|video| video.path == data.root.path().join("clip.mp4")));
    }
}

#[test]
fn each_bad_record_is_named() {
    let data = Data::new();
    let turns = |list: &[(&str, &str)]| {
        let turns: Vec<Value> =
            list.iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
        json!({"image": "a.png", "conversations": turns})
    };
    let about = |key: &str, path: &str| json!({key: path, "conversations": pair("<image>\nWhat?")});
    use FaultCode::*;
    let error = Severity::Error;
    let cases = [
        (about("image", "absent.png"), MissingFile, error, "image"),
        (about("video", "absent.mp4"), MissingFile, error, "video"),
        (about("image", "../a.png"), UnsafePath, error, "image"),
        (about("image", "cut.png"), UnreadablePicture, error, "image"),
        (about("image", "cut.jpg"), UnreadablePicture, error, "image"),
        (about("image", "empty.png"), UnreadablePicture, error, "image"),
        (about("image", "page.jpg"), UnreadablePicture, error, "image"),
        (about("video", "bad.safetensors"), UnreadableFeatures, error, "video"),
        (json!({"image": "a.png", "conversations": pair("What?")}), TagMismatch, error, "conversations"),
        (json!({"conversations": pair("<image>\nWhat?")}), TagMismatch, error, "conversations[0].value"),
        (
            json!({"image": "a.png", "conversations": pair("<image><image>\na")}),
            TagMismatch,
            error,
            "conversations[0].value",
        ),
        (turns(&[("human", "<image>\na"), ("gpt", "<image>")]), TagMismatch, error, "conversations[1].value"),
        (
            turns(&[("human", "a"), ("gpt", "b"), ("human", "<image>\nc"), ("gpt", "d")]),
            TagMismatch,
            error,
            "conversations[0].value",
        ),
        (
            json!({"video": "good.safetensors", "conversations": [
                {"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"},
                {"from": "human", "value": "<image>\nc"}, {"from": "gpt", "value": "d"}]}),
            TagMismatch,
            error,
            "conversations",
        ),
        (turns(&[]), EmptyConversation, error, "conversations"),
        (turns(&[("gpt", "Hello.")]), EmptyConversation, error, "conversations"),
        (turns(&[("human", "<image>\na")]), WrongOrder, error, "conversations[0]"),
        (
            turns(&[("human", "<image>\na"), ("human", "b"), ("gpt", "c")]),
            WrongOrder,
            error,
            "conversations[1].from",
        ),
        (turns(&[("human", "<image>\na"), ("gpt", " \n")]), EmptyAnswer, error, "conversations[1].value"),
        (
            turns(&[("human", "<image>"), ("gpt", "b")]),
            EmptyQuestion,
            Severity::Warning,
            "conversations[0].value",
        ),
        (
            turns(&[("gpt", "Hi."), ("human", "<image>\na"), ("gpt", "b")]),
            WrongOrder,
            Severity::Warning,
            "conversations[0].from",
        ),
        (turns(&[("user", "<image>\na"), ("gpt", "b")]), WrongSpeaker, error, "conversations[0].from"),
        (json!({"image": 3, "conversations": []}), WrongType, error, "image"),
        (
            json!({"conversations": [{"from": "human", "value": ["a"]}]}),
            WrongType,
            error,
            "conversations[0].value",
        ),
        (json!({"image": "a.png", "video": "clip.mp4", "conversations": []}), TwoMedia, error, "video"),
        (json!("text"), NotARecord, error, ""),
    ];
    let mut list = Vec::new();
    for (index, (record, ..)) in cases.iter().enumerate() {
        let mut record = record.clone();
        if let Some(object) = record.as_object_mut() {
            object.insert("id".into(), format!("bad {index}").into());
        }
        list.push(record);
        list.push(about("image", "a.png"));
    }
    let report = data.check(&Value::Array(list), None);
    let mut warned = 0;
    for (index, (record, code, severity, field)) in cases.iter().enumerate() {
        let found: Vec<_> = report.findings.iter().filter(|finding| finding.record == 2 * index).collect();
        let [finding] = found.as_slice() else { panic!("{record}: {found:?}") };
        assert_eq!((finding.fault.code, finding.severity), (*code, *severity), "{record}: {finding:?}");
        assert_eq!(finding.fault.field, *field, "{record}: {finding:?}");
        if *code != NotARecord {
            assert_eq!(finding.id, format!("bad {index}"));
        }
        assert!(!finding.fault.problem.is_empty());
        warned += usize::from(*severity == Severity::Warning);
    }
    assert_eq!(report.findings.len(), cases.len());
    assert_eq!(report.totals.bad_records, cases.len() - warned);
    assert_eq!(report.totals.warned_records, warned);
    assert_eq!(report.totals.findings.values().sum::<usize>(), cases.len());
}

#[test]
fn samples_that_are_cut_or_masked_are_named() {
    let data = Data::new();
    let answer = |answer: &str| json!([{"from": "human", "value": "Why?"}, {"from": "gpt", "value": answer}]);
    let long = "A small dog on the bridge. ".repeat(40);
    let list = json!([
        {"id": "good", "conversations": answer("A dog.")},
        {"id": "long", "conversations": answer(&long)},
        {"id": "separator", "conversations": answer("So ASSISTANT: it is.")},
        {"id": "movie", "video": "good.safetensors", "conversations": pair("<image>\nWhat?")},
    ]);
    let found = |max_length| -> Vec<(usize, FaultCode, Severity)> {
        let report = data.check(&list, Some(&samples("imgsp_v1", max_length)));
        report.findings.iter().map(|finding| (finding.record, finding.fault.code, finding.severity)).collect()
    };
    let warning = Severity::Warning;
    assert_eq!(found(4096), [(2, FaultCode::FullyMasked, warning)]);
    assert_eq!(found(150), [(1, FaultCode::Cut, warning), (2, FaultCode::FullyMasked, warning)]);
    let short = found(40);
    // Nothing is left of the answers, and not all frames.
    assert!(short.contains(&(0, FaultCode::FullyMasked, warning)), "{short:?}");
    assert!(short.contains(&(3, FaultCode::Cut, Severity::Error)), "{short:?}");
    let report = data.check(&list, Some(&samples("plain_guided", 2048)));
    assert!(report.findings.iter().all(|finding| finding.fault.code == FaultCode::Template));
    assert_eq!(report.findings.len(), 4);
}

#[test]
fn the_oracles_lists_pass() {
    for (case, stage, template) in [
        ("image-grid4", "stage1", "plain_guided"),
        ("image-grid4", "stage2", "imgsp_v1"),
        ("long-video", "stage3", "imgsp_v1"),
    ] {
        let folders = Folders {
            images: Some(oracle(format!("{case}/data/images"))),
            videos: Some(oracle(format!("{case}/data/feats"))),
        };
        let list = oracle(format!("{case}/data/{stage}.json"));
        let report = check(&list, &folders, Some(&samples(template, 4096))).unwrap();
        let errors: Vec<_> =
            report.findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
}

#[test]
fn a_check_can_be_watched_and_stopped() {
    let data = Data::new();
    let records: Vec<Value> = (0..1500).map(|_| json!({"conversations": []})).collect();
    let list = RecordFile::open(&data.list(&Value::Array(records))).unwrap();
    let mut seen = (Vec::new(), 0);
    let totals = check_each(&list, &data.folders, None, |event| {
        match event {
            CheckEvent::Progress { records, total } => seen.0.push((records, total)),
            CheckEvent::Finding(finding) => {
                assert_eq!(finding.record, seen.1);
                seen.1 += 1;
            }
            CheckEvent::Video(_) => {}
        }
        ControlFlow::Continue(())
    });
    assert_eq!(totals.unwrap().bad_records, 1500);
    assert_eq!(seen.0, [(512, 1500), (1024, 1500), (1500, 1500)]);
    let stopped = check_each(&list, &data.folders, None, |_| ControlFlow::Break(()));
    assert!(matches!(stopped.unwrap_err(), Error::Cancelled));
    let absent = check(Path::new("absent.json"), &data.folders, None);
    assert!(matches!(absent.unwrap_err(), Error::Io { .. }));
}

#[test]
fn the_published_structure_is_known() {
    let root = tempfile::tempdir().unwrap();
    let all = missing(root.path());
    let folders: usize = all.iter().filter(|missing| missing.folder).count();
    // Six lists, three files of weights; images, videos, six folders of stage 2, films, two language models.
    assert_eq!((all.len() - folders, folders), (9, 11));
    let coco = all.iter().find(|missing| missing.path.ends_with("coco")).unwrap();
    assert_eq!(coco.stages, [Stage::Two]);
    assert_eq!(coco.lists.len(), 3);

    for list in &PUBLISHED_LISTS {
        let path = root.path().join(list.path());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "[]").unwrap();
        for folder in list.needs {
            std::fs::create_dir_all(root.path().join(folder)).unwrap();
        }
    }
    // Empty folders are as good as none.
    assert_eq!(missing(root.path()).len(), 14);
    for list in &PUBLISHED_LISTS {
        for folder in list.needs {
            std::fs::write(root.path().join(folder).join("x"), "").unwrap();
        }
    }
    let weights: Vec<PathBuf> = missing(root.path()).into_iter().map(|missing| missing.path).collect();
    assert_eq!(weights.len(), STARTING_WEIGHTS.len());
    for stage in Stage::ALL {
        assert!(PUBLISHED_LISTS.iter().any(|list| list.stage == stage));
    }
    for split in &SPLIT_LISTS {
        assert!(PublishedList::by_name(split.from).is_some());
    }
}
