//! What there is to know of a frame, as symbols: the targets of the visual encoder's heads, and the language in which
//! the language model reads frames before there are visual tokens.
//!
//! The parts that the published model starts from (a pretrained visual encoder, Q-Former and language model) do not
//! exist at this size, so each is first trained alone. A frame's two tokens are foreseen as sums of symbol vectors:
//! the **context** token holds the objects that the question is about, the **content** token the whole frame. The
//! language model learns to answer from such sums, and the Q-Former and the projectors learn to make them of patches.
//! The vectors are drawn once and never trained, so that the parts can be taught side by side.

use candle_core::{Device, Tensor};
use llamavid_world::{Background, Colour, Motion, Object, Pose, Scene, Shape, Subject};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::sizes::{LANGUAGE_WIDTH, PATCH_SIDE};

/// One kind of symbol: each object, or frame, has one of `count` values.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// What the symbols tell.
    pub name: &'static str,
    /// Index of the first.
    pub start: usize,
    /// Number of values.
    pub count: usize,
}

const BINS: usize = 10;
const RADIUS_BINS: usize = 8;

macro_rules! groups {
    ($($constant:ident, $name:literal, $count:expr;)*) => {
        groups!(@ 0; $($constant, $name, $count;)*);
    };
    (@ $start:expr; $constant:ident, $name:literal, $count:expr; $($rest:tt)*) => {
        #[allow(missing_docs)]
        pub const $constant: Group = Group { name: $name, start: $start, count: $count };
        groups!(@ $start + $count; $($rest)*);
    };
    (@ $start:expr;) => {
        /// Symbols in all.
        pub const SYMBOLS: usize = $start;
    };
}

groups! {
    // Of one object, in the context token.
    COLOUR, "colour", Colour::ALL.len();
    SHAPE, "shape", Shape::ALL.len();
    SIZE, "size", 2;
    CELL, "cell", 9;
    COLUMN, "column", BINS;
    ROW, "row", BINS;
    RADIUS, "radius", RADIUS_BINS;
    SAME_COLOUR, "objects of this colour", 3;
    OBJECTS_BESIDE, "objects in the frame", 3;
    MOVES, "moves", 4;
    // Where it is from left to right, from top to bottom, and how large, as weights from -1 to 1.
    ACROSS, "across", 1;
    DOWN, "down", 1;
    EXTENT, "extent", 1;
    // Of the frame, in the context token.
    PLACE, "background", Background::ALL.len();
    NOTHING, "no object", 1;
    // Of all objects together, in the content token.
    SCENERY, "scenery", Background::ALL.len();
    OBJECTS, "number of objects", 3;
    COLOUR_SEEN, "a colour", Colour::ALL.len();
    SHAPE_SEEN, "a shape", Shape::ALL.len();
    PAIR, "colour and shape", Colour::ALL.len() * Shape::ALL.len();
    COLOUR_SIZE, "colour and size", Colour::ALL.len() * 2;
    COLOUR_CELL, "colour and cell", Colour::ALL.len() * 9;
    SHAPE_CELL, "shape and cell", Shape::ALL.len() * 9;
}

/// The symbols that one object of a frame has, each group's by its constant.
pub const OBJECT_GROUPS: [Group; 10] =
    [COLOUR, SHAPE, SIZE, CELL, COLUMN, ROW, RADIUS, SAME_COLOUR, OBJECTS_BESIDE, MOVES];
/// First symbol of the content token.
pub const CONTENT_START: usize = SCENERY.start;

/// A weighted set of symbols.
pub type Sum = Vec<(u16, f32)>;

/// The vectors of the symbols (symbols, D), of length [`LENGTH`]: those of one token at right angles to each other as
/// far as D allows, further ones to none in particular.
pub fn table() -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(0x5e3b);
    let mut rows: Vec<Vec<f32>> = Vec::with_capacity(SYMBOLS);
    for symbol in 0..SYMBOLS {
        let mut row: Vec<f32> = (0..LANGUAGE_WIDTH).map(|_| rng.random_range(-1f32..1.)).collect();
        let first = if symbol < CONTENT_START { 0 } else { CONTENT_START };
        if symbol - first < LANGUAGE_WIDTH {
            for before in &rows[first..] {
                let along = dot(&row, before) / (LENGTH * LENGTH);
                row.iter_mut().zip(before).for_each(|(value, other)| *value -= along * other);
            }
        }
        let scale = LENGTH / dot(&row, &row).sqrt();
        row.iter_mut().for_each(|value| *value *= scale);
        rows.push(row);
    }
    Ok(Tensor::from_vec(rows.concat(), (SYMBOLS, LANGUAGE_WIDTH), &Device::Cpu)?)
}

const LENGTH: f32 = 0.4;

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Third of the unit square in which a coordinate lies.
fn third(at: f64) -> usize {
    if at < 0.35 { 0 } else { usize::from(at >= 0.65) + 1 }
}

fn bin(at: f64, low: f64, high: f64, bins: usize) -> usize {
    (((at - low) / (high - low) * bins as f64).max(0.) as usize).min(bins - 1)
}

/// What a single frame gives away of an object's motion: still objects are at the centres of cells and have one of two
/// sizes, so one that is between cells or sizes moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    Nothing,
    Columns,
    Rows,
    Sizes,
}

fn between(object: &Object, pose: Pose) -> Between {
    /// A little more than still objects are off their centres, and off their sizes.
    const REACH: f64 = 0.05;
    const RADIUS_REACH: f64 = 0.013;
    let far = |at: f64, centres: &[f64], reach: f64| centres.iter().all(|centre| (at - centre).abs() > reach);
    match object.motion {
        Motion::Right | Motion::Left if far(pose.x, &[0.2, 0.5, 0.8], REACH) => Between::Columns,
        Motion::Up | Motion::Down if far(pose.y, &[0.2, 0.5, 0.8], REACH) => Between::Rows,
        Motion::Grows | Motion::Shrinks if far(pose.radius, &[0.1, 0.15], RADIUS_REACH) => Between::Sizes,
        _ => Between::Nothing,
    }
}

/// The symbols of one object, in the order of [`OBJECT_GROUPS`].
pub fn of_object(scene: &Scene, object: &Object, progress: f64) -> [u16; 10] {
    let pose = object.pose(progress);
    let same = scene.objects.iter().filter(|other| other.colour == object.colour).count();
    let values = [
        object.colour.index(),
        object.shape.index(),
        usize::from(pose.radius >= 0.125),
        third(pose.y) * 3 + third(pose.x),
        bin(pose.x, 0.1, 0.9, BINS),
        bin(pose.y, 0.1, 0.9, BINS),
        radius_bin(pose.radius),
        same.min(3) - 1,
        scene.objects.len().min(3) - 1,
        between(object, pose) as usize,
    ];
    let mut symbols = [0; 10];
    for ((symbol, group), value) in symbols.iter_mut().zip(OBJECT_GROUPS).zip(values) {
        *symbol = (group.start + value) as u16;
    }
    symbols
}

fn radius_bin(radius: f64) -> usize {
    bin(radius, 0.05, 0.17, RADIUS_BINS)
}

/// The objects that a question's subject draws attention to in a frame. A named object, colour, shape or position draws
/// it to what is just that, if it is there; a motion to what is seen to move along its axis; the whole to what is seen
/// to move at all, or else to everything.
pub fn attended<'a>(scene: &'a Scene, subject: &Subject, progress: f64) -> Vec<&'a Object> {
    let those = |fits: &dyn Fn(&Object) -> bool| -> Vec<&'a Object> {
        scene.objects.iter().filter(|object| fits(object)).collect()
    };
    let moves = |object: &Object| between(object, object.pose(progress));
    match subject {
        Subject::Object(pair) => those(&|object| object.pair() == *pair),
        Subject::Pairs(first, second) => those(&|object| [*first, *second].contains(&object.pair())),
        Subject::Colour(colour) => those(&|object| object.colour == *colour),
        Subject::Shape(shape) => those(&|object| object.shape == *shape),
        Subject::Cell(cell) => those(&|object| {
            let pose = object.pose(progress);
            third(pose.y) * 3 + third(pose.x) == cell.index()
        }),
        Subject::Motion(Motion::Right | Motion::Left) => those(&|object| moves(object) == Between::Columns),
        Subject::Motion(_) => those(&|object| moves(object) == Between::Rows),
        Subject::Whole | Subject::Fact(_) | Subject::Cue(_) => {
            let moving = those(&|object| moves(object) != Between::Nothing);
            if moving.is_empty() { scene.objects.iter().collect() } else { moving }
        }
    }
}

/// The context token of a frame: what the subject's objects have, in equal shares, and the background.
pub fn context(scene: &Scene, subject: &Subject, progress: f64) -> Sum {
    let objects = attended(scene, subject, progress);
    let share = 1. / objects.len().max(1) as f32;
    let mut sum = vec![((PLACE.start + scene.background.index()) as u16, 1.)];
    if objects.is_empty() {
        sum.push((NOTHING.start as u16, 1.));
    }
    for object in objects {
        sum.extend(of_object(scene, object, progress).map(|symbol| (symbol, share)));
        let pose = object.pose(progress);
        let weights = [
            (ACROSS, (pose.x - 0.5) / 0.35),
            (DOWN, (pose.y - 0.5) / 0.35),
            (EXTENT, (pose.radius - 0.11) / 0.05),
        ];
        sum.extend(weights.map(|(group, weight)| (group.start as u16, share * weight as f32)));
    }
    sum
}

/// The content token of a frame: the objects with their places, their number, and the background.
pub fn content(scene: &Scene, progress: f64) -> Sum {
    let mut seen =
        vec![SCENERY.start + scene.background.index(), OBJECTS.start + scene.objects.len().clamp(1, 3) - 1];
    for object in &scene.objects {
        let pose = object.pose(progress);
        let cell = third(pose.y) * 3 + third(pose.x);
        let (colour, shape) = (object.colour.index(), object.shape.index());
        seen.extend([
            COLOUR_SEEN.start + colour,
            SHAPE_SEEN.start + shape,
            PAIR.start + colour * Shape::ALL.len() + shape,
            COLOUR_SIZE.start + colour * 2 + usize::from(pose.radius >= 0.125),
            COLOUR_CELL.start + colour * 9 + cell,
            SHAPE_CELL.start + shape * 9 + cell,
        ]);
    }
    // Two objects of one colour are seen as one colour.
    seen.sort_unstable();
    seen.dedup();
    seen.into_iter().map(|symbol| (symbol as u16, 1.)).collect()
}

/// For each patch, row by row, the object that covers it most; none where the background does.
pub fn patches(scene: &Scene, progress: f64) -> Vec<Option<&Object>> {
    const SAMPLES: usize = 6;
    /// Share of a patch that an object must cover, a circle's worth of a small object's corner.
    const COVERED: f64 = 0.14;
    let patch = 1. / PATCH_SIDE as f64;
    (0..PATCH_SIDE * PATCH_SIDE)
        .map(|index| {
            let (top, left) = ((index / PATCH_SIDE) as f64 * patch, (index % PATCH_SIDE) as f64 * patch);
            let cover = |object: &Object| {
                let pose = object.pose(progress);
                let inside = (0..SAMPLES * SAMPLES).filter(|sample| {
                    let y = top + ((sample / SAMPLES) as f64 + 0.5) / SAMPLES as f64 * patch;
                    let x = left + ((sample % SAMPLES) as f64 + 0.5) / SAMPLES as f64 * patch;
                    (x - pose.x).hypot(y - pose.y) <= pose.radius
                });
                inside.count() as f64 / (SAMPLES * SAMPLES) as f64
            };
            let covered = scene.objects.iter().map(|object| (object, cover(object)));
            let most = covered.max_by(|a, b| a.1.total_cmp(&b.1))?;
            (most.1 >= COVERED).then_some(most.0)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn symbols_of_a_token_are_told_apart() {
        let rows = table().unwrap().to_vec2::<f32>().unwrap();
        let cosine = |a: usize, b: usize| dot(&rows[a], &rows[b]) / (LENGTH * LENGTH);
        for a in 0..CONTENT_START {
            for b in 0..=a {
                assert!((cosine(a, b) - f32::from(u8::from(a == b))).abs() < 1e-3, "{a} {b}");
            }
        }
        // More than D symbols cannot all be at right angles.
        for a in CONTENT_START..SYMBOLS {
            for b in CONTENT_START..a {
                assert!(cosine(a, b).abs() < 0.5, "{a} {b}");
            }
        }
    }
}
