//! What there is to know of a frame, as symbols: the targets of the visual encoder's heads, and the language in which
//! the language model reads frames before there are visual tokens.
//!
//! The parts that the published model starts from (a pretrained visual encoder, Q-Former and language model) do not
//! exist at this size, so each is first trained alone. A frame's two tokens are foreseen as sums of symbol vectors:
//! the **context** token holds the objects that the question is about, the **content** token the whole frame. The
//! language model learns to answer from such sums, and the Q-Former and the projectors learn to make them of patches.

use llamavid_world::{Background, Colour, Object, Pair, Scene, Shape, Subject};

use crate::sizes::PATCH_SIDE;

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
    // Of the frame, in the context token.
    PLACE, "background", Background::ALL.len();
    NOTHING, "no object", 1;
    // Of all objects together, in the content token.
    PAIR, "colour and shape", Colour::ALL.len() * Shape::ALL.len();
    COLOUR_CELL, "colour and cell", Colour::ALL.len() * 9;
    SHAPE_CELL, "shape and cell", Shape::ALL.len() * 9;
    COLOUR_RADIUS, "colour and radius", Colour::ALL.len() * RADIUS_BINS;
    OBJECTS, "number of objects", 3;
    SCENERY, "scenery", Background::ALL.len();
}

/// The symbols that one object of a frame has, each group's by its constant.
pub const OBJECT_GROUPS: [Group; 9] =
    [COLOUR, SHAPE, SIZE, CELL, COLUMN, ROW, RADIUS, SAME_COLOUR, OBJECTS_BESIDE];
/// First symbol of the content token.
pub const CONTENT_START: usize = PAIR.start;

/// A weighted set of symbols.
pub type Sum = Vec<(u16, f32)>;

/// Third of the unit square in which a coordinate lies.
fn third(at: f64) -> usize {
    if at < 0.35 { 0 } else { usize::from(at >= 0.65) + 1 }
}

fn bin(at: f64, low: f64, high: f64, bins: usize) -> usize {
    (((at - low) / (high - low) * bins as f64).max(0.) as usize).min(bins - 1)
}

/// The symbols of one object, in the order of [`OBJECT_GROUPS`].
pub fn of_object(scene: &Scene, object: &Object, progress: f64) -> [u16; 9] {
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
    ];
    let mut symbols = [0; 9];
    for ((symbol, group), value) in symbols.iter_mut().zip(OBJECT_GROUPS).zip(values) {
        *symbol = (group.start + value) as u16;
    }
    symbols
}

fn radius_bin(radius: f64) -> usize {
    bin(radius, 0.05, 0.17, RADIUS_BINS)
}

/// How much of a pair an object has.
fn likeness(object: &Object, pair: Pair) -> usize {
    usize::from(object.colour == pair.colour) + usize::from(object.shape == pair.shape)
}

/// The objects that a question's subject draws attention to: those that fit it best, and all where none fits.
pub fn attended<'a>(scene: &'a Scene, subject: &Subject, progress: f64) -> Vec<&'a Object> {
    let fit = |object: &Object| match subject {
        Subject::Object(pair) => likeness(object, *pair),
        Subject::Pairs(first, second) => likeness(object, *first).max(likeness(object, *second)),
        Subject::Colour(colour) => usize::from(object.colour == *colour),
        Subject::Shape(shape) => usize::from(object.shape == *shape),
        Subject::Cell(cell) => {
            let pose = object.pose(progress);
            usize::from(third(pose.y) * 3 + third(pose.x) == cell.index())
        }
        _ => 0,
    };
    let best = scene.objects.iter().map(fit).max().unwrap_or(0);
    scene.objects.iter().filter(|object| fit(object) == best).collect()
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
    }
    sum
}

/// The content token of a frame: the objects with their places, their number, and the background.
pub fn content(scene: &Scene, progress: f64) -> Sum {
    let mut sum = vec![
        ((SCENERY.start + scene.background.index()) as u16, 1.),
        ((OBJECTS.start + scene.objects.len().clamp(1, 3) - 1) as u16, 1.),
    ];
    for object in &scene.objects {
        let pose = object.pose(progress);
        let cell = third(pose.y) * 3 + third(pose.x);
        let (colour, shape) = (object.colour.index(), object.shape.index());
        sum.push(((PAIR.start + colour * Shape::ALL.len() + shape) as u16, 1.));
        sum.push(((COLOUR_CELL.start + colour * 9 + cell) as u16, 1.));
        sum.push(((SHAPE_CELL.start + shape * 9 + cell) as u16, 1.));
        sum.push(((COLOUR_RADIUS.start + colour * RADIUS_BINS + radius_bin(pose.radius)) as u16, 1.));
    }
    sum
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
