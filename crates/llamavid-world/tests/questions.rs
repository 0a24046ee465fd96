//! Questions: answers found again another way, balance, words.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use llamavid_world::{
    MediaKind, Motion, NeverTrainedPairs, Object, Pair, Phrasing, Question, QuestionType, Scene, Subject,
    Video, WorldOptions, number, questions, seeded, vocabulary,
};

fn asked(kind: MediaKind, phrasing: Phrasing) -> Vec<(Video, Vec<Question>)> {
    let options = WorldOptions { long_scenes: 12..=30, needle_seconds: 60, ..WorldOptions::default() };
    (0..400)
        .map(|seed| {
            let mut rng = seeded(seed);
            let video = Video::random(&mut rng, kind, &options);
            let questions = questions(&video, kind, phrasing, &mut rng);
            (video, questions)
        })
        .collect()
}

fn everything() -> Vec<(MediaKind, Video, Question)> {
    let mut all = Vec::new();
    for kind in MediaKind::ALL {
        for phrasing in [Phrasing::Trained, Phrasing::Unseen] {
            for (video, questions) in asked(kind, phrasing) {
                all.extend(questions.into_iter().map(|question| (kind, video.clone(), question)));
            }
        }
    }
    all
}

fn named(pair: Pair) -> String {
    let article = if pair.name().starts_with("orange") { "an" } else { "a" };
    format!("{article} {}", pair.name())
}

/// The scenes in which the pair is.
fn places(video: &Video, pair: Pair) -> Vec<usize> {
    let holds = |scene: &Scene| scene.objects.iter().any(|object| object.pair() == pair);
    (0..video.scenes.len()).filter(|&index| holds(&video.scenes[index])).collect()
}

/// The only object of a scene in words.
fn only(scene: &Scene) -> String {
    assert_eq!(scene.objects.len(), 1);
    named(scene.objects[0].pair())
}

/// The answer, found from the frames that are seen at one a second: an object's place and motion come from its poses.
fn answer(kind: MediaKind, video: &Video, question: &Question) -> String {
    let objects = || video.scenes.iter().flat_map(|scene| &scene.objects);
    let object_of = |pair: Pair| {
        let found: Vec<&Object> = objects().filter(|object| object.pair() == pair).collect();
        assert_eq!(found.len(), 1, "{question:?}");
        found[0]
    };
    let place = |object: &Object| {
        let band = |value: f64| {
            if value < 0.35 {
                0
            } else if value < 0.65 {
                1
            } else {
                2
            }
        };
        let (row, column) = (band(object.pose(0.0).y), band(object.pose(0.0).x));
        assert_eq!((row, column), (band(object.pose(1.0).y), band(object.pose(1.0).x)));
        match (["top", "middle", "bottom"][row], ["left", "center", "right"][column]) {
            ("middle", "center") => "center".to_owned(),
            (row, column) => format!("{row} {column}"),
        }
    };
    let motion = |object: &Object| {
        let (start, end) = (object.pose(0.0), object.pose(1.0));
        let (dx, dy, dr) = (end.x - start.x, end.y - start.y, end.radius - start.radius);
        match () {
            () if dx > 0.3 => "moves right",
            () if dx < -0.3 => "moves left",
            () if dy > 0.3 => "moves down",
            () if dy < -0.3 => "moves up",
            () if dr > 0.05 => "grows",
            () if dr < -0.05 => "shrinks",
            () => "stays still",
        }
        .to_owned()
    };
    let size = |object: &Object| if object.pose(0.5).radius > 0.125 { "large" } else { "small" };
    let yes = |fact: bool| if fact { "yes" } else { "no" }.to_owned();
    let once = |pair: Pair| {
        let places = places(video, pair);
        assert_eq!(places.len(), 1, "{question:?}");
        places[0]
    };
    let spoken = |at: usize| video.frame(video.subtitles[at].start).0;
    match (question.kind, question.subject) {
        (QuestionType::Colour, Subject::Shape(shape)) => {
            let found: BTreeSet<_> =
                objects().filter(|object| object.shape == shape).map(|object| object.colour.word()).collect();
            assert_eq!(found.len(), 1);
            found.into_iter().collect()
        }
        (QuestionType::Shape, Subject::Colour(colour)) => {
            let found: BTreeSet<_> = objects()
                .filter(|object| object.colour == colour)
                .map(|object| object.shape.word())
                .collect();
            assert_eq!(found.len(), 1);
            found.into_iter().collect()
        }
        (QuestionType::Where, Subject::Object(pair)) => place(object_of(pair)),
        (QuestionType::At, Subject::Cell(cell)) => {
            let found: Vec<&Object> = objects().filter(|object| place(object) == cell.word()).collect();
            assert_eq!(found.len(), 1);
            named(found[0].pair())
        }
        (QuestionType::Size, Subject::Object(pair)) => size(object_of(pair)).to_owned(),
        (QuestionType::Count, Subject::Whole) => number(video.scenes[0].objects.len()).to_owned(),
        (QuestionType::CountColour, Subject::Colour(colour)) => {
            number(objects().filter(|object| object.colour == colour).count()).to_owned()
        }
        (QuestionType::Exist, Subject::Object(pair)) => yes(!places(video, pair).is_empty()),
        (QuestionType::Background, Subject::Whole) => video.scenes[0].background.word().to_owned(),
        (QuestionType::BackgroundOf, Subject::Object(pair)) => {
            video.scenes[once(pair)].background.word().to_owned()
        }
        (QuestionType::BackgroundEnd, Subject::Whole) => {
            video.scenes[video.frame(video.seconds()).0].background.word().to_owned()
        }
        (QuestionType::Motion, Subject::Object(pair)) => motion(object_of(pair)),
        (QuestionType::Mover, Subject::Motion(moves)) => {
            let found: Vec<&Object> = objects().filter(|object| motion(object) == moves.word()).collect();
            assert_eq!(found.len(), 1);
            named(found[0].pair())
        }
        (QuestionType::First, Subject::Whole) => only(&video.scenes[0]),
        (QuestionType::Last, Subject::Whole) => only(&video.scenes[video.scenes.len() - 1]),
        (QuestionType::After, Subject::Object(pair)) => only(&video.scenes[once(pair) + 1]),
        (QuestionType::Before, Subject::Object(pair)) => only(&video.scenes[once(pair) - 1]),
        (QuestionType::Order, Subject::Pairs(first, second)) => {
            assert_ne!(once(first), once(second));
            yes(once(first) < once(second))
        }
        (QuestionType::Scenes, Subject::Whole) => number(video.scenes.len()).to_owned(),
        (QuestionType::Times, Subject::Object(pair)) => number(places(video, pair).len()).to_owned(),
        (QuestionType::Subtitle, Subject::Fact(fact)) => {
            let lead = format!("the {fact} is ");
            let said = video.subtitles.iter().find_map(|subtitle| subtitle.text.split(&lead).nth(1));
            said.map(|said| said.trim_end_matches(" .").to_owned()).unwrap_or_default()
        }
        (QuestionType::Said, Subject::Cue(cue)) => {
            let has = |text: &str| text.split(' ').any(|word| word == cue.word());
            let at: Vec<usize> =
                (0..video.subtitles.len()).filter(|&at| has(&video.subtitles[at].text)).collect();
            assert_eq!(at.len(), 1);
            only(&video.scenes[spoken(at[0])])
        }
        (QuestionType::Describe, Subject::Whole) => {
            let image = kind == MediaKind::Image;
            let scenes: Vec<String> = video
                .scenes
                .iter()
                .map(|scene| {
                    let mut listed: Vec<&Object> = scene.objects.iter().collect();
                    listed.sort_by_key(|object| {
                        let start = object.pose(0.0);
                        (
                            motion(object) == "stays still",
                            ((start.y - 0.05) / 0.3) as u8,
                            ((start.x - 0.05) / 0.3) as u8,
                        )
                    });
                    let listed = listed.iter().take(if image { 3 } else { 2 });
                    let listed: Vec<String> = listed
                        .map(|object| {
                            if image {
                                format!("a {} {}", size(object), object.pair().name())
                            } else {
                                format!("{} {}", named(object.pair()), motion(object))
                            }
                        })
                        .collect();
                    format!("{} in the {}", listed.join(" and "), scene.background)
                })
                .collect();
            scenes.join(" , then ")
        }
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn answers_are_what_the_frames_show() {
    for (kind, video, question) in everything() {
        assert_eq!(answer(kind, &video, &question), question.answer, "{question:?}");
    }
}

#[test]
fn every_type_is_asked_where_it_belongs() {
    let names = |kind: MediaKind| {
        let questions = asked(kind, Phrasing::Trained).into_iter().flat_map(|(_, questions)| questions);
        let found: BTreeSet<&str> = questions.map(|question| question.kind.name()).collect();
        found.into_iter().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(MediaKind::Image), "at bg colour count countc describe exist shape size where");
    assert_eq!(names(MediaKind::Clip), "bg colour count countc describe exist motion mover shape size where");
    assert_eq!(
        names(MediaKind::Multi),
        "after before bgend bgof colour describe exist first last motion mover order scenes shape times where"
    );
    assert_eq!(names(MediaKind::Long), "said sub");
    assert_eq!(names(MediaKind::Needle), "bgof motion size where");
}

#[test]
fn evidence_is_when_the_object_is_seen() {
    let options = WorldOptions::default();
    for seed in 0..100 {
        let mut rng = seeded(seed);
        let video = Video::random(&mut rng, MediaKind::Needle, &options);
        assert!((600.0..=610.0).contains(&video.seconds()), "{}", video.seconds());
        let asked = questions(&video, MediaKind::Needle, Phrasing::Unseen, &mut rng);
        assert!(asked.len() >= 2);
        for question in asked {
            let Subject::Object(pair) = question.subject else { unreachable!("{question:?}") };
            let (start, end) = video.evidence(question.subject).unwrap();
            for second in 0..video.frames_at_one_a_second() {
                let scene = &video.scenes[video.frame(second as f64).0];
                assert_eq!(scene.find(pair).is_some(), (start..end).contains(&(second as f64)), "{second}");
            }
        }
        assert_eq!(video.evidence(Subject::Whole), None);
    }
}

#[test]
fn yes_and_no_numbers_and_motions_are_balanced() {
    let mut counts: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for kind in MediaKind::ALL {
        for question in asked(kind, Phrasing::Trained).into_iter().flat_map(|(_, questions)| questions) {
            *counts.entry((question.kind.name(), question.answer)).or_default() += 1;
        }
    }
    let share = |kind: &str, answer: &str| {
        let all: usize = counts.iter().filter(|((name, _), _)| *name == kind).map(|(_, count)| count).sum();
        counts.get(&(kind, answer.to_owned())).copied().unwrap_or(0) as f64 / all as f64
    };
    for kind in ["exist", "order"] {
        assert!((0.45..=0.55).contains(&share(kind, "yes")), "{kind}");
    }
    for answer in ["one", "two", "three"] {
        assert!(share("count", answer) > 0.25, "{answer}");
        assert!(share("times", answer) > 0.08, "{answer}");
    }
    for answer in ["one", "two", "three", "four", "five", "six"] {
        assert!(share("scenes", answer) > 0.04, "{answer}");
    }
    assert!((0.25..0.55).contains(&share("countc", "zero")));
    assert!(share("countc", "two") > 0.05);
    for motion in Motion::ALL {
        assert!(share("motion", motion.word()) > 0.04, "{motion}");
    }
}

#[test]
fn a_no_is_hard() {
    for (_, video, question) in everything() {
        if let (QuestionType::Exist, Subject::Object(absent), "no") =
            (question.kind, question.subject, question.answer.as_str())
        {
            let alike = |object: &Object| (object.colour == absent.colour) != (object.shape == absent.shape);
            assert!(video.scenes.iter().flat_map(|scene| &scene.objects).any(alike));
        }
    }
}

#[test]
fn training_names_no_pair_that_is_never_trained() {
    for (_, _, question) in everything() {
        for pair in Pair::NEVER_TRAINED {
            assert!(!question.text.contains(&pair.name()), "{}", question.text);
            assert!(!question.answer.contains(&pair.name()), "{}", question.answer);
        }
    }
    let options = WorldOptions { never_trained_pairs: NeverTrainedPairs::Only, ..WorldOptions::default() };
    let mut rng = seeded(3);
    let video = Video::random_clip(&mut rng, &options);
    let asked = questions(&video, MediaKind::Clip, Phrasing::Trained, &mut rng);
    assert!(
        asked
            .iter()
            .any(|question| Pair::NEVER_TRAINED.iter().any(|pair| question.text.contains(&pair.name())))
    );
}

#[test]
fn words_are_in_the_vocabulary_and_the_vocabulary_is_small() {
    let vocabulary = vocabulary();
    assert!(vocabulary.is_sorted());
    let known: HashSet<&str> = vocabulary.iter().map(String::as_str).collect();
    assert_eq!(known.len(), vocabulary.len());
    assert!(known.len() < 256, "{}", known.len());
    let check = |text: &str| {
        for mark in ['.', ',', '?', '!'] {
            assert!(!text.contains(mark) || known.contains(mark.to_string().as_str()));
        }
        for word in text.replace(['.', ',', '?', '!'], " ").split_whitespace() {
            assert!(known.contains(word), "{word} of {text}");
        }
    };
    for (_, video, question) in everything() {
        check(&question.text);
        check(&question.answer);
        video.subtitles.iter().for_each(|subtitle| check(&subtitle.text));
        assert_eq!(question.text, question.text.to_lowercase());
        assert!(question.text.ends_with(['?', '.']) && !question.answer.ends_with('.'));
    }
}

/// The words that only the unseen phrasings need are taught by none, so there are none.
#[test]
fn unseen_phrasings_use_words_that_training_uses() {
    let words = |phrasing: Phrasing| -> BTreeSet<String> {
        let questions =
            MediaKind::ALL.into_iter().flat_map(|kind| asked(kind, phrasing)).flat_map(|(_, asked)| asked);
        let clean = |question: Question| question.text.replace(['.', ',', '?', '!'], " ");
        let texts: Vec<String> = questions.map(clean).collect();
        texts.iter().flat_map(|text| text.split_whitespace()).map(str::to_owned).collect()
    };
    let unseen = words(Phrasing::Unseen);
    let trained = words(Phrasing::Trained);
    let strange: Vec<&String> = unseen.difference(&trained).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn trained_and_unseen_phrasings_never_meet() {
    let mut trained = HashSet::new();
    let mut unseen = HashSet::new();
    for (_, _, question) in everything() {
        let bare = question.text.trim_start_matches("please ");
        let bare = bare.trim_start_matches("in this video , ").trim_start_matches("look at the video . ");
        if question.unseen_phrasing { &mut unseen } else { &mut trained }.insert(bare.to_owned());
    }
    let both: Vec<&String> = trained.intersection(&unseen).collect();
    assert!(both.is_empty(), "{both:?}");
    assert!(trained.len() > 1000 && unseen.len() > 500);
}

#[test]
fn mixed_phrasings_are_of_both_lists_and_say_so() {
    let questions: Vec<Question> =
        asked(MediaKind::Clip, Phrasing::Mixed).into_iter().flat_map(|(_, questions)| questions).collect();
    let unseen = questions.iter().filter(|question| question.unseen_phrasing).count();
    assert!(
        (0.30..0.37).contains(&(unseen as f64 / questions.len() as f64)),
        "{unseen} of {}",
        questions.len()
    );
    let known: HashSet<String> = asked(MediaKind::Clip, Phrasing::Unseen)
        .into_iter()
        .flat_map(|(_, questions)| questions)
        .map(|question| question.text)
        .collect();
    let marked = questions.iter().filter(|question| known.contains(&question.text));
    assert!(marked.count() > 100);
    assert!(questions.iter().all(|question| question.unseen_phrasing || !known.contains(&question.text)));
}
