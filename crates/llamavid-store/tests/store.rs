//! What a store promises, on real files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod shared;

use std::fs;
use std::path::Path;

use half::f16;
use llamavid_store::{Block, Description, Error, Frames, Precision, Store};
use shared::{ROWS, WIDTH, contents, description, values, write};

fn single(block: Block) -> Vec<f32> {
    match block {
        Block::Half(values) => values.into_iter().map(f16::to_f32).collect(),
        Block::Single(values) => values,
    }
}

fn shard(store: &Store, number: usize) -> std::path::PathBuf {
    let key = description(Precision::Sixteen).key();
    store.root().join("videos").join(key).join(format!("{number:05}.safetensors"))
}

#[test]
fn what_was_written_is_read_rounded_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("new")).unwrap();
    assert!(store.find(&description(Precision::Sixteen)).unwrap().is_none());
    write(&store, Precision::Sixteen, 75);
    let features = store.find(&description(Precision::Sixteen)).unwrap().unwrap();
    assert_eq!(features.shape(), [75, ROWS, WIDTH]);
    assert_eq!(features.report(), "75 frames");
    assert!(features.times().eq((0..75).map(f64::from)));
    let expected: Vec<f32> = values(0, 75).into_iter().map(|value| f16::from_f32(value).to_f32()).collect();
    for (start, count) in [(0, 75), (0, 1), (31, 2), (33, 42), (74, 1)] {
        let block = single(features.read(start, count).unwrap());
        assert_eq!(block, expected[start * ROWS * WIDTH..(start + count) * ROWS * WIDTH], "{start} {count}");
    }
    for (start, count) in [(0, 76), (75, 1), (3, 0), (usize::MAX, 2)] {
        assert!(matches!(features.read(start, count), Err(Error::Argument(_))), "{start} {count}");
    }
}

#[test]
fn a_video_is_found_by_its_folder_and_alone_by_its_store() {
    let folder = tempfile::tempdir().unwrap();
    let problem = |path: &Path| match Store::find_at(path).unwrap_err() {
        Error::Invalid { problem, .. } => problem,
        other => panic!("{other}"),
    };
    let store = Store::open(folder.path()).unwrap();
    assert!(problem(folder.path()).contains("no whole video"));
    // One that is not whole is none.
    let begun = store.writer(description(Precision::Eight)).unwrap();
    assert!(problem(folder.path()).contains("no whole video"));
    let unfinished = folder.path().join("videos").join(description(Precision::Eight).key());
    assert!(problem(&unfinished).contains("not whole"));
    drop(begun);
    write(&store, Precision::Sixteen, 33);
    let key = description(Precision::Sixteen).key();
    let video = folder.path().join("videos").join(&key);
    for path in [folder.path(), &video] {
        let found = Store::find_at(path).unwrap();
        assert_eq!((found.shape(), found.report()), ([33, ROWS, WIDTH], "33 frames"));
        assert_eq!(found.description(), &description(Precision::Sixteen));
    }
    write(&store, Precision::Eight, 3);
    let several = problem(folder.path());
    assert!(several.contains("2 videos") && several.contains(&format!("videos/{key} (")), "{several}");
    assert!(matches!(Store::find_at(&folder.path().join("absent")), Err(Error::Io { .. })));
    fs::rename(&video, folder.path().join("videos").join("0".repeat(32))).unwrap();
    assert!(problem(&folder.path().join("videos").join("0".repeat(32))).contains("another video"));
}

#[test]
fn eight_bits_are_a_127th_of_each_rows_largest_number_off_at_most_by_half() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let features = write(&store, Precision::Eight, 40);
    let (stored, exact) = (single(features.read(0, 40).unwrap()), values(0, 40));
    for (stored, exact) in stored.chunks(WIDTH).zip(exact.chunks(WIDTH)) {
        let largest = exact.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (stored, exact) in stored.iter().zip(exact) {
            assert!((stored - exact).abs() <= largest / 127. * 0.501, "{stored} {exact}");
        }
    }
    let sixteen = write(&store, Precision::Sixteen, 40);
    assert!(matches!(sixteen.read(0, 1).unwrap(), Block::Half(_)));
    assert_eq!(store.list().unwrap().len(), 2);
}

#[test]
fn numbers_that_do_not_fit_f16_stay_as_they_are() {
    for (from_bf16, large) in [(false, 1e6f32), (true, 3e38)] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut writer = store.writer(description(Precision::Sixteen)).unwrap();
        let large = if from_bf16 { half::bf16::from_f32(large).to_f32() } else { large };
        let values = [0.5, -0.25, large, 0.];
        writer.append(Frames { shape: [1, 2, 2], values: &values, from_bf16, times: &[0.] }).unwrap();
        let features = writer.finish(String::new()).unwrap();
        assert_eq!(features.read(0, 1).unwrap(), Block::Single(values.to_vec()));
    }
}

#[test]
fn frames_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let mut writer = store.writer(description(Precision::Sixteen)).unwrap();
    let mut append = |shape: [usize; 3], value: f32, times: &[f64]| {
        let values = vec![value; shape.iter().product()];
        writer.append(Frames { shape, values: &values, from_bf16: false, times })
    };
    let times: Vec<f64> = (0..33).map(f64::from).collect();
    assert!(append([33, 1, 1], 1., &times).is_err());
    assert!(append([2, 1, 1], f32::NAN, &times[..2]).is_err());
    assert!(append([2, 1, 1], 1., &[1., 1.]).is_err());
    assert!(append([2, 1, 1], 1., &[0.]).is_err());
    append([32, 1, 1], 1., &times[..32]).unwrap();
    assert!(append([1, 1, 1], 1., &times[31..32]).is_err());
    assert!(append([1, 2, 1], 1., &times[32..]).is_err());
    append([1, 1, 1], 1., &times[32..]).unwrap();
    assert!(append([1, 1, 1], 1., &[99.]).is_err());
}

#[test]
fn one_writer_and_any_number_of_readers() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let features = write(&store, Precision::Sixteen, 40);
    let writer = store.writer(description(Precision::Sixteen)).unwrap();
    assert!(writer.is_complete());
    assert!(matches!(store.writer(description(Precision::Sixteen)), Err(Error::Locked { .. })));
    assert!(matches!(store.remove(&description(Precision::Sixteen).key()), Err(Error::Locked { .. })));
    assert!(store.prune(0).unwrap().is_empty());
    // Another video is another lock.
    write(&store, Precision::Eight, 40);
    assert!(store.find(&description(Precision::Sixteen)).unwrap().is_some());
    drop(writer);
    store.remove(&description(Precision::Sixteen).key()).unwrap();
    assert!(store.find(&description(Precision::Sixteen)).unwrap().is_none());
    // Who has them open keeps them.
    assert_eq!(single(features.read(0, 40).unwrap()).len(), 40 * ROWS * WIDTH);
    assert!(matches!(store.remove("../.."), Err(Error::Argument(_))));
}

#[test]
fn the_least_recently_used_goes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    write(&store, Precision::Sixteen, 40);
    write(&store, Precision::Eight, 40);
    std::thread::sleep(std::time::Duration::from_millis(20));
    // Reading is a use.
    store.find(&description(Precision::Sixteen)).unwrap().unwrap();
    let videos = store.list().unwrap();
    assert_eq!(videos[0].description.as_ref().unwrap().precision, Precision::Sixteen);
    assert!(videos.iter().all(|video| video.frames == Some(40) && video.bytes > 1000));
    let removed = store.prune(videos[0].bytes).unwrap();
    assert_eq!(removed.iter().map(|video| &video.key).collect::<Vec<_>>(), [&videos[1].key]);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.prune(0).unwrap().len(), 1);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn damage_is_told_to_readers_and_repaired_by_the_writer() {
    let place = tempfile::tempdir().unwrap();
    let whole = {
        let store = Store::open(&place.path().join("whole")).unwrap();
        write(&store, Precision::Sixteen, 100);
        contents(store.root())
    };
    let other = Description { encoder: "another".into(), ..description(Precision::Sixteen) }.key();
    type Damage = Box<dyn Fn(&Store)>;
    let cases: Vec<(&str, Damage)> = vec![
        ("a shard that is cut", Box::new(|store| cut(&shard(store, 1), 300))),
        ("a shard cut inside its header", Box::new(|store| cut(&shard(store, 1), 20))),
        ("an empty shard", Box::new(|store| cut(&shard(store, 2), 0))),
        ("a missing shard", Box::new(|store| fs::remove_file(shard(store, 0)).unwrap())),
        (
            "another shard's file",
            Box::new(|store| assert!(fs::copy(shard(store, 0), shard(store, 2)).unwrap() > 0)),
        ),
        ("noise", Box::new(|store| fs::write(shard(store, 3), [0x9b; 4096]).unwrap())),
        (
            "another model's shard",
            Box::new(move |store| {
                let text = fs::read(shard(store, 1)).unwrap();
                let key = description(Precision::Sixteen).key();
                let at = text.windows(32).position(|part| part == key.as_bytes()).unwrap();
                let mut changed = text.clone();
                changed[at..at + 32].copy_from_slice(other.as_bytes());
                fs::write(shard(store, 1), changed).unwrap();
            }),
        ),
        (
            "an index that is no JSON",
            Box::new(|store| fs::write(shard(store, 0).with_file_name("entry.json"), "{").unwrap()),
        ),
        (
            "an index of another version",
            Box::new(|store| {
                let path = shard(store, 0).with_file_name("entry.json");
                let text = fs::read_to_string(&path).unwrap();
                fs::write(path, text.replace("\"version\": 1", "\"version\": 2")).unwrap();
            }),
        ),
    ];
    for (what, damage) in cases {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        write(&store, Precision::Sixteen, 100);
        damage(&store);
        let error = store.find(&description(Precision::Sixteen)).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{what}: {error}");
        let writer = store.writer(description(Precision::Sixteen)).unwrap();
        assert!(!writer.is_complete(), "{what}");
        let missing = what == "a missing shard";
        assert_eq!(writer.repairs().len(), usize::from(!missing), "{what}: {:?}", writer.repairs());
        drop(writer);
        write(&store, Precision::Sixteen, 100);
        assert_eq!(contents(store.root()), whole, "{what}");
    }
}

fn cut(path: &Path, length: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(length).unwrap();
}

#[test]
fn a_folder_that_is_no_store_of_this_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("holiday.jpg"), "").unwrap();
    assert!(matches!(Store::open(folder.path()), Err(Error::Invalid { .. })));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("store.json"), r#"{"version":2}"#).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(error.to_string().contains("version 2"), "{error}");
    fs::write(folder.path().join("store.json"), "").unwrap();
    assert!(matches!(Store::open(folder.path()), Err(Error::Invalid { .. })));
    // A file where a folder should be.
    assert!(Store::open(&folder.path().join("store.json/below")).is_err());
}
