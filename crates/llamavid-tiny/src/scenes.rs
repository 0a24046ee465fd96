//! Scenes whose frames were drawn and encoded once; videos are put together from them.
//!
//! The visual encoder is frozen in every stage and a frame's features do not depend on the question, so each frame is
//! encoded once, as a feature store would hold it.

use std::ops::RangeInclusive;

use candle_core::{Device, Tensor};
use llamavid_models::observer::Blind;
use llamavid_models::visual_encoder::VisualEncoder;
use llamavid_world::{MediaKind, Pair, Scene, Video, WorldOptions};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::exercise;
use crate::pictures::{self, PIXELS};
use crate::sizes::IMAGE_SIZE;

/// A scene and where its frames' features are.
struct Filmed {
    scene: Scene,
    /// Index of its first frame.
    first: usize,
    /// Seconds between its start and its first frame.
    phase: f64,
}

/// Scenes with their features.
pub struct Studio {
    /// Scenes of which videos are made.
    moving: Vec<Filmed>,
    /// Pictures.
    still: Vec<Filmed>,
    /// (F, P+1, V), all frames one after the other.
    pub features: Tensor,
    options: WorldOptions,
}

/// A video with the features of its frames.
pub struct Film {
    /// What is shown.
    pub video: Video,
    /// What kind of video it is.
    pub kind: MediaKind,
    /// Its frames.
    pub moments: Vec<exercise::Moment>,
    /// Their places in [`Studio::features`].
    pub frames: Vec<u32>,
}

impl Studio {
    /// Draws and encodes `scenes` scenes, and half as many pictures.
    pub fn new(encoder: &VisualEncoder, scenes: usize, seed: u64, options: WorldOptions) -> Result<Self> {
        let mut features = Vec::new();
        let mut count = 0;
        let mut film = |kinds: &[MediaKind], scenes: usize, seed: u64| -> Result<Vec<Filmed>> {
            let mut filmed = Vec::with_capacity(scenes);
            for start in (0..scenes).step_by(64) {
                let drawn: Vec<(Scene, f64, Vec<f32>)> = (start..scenes.min(start + 64))
                    .into_par_iter()
                    .map(|index| draw(kinds[index % kinds.len()], seed, index as u64, &options))
                    .collect::<Result<_>>()?;
                let mut pixels = Vec::new();
                for (scene, phase, drawn) in drawn {
                    let frames = drawn.len() / PIXELS;
                    filmed.push(Filmed { scene, first: count, phase });
                    count += frames;
                    pixels.extend(drawn);
                }
                let shape = (pixels.len() / PIXELS, 3, IMAGE_SIZE, IMAGE_SIZE);
                let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
                features.push(encoder.forward(&pixels, &mut Blind)?.detach());
            }
            Ok(filmed)
        };
        // Of videos with cuts and long ones, most scenes have one object.
        let moving = film(&[MediaKind::Clip, MediaKind::Multi, MediaKind::Multi], scenes, seed)?;
        let still = film(&[MediaKind::Image], scenes / 2, seed + 1)?;
        Ok(Self { moving, still, features: Tensor::cat(&features, 0)?, options })
    }

    /// A video of `kind`; a long one has as many scenes as `long` says.
    pub fn film(&self, kind: MediaKind, long: RangeInclusive<usize>, rng: &mut ChaCha8Rng) -> Result<Film> {
        let chosen: Vec<&Filmed> = match kind {
            MediaKind::Image => self.still.choose(rng).into_iter().collect(),
            MediaKind::Clip => self.moving.choose(rng).into_iter().collect(),
            MediaKind::Multi => self.cut(rng),
            MediaKind::Long | MediaKind::Needle => {
                let count = rng.random_range(long);
                let mut chosen: Vec<&Filmed> = Vec::with_capacity(count);
                while chosen.len() < count {
                    let Some(next) = self.moving.choose(rng) else { break };
                    if chosen.last().is_none_or(|last| last.scene.background != next.scene.background) {
                        chosen.push(next);
                    }
                }
                chosen
            }
        };
        let scenes = chosen.iter().map(|filmed| filmed.scene.clone()).collect();
        let mut video = Video::silent(scenes, &self.options);
        if kind == MediaKind::Long {
            video.speak(rng);
        }
        let moments = exercise::moments(&video, |scene| chosen[scene].phase);
        let mut frames = Vec::with_capacity(moments.len());
        let mut place = (usize::MAX, 0);
        for (scene, _) in &moments {
            place = if place.0 == *scene { (*scene, place.1 + 1) } else { (*scene, 0) };
            frames.push((chosen[*scene].first + place.1) as u32);
        }
        Ok(Film { video, kind, moments, frames })
    }

    /// Scenes of a video with cuts, by the rules of the world: neighbours in different places; now and then an object
    /// comes back; the others are in one scene only.
    fn cut(&self, rng: &mut ChaCha8Rng) -> Vec<&Filmed> {
        let rules = Video::random_multi(rng, &self.options);
        let count = rules.scenes.len();
        let mut star: Option<(Pair, usize)> = None;
        if count > 1 && rng.random_bool(0.4) {
            let pair = self.moving.choose(rng).and_then(|filmed| Some(filmed.scene.objects.first()?.pair()));
            star = pair.map(|pair| (pair, rng.random_range(2..=count.min(4))));
        }
        let mut chosen: Vec<&Filmed> = Vec::with_capacity(count);
        for index in 0..count {
            let left = count - index;
            let with_star = star.filter(|(_, times)| rng.random_bool((*times as f64 / left as f64).min(1.)));
            let fits = |filmed: &&Filmed| {
                let scene = &filmed.scene;
                let far = chosen.last().is_none_or(|last| last.scene.background != scene.background);
                let new = scene.objects.iter().all(|object| {
                    let pair = object.pair();
                    match star {
                        Some((star, _)) if star == pair => with_star.is_some(),
                        _ => chosen.iter().all(|before| before.scene.find(pair).is_none()),
                    }
                });
                far && new && with_star.is_none_or(|(star, _)| scene.find(star).is_some())
            };
            // Few scenes hold the object that comes back, so the search begins anywhere and goes through all of them.
            let start = rng.random_range(0..self.moving.len());
            let found = self.moving[start..].iter().chain(&self.moving[..start]).find(fits);
            let Some(found) = found else { break };
            if let (Some((_, times)), true) = (&mut star, with_star.is_some()) {
                *times -= 1;
            }
            chosen.push(found);
        }
        chosen
    }
}

fn draw(kind: MediaKind, seed: u64, stream: u64, options: &WorldOptions) -> Result<(Scene, f64, Vec<f32>)> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let video = Video::random(&mut rng, kind, options);
    let place = rng.random_range(0..video.scenes.len());
    let scene = video.scenes[place].clone();
    let phase = if rng.random_bool(0.5) { 0. } else { rng.random_range(0.0..1.0) };
    let one = Video::silent(vec![scene.clone()], options);
    let moments = exercise::moments(&one, |_| phase);
    let mut pixels = vec![0f32; moments.len() * PIXELS];
    for ((_, progress), pixels) in moments.iter().zip(pixels.chunks_exact_mut(PIXELS)) {
        pictures::draw(&scene, *progress, &mut rng, pixels)?;
    }
    Ok((scene, phase, pixels))
}
