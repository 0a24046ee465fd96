//! Pre-training of the visual encoder: what covers each patch, told by linear heads that are thrown away.
//!
//! The published encoder comes pretrained on billions of pictures. Here the world can say of each patch which object
//! covers it, so the encoder is told. It has no final norm and its rows are read linearly (keys and values of the
//! context attention, the mean for the content token), so linear heads on the rows, and on their mean, are what later
//! layers need. Letters: F frames, P patches, V visual width.

use candle_core::{D, Device, Tensor};
use candle_nn::{Linear, Module, VarBuilder, linear};
use llamavid_kernels::IGNORED;
use llamavid_models::observer::Blind;
use llamavid_models::visual_encoder::{VisualEncoder, VisualEncoderConfig};
use llamavid_train::Parameters;
use llamavid_world::{Colour, MediaKind, Object, Pair, Video, WorldOptions};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::Result;
use crate::course::{Lesson, Step};
use crate::pictures::{self, PIXELS};
use crate::sizes::{IMAGE_SIZE, PATCH_SIDE, VISUAL_WIDTH, eva};
use crate::symbols::{self, COLOUR, CONTENT_START, Group, OBJECT_GROUPS, PLACE, SAME_COLOUR, SYMBOLS};

const PATCHES: usize = PATCH_SIDE * PATCH_SIDE;

/// Frames with what their patches show.
struct Frames {
    /// (F, 3, S, S)
    pixels: Tensor,
    /// Patches with an object, counted over all frames.
    covered: Vec<u32>,
    /// Values of [`OBJECT_GROUPS`] of each covered patch, group by group.
    values: Vec<Vec<i64>>,
    /// For each patch 1 where an object covers it.
    object: Vec<i64>,
    /// For each patch the background.
    place: Vec<i64>,
    /// (F - repainted, content symbols): 1 for what the frame holds.
    content: Tensor,
}

/// Share of a step's frames, its last ones, whose objects have any colour: so that shapes are told apart by their
/// outlines. Nothing is asked of their colours.
const REPAINTED: f64 = 0.3;

/// The visual encoder with its heads. Built anew for each step: it prepares some weights when it is built.
struct Seer {
    encoder: VisualEncoder,
    object: Linear,
    content: Linear,
}

/// The encoder as `vb` has it, below the name of its part.
pub fn encoder(vb: &VarBuilder) -> Result<VisualEncoder> {
    Ok(VisualEncoder::new(&VisualEncoderConfig::Eva(eva()), vb.pp("visual_encoder"))?)
}

impl Seer {
    fn new(parameters: &Parameters) -> Result<Self> {
        let vb = parameters.var_builder();
        let heads = vb.pp("heads");
        Ok(Self {
            encoder: encoder(&vb)?,
            object: linear(VISUAL_WIDTH, CONTENT_START + 2, heads.pp("object"))?,
            content: linear(VISUAL_WIDTH, SYMBOLS - CONTENT_START, heads.pp("content"))?,
        })
    }

    /// Logits of covered patches (patches, symbols), of all patches, and of frames (F, content symbols).
    fn look(&self, frames: &Frames) -> Result<(Tensor, Tensor, Tensor)> {
        let rows = self.encoder.forward(&frames.pixels, &mut Blind)?;
        let (count, rows_of_a_frame, width) = rows.dims3()?;
        let patches = rows.narrow(1, 1, rows_of_a_frame - 1)?.contiguous()?;
        let content = self.content.forward(&patches.narrow(0, 0, frames.content.dim(0)?)?.mean(1)?)?;
        let all = self.object.forward(&patches.reshape((count * PATCHES, width))?)?;
        let covered =
            llamavid_kernels::embedding(&all, &Tensor::new(frames.covered.as_slice(), &Device::Cpu)?)?;
        Ok((covered, all, content))
    }
}

/// The lesson of one step: fresh frames of fresh scenes.
pub struct VisionLesson {
    /// Frames of a step.
    pub frames: usize,
}

impl Lesson for VisionLesson {
    fn loss(&mut self, parameters: &Parameters, step: Step) -> Result<(Tensor, Vec<(String, f64)>)> {
        let frames = frames(self.frames, REPAINTED, step.seed(), &WorldOptions::default())?;
        let seer = Seer::new(parameters)?;
        let (covered, all, content) = seer.look(&frames)?;
        let mut loss = cross_entropy(&all.narrow(1, CONTENT_START, 2)?, &frames.object)?;
        loss = (loss + cross_entropy(&all.narrow(1, PLACE.start, PLACE.count)?, &frames.place)?)?;
        let mut told = Vec::new();
        for (group, values) in OBJECT_GROUPS.iter().zip(&frames.values) {
            let logits = covered.narrow(1, group.start, group.count)?;
            loss = (loss + cross_entropy(&logits, values)?)?;
            if matches!(group.name, "colour" | "shape" | "cell" | "radius" | "moves") {
                told.push((group.name.to_owned(), accuracy(&logits, values)?));
            }
        }
        // A symbol is rare among all, so the sum over a frame's symbols counts and not their mean.
        let content_loss =
            (binary_cross_entropy(&content, &frames.content)?.sum(D::Minus1)?.mean_all()? * 0.5)?;
        told.push(("content loss".into(), f64::from(content_loss.to_scalar::<f32>()?)));
        Ok(((loss + content_loss)?, told))
    }
}

/// Accuracy of each group on unseen frames.
pub fn measure(
    parameters: &Parameters,
    options: &WorldOptions,
    frames_in_all: usize,
) -> Result<Vec<(String, f64)>> {
    let seer = Seer::new(parameters)?;
    let mut sums = vec![0f64; OBJECT_GROUPS.len() + 1];
    let batches = frames_in_all.div_ceil(128);
    for batch in 0..batches {
        let frames = frames(128, 0., u64::MAX - batch as u64, options)?;
        let (covered, _, content) = seer.look(&frames)?;
        for (sum, (group, values)) in sums.iter_mut().zip(OBJECT_GROUPS.iter().zip(&frames.values)) {
            *sum += accuracy(&covered.narrow(1, group.start, group.count)?, values)?;
        }
        // All symbols of a frame right at once.
        let right = content.gt(0f32)?.to_dtype(candle_core::DType::F32)?.eq(&frames.content)?;
        let right = right.to_dtype(candle_core::DType::F32)?.min(1)?.mean_all()?.to_scalar::<f32>()?;
        if let Some(last) = sums.last_mut() {
            *last += f64::from(right);
        }
    }
    let names = OBJECT_GROUPS.iter().map(|group: &Group| group.name).chain(["whole frame"]);
    Ok(names.zip(sums).map(|(name, sum)| (name.to_owned(), sum / batches as f64)).collect())
}

fn frames(count: usize, repainted: f64, seed: u64, options: &WorldOptions) -> Result<Frames> {
    let exact = count - (count as f64 * repainted) as usize;
    let mut pixels = vec![0f32; count * PIXELS];
    let told: Vec<_> = pixels
        .par_chunks_mut(PIXELS)
        .enumerate()
        .map(|(index, pixels)| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(index as u64);
            let kind = if rng.random_bool(0.4) { MediaKind::Image } else { MediaKind::Clip };
            let mut video = Video::random(&mut rng, kind, options);
            let scene = &mut video.scenes[0];
            if index >= exact {
                scene.objects.iter_mut().for_each(|object| repaint(object, &mut rng));
            }
            let progress = if kind == MediaKind::Image { 0. } else { rng.random_range(0.0..1.0) };
            pictures::draw(scene, progress, &mut rng, pixels)?;
            let patches: Vec<Option<[u16; 10]>> = symbols::patches(scene, progress)
                .into_iter()
                .map(|object| object.map(|object| symbols::of_object(scene, object, progress)))
                .collect();
            Ok((patches, symbols::content(scene, progress), scene.background.index() as i64))
        })
        .collect::<Result<_>>()?;
    let mut frames = Frames {
        pixels: Tensor::from_vec(pixels, (count, 3, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu)?,
        covered: Vec::new(),
        values: vec![Vec::new(); OBJECT_GROUPS.len()],
        object: Vec::new(),
        place: Vec::new(),
        content: Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu)?,
    };
    let width = SYMBOLS - CONTENT_START;
    let mut content = vec![0f32; exact * width];
    for (index, (patches, sum, background)) in told.into_iter().enumerate() {
        for (patch, symbols) in patches.into_iter().enumerate() {
            frames.object.push(i64::from(symbols.is_some()));
            frames.place.push(background);
            let Some(symbols) = symbols else { continue };
            frames.covered.push((index * PATCHES + patch) as u32);
            for ((values, group), symbol) in frames.values.iter_mut().zip(OBJECT_GROUPS).zip(symbols) {
                let unknown = index >= exact && [COLOUR.start, SAME_COLOUR.start].contains(&group.start);
                values.push(if unknown { IGNORED } else { i64::from(symbol) - group.start as i64 });
            }
        }
        if index >= exact {
            continue;
        }
        for (symbol, _) in sum {
            content[index * width + usize::from(symbol) - CONTENT_START] = 1.;
        }
    }
    frames.content = Tensor::from_vec(content, (exact, width), &Device::Cpu)?;
    Ok(frames)
}

/// Gives an object any colour, but none with which it would look like a pair that is never trained.
fn repaint(object: &mut Object, rng: &mut impl Rng) {
    object.fill = loop {
        let fill: [u8; 3] = rng.random();
        let apart = |colour: &Colour| {
            let squares = fill.iter().zip(colour.rgb()).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2));
            squares.sum::<i32>()
        };
        let nearest = Colour::ALL.into_iter().min_by_key(apart);
        if nearest.is_some_and(|colour| !Pair { colour, shape: object.shape }.is_never_trained()) {
            break fill;
        }
    };
}

fn cross_entropy(logits: &Tensor, values: &[i64]) -> Result<Tensor> {
    Ok(llamavid_kernels::cross_entropy(&logits.contiguous()?, &Tensor::new(values, logits.device())?)?)
}

/// log(1 + exp(x)) - y x, which does not overflow.
fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let soft = ((logits.abs()?.neg()?.exp()? + 1.)?.log()? + logits.relu()?)?;
    Ok((soft - logits.mul(targets)?)?)
}

fn accuracy(logits: &Tensor, values: &[i64]) -> Result<f64> {
    let best: Vec<u32> = logits.contiguous()?.argmax(D::Minus1)?.to_vec1()?;
    let right = best.iter().zip(values).filter(|(best, value)| i64::from(**best) == **value).count();
    let asked = values.iter().filter(|value| **value != IGNORED).count();
    Ok(right as f64 / asked.max(1) as f64)
}
