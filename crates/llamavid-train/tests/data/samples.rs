//! Samples equal the reference's: ids, labels, questions.

use candle_core::{Device, Tensor};
use llamavid_models::prompt::splice::SpliceKind;
use llamavid_train::data::{
    FaultCode, IGNORED, Media, Message, Movie, Record, SampleOptions, Speaker, TrainingTemplate,
    movie_sample, sample,
};

use crate::oracle::{array, of, oracle, read_json, template, tokenizer, turns};

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
