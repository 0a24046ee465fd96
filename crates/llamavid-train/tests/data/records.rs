//! Lists of records: read lazily, whatever their size, and refused with the place when they are no lists.

use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use llamavid_train::data::{Error, FaultCode, Media, Message, Record, RecordFile, Speaker};
use tempfile::TempDir;

use crate::oracle::{of, oracle, read_json};

fn written(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("list.json");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn open(content: impl AsRef<[u8]>) -> (TempDir, RecordFile) {
    let (folder, path) = written(content);
    let file = RecordFile::open(&path).unwrap();
    (folder, file)
}

fn refused(content: impl AsRef<[u8]>) -> (u64, u64, String) {
    let (_folder, path) = written(content);
    match RecordFile::open(&path).unwrap_err() {
        Error::NotRecords { offset, line, problem, file } => {
            assert_eq!(file, path);
            (offset, line, problem)
        }
        other => panic!("{other}"),
    }
}

fn fault(file: &RecordFile, index: usize) -> (FaultCode, String, Option<String>) {
    match file.record(index).unwrap_err() {
        Error::Record { fault, id, record, .. } => {
            assert_eq!(record, index);
            (fault.code, fault.field, id)
        }
        other => panic!("{other}"),
    }
}

const PAIR: &str = r#"{"id": "a", "image": "x.png", "conversations": [
    {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]}"#;

#[test]
fn records_are_what_the_file_says() {
    let text = r#"{"id": 7, "conversations": [{"from": "gpt", "value": "Gr\u00fc\u00df dich"}]}"#;
    let movie = r#"{"video": "m.pkl", "conversations": [], "extra": {"deep": [[[{}]]]}}"#;
    let clip = r#"{"id": "c", "video": "v/c.mp4", "image": null, "conversations": []}"#;
    let list = format!("\u{feff} [{PAIR},\n{text} , {movie},{clip}]\n");
    let lines = format!("{PAIR}\n{text}\n\n{movie}\r\n{clip}");
    for content in [list, lines] {
        let (_folder, file) = open(content);
        assert_eq!(file.len(), 4);
        assert_eq!(file.lengths().collect::<Vec<_>>(), [4, -2, 0, 0]);
        let said = |from, value: &str| Message { from, value: value.into() };
        assert_eq!(
            file.record(0).unwrap(),
            Record {
                id: "a".into(),
                media: Media::Image("x.png".into()),
                turns: vec![said(Speaker::Human, "<image>\nWhat?"), said(Speaker::Gpt, "A dog.")],
            }
        );
        assert_eq!(
            file.record(1).unwrap(),
            Record { id: "7".into(), media: Media::None, turns: vec![said(Speaker::Gpt, "Grüß dich")] }
        );
        let movie = file.record(2).unwrap();
        assert_eq!((movie.id.as_str(), movie.media), ("#2", Media::Features("m.pkl".into())));
        assert_eq!(file.record(3).unwrap().media, Media::Video("v/c.mp4".into()));
        let error = file.record(4).unwrap_err();
        assert!(matches!(error, Error::NoSuchRecord { record: 4, records: 4, .. }), "{error}");
    }
}

#[test]
fn lengths_are_the_references() {
    let mut compared = 0;
    for case in ["image-grid4", "video-mean", "long-video", "start-end"] {
        let cases = read_json(format!("{case}/cases.json"));
        for (stage, training) in cases["training"].as_object().unwrap() {
            let file = RecordFile::open(&oracle(format!("{case}/data/{stage}.json"))).unwrap();
            let lengths: Vec<i64> = of(&training["modality_lengths"]);
            assert_eq!(file.lengths().collect::<Vec<_>>(), lengths, "{case} {stage}");
            compared += 1;
        }
    }
    assert!(compared >= 9);
    // White space as Python splits at it.
    let (_folder, file) = open(
        r#"[{"conversations":[{"from":"human","value":" a\u00a0b\u2003c\u001fd\u0085e\n\tf "},{"value":"g"},{"value":3}]}]"#,
    );
    assert_eq!(file.lengths().collect::<Vec<_>>(), [-7]);
}

#[test]
fn bad_records_are_named_and_leave_the_others_alone() {
    let bad = [
        ("3", FaultCode::NotARecord, ""),
        ("\"text, ] with a bracket\"", FaultCode::NotARecord, ""),
        ("null", FaultCode::NotARecord, ""),
        ("[{}]", FaultCode::NotARecord, ""),
        ("{}", FaultCode::WrongType, "conversations"),
        (r#"{"conversations": {}}"#, FaultCode::WrongType, "conversations"),
        (r#"{"conversations": [1]}"#, FaultCode::WrongType, "conversations[0]"),
        (r#"{"conversations": [{"value": "a"}]}"#, FaultCode::WrongType, "conversations[0].from"),
        (
            r#"{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": 3}]}"#,
            FaultCode::WrongType,
            "conversations[1].value",
        ),
        (
            r#"{"conversations": [{"from": "system", "value": "a"}]}"#,
            FaultCode::WrongSpeaker,
            "conversations[0].from",
        ),
        (r#"{"image": ["a", "b"], "conversations": []}"#, FaultCode::WrongType, "image"),
        (r#"{"image": "a", "video": "b", "conversations": []}"#, FaultCode::TwoMedia, "video"),
        // Half a surrogate pair is JSON, and no text.
        (r#"{"conversations": [{"from": "gpt", "value": "\ud800"}]}"#, FaultCode::NotARecord, ""),
    ];
    let mut content = "[".to_owned();
    for (text, _, _) in bad {
        write!(content, "{text},{PAIR},").unwrap();
    }
    let (_folder, file) = open(format!("{}]", content.trim_end_matches(',')));
    assert_eq!(file.len(), 2 * bad.len());
    for (index, (text, code, field)) in bad.iter().enumerate() {
        let (found, at, _) = fault(&file, 2 * index);
        assert_eq!((found, at.as_str()), (*code, *field), "{text}");
        assert_eq!(file.record(2 * index + 1).unwrap().id, "a");
    }
    let (_folder, file) = open(r#"[{"id": "x\ty", "conversations": 5}]"#);
    let error = file.record(0).unwrap_err();
    assert_eq!(error.fault().unwrap().code, FaultCode::WrongType);
    let message = error.to_string();
    assert!(message.contains("record 0 (id `x\\ty`)") && message.contains("`conversations`"), "{message}");
    // Bytes that are not UTF-8.
    let (_folder, file) = open(b"[{\"conversations\": [{\"from\": \"gpt\", \"value\": \"\xff\"}]}, {}]");
    assert_eq!(fault(&file, 0).0, FaultCode::NotARecord);
}

#[test]
fn files_that_are_no_lists_are_refused_with_the_place() {
    let at = |content: &str| {
        let (offset, line, problem) = refused(content);
        (offset, line, problem)
    };
    for (content, offset, line, problem) in [
        ("", 0, 1, "empty"),
        ("  \n ", 4, 2, "empty"),
        ("<!DOCTYPE html>", 0, 1, "found `<`"),
        ("\"text\"", 0, 1, "found `\"`"),
        ("version https://git-lfs.github.com/spec/v1\noid", 0, 1, "Git LFS"),
        ("[", 1, 1, "cut short"),
        ("[{}", 3, 1, "cut short"),
        ("[{},\n", 5, 2, "cut short"),
        ("[{},]", 4, 1, "found `]`"),
        ("[,{}]", 1, 1, "found `,`"),
        ("[{} {}]", 4, 1, "found `{`"),
        ("[{}]\n\n x", 7, 3, "found `x`"),
        ("[{}]{}", 4, 1, "found `{`"),
        ("[\n{\"a\": 1", 9, 2, "starts at byte 2"),
        ("[\"abc\\", 6, 1, "starts at byte 1"),
        ("{\"a\": \"b\"}\n{\"c\": [", 18, 2, "starts at byte 11"),
        ("[\n {\"a\": tru}]", 12, 2, "expected ident"),
        ("[{\"a\": 1},\n {\"a\": 1\n \"b\": 2}]", 21, 3, "expected `,` or `}`"),
        ("[{]", 2, 1, ""),
        ("[{\"conversations\": [}]", 20, 1, ""),
        ("[NaN]", 1, 1, ""),
        ("\u{feff}[1 2]", 6, 1, "expected a comma"),
    ] {
        let (found_offset, found_line, found) = at(content);
        assert!(found.contains(problem), "{content:?}: {found}");
        assert_eq!((found_offset, found_line), (offset, line), "{content:?}: {found}");
    }
    for content in ["[]", " [ ] \n"] {
        let (_folder, path) = written(content);
        let error = RecordFile::open(&path).unwrap_err();
        assert!(matches!(error, Error::Empty { .. }), "{error}");
    }
    let (folder, path) = written("[]");
    for path in [folder.path().to_path_buf(), path.with_file_name("absent.json")] {
        assert!(matches!(RecordFile::open(&path).unwrap_err(), Error::Io { .. }));
    }
}

#[test]
fn every_cut_of_a_list_is_refused() {
    let list = format!("[{PAIR}, \"\\\"\", -1.5e3, [[{{}}]], {PAIR}]");
    assert_eq!(open(&list).1.len(), 5);
    for end in 0..list.len() {
        let (offset, _, _) = refused(&list[..end]);
        assert!(offset <= end as u64, "{end}: {offset}");
    }
}

#[test]
fn every_changed_byte_is_read_or_refused() {
    let list = format!("[{PAIR},{PAIR}]").into_bytes();
    for index in 0..list.len() {
        for byte in [b'"', b'{', b']', b'\\', b',', 0, 0xFF] {
            let mut changed = list.clone();
            changed[index] = byte;
            let (_folder, path) = written(&changed);
            if let Ok(file) = RecordFile::open(&path) {
                for record in 0..file.len() {
                    match file.record(record) {
                        Ok(_) | Err(Error::Record { .. }) => {}
                        Err(other) => panic!("{index} {byte}: {other}"),
                    }
                }
            }
        }
    }
}

#[test]
fn nesting_and_length_are_bounded() {
    // A million brackets, in a field that nobody reads and in one that should be text.
    let deep = 1_000_000;
    let nested = format!("{}{}", "[".repeat(deep), "]".repeat(deep));
    let (_folder, file) = open(format!(
        r#"[{{"extra": {nested}, "conversations": []}}, {{"image": {nested}, "conversations": []}}, {nested},
            {{"conversations": {nested}}}]"#
    ));
    assert!(file.record(0).is_ok());
    assert_eq!(fault(&file, 1).0, FaultCode::WrongType);
    assert_eq!(fault(&file, 2).0, FaultCode::NotARecord);
    assert_eq!(fault(&file, 3).1, "conversations[0]");
    refused(format!("[{{\"a\": {}", "[".repeat(deep)));

    // A chat of 100,000 messages, and one of more than are read.
    let chat = |count: usize| {
        let pair = r#"{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}"#;
        let pairs = vec![pair; count / 2].join(",");
        format!(r#"{{"id": "long", "conversations": [{pairs}]}}"#)
    };
    let (_folder, file) = open(format!("[{},{},{PAIR}]", chat(100_000), chat(1_000_002)));
    assert_eq!(file.lengths().collect::<Vec<_>>(), [-150_000, 0, 4]);
    assert_eq!(file.record(0).unwrap().turns.len(), 100_000);
    assert_eq!(fault(&file, 1), (FaultCode::TooLarge, "conversations".into(), Some("long".into())));

    // A text of 300 MiB is over the limit of a record; the next one is read.
    let (_folder, path) = written("");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    out.write_all(b"[{\"conversations\": [{\"from\": \"gpt\", \"value\": \"").unwrap();
    let mebibyte = vec![b'x'; 1 << 20];
    for _ in 0..300 {
        out.write_all(&mebibyte).unwrap();
    }
    write!(out, "\"}}]}}, {PAIR}]").unwrap();
    out.into_inner().unwrap();
    let file = RecordFile::open(&path).unwrap();
    assert_eq!(fault(&file, 0).0, FaultCode::TooLarge);
    assert_eq!(file.record(1).unwrap().id, "a");
}

#[test]
fn a_list_that_changes_is_noticed() {
    let (_folder, path) = written(format!("[{PAIR},{PAIR}]"));
    let file = RecordFile::open(&path).unwrap();
    assert!(file.record(1).is_ok());
    std::fs::write(&path, format!("[{PAIR}]")).unwrap();
    for index in 0..2 {
        let error = file.record(index).unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error}");
    }
}

#[test]
fn opening_can_be_watched_and_stopped() {
    let (_folder, path) = written(format!("[{}]", vec![PAIR; 20_000].join(",")));
    let mut calls = Vec::new();
    let file = RecordFile::open_watched(&path, |read, total| {
        calls.push((read, total));
        ControlFlow::Continue(())
    });
    assert_eq!(file.unwrap().len(), 20_000);
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(calls.len() > 1 && calls.is_sorted() && calls.last() == Some(&(bytes, bytes)), "{calls:?}");
    let stopped = RecordFile::open_watched(&path, |_, _| ControlFlow::Break(()));
    assert!(matches!(stopped.unwrap_err(), Error::Cancelled));
}

#[test]
fn records_are_read_from_many_threads() {
    let records: Vec<String> = (0..200)
        .map(|index| {
            format!(r#"{{"id": "{index}", "conversations": [{{"from": "gpt", "value": "{index}"}}]}}"#)
        })
        .collect();
    let (_folder, file) = open(format!("[{}]", records.join(",")));
    std::thread::scope(|scope| {
        for start in 0..4 {
            let file = &file;
            scope.spawn(move || {
                for index in (start..200).step_by(3) {
                    assert_eq!(file.record(index).unwrap().turns[0].value, index.to_string());
                }
            });
        }
    });
}
