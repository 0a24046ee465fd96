//! The rules of scenes and videos, over many seeds.

use std::collections::{BTreeMap, HashSet};

use llamavid_world::{
    Background, MediaKind, Motion, NeverTrainedPairs, Object, Recording, Scene, Video, WorldOptions, seeded,
    seeded_item,
};

const SEEDS: u64 = 400;

fn videos(kind: MediaKind, options: &WorldOptions) -> impl Iterator<Item = Video> {
    (0..SEEDS).map(move |seed| Video::random(&mut seeded(seed), kind, options))
}

fn all_videos() -> impl Iterator<Item = (MediaKind, Video)> {
    MediaKind::ALL.into_iter().flat_map(|kind| {
        let options = WorldOptions { long_scenes: 10..=20, needle_seconds: 60, ..WorldOptions::default() };
        videos(kind, &options).map(move |video| (kind, video)).collect::<Vec<_>>()
    })
}

#[test]
fn the_same_seed_draws_the_same_video_and_another_seed_another() {
    for kind in MediaKind::ALL {
        let draw = |seed| Video::random(&mut seeded(seed), kind, &WorldOptions::default());
        assert_eq!(draw(11), draw(11));
        assert_ne!(draw(11), draw(12));
    }
}

#[test]
fn scenes_keep_the_rules() {
    for (kind, video) in all_videos() {
        for scene in &video.scenes {
            assert!((1..=3).contains(&scene.objects.len()));
            let pairs: HashSet<_> = scene.objects.iter().map(Object::pair).collect();
            assert_eq!(pairs.len(), scene.objects.len());
            let movers = scene.objects.iter().filter(|object| object.motion != Motion::Still).count();
            assert!(movers <= 1);
            match kind {
                MediaKind::Image => assert!(movers == 0 && scene.seconds == 0.0),
                _ => assert!(scene.seconds >= if movers > 0 { 3.0 } else { 2.0 } && scene.seconds <= 6.0),
            }
            assert_eq!(scene.seconds.fract(), 0.0);
            placement(scene);
        }
        for two in video.scenes.windows(2) {
            assert_ne!(two[0].background, two[1].background);
        }
    }
}

/// Still objects have cells of their own, none on the way of the mover; poses agree with cells and motions.
fn placement(scene: &Scene) {
    let near =
        |value: f64, wanted: f64, reach: f64| assert!((value - wanted).abs() <= reach + 1e-9, "{value}");
    let center = |place: usize| 0.2 + 0.3 * place as f64;
    let cells: HashSet<_> = scene.objects.iter().map(|object| object.cell).collect();
    assert_eq!(cells.len(), scene.objects.len());
    for object in &scene.objects {
        let (row, column) = (object.cell / 3, object.cell % 3);
        let (start, end) = (object.start, object.end);
        let (along, across) = match object.motion {
            Motion::Right => ((start.x, end.x), (start.y, end.y, row)),
            Motion::Left => ((end.x, start.x), (start.y, end.y, row)),
            Motion::Down => ((start.y, end.y), (start.x, end.x, column)),
            Motion::Up => ((end.y, start.y), (start.x, end.x, column)),
            _ => {
                near(start.x, center(column), 0.035);
                near(start.y, center(row), 0.035);
                assert_eq!((start.x, start.y), (end.x, end.y));
                match object.motion {
                    Motion::Grows => assert_eq!((start.radius, end.radius), (0.06, 0.165)),
                    Motion::Shrinks => assert_eq!((start.radius, end.radius), (0.165, 0.06)),
                    _ => {
                        assert_eq!(start, end);
                        near(start.radius / object.size.radius(), 1.0, 0.07);
                    }
                }
                continue;
            }
        };
        near(along.0, 0.175, 0.045);
        near(along.1, 0.825, 0.045);
        near(across.0, center(across.2), 0.035);
        assert_eq!(across.0, across.1);
        let horizontal = matches!(object.motion, Motion::Right | Motion::Left);
        let line = |cell: usize| if horizontal { cell / 3 } else { cell % 3 };
        for other in scene.objects.iter().filter(|other| *other != object) {
            assert_ne!(line(other.cell), line(object.cell));
        }
    }
}

#[test]
fn objects_are_listed_movers_first_then_in_reading_order() {
    for (_, video) in all_videos() {
        for scene in &video.scenes {
            let keys: Vec<_> =
                scene.objects.iter().map(|object| (object.motion == Motion::Still, object.cell)).collect();
            assert!(keys.is_sorted());
        }
    }
}

#[test]
fn pairs_that_are_never_trained_are_forbidden_allowed_or_the_only_ones() {
    for kind in [MediaKind::Image, MediaKind::Clip, MediaKind::Multi] {
        let shown = |never_trained_pairs| {
            let options = WorldOptions { never_trained_pairs, ..WorldOptions::default() };
            let objects: Vec<Object> = videos(kind, &options)
                .flat_map(|video| video.scenes)
                .flat_map(|scene| scene.objects)
                .collect();
            let never = objects.iter().filter(|object| object.pair().is_never_trained()).count();
            (never, objects.len())
        };
        assert_eq!(shown(NeverTrainedPairs::Forbid).0, 0);
        let (never, all) = shown(NeverTrainedPairs::Only);
        assert_eq!(never, all);
        let (never, all) = shown(NeverTrainedPairs::Allow);
        assert!((0.06..0.20).contains(&(never as f64 / all as f64)), "6 of 48 pairs: {never} of {all}");
    }
}

#[test]
fn objects_come_back_up_to_four_times_and_only_one_does() {
    let mut returns = 0;
    for video in videos(MediaKind::Multi, &WorldOptions::default()) {
        assert!((1..=6).contains(&video.scenes.len()));
        let mut times = BTreeMap::new();
        for object in video.scenes.iter().flat_map(|scene| &scene.objects) {
            *times.entry(object.pair()).or_insert(0) += 1;
        }
        assert!(times.values().all(|&times| times <= 4));
        let back = times.values().filter(|&&times| times > 1).count();
        assert!(back <= 1);
        returns += back;
    }
    assert!((60..=240).contains(&returns), "{returns}");
}

#[test]
fn backgrounds_motions_and_counts_are_balanced() {
    let options = WorldOptions::default();
    let mut backgrounds = [0; 4];
    let mut motions = [0; 7];
    let mut counts = [0; 4];
    for scene in videos(MediaKind::Clip, &options).flat_map(|video| video.scenes) {
        backgrounds[scene.background.index()] += 1;
        counts[scene.objects.len()] += 1;
        if let Some(mover) = scene.mover() {
            motions[mover.motion.index()] += 1;
        }
    }
    assert_eq!(Background::ALL.len(), backgrounds.len());
    assert!(backgrounds.iter().all(|&count| count > 70), "{backgrounds:?}");
    assert!(motions[1..].iter().all(|&count| count > 25), "{motions:?}");
    assert!(counts[1..].iter().all(|&count| count > 100), "{counts:?}");
}

#[test]
fn frames_belong_to_scenes() {
    let video =
        Video::random_multi(&mut seeded(5), &WorldOptions { multi_scenes: 3..=3, ..Default::default() });
    let first = video.scenes[0].seconds;
    assert_eq!(video.frame(0.0), (0, 0.0));
    assert_eq!(video.frame(first / 2.0), (0, 0.5));
    assert_eq!(video.frame(first), (1, 0.0));
    assert_eq!(video.frame(video.seconds() + 1.0), (2, 1.0));
    assert_eq!(video.frames_at_one_a_second() as f64, video.seconds());
    let image = Video::random_image(&mut seeded(5), &WorldOptions::default());
    assert_eq!((image.frame(0.0), image.frames_at_one_a_second()), ((0, 0.0), 1));
}

#[test]
fn long_videos_speak_within_scenes() {
    for video in videos(MediaKind::Long, &WorldOptions::default()).take(60) {
        assert!((60..=150).contains(&video.scenes.len()));
        let facts: HashSet<_> = video.facts.iter().map(|fact| fact.kind).collect();
        let cues: HashSet<_> = video.cues.iter().map(|spoken| spoken.cue).collect();
        assert!(facts.len() == video.facts.len() && cues.len() == video.cues.len());
        assert!(facts.len() >= 3 && cues.len() >= 3);
        for two in video.subtitles.windows(2) {
            assert!(two[0].end <= two[1].start);
        }
        for subtitle in &video.subtitles {
            assert_eq!(video.frame(subtitle.start).0, video.frame(subtitle.end).0);
        }
        for fact in &video.facts {
            let text = &video.subtitles[fact.subtitle].text;
            assert!(text.contains(&format!("the {} is {} .", fact.kind, fact.value)), "{text}");
        }
        for spoken in &video.cues {
            let subtitle = &video.subtitles[spoken.subtitle];
            assert!(subtitle.text.contains(spoken.cue.word()));
            assert_eq!(video.frame(subtitle.start).0, spoken.scene);
            assert_eq!(video.scenes[spoken.scene].objects.len(), 1);
        }
        let said: usize = video.subtitles.iter().map(|subtitle| subtitle.text.matches(" is ").count()).sum();
        assert!(said >= video.facts.len());
    }
}

#[test]
fn subtitles_are_written_as_subrip() {
    let mut video = Video::random_clip(&mut seeded(1), &WorldOptions::default());
    assert_eq!(video.srt(), "");
    video.subtitles.push(llamavid_world::Subtitle {
        start: 3725.5,
        end: 3726.7,
        text: "we go on .".to_owned(),
    });
    assert_eq!(video.srt(), "1\n01:02:05,500 --> 01:02:06,700\nwe go on .\n\n");
}

#[test]
fn items_of_a_seed_are_independent_of_each_other() {
    let draw =
        |seed, kind, index| Video::random(&mut seeded_item(seed, kind, index), kind, &Default::default());
    assert_eq!(draw(1, MediaKind::Clip, 5), draw(1, MediaKind::Clip, 5));
    assert_ne!(draw(1, MediaKind::Clip, 5), draw(1, MediaKind::Clip, 6));
    assert_ne!(draw(1, MediaKind::Clip, 5), draw(2, MediaKind::Clip, 5));
    assert_ne!(draw(1, MediaKind::Clip, 5).scenes[0], draw(1, MediaKind::Multi, 5).scenes[0]);
}

#[test]
fn recordings_keep_their_limits() {
    let mut bars = 0;
    for index in 0..600 {
        let kind = MediaKind::ALL[index as usize % MediaKind::ALL.len()];
        let Recording { width, height, fps, crf } = Recording::random(&mut seeded_item(9, kind, index), kind);
        assert!((240..=640).contains(&width) && (240..=640).contains(&height), "{width} x {height}");
        assert!(width % 2 == 0 && height % 2 == 0);
        match kind {
            MediaKind::Long => assert_eq!(fps, 12),
            MediaKind::Needle => assert_eq!(fps, 2),
            _ => assert!([24, 25, 30].contains(&fps)),
        }
        assert!((23..=34).contains(&crf));
        bars += usize::from(width != height);
    }
    assert!((80..160).contains(&bars), "half of the clips and multis: {bars}");
}
