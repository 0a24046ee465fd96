//! Samples equal the reference's: ids, labels, questions.

use candle_core::{Device, Tensor};
use llamavid_models::prompt::conversation::{SeparatorStyle, Template};
use llamavid_models::prompt::splice::SpliceKind;
use llamavid_train::data::{
    FaultCode, Guidance, IGNORED, Media, Message, Movie, Record, SampleOptions, Speaker, TrainingTemplate,
    movie_sample, sample,
};

use crate::oracle::{array, byte_pairs, of, oracle, read_json, template, tokenizer, turns};

const OPTIONS: SampleOptions = SampleOptions { max_length: 2048, image_start_end: false };

fn record(media: Media, said: &[(Speaker, &str)]) -> Record {
    let turns = said.iter().map(|(from, value)| Message { from: *from, value: (*value).into() }).collect();
    Record { id: "r".into(), media, turns }
}

fn picture() -> Media {
    Media::Image("a.png".into())
}

#[test]
fn labels_are_the_references() {
    let file = read_json("text/labels.json");
    let tokenizers = [false, true].map(|legacy| tokenizer("text/tokenizer", Some(legacy)));
    let mut masked = 0;
    for row in array(&file, "rows") {
        let name: String = of(&row["version"]);
        let legacy: bool = of(&row["legacy"]);
        let options = SampleOptions { max_length: 2048, image_start_end: of(&row["start_end"]) };
        let media = if of(&row["has_image"]) { picture() } else { Media::None };
        let record = Record { id: "r".into(), media, turns: turns(&row["turns"]) };
        let draw: Option<u8> = of(&row["image_side_draw"]);
        let mut coin = || draw.unwrap() == 1;
        let made = sample(&record, &template(&name), &tokenizers[usize::from(legacy)], &options, &mut coin)
            .unwrap_or_else(|error| panic!("{name} {}: {error}", row["conversation"]));
        let about = format!("{name} {} legacy {legacy}", row["conversation"]);
        assert_eq!(made.ids, of::<Vec<i64>>(&row["input_ids"]), "{about}");
        assert_eq!(made.labels, of::<Vec<i64>>(&row["labels"]), "{about}");
        assert_eq!(made.prompts, of::<Option<Vec<String>>>(&row["prompts"]).unwrap_or_default(), "{about}");
        assert_eq!(made.splice, SpliceKind::PerPlaceholder);
        masked += usize::from(made.learned() == 0);
        assert_eq!(made.learned() == 0, of::<bool>(&row["mismatch_ignored"]), "{about}");
    }
    println!("{} rows, {masked} of them masked", array(&file, "rows").len());
}

#[test]
fn training_samples_are_the_references() {
    let mut compared = 0;
    for case in ["image-grid4", "video-mean", "long-video", "start-end"] {
        let cases = read_json(format!("{case}/cases.json"));
        let tensors =
            candle_core::safetensors::load(oracle(format!("{case}/tensors.safetensors")), &Device::Cpu)
                .unwrap();
        let tokenizer = tokenizer(format!("{case}/model"), None);
        for (stage, training) in cases["training"].as_object().unwrap() {
            let argv: Vec<String> = of(&training["argv"]);
            let flag = |name: &str| {
                let at = argv.iter().position(|argument| argument == name)?;
                argv.get(at + 1).cloned()
            };
            let options = SampleOptions {
                max_length: 2048,
                image_start_end: flag("--mm_use_im_start_end").as_deref() == Some("True"),
            };
            let template = TrainingTemplate::by_name(&flag("--version").unwrap()).unwrap();
            let mut draws = of::<Vec<u8>>(&training["randint_draws"]).into_iter();
            let mut coin = || draws.next().unwrap() == 1;
            let list: Vec<serde_json::Value> =
                of(&read_json(format!("{case}/{}", flag("--data_path").unwrap())));
            for (index, item) in list.iter().enumerate() {
                let text = |key: &str| item[key].as_str().map(str::to_owned);
                let media = match (text("image"), text("video")) {
                    (Some(path), _) => Media::Image(path),
                    (None, Some(path)) => Media::video(path),
                    (None, None) => Media::None,
                };
                let turns = array(item, "conversations")
                    .iter()
                    .map(|message| Message {
                        from: Speaker::by_name(message["from"].as_str().unwrap()).unwrap(),
                        value: of(&message["value"]),
                    })
                    .collect();
                let record = Record { id: text("id").unwrap(), media, turns };
                let made = if let Media::Features(path) = &record.media {
                    let movie =
                        read_json(format!("{case}/data/feats/{}.json", path.trim_end_matches(".pkl")));
                    let inputs: String = of(&movie["inputs"]);
                    let frames = of(&movie["frames"]);
                    let tokens_per_frame = flag("--video_token").unwrap().parse().unwrap();
                    let movie = Movie { inputs: &inputs, frames, tokens_per_frame };
                    let made = movie_sample(&record, &movie, &template, &tokenizer, &options).unwrap();
                    assert_eq!(made.splice, SpliceKind::PerToken);
                    assert_eq!(made.placeholders(), frames * tokens_per_frame);
                    made
                } else {
                    sample(&record, &template, &tokenizer, &options, &mut coin).unwrap()
                };
                let recorded = |name: &str| -> Vec<i64> {
                    let tensor: &Tensor = &tensors[&format!("train/{stage}/sample{index}/{name}")];
                    tensor.to_vec1().unwrap()
                };
                let about = format!("{case} {stage} sample {index}");
                assert_eq!(made.ids, recorded("input_ids"), "{about}");
                assert_eq!(made.labels, recorded("labels"), "{about}");
                assert_eq!(made.prompts, of::<Vec<String>>(&training["prompts"][index]), "{about}");
                compared += 1;
            }
            assert!(draws.next().is_none(), "{case} {stage}: as many coins as the reference");
        }
    }
    assert!(compared >= 25, "{compared}");
}

#[test]
fn movie_prompts_are_the_references() {
    let file = read_json("text/labels.json");
    let tokenizer = tokenizer("text/tokenizer", None);
    let chat = template("imgsp_v1");
    for case in array(&file, "movie") {
        // The recorded inputs already have their tags doubled.
        let inputs: String = of(&case["inputs"]);
        let movie = Movie { inputs: &inputs, frames: 4, tokens_per_frame: 1 };
        let question: String = of(&case["question"]);
        let options = SampleOptions { max_length: 2048, image_start_end: of(&case["start_end"]) };
        let record =
            record(Media::Features("m.pkl".into()), &[(Speaker::Human, &question), (Speaker::Gpt, "So.")]);
        let made = movie_sample(&record, &movie, &chat, &tokenizer, &options).unwrap();
        assert_eq!(made.prompts, [of::<String>(&case["prompt"])]);
        let value: String = of(&case["value"]);
        let text = chat.template().render(&[(value, Some("So.".into()))]).unwrap();
        let ids = llamavid_models::prompt::placeholders::tokenize_with_images(&tokenizer, &text);
        assert_eq!(made.ids, ids);
    }
}

fn said(value: &str) -> [(Speaker, &str); 2] {
    [(Speaker::Human, value), (Speaker::Gpt, "A dog.")]
}

fn fault(made: Result<llamavid_train::data::Sample, llamavid_train::data::Error>) -> (FaultCode, String) {
    let error = made.unwrap_err();
    assert!(error.to_string().contains("record `r`"), "{error}");
    let fault = error.fault().unwrap();
    (fault.code, fault.field.clone())
}

#[test]
fn conversations_that_make_no_sample_are_refused() {
    let tokenizer = tokenizer("text/tokenizer", None);
    let make =
        |name: &str, record: &Record| sample(record, &template(name), &tokenizer, &OPTIONS, &mut || false);
    let human = Speaker::Human;
    let gpt = Speaker::Gpt;
    for name in ["imgsp_v1", "vicuna_v1", "custom_llama_2"] {
        let made = make(name, &record(picture(), &[]));
        assert_eq!(fault(made).0, FaultCode::EmptyConversation);
        let made = make(name, &record(Media::None, &[(gpt, "Hello.")]));
        assert_eq!(fault(made).0, FaultCode::EmptyConversation);
        let made = make(name, &record(Media::None, &[(gpt, "Hello."), (human, "a"), (human, "b")]));
        assert_eq!(fault(made), (FaultCode::WrongOrder, "conversations[2].from".into()));
    }
    // An answer with a tag has no question that its visual tokens could be made with.
    let made = make("imgsp_v1", &record(picture(), &[(human, "<image>\na"), (gpt, "<image>")]));
    assert_eq!(fault(made).0, FaultCode::TagMismatch);
    for (media, turns, code) in [
        (picture(), vec![], FaultCode::EmptyConversation),
        (picture(), vec![(human, "<image>")], FaultCode::WrongOrder),
        (picture(), vec![(gpt, "<image>"), (human, "a")], FaultCode::WrongOrder),
        (picture(), said("What?").to_vec(), FaultCode::TagMismatch),
        (Media::None, said("<image>\nWhat?").to_vec(), FaultCode::Template),
    ] {
        assert_eq!(fault(make("plain_guided", &record(media, &turns))).0, code);
    }
    let made = make("imgsp_v1", &record(Media::Features("m.pkl".into()), &said("<image>\na")));
    assert_eq!(fault(made).0, FaultCode::UnreadableFeatures);
}

#[test]
fn a_question_without_an_answer_teaches_nothing() {
    let tokenizer = tokenizer("text/tokenizer", None);
    let chat = template("imgsp_v1");
    let turns = [said("<image>\nWhat?").as_slice(), &[(Speaker::Human, "And then?")]].concat();
    let made = sample(&record(picture(), &turns), &chat, &tokenizer, &OPTIONS, &mut || true).unwrap();
    assert_eq!(made.learned(), 0);
    let text =
        tokenizer.decode(&made.ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect::<Vec<_>>(), true);
    assert!(text.ends_with("And then?") || text.trim_end().ends_with("And then?"), "{text}");
}

#[test]
fn samples_are_cut_at_the_maximum_length() {
    let tokenizer = tokenizer("text/tokenizer", None);
    for (name, media) in [
        ("imgsp_v1", picture()),
        ("imgsp_v1", Media::None),
        ("plain_guided", picture()),
        ("llava_v0", Media::None),
    ] {
        let record = record(media, &said("<image>\nWhat is it?"));
        let whole = sample(&record, &template(name), &tokenizer, &OPTIONS, &mut || false).unwrap();
        for max_length in 1..whole.ids.len() {
            let options = SampleOptions { max_length, ..OPTIONS };
            let cut = sample(&record, &template(name), &tokenizer, &options, &mut || false).unwrap();
            assert_eq!(cut.ids, whole.ids[..max_length], "{name}");
            assert_eq!(cut.labels, whole.labels[..max_length], "{name}");
        }
    }
}

#[test]
fn what_is_learned_is_what_was_said() {
    let tokenizer = tokenizer("text/tokenizer", None);
    let chat = template("imgsp_v1");
    let turns =
        [said("<image>\nWhat is it?"), [(Speaker::Human, "Where?"), (Speaker::Gpt, "Near the bridge.")]];
    let made =
        sample(&record(picture(), &turns.concat()), &chat, &tokenizer, &OPTIONS, &mut || false).unwrap();
    assert_eq!(made.placeholders(), 2);
    let learned: Vec<u32> = made.labels.iter().filter_map(|label| u32::try_from(*label).ok()).collect();
    assert_eq!(tokenizer.decode(&learned, true), "A dog. Near the bridge.");
    for (id, label) in made.ids.iter().zip(&made.labels) {
        assert!(*label == IGNORED || label == id);
    }
}

#[test]
fn byte_pairs_learn_what_was_said() {
    for kind in ["llama3", "qwen2"] {
        let tokenizer = byte_pairs(kind);
        let turns =
            [said("<image>\nWhat is it?"), [(Speaker::Human, "Where?"), (Speaker::Gpt, "Near 12 bridges.")]]
                .concat();
        let bare =
            [said("What is it?"), [(Speaker::Human, "Where?"), (Speaker::Gpt, "Near 12 bridges.")]].concat();
        for (name, media, turns, learned) in [
            ("imgsp_v1", picture(), &turns, " A dog.</s> Near 12 bridges.</s>"),
            ("imgsp_v1", Media::None, &bare, " A dog.</s> Near 12 bridges.</s>"),
            ("vicuna_v1", picture(), &turns, " A dog.</s> Near 12 bridges.</s>"),
            ("custom_llama_2", Media::None, &bare, " A dog. </s> Near 12 bridges. </s>"),
            ("plain_guided", picture(), &turns[..2].to_vec(), "A dog.\n"),
        ] {
            let record = record(media, turns);
            let made = sample(&record, &template(name), &tokenizer, &OPTIONS, &mut || true).unwrap();
            let ids: Vec<u32> = made.labels.iter().filter_map(|label| u32::try_from(*label).ok()).collect();
            assert_eq!(tokenizer.decode(&ids, false), learned, "{kind} {name}");
            for (id, label) in made.ids.iter().zip(&made.labels) {
                assert!(*label == IGNORED || label == id);
            }
            // The text is that of an answer: what is learned is what the model will be asked for.
            let begins = tokenizer.bos_id().map(i64::from);
            assert_eq!(made.ids.first().copied().filter(|id| Some(*id) == begins), begins, "{kind} {name}");
        }
        let open = [turns.as_slice(), &[(Speaker::Human, "And then?")]].concat();
        let whole =
            sample(&record(picture(), &open), &template("imgsp_v1"), &tokenizer, &OPTIONS, &mut || true)
                .unwrap();
        for max_length in [1, whole.ids.len() / 2, whole.ids.len() - 1] {
            let options = SampleOptions { max_length, ..OPTIONS };
            let cut =
                sample(&record(picture(), &open), &template("imgsp_v1"), &tokenizer, &options, &mut || true)
                    .unwrap();
            assert_eq!(
                (&cut.ids[..], &cut.labels[..]),
                (&whole.ids[..max_length], &whole.labels[..max_length])
            );
        }
    }
}

#[test]
fn movies_fit_their_features_or_are_refused() {
    let tokenizer = tokenizer("text/tokenizer", None);
    let chat = template("imgsp_v1");
    let inputs = "<image>Hi... there<image><image>";
    let movie = Movie { inputs, frames: 3, tokens_per_frame: 2 };
    let media = || Media::Features("m.pkl".into());
    let make = |turns: &[(Speaker, &str)], movie: &Movie<'_>, options: &SampleOptions| {
        movie_sample(&record(media(), turns), movie, &chat, &tokenizer, options)
    };
    // A later question gets no tag, and the query model is asked the first one, newlines inside kept.
    let turns = [said("Why\nso?\n<image>"), said("And then?")].concat();
    let made = make(&turns, &movie, &OPTIONS).unwrap();
    assert_eq!(made.prompts, ["Why\nso?"]);
    assert_eq!(made.placeholders(), 6);
    assert!(made.learned() > 0);
    let ids: Vec<u32> = made.ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
    let text = tokenizer.decode(&ids, true);
    assert!(text.contains("Hi there") && !text.contains("..."), "{text}");

    let fault = |made| fault(made).0;
    for wrong in [Movie { frames: 2, ..movie }, Movie { inputs: "", ..movie }] {
        assert_eq!(fault(make(&said("<image>\nWhy?"), &wrong, &OPTIONS)), FaultCode::UnreadableFeatures);
    }
    for question in ["Why?", "<image><image>\nWhy?"] {
        assert_eq!(fault(make(&said(question), &movie, &OPTIONS)), FaultCode::TagMismatch);
    }
    let turns = [(Speaker::Human, "Why?"), (Speaker::Gpt, "<image>")];
    assert_eq!(fault(make(&turns, &movie, &OPTIONS)), FaultCode::TagMismatch);
    // What is cut off the text is lost, what is cut off the frames is an error.
    let whole = make(&said("<image>\nWhy?"), &movie, &OPTIONS).unwrap();
    let last_place = whole.ids.iter().rposition(|id| *id < 0).unwrap();
    for max_length in 1..whole.ids.len() {
        let made = make(&said("<image>\nWhy?"), &movie, &SampleOptions { max_length, ..OPTIONS });
        if max_length > last_place {
            assert_eq!(made.unwrap().ids, whole.ids[..max_length]);
        } else {
            assert_eq!(fault(made), FaultCode::Cut);
        }
    }
    let plain = template("plain_guided");
    let made = movie_sample(&record(media(), &said("<image>")), &movie, &plain, &tokenizer, &OPTIONS);
    assert_eq!(fault(made), FaultCode::Template);
    let made = movie_sample(&record(picture(), &said("<image>")), &movie, &chat, &tokenizer, &OPTIONS);
    assert_eq!(fault(made), FaultCode::UnreadableFeatures);
}

#[test]
fn templates_without_a_rule_are_refused() {
    let error = TrainingTemplate::by_name("mpt").unwrap_err().to_string();
    assert!(error.contains("imgsp_v1"), "{error}");
    let llama = template("custom_llama_2").template().clone();
    assert!(TrainingTemplate::new(llama.clone(), Guidance::Questions).is_err());
    let without = Template { second_separator: None, ..llama.clone() };
    assert!(TrainingTemplate::new(without, Guidance::None).is_err());
    let mpt = Template { style: SeparatorStyle::Mpt, ..llama };
    assert!(TrainingTemplate::new(mpt, Guidance::None).is_err());
}
