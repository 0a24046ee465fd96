//! Prompts, ids, splices and frame choices equal the reference's.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};
use llamavid_models::prompt::conversation::{
    ImageTag, MediaPlacement, SeparatorStyle, TEMPLATES, Template, Turn, question_with_media,
};
use llamavid_models::prompt::movie::{movie_inputs, movie_question};
use llamavid_models::prompt::placeholders::{IMAGE_TOKEN, tokenize_with_images};
use llamavid_models::prompt::sampling::{frame_indices, frame_times};
use llamavid_models::prompt::splice::{BatchRow, SpliceKind, splice, splice_batch};
use llamavid_models::prompt::subtitles::{
    CueFormat, SpeechSegment, Subtitle, cue_text, from_speech, holds_tags, parse_ass, parse_srt, parse_webvtt,
};
use llamavid_models::tokenizer::{LlamaTokenizer, WordPieceTokenizer};
use serde_json::Value;

fn oracle(path: impl AsRef<Path>) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/oracle")).join(path)
}

fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(oracle(path)).unwrap()).unwrap()
}

fn array<'a>(value: &'a Value, key: &str) -> &'a Vec<Value> {
    let values = value[key].as_array().unwrap_or_else(|| panic!("{key}"));
    assert!(!values.is_empty(), "{key}");
    values
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<T> {
    serde_json::from_value(value.clone()).unwrap()
}

fn llama(folder: impl AsRef<Path>, legacy: Option<bool>, added: Option<&Value>) -> LlamaTokenizer {
    let read = |name: &str| std::fs::read(oracle(folder.as_ref()).join(name)).ok();
    let mut config: Value = serde_json::from_slice(&read("tokenizer_config.json").unwrap()).unwrap();
    if let Some(legacy) = legacy {
        config["legacy"] = legacy.into();
    }
    let added = added.map(|added| added.to_string().into_bytes()).or_else(|| read("added_tokens.json"));
    LlamaTokenizer::from_bytes(
        &read("tokenizer.model").unwrap(),
        Some(config.to_string().as_bytes()),
        added.as_deref(),
        read("special_tokens_map.json").as_deref(),
    )
    .unwrap()
}

/// Folders of cases, with their `cases.json` and tensors.
fn folders() -> Vec<(String, Value, HashMap<String, Tensor>)> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(oracle("")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().join("model/tokenizer.model").exists() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let tensors =
                candle_core::safetensors::load(entry.path().join("tensors.safetensors"), &Device::Cpu);
            folders.push((name.clone(), read_json(format!("{name}/cases.json")), tensors.unwrap()));
        }
    }
    assert!(folders.len() >= 9);
    folders
}

/// The table of token embeddings of a checkpoint folder, (V, D) f32.
fn embedding_table(checkpoint: impl AsRef<Path>) -> Tensor {
    let folder = oracle(checkpoint);
    let index: Value =
        serde_json::from_slice(&std::fs::read(folder.join("pytorch_model.bin.index.json")).unwrap()).unwrap();
    let name = "model.embed_tokens.weight";
    let shard = PthTensors::new(folder.join(text(&index["weight_map"][name])), None).unwrap();
    shard.get(name).unwrap().unwrap().to_dtype(DType::F32).unwrap()
}

fn embed(table: &Tensor, ids: &[u32]) -> llamavid_models::Result<Tensor> {
    Ok(table.index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn whole_numbers(tensor: &Tensor) -> Vec<i64> {
    tensor.flatten_all().unwrap().to_dtype(DType::I64).unwrap().to_vec1().unwrap()
}

fn rows(tensor: &Tensor) -> Vec<Vec<u32>> {
    tensor.to_dtype(DType::U32).unwrap().to_vec2().unwrap()
}

/// The first axis, one tensor each.
fn unstack(tensor: &Tensor) -> Vec<Tensor> {
    (0..tensor.dim(0).unwrap()).map(|index| tensor.get(index).unwrap()).collect()
}

#[test]
fn templates_are_the_references() {
    let file = read_json("text/conversations.json");
    let names: Vec<&str> = TEMPLATES.iter().map(|template| template.name.as_ref()).collect();
    assert_eq!(names, numbers::<String>(&file["upstream_templates"]));
    for (name, expected) in file["templates"].as_object().unwrap() {
        if !name.starts_with("custom_") {
            assert_eq!(*Template::by_name(name).unwrap(), template_of(name, expected));
        }
    }
    let error = Template::by_name("mpt").unwrap_err().to_string();
    assert!(error.contains("`mpt`") && error.contains("vicuna_v1"), "{error}");
}

#[test]
fn conversations_render_as_the_references() {
    let file = read_json("text/conversations.json");
    for case in array(&file, "renderings") {
        let name = text(&case["template"]);
        let template = template_of(name, &file["templates"][name]);
        let rendered = match case.get("first_message_with_media") {
            Some(message) => template.render(&template.turns_with_media(&[(text(message).into(), None)])),
            None => template.render(&numbers::<Turn>(&case["turns"])),
        };
        match case.get("prompt") {
            Some(prompt) => assert_eq!(rendered.unwrap(), text(prompt), "{case}"),
            None => assert!(rendered.is_err(), "{case}"),
        }
    }
}

fn template_of(name: &str, value: &Value) -> Template {
    let owned = |value: &Value| Cow::Owned(text(value).to_owned());
    Template {
        name: Cow::Owned(name.into()),
        system: owned(&value["system"]),
        roles: [owned(&value["roles"][0]), owned(&value["roles"][1])],
        style: match text(&value["sep_style"]) {
            "SINGLE" => SeparatorStyle::Single,
            "TWO" => SeparatorStyle::Two,
            "MPT" => SeparatorStyle::Mpt,
            "PLAIN" => SeparatorStyle::Plain,
            "LLAMA_2" => SeparatorStyle::Llama2,
            other => panic!("{other}"),
        },
        separator: owned(&value["sep"]),
        second_separator: value["sep2"].as_str().map(|separator| Cow::Owned(separator.to_owned())),
        media: if text(&value["version"]).contains("mmtag") {
            MediaPlacement::OwnTurn
        } else {
            MediaPlacement::OwnLine
        },
    }
}

#[test]
fn questions_carry_the_tag_of_their_media() {
    assert_eq!(question_with_media("And?", ImageTag::Bare), "<image>\nAnd?");
    assert_eq!(question_with_media("And?", ImageTag::StartEnd), "<im_start><image><im_end>\nAnd?");
}

#[test]
fn prompts_become_ids_piece_by_piece() {
    let file = read_json("text/tokenizer.json");
    for case in array(&file, "with_images") {
        let tokenizer = llama("text/tokenizer", case["legacy"].as_bool(), None);
        let prompt = text(&case["prompt"]);
        assert_eq!(tokenize_with_images(&tokenizer, prompt), numbers::<i64>(&case["ids"]), "{case}");
    }
    let tokenizer = llama("text/tokenizer", None, Some(&file["added_vocab"]));
    for case in array(&file, "added_tokens").iter().filter(|case| case.get("ids_with_images").is_some()) {
        assert_eq!(
            tokenize_with_images(&tokenizer, text(&case["text"])),
            numbers::<i64>(&case["ids_with_images"])
        );
    }
}

#[test]
fn prompts_and_ids_of_all_cases() {
    for (folder, file, tensors) in folders() {
        let tokenizer = llama(format!("{folder}/model"), None, None);
        let vocabulary = std::fs::read(oracle(format!("{folder}/bert/vocab.txt"))).unwrap();
        let words = WordPieceTokenizer::from_vocab(&vocabulary, true).unwrap();
        let check_words = |prefix: &str, sample: usize, prompts: &[String]| {
            let (ids, mask) = words.encode_batch(prompts).unwrap();
            assert_eq!(ids, rows(&tensors[&format!("{prefix}/qf.input_ids.{sample}")]), "{folder} {prefix}");
            assert_eq!(
                mask,
                rows(&tensors[&format!("{prefix}/qf.attention_mask.{sample}")]),
                "{folder} {prefix}"
            );
        };
        for case in array(&file, "cases") {
            let id = text(&case["id"]);
            let template = Template::by_name(text(&case["conversation"])).unwrap();
            let prompt = template.render(&numbers::<Turn>(&case["turns"])).unwrap();
            assert_eq!(prompt, text(&case["prompt"]), "{folder} {id}");
            assert_eq!(
                tokenize_with_images(&tokenizer, &prompt),
                numbers::<i64>(&case["input_ids"]),
                "{folder} {id}"
            );
            assert_eq!(template.stop(), text(&case["stop"]), "{folder} {id}");
            if let Some(prompts) = case["qformer_prompts"].as_array() {
                assert_eq!(prompts.len(), 1, "{folder} {id}");
                check_words(id, 0, &numbers::<String>(&prompts[0]));
            }
        }
        for (stage, training) in file["training"].as_object().into_iter().flatten() {
            for (sample, prompts) in array(training, "prompts").iter().enumerate() {
                check_words(&format!("train/{stage}/forward"), sample, &numbers::<String>(prompts));
            }
        }
    }
}

#[test]
fn splices_of_all_cases_equal_the_references() {
    let mut spliced_cases = 0;
    for (folder, file, tensors) in folders() {
        let table = embedding_table(format!("{folder}/model"));
        for case in array(&file, "cases") {
            let id = text(&case["id"]);
            let Some(expected) = tensors.get(&format!("{id}/llm.inputs_embeds")) else {
                assert!(case["qformer_prompts"].is_null(), "{folder} {id}");
                continue;
            };
            let visual = unstack(&tensors[&format!("{id}/tok.features.0")]);
            let kind =
                if case["long_video"] == true { SpliceKind::PerToken } else { SpliceKind::PerPlaceholder };
            let ids = numbers::<i64>(&case["input_ids"]);
            let spliced = splice(&ids, &visual, kind, |ids| embed(&table, ids)).unwrap();
            assert_eq!(
                spliced.embeds.dims()[0] as u64,
                case["spliced_length"].as_u64().unwrap(),
                "{folder} {id}"
            );
            assert_eq!(spliced.embeds.dims(), &expected.dims()[1..], "{folder} {id}");
            assert_eq!(values(&spliced.embeds), values(expected), "{folder} {id}");
            let rows = visual.iter().map(|tokens| tokens.dim(0).unwrap()).sum::<usize>();
            assert_eq!(spliced.visual_count(), rows);
            let at: Vec<f32> = spliced
                .visual_positions
                .iter()
                .flat_map(|range| values(&spliced.embeds.narrow(0, range.start, range.len()).unwrap()))
                .collect();
            let given: Vec<f32> = visual.iter().flat_map(values).collect();
            assert_eq!(at, given, "{folder} {id}");

            let batch = [BatchRow { ids: &ids, visual: &visual, kind }];
            let batch = splice_batch(&batch, 0, |ids| embed(&table, ids)).unwrap();
            assert_eq!(values(&batch.embeds), values(expected), "{folder} {id}");
            let mask = &tensors[&format!("{id}/llm.attention_mask")];
            assert_eq!(batch.attention_mask.dims(), mask.dims(), "{folder} {id}");
            assert_eq!(whole_numbers(&batch.attention_mask), whole_numbers(mask), "{folder} {id}");
            spliced_cases += 1;
        }
    }
    assert!(spliced_cases >= 30, "{spliced_cases}");
}

#[test]
fn batches_of_all_training_stages_equal_the_references() {
    let mut batches = 0;
    for (folder, file, tensors) in folders() {
        for stage in file["training"].as_object().into_iter().flatten().map(|(stage, _)| stage) {
            let prefix = format!("train/{stage}");
            let table = training_table(&folder, stage);
            let mut ids = Vec::new();
            let mut visual = Vec::new();
            while let Some(sample) = tensors.get(&format!("{prefix}/sample{}/input_ids", ids.len())) {
                let features = &tensors[&format!("{prefix}/forward/tok.features.{}", ids.len())];
                ids.push(whole_numbers(sample));
                // A row without a place for them has visual tokens of an empty picture.
                let has_place = ids.last().is_some_and(|ids: &Vec<i64>| ids.contains(&IMAGE_TOKEN));
                visual.push(if has_place { unstack(features) } else { Vec::new() });
            }
            let kind = if stage == "stage3" { SpliceKind::PerToken } else { SpliceKind::PerPlaceholder };
            let batch: Vec<BatchRow<'_>> =
                ids.iter().zip(&visual).map(|(ids, visual)| BatchRow { ids, visual, kind }).collect();
            let batch = splice_batch(&batch, 0, |ids| embed(&table, ids)).unwrap();
            let embeds = &tensors[&format!("{prefix}/forward/llm.inputs_embeds")];
            let mask = &tensors[&format!("{prefix}/forward/llm.attention_mask")];
            assert_eq!(batch.embeds.dims(), embeds.dims(), "{folder} {stage}");
            let (actual, expected) = (values(&batch.embeds), values(embeds));
            let error = actual.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            // Only the mean that starts added tokens is computed, all else is copied.
            assert!(error <= if folder == "start-end" { 1e-6 } else { 0.0 }, "{folder} {stage}: {error}");
            assert_eq!(whole_numbers(&batch.attention_mask), whole_numbers(mask), "{folder} {stage}");
            batches += 1;
        }
    }
    assert!(batches >= 9, "{batches}");
}

/// The embeddings at the start of a stage: added tokens get the mean of the others, and in stage 2 what
/// stage 1 made of them.
fn training_table(folder: &str, stage: &str) -> Tensor {
    let table = embedding_table(if stage == "stage3" {
        format!("{folder}/model_stage2")
    } else {
        format!("{folder}/llm")
    });
    if folder != "start-end" {
        return table;
    }
    let added = if stage == "stage1" {
        let mean = table.mean_keepdim(0).unwrap();
        Tensor::cat(&[&mean, &mean], 0).unwrap()
    } else {
        let file = PthTensors::new(oracle("start-end/mm_projector.bin"), None).unwrap();
        let learned = file.get("model.embed_tokens.weight").unwrap().unwrap();
        learned.narrow(0, learned.dim(0).unwrap() - 2, 2).unwrap()
    };
    Tensor::cat(&[&table, &added], 0).unwrap()
}

#[test]
fn an_unknown_word_is_hidden_in_a_batch() {
    let table = Tensor::arange(0f32, 40.0, &Device::Cpu).unwrap().reshape((20, 2)).unwrap();
    let visual = [Tensor::full(-1f32, (3, 2), &Device::Cpu).unwrap()];
    let rows = [
        BatchRow { ids: &[1, 0, IMAGE_TOKEN, 7], visual: &visual, kind: SpliceKind::PerPlaceholder },
        BatchRow { ids: &[1, 5], visual: &[], kind: SpliceKind::PerPlaceholder },
    ];
    let batch = splice_batch(&rows, 0, |ids| embed(&table, ids)).unwrap();
    assert_eq!(batch.attention_mask.to_vec2::<u8>().unwrap(), [[1, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]]);
    let second: Vec<Vec<f32>> = batch.embeds.get(1).unwrap().to_vec2().unwrap();
    // Filled up with the padding's embedding to the longest ids, with zeros to the longest row.
    assert_eq!(second, [[2., 3.], [10., 11.], [0., 1.], [0., 1.], [0., 0.], [0., 0.]]);
    assert_eq!((batch.visual_positions[0].len(), batch.visual_positions[0][0].clone()), (1, 2..5));
    assert!(batch.visual_positions[1].is_empty());
}

#[test]
fn wrong_counts_are_refused_with_their_numbers() {
    let table = Tensor::zeros((20, 2), DType::F32, &Device::Cpu).unwrap();
    let tokens = |rows: usize| Tensor::zeros((rows, 2), DType::F32, &Device::Cpu).unwrap();
    let error = |ids: &[i64], visual: &[Tensor], kind| {
        splice(ids, visual, kind, |ids| embed(&table, ids)).unwrap_err().to_string()
    };
    let image = IMAGE_TOKEN;
    let per_placeholder =
        error(&[1, image, image, image], &[tokens(4), tokens(4)], SpliceKind::PerPlaceholder);
    assert!(
        per_placeholder.contains("3 places") && per_placeholder.contains("2 questions"),
        "{per_placeholder}"
    );
    assert!(error(&[1, 2], &[tokens(4)], SpliceKind::PerPlaceholder).contains("0 places"));
    let per_token = error(&[1, image, image, image], &[tokens(4)], SpliceKind::PerToken);
    assert!(per_token.contains("3 places") && per_token.contains("4 visual"), "{per_token}");
    assert!(error(&[1, -7], &[], SpliceKind::PerToken).contains("-7 at position 1"));
    assert!(error(&[1, i64::MAX], &[], SpliceKind::PerToken).contains("position 1"));
    assert!(error(&[], &[], SpliceKind::PerToken).contains("empty"));
    assert!(error(&[1, image], &[tokens(0)], SpliceKind::PerPlaceholder).contains("no visual tokens"));
    let width = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(splice(&[1, image], &[width], SpliceKind::PerToken, |ids| embed(&table, ids)).is_err());
    assert!(splice_batch(&[], 0, |ids| embed(&table, ids)).is_err());
    let only_visual =
        splice(&[image], &[tokens(4)], SpliceKind::PerPlaceholder, |ids| embed(&table, ids)).unwrap();
    assert_eq!(only_visual.embeds.dims(), [4, 2]);
}

fn subtitles_of(value: &Value) -> Vec<Subtitle> {
    let seconds = |value: &Value| value.as_f64().unwrap();
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|subtitle| Subtitle {
            start_time: seconds(&subtitle["start_time"]),
            end_time: seconds(&subtitle["end_time"]),
            text: text(&subtitle["text"]).to_owned(),
        })
        .collect()
}

#[test]
fn subtitle_files_are_read_and_placed_as_the_reference_does() {
    let file = read_json("text/subtitles.json");
    for case in array(&file, "srt") {
        let srt = std::fs::read(oracle("text").join(text(&case["file"]))).unwrap();
        let subtitles = parse_srt(&srt).unwrap();
        assert_eq!(subtitles, subtitles_of(&case["subtitles"]), "{case}");
        assert_eq!(
            movie_inputs(&subtitles, &numbers::<f64>(&case["frame_time"])).unwrap(),
            text(&case["inputs"])
        );
    }
    let speech = &file["speech_segments"];
    let segments: Vec<SpeechSegment> = array(speech, "segments")
        .iter()
        .map(|segment| SpeechSegment {
            start: segment["start"].as_f64().unwrap(),
            end: segment["end"].as_f64().unwrap(),
            text: text(&segment["text"]).to_owned(),
            avg_logprob: segment["avg_logprob"].as_f64().unwrap(),
        })
        .collect();
    let kept = from_speech(&segments);
    assert_eq!(kept, subtitles_of(&speech["kept"]));
    assert_eq!(movie_inputs(&kept, &numbers::<f64>(&speech["frame_time"])).unwrap(), text(&speech["inputs"]));

    let movie = read_json("text/movie_features.json");
    let subtitles = parse_srt(text(&movie["srt"]).as_bytes()).unwrap();
    assert_eq!(
        movie_inputs(&subtitles, &numbers::<f64>(&movie["frame_time"])).unwrap(),
        text(&movie["inputs"])
    );
}

#[test]
fn subtitle_files_with_faults() {
    // A byte-order mark, zeros, bytes that are no text, lone carriage returns, positions behind the time.
    let odd = b"\xEF\xBB\xBF1\r00:00:01,000 --> 00:00:02.5 X1:1\rA\0 \xFFdog\r\r";
    let expected = Subtitle { start_time: 1.0, end_time: 2.5, text: "A dog".into() };
    assert_eq!(parse_srt(odd).unwrap(), [expected]);
    assert_eq!(parse_srt(b"").unwrap(), []);
    assert_eq!(parse_srt(b"just a text\n1\nwithout times").unwrap(), []);
    for time in [
        "00:00",
        "aa:00:01,0",
        "00:61:00,0",
        "00:00:01",
        "00:00:01,",
        "00:00:01,1234567",
        "0:0:0:1,0",
        "-1:00:00,0",
        "é:00:00,0",
    ] {
        let error =
            parse_srt(format!("1\n{time} --> 00:00:02,000\nA dog.").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(time), "{error}");
    }
    assert!(parse_srt("1\n --> \n".as_bytes()).is_ok());
    assert!(movie_inputs(&[], &[]).is_err());
    let long = "00:00:01,000 --> 00:00:02,000\nA dog.\n".repeat(30_000);
    assert_eq!(parse_srt(long.as_bytes()).unwrap().len(), 1);
}

#[test]
fn webvtt_files_hold_the_same_as_srt_files() {
    for case in array(&read_json("text/subtitles.json"), "srt") {
        let expected = subtitles_of(&case["subtitles"]);
        let mut file = String::from("\u{feff}WEBVTT - a film\r\n\r\n");
        for (index, subtitle) in expected.iter().enumerate() {
            let [start, end] = [subtitle.start_time, subtitle.end_time]
                .map(|time| format!("{:02}:{:06.3}", (time / 60.0) as u32, time % 60.0));
            let text = subtitle.text.replace('&', "&amp;").replace('<', "&lt;");
            file += &format!("{index}\r\n{start} --> {end} align:start\r\n{text}\r\n\r\n");
        }
        assert_eq!(parse_webvtt(file.as_bytes()).unwrap(), expected, "{file}");
    }
}

#[test]
fn webvtt_files_with_everything() {
    let file = "WEBVTT\tlanguage:en\nKind: captions\n\nNOTE not\nshown\n\nSTYLE\n::cue { color: red }\n\n\
        REGION\nid:low\n\nname of a cue\n1:02:03.250 --> 1:02:04.500 line:0\n<v Anna>1984...\n<c.loud>was</c> &lt;then&gt;\n\n\
        00:05.000-->00:06.000\n\n00:07.000 --> 00:06.000\nturned\n00:08.000 --> 00:09.000\nno line between <i\n";
    let shown = |start_time, end_time, text: &str| Subtitle { start_time, end_time, text: text.into() };
    assert_eq!(
        parse_webvtt(file.as_bytes()).unwrap(),
        [
            shown(3723.25, 3724.5, "1984 was <then>"),
            shown(7.0, 6.0, "turned"),
            shown(8.0, 9.0, "no line between")
        ]
    );
    assert!(parse_webvtt(b"WEBVTT").unwrap().is_empty());
    for file in ["", "WEBVTTX\n", "1\n00:00:01,000 --> 00:00:02,000\nA dog."] {
        assert!(parse_webvtt(file.as_bytes()).unwrap_err().to_string().contains("line 1"), "{file}");
    }
    let error = parse_webvtt(b"WEBVTT\n\nsoon --> 00:02.000\nA dog.").unwrap_err().to_string();
    assert!(error.contains("line 3: `soon`"), "{error}");
}

#[test]
fn ass_files_with_everything() {
    let file = "\u{feff}[Script Info]\r\nTitle: a film\r\nDialogue: of no event\r\n\r\n[V4+ Styles]\r\n\
        Format: Name, Fontname\r\nStyle: Default,Arial\r\n\r\n[Events]\r\n\
        Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\r\n\
        Comment: 0,0:00:00.00,0:00:09.00,Default,,0,0,0,,not shown\r\n\
        Dialogue: 0,0:00:05.00,0:00:06.50,Default,,0,0,0,,{\\an8\\i1}Second{\\i0}, with a comma...\r\n\
        Dialogue: 1,0:00:01.25,0:00:02.00,Default,Anna,0,0,0,,First\\Nof two lines\\hand { a brace\r\n\
        Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\\pos(1,2)\\p2}m 0 0 l 100 0{\\p0}\r\n\
        [Fonts]\r\nfontname: x\r\n";
    let shown = |start_time, end_time, text: &str| Subtitle { start_time, end_time, text: text.into() };
    let expected =
        [shown(1.25, 2.0, "First of two lines and { a brace"), shown(5.0, 6.5, "Second, with a comma")];
    assert_eq!(parse_ass(file.as_bytes()).unwrap(), expected);

    // Version 4 and columns in another order.
    let ssa = "[Events]\nDialogue: Marked=0,0:00:01.00,0:00:02.00,Default,NTP,0000,0000,0000,,A dog.\n";
    assert_eq!(parse_ass(ssa.as_bytes()).unwrap(), [shown(1.0, 2.0, "A dog.")]);
    let odd = "[EVENTS]\nFormat: End, Start, Text\nDialogue: 0:00:02.00, 0:00:01.00, A dog, too.\n";
    assert_eq!(parse_ass(odd.as_bytes()).unwrap(), [shown(1.0, 2.0, "A dog, too.")]);
    assert_eq!(parse_ass(b"").unwrap(), []);

    for (line, problem) in [
        ("Dialogue: 0,soon,0:00:02.00,Default,,0,0,0,,A dog.", "line 2: `soon`"),
        ("Dialogue: 0,-0:00:01.00,0:00:02.00,Default,,0,0,0,,A dog.", "line 2: `-0:00:01.00`"),
        ("Dialogue: 0,0:00:01.00", "line 2: 2 of 10 columns"),
        ("Format: Layer, Text", "line 2: the columns"),
    ] {
        let error = parse_ass(format!("[Events]\n{line}\n").as_bytes()).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn subtitles_of_streams() {
    let ass = b"12,0,Default,,0,0,0,,Yes, {\\b1}he said{\\b0}\\Nand left";
    assert_eq!(cue_text(ass, CueFormat::Ass), "Yes, he said and left");
    assert_eq!(cue_text(b"no columns", CueFormat::Ass), "");
    let srt = b"{\\an8}<I>Hello</i> <font color=\"red\">you</font>\r\n1 < 2 <3 {set} <unknown>...";
    assert_eq!(cue_text(srt, CueFormat::SubRip), "Hello you 1 < 2 <3 {set} <unknown>");
    assert_eq!(cue_text(b"<v Anna>1 &lt; 2\nyes", CueFormat::WebVtt), "1 < 2 yes");
    assert_eq!(cue_text(b"\0\x06A\ndog.\0\0\0\x10styl", CueFormat::MovText), "A dog.");
    assert_eq!(cue_text(b"\0\xffcut", CueFormat::MovText), "cut");
    assert_eq!(cue_text(b"\0\x06\xfe\xff\0H\0i", CueFormat::MovText), "Hi");
    assert_eq!(cue_text(b"\0", CueFormat::MovText), "");
    let tagged = ["<i>x", "{\\an8}x", "a</FONT>"];
    let plain = ["1 < 2 > 1", "<unknown>", "{x}", "<b"];
    assert!(tagged.iter().all(|text| holds_tags(text)) && !plain.iter().any(|text| holds_tags(text)));
}

#[test]
fn subtitle_files_in_utf_16() {
    let text = "\u{feff}1\n00:00:01,000 --> 00:00:02,500\nÜbergrößenträger 🎬\n";
    let expected = [Subtitle { start_time: 1.0, end_time: 2.5, text: "Übergrößenträger 🎬".into() }];
    let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).chain([7]).collect();
    assert_eq!(parse_srt(&little).unwrap(), expected);
    assert_eq!(parse_srt(&big).unwrap(), expected);
}

#[test]
fn movie_prompts_of_the_cases() {
    let cases = read_json("long-video/cases.json");
    for case in array(&cases, "cases").iter().filter(|case| case["long_video"] == true) {
        let inputs = read_json(format!("long-video/data/{}.json", text(&case["feats_tensor"])));
        let question = text(&case["qformer_prompts"][0][0]);
        let asked = movie_question(text(&inputs["inputs"]), question, 2, ImageTag::Bare);
        assert_eq!(asked, text(&case["turns"][0][0]));
    }
    let tagged = movie_question("<image>Hi<image>", "Why?", 2, ImageTag::StartEnd);
    assert!(tagged.starts_with("<im_start>Below is a movie. "), "{tagged}");
    assert!(
        tagged.ends_with("movie.<image><image>Hi<image><image>Now the movie end.<im_end>\nWhy?"),
        "{tagged}"
    );
}

#[test]
fn frames_are_chosen_as_the_reference_does() {
    let file = read_json("text/frame_index.json");
    for case in array(&file, "cases") {
        let (fps, frames) = (case["avg_fps"].as_f64().unwrap(), case["frames"].as_u64().unwrap() as usize);
        let indices = frame_indices(fps, frames, case["target_fps"].as_f64().unwrap()).unwrap();
        if case.get("error").is_some() {
            // The reference's step is 0 there; every frame is the nearest thing.
            assert_eq!(indices, (0..frames).collect::<Vec<_>>(), "{case}");
            continue;
        }
        assert_eq!(indices, numbers::<usize>(&case["index"]), "{case}");
        let times = frame_times(&indices, fps);
        let expected = numbers::<f64>(&case["frame_time"]);
        assert_eq!(times.len(), expected.len(), "{case}");
        // The JSON reader, not the times, may be off by the last bit.
        assert!(times.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= b * f64::EPSILON), "{case}");
    }
    for (folder, file, tensors) in folders() {
        for case in array(&file, "cases").iter().filter(|case| case.get("frame_index").is_some()) {
            let Some(frames) = tensors.get(&format!("{}/all_frames", text(&case["id"]))) else { continue };
            let indices = frame_indices(case["fps"].as_f64().unwrap(), frames.dim(0).unwrap(), 1.0).unwrap();
            assert_eq!(indices, numbers::<usize>(&case["frame_index"]), "{folder}");
        }
    }
    for (fps, target) in
        [(0.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (f64::INFINITY, 1.0), (25.0, 0.0), (25.0, f64::NAN)]
    {
        assert!(frame_indices(fps, 10, target).is_err(), "{fps} {target}");
    }
    assert_eq!(frame_indices(1e300, 10, 1e-300).unwrap(), [0]);
    assert_eq!(frame_indices(25.0, 0, 1.0).unwrap(), Vec::<usize>::new());
}
