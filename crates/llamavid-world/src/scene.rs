//! Scenes: a background and one to three objects, of which at most one moves.

use rand::Rng;
use rand::seq::SliceRandom;

use crate::options::{NeverTrainedPairs, WorldOptions};
use crate::words::{Background, Cell, Colour, Motion, Pair, Shape, Size};

/// Where an object is: unit square, y down, radius in sides of the square.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pose {
    /// From left (0) to right (1).
    pub x: f64,
    /// From top (0) to bottom (1).
    pub y: f64,
    /// The radius of the shape.
    pub radius: f64,
}

/// A coloured shape of a scene.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Its colour.
    pub colour: Colour,
    /// Its shape.
    pub shape: Shape,
    /// Its size. An object that grows or shrinks has the size of its end.
    pub size: Size,
    /// What it does during the scene.
    pub motion: Motion,
    /// Row * 3 + column where it is, or where it starts when it travels.
    pub cell: usize,
    /// Its pose at the start of the scene.
    pub start: Pose,
    /// Its pose at the end of the scene.
    pub end: Pose,
    /// The colour that is painted: the object's colour, a little jittered.
    pub fill: [u8; 3],
}

impl Object {
    /// The pose at `progress` of the scene, from 0 to 1: linear from start to end.
    pub fn pose(&self, progress: f64) -> Pose {
        let mix = |from: f64, to: f64| from + (to - from) * progress.clamp(0.0, 1.0);
        Pose {
            x: mix(self.start.x, self.end.x),
            y: mix(self.start.y, self.end.y),
            radius: mix(self.start.radius, self.end.radius),
        }
    }

    /// Colour and shape.
    pub fn pair(&self) -> Pair {
        Pair { colour: self.colour, shape: self.shape }
    }

    /// The position as an enum.
    pub fn position(&self) -> Cell {
        Cell::ALL[self.cell.min(8)]
    }
}

/// One background with its objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Scene {
    /// What is behind the objects.
    pub background: Background,
    /// One to three objects with different pairs of colour and shape: a mover first, then in reading order (top to
    /// bottom, left to right) of their cells. Descriptions name them in this order.
    pub objects: Vec<Object>,
    /// How long the scene lasts, in whole seconds; 0 for a picture.
    pub seconds: f64,
}

/// What a caller of [`Scene::draw`] has decided; the rest is drawn.
pub(crate) struct Draft {
    /// The background of the scene before, which this one must not repeat.
    pub(crate) not_background: Option<Background>,
    /// The pairs of the objects, all different.
    pub(crate) pairs: Vec<Pair>,
    /// Whether something may move.
    pub(crate) moves: bool,
}

impl Scene {
    /// A scene of one to three objects, of which one moves with [`WorldOptions::mover_probability`].
    pub fn random(rng: &mut impl Rng, options: &WorldOptions) -> Self {
        let count = pick(rng, &[1, 2, 3]);
        let pairs = random_pairs(rng, options.never_trained_pairs, count, &[]);
        Self::draw(rng, options, &Draft { not_background: None, pairs, moves: true })
    }

    /// The object that moves, if there is one.
    pub fn mover(&self) -> Option<&Object> {
        self.objects.iter().find(|object| object.motion != Motion::Still)
    }

    /// The object of this pair, if it is in the scene.
    pub fn find(&self, pair: Pair) -> Option<&Object> {
        self.objects.iter().find(|object| object.pair() == pair)
    }

    pub(crate) fn draw(rng: &mut impl Rng, options: &WorldOptions, draft: &Draft) -> Self {
        let backgrounds: Vec<Background> =
            Background::ALL.into_iter().filter(|&one| Some(one) != draft.not_background).collect();
        let background = pick(rng, &backgrounds);
        let moves = draft.moves && rng.random_bool(options.mover_probability);
        let mut free: Vec<usize> = (0..9).collect();
        free.shuffle(rng);
        let mut objects = Vec::with_capacity(draft.pairs.len());
        for (index, &pair) in draft.pairs.iter().enumerate() {
            let motion = if moves && index == 0 { pick(rng, &Motion::ALL[1..]) } else { Motion::Still };
            let cell = free.pop().unwrap_or(0);
            match motion {
                Motion::Right | Motion::Left => free.retain(|other| other / 3 != cell / 3),
                Motion::Up | Motion::Down => free.retain(|other| other % 3 != cell % 3),
                _ => {}
            }
            objects.push(place(rng, options, pair, motion, cell));
        }
        objects.sort_by_key(|object| (object.motion == Motion::Still, object.cell));
        let seconds = f64::from(rng.random_range(if moves { 3..=6 } else { 2..=6 }));
        Self { background, objects, seconds }
    }
}

/// An object with its poses. The cell of a traveller is moved to where it starts.
fn place(rng: &mut impl Rng, options: &WorldOptions, pair: Pair, motion: Motion, cell: usize) -> Object {
    const CENTERS: [f64; 3] = [0.2, 0.5, 0.8];
    let size = pick(rng, &Size::ALL);
    let mut jitter = |reach: f64| rng.random_range(-reach..=reach);
    let x = CENTERS[cell % 3] + jitter(0.035);
    let y = CENTERS[cell / 3] + jitter(0.035);
    let radius = size.radius() * (1.0 + jitter(0.07));
    let near = 0.175 + jitter(0.045);
    let far = 0.825 + jitter(0.045);
    let still = Pose { x, y, radius };
    let (row, column) = (cell / 3, cell % 3);
    let (size, cell, start, end) = match motion {
        Motion::Still => (size, cell, still, still),
        Motion::Right => (size, row * 3, Pose { x: near, ..still }, Pose { x: far, ..still }),
        Motion::Left => (size, row * 3 + 2, Pose { x: far, ..still }, Pose { x: near, ..still }),
        Motion::Up => (size, 6 + column, Pose { y: far, ..still }, Pose { y: near, ..still }),
        Motion::Down => (size, column, Pose { y: near, ..still }, Pose { y: far, ..still }),
        Motion::Grows => (Size::Large, cell, Pose { radius: 0.06, ..still }, Pose { radius: 0.165, ..still }),
        Motion::Shrinks => {
            (Size::Small, cell, Pose { radius: 0.165, ..still }, Pose { radius: 0.06, ..still })
        }
    };
    let reach = i16::from(options.colour_jitter);
    let fill = pair
        .colour
        .rgb()
        .map(|channel| (i16::from(channel) + rng.random_range(-reach..=reach)).clamp(0, 255) as u8);
    Object { colour: pair.colour, shape: pair.shape, size, motion, cell, start, end, fill }
}

/// `count` different pairs, none of them in `used`. Every third pair shares its colour or its shape with the one
/// before it, so that counts of two and questions that must look at both occur often.
pub(crate) fn random_pairs(
    rng: &mut impl Rng,
    policy: NeverTrainedPairs,
    count: usize,
    used: &[Pair],
) -> Vec<Pair> {
    let allowed = policy.pairs();
    let mut pairs: Vec<Pair> = Vec::with_capacity(count);
    while pairs.len() < count {
        let last = pairs.last().copied();
        let mut open: Vec<Pair> =
            allowed.iter().copied().filter(|pair| !pairs.contains(pair) && !used.contains(pair)).collect();
        if open.is_empty() {
            // A long video uses every pair sooner or later; then only those of this scene are excluded.
            open = allowed.iter().copied().filter(|pair| !pairs.contains(pair)).collect();
        }
        if let (Some(last), true) = (last, rng.random_bool(0.35)) {
            let same_colour = rng.random_bool(0.5);
            let alike: Vec<Pair> = open
                .iter()
                .copied()
                .filter(
                    |pair| if same_colour { pair.colour == last.colour } else { pair.shape == last.shape },
                )
                .collect();
            if !alike.is_empty() {
                open = alike;
            }
        }
        pairs.push(pick(rng, &open));
    }
    pairs
}

/// One of the values, which must not be empty.
pub(crate) fn pick<T: Copy>(rng: &mut impl Rng, values: &[T]) -> T {
    values[rng.random_range(0..values.len())]
}
