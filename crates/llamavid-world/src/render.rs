//! Pictures of scenes: flat shapes with a thin dark outline, antialiased by their signed distance.

use crate::{Background, Object, Scene, Shape};

/// The thickness of the outline in sides of the picture. It lies inside the shape.
const OUTLINE: f32 = 1.0 / 84.0;
const OUTLINE_GREY: f32 = 20.0;
const BAR_GREY: u8 = 90;
const HORIZON: f32 = 0.86;

/// The stars of the night: rows `STAR_ROW` apart, every other row shifted by half of `STAR_COLUMN`.
const STAR_ROW: f32 = 0.0669;
const STAR_COLUMN: f32 = 0.1030;
const STAR_LIGHT: f32 = 90.0;

/// Colours of one background: top and bottom of the sky, ground.
fn palette(background: Background) -> [[f32; 3]; 3] {
    match background {
        Background::Day => [[150.0, 195.0, 240.0], [215.0, 230.0, 240.0], [120.0, 165.0, 95.0]],
        Background::Night => [[8.0, 10.0, 40.0], [30.0, 30.0, 75.0], [18.0, 18.0, 35.0]],
        Background::Desert => [[240.0, 215.0, 165.0], [205.0, 160.0, 100.0], [180.0, 130.0, 75.0]],
        Background::Forest => [[30.0, 75.0, 40.0], [60.0, 110.0, 50.0], [45.0, 60.0, 25.0]],
    }
}

impl Scene {
    /// Renders the square picture at `progress` (0 at the start of the scene, 1 at its end) into `out`, which becomes
    /// `side * side * 3` bytes: RGB, rows from top to bottom.
    pub fn render(&self, progress: f64, side: usize, out: &mut Vec<u8>) {
        self.render_frame(progress, side, side, out);
    }

    /// As [`Scene::render`] into a frame of `width * height` pixels: the picture is as large as fits, centred, and the
    /// rest is grey bars.
    pub fn render_frame(&self, progress: f64, width: usize, height: usize, out: &mut Vec<u8>) {
        out.clear();
        out.resize(width * height * 3, BAR_GREY);
        let side = width.min(height);
        if side == 0 {
            return;
        }
        let mut picture = Picture {
            pixels: out,
            stride: width * 3,
            first: ((height - side) / 2 * width + (width - side) / 2) * 3,
            side,
        };
        picture.background(self.background);
        for object in &self.objects {
            picture.object(object, progress);
        }
    }
}

/// The square part of a frame that holds the scene.
struct Picture<'a> {
    pixels: &'a mut [u8],
    /// Bytes from one row to the next.
    stride: usize,
    /// Byte of the top left pixel.
    first: usize,
    side: usize,
}

impl Picture<'_> {
    fn row(&mut self, y: usize) -> &mut [u8] {
        let start = self.first + y * self.stride;
        &mut self.pixels[start..start + self.side * 3]
    }

    fn background(&mut self, background: Background) {
        let [top, bottom, ground] = palette(background);
        let side = self.side as f32;
        let shades: Vec<f32> =
            (0..self.side)
                .map(|x| {
                    if background == Background::Forest { stripe((x as f32 + 0.5) / side, side) } else { 1.0 }
                })
                .collect();
        for y in 0..self.side {
            let height = y as f32 / side;
            // The part of the pixel row that lies below the horizon.
            let below = (y as f32 + 1.0 - HORIZON * side).clamp(0.0, 1.0);
            let colour: [f32; 3] =
                std::array::from_fn(|c| mix(mix(top[c], bottom[c], height), ground[c], below));
            for (pixel, shade) in self.row(y).chunks_exact_mut(3).zip(&shades) {
                for channel in 0..3 {
                    pixel[channel] = (colour[channel] * shade) as u8;
                }
            }
        }
        if background == Background::Night {
            self.stars();
        }
    }

    fn stars(&mut self) {
        let side = self.side as f32;
        for row in 0..12 {
            let y = (0.0117 + row as f32 * STAR_ROW) * side;
            let start = if row % 2 == 0 { 0.0797 } else { 0.0282 };
            for column in 0..10 {
                let x = (start + column as f32 * STAR_COLUMN) * side;
                self.star(x, y, 0.0068 * side, 0.0078 * side);
            }
        }
    }

    /// Adds light inside the ellipse around the pixel position (x, y).
    fn star(&mut self, x: f32, y: f32, radius_x: f32, radius_y: f32) {
        let (left, right) = self.span(x, radius_x + 1.0);
        let (top, bottom) = self.span(y, radius_y + 1.0);
        for row in top..bottom {
            let dy = (row as f32 + 0.5 - y) / radius_y;
            let pixels = self.row(row);
            for column in left..right {
                let dx = (column as f32 + 0.5 - x) / radius_x;
                let cover = coverage((dx.hypot(dy) - 1.0) * radius_x);
                for channel in &mut pixels[column * 3..column * 3 + 3] {
                    *channel = (f32::from(*channel) + cover * STAR_LIGHT).min(255.0) as u8;
                }
            }
        }
    }

    /// The pixels from `center - reach` to `center + reach` that lie in the picture.
    fn span(&self, center: f32, reach: f32) -> (usize, usize) {
        let first = (center - reach).floor().max(0.0) as usize;
        let last = (center + reach).ceil().clamp(0.0, self.side as f32) as usize;
        (first.min(last), last)
    }

    fn object(&mut self, object: &Object, progress: f64) {
        let pose = object.pose(progress);
        let side = self.side as f32;
        let (x, y) = (pose.x as f32 * side, pose.y as f32 * side);
        let radius = pose.radius as f32 * side;
        if radius <= 0.0 {
            return;
        }
        let outline = OUTLINE * side;
        let fill = object.fill.map(f32::from);
        let (left, right) = self.span(x, radius + 1.0);
        let (top, bottom) = self.span(y, radius + 1.0);
        for row in top..bottom {
            let dy = (row as f32 + 0.5 - y) / radius;
            let pixels = self.row(row);
            for column in left..right {
                let dx = (column as f32 + 0.5 - x) / radius;
                let distance = distance(object.shape, dx, dy) * radius;
                let shape = coverage(distance);
                if shape == 0.0 {
                    continue;
                }
                let inner = coverage(distance + outline);
                for (channel, fill) in pixels[column * 3..column * 3 + 3].iter_mut().zip(fill) {
                    let drawn = mix(OUTLINE_GREY, fill, inner);
                    *channel = (mix(f32::from(*channel), drawn, shape) + 0.5) as u8;
                }
            }
        }
    }
}

/// The light that the forest's stripes leave at `x`, antialiased for pixels of 1 / side.
fn stripe(x: f32, side: f32) -> f32 {
    let offset = ((x * 5.0).rem_euclid(1.0) - 0.25).abs() - 0.115;
    1.0 - 0.35 * coverage(offset / 5.0 * side)
}

fn mix(from: f32, to: f32, part: f32) -> f32 {
    from + (to - from) * part
}

/// How much of a pixel lies inside an edge that is `distance` pixels away (negative inside).
fn coverage(distance: f32) -> f32 {
    (0.5 - distance).clamp(0.0, 1.0)
}

/// The signed distance from (x, y), y down, to the shape of radius 1 around the origin; negative inside.
fn distance(shape: Shape, x: f32, y: f32) -> f32 {
    match shape {
        Shape::Circle => x.hypot(y) - 1.0,
        Shape::Ring => (x.hypot(y) - 0.74).abs() - 0.26,
        Shape::Square => {
            let (x, y) = (x.abs() - 0.86, y.abs() - 0.86);
            x.max(0.0).hypot(y.max(0.0)) + x.max(y).min(0.0)
        }
        Shape::Cross => cross(x.abs(), y.abs()),
        Shape::Triangle => triangle(x.abs(), y),
        Shape::Star => star(x.abs(), -y),
    }
}

/// Arms of length 1 and half width 0.34; x, y ≥ 0.
fn cross(x: f32, y: f32) -> f32 {
    const HALF: f32 = 0.34;
    let (x, y) = if y > x { (y, x) } else { (x, y) };
    let (beyond_x, beyond_y) = (x - 1.0, y - HALF);
    let outside = beyond_x.max(beyond_y);
    if outside > 0.0 {
        beyond_x.max(0.0).hypot(beyond_y.max(0.0))
    } else {
        // Inside, the nearest edge is an arm's side or end, or the corner between two arms.
        -(HALF - x).max(0.0).hypot(-outside)
    }
}

/// Apex (0, -1), base from (-0.95, 0.75) to (0.95, 0.75); x ≥ 0.
fn triangle(x: f32, y: f32) -> f32 {
    const BASE: f32 = 0.95;
    const FOOT: f32 = 0.75;
    let side = segment(x, y, [0.0, -1.0], [BASE, FOOT]);
    let base = segment(x, y, [0.0, FOOT], [BASE, FOOT]);
    let nearest = side.min(base);
    let inside = y < FOOT && x * (FOOT + 1.0) < (y + 1.0) * BASE;
    if inside { -nearest } else { nearest }
}

/// Five points of radius 1, one up, between them corners of radius 0.45; x ≥ 0, y up. The plane is folded along the
/// star's axes until one edge is left.
fn star(mut x: f32, mut y: f32) -> f32 {
    const INNER: f32 = 0.45;
    const COS: f32 = 0.809_017;
    const SIN: f32 = 0.587_785;
    let first = 2.0 * (COS * x - SIN * y).max(0.0);
    x -= first * COS;
    y += first * SIN;
    let second = 2.0 * (-COS * x - SIN * y).max(0.0);
    x += second * COS;
    y += second * SIN;
    let x = x.abs();
    let y = y - 1.0;
    let edge = [INNER * SIN, INNER * COS - 1.0];
    let along = ((x * edge[0] + y * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1])).clamp(0.0, 1.0);
    let nearest = (x - edge[0] * along).hypot(y - edge[1] * along);
    if y * edge[0] - x * edge[1] < 0.0 { -nearest } else { nearest }
}

/// The distance from (x, y) to the segment.
fn segment(x: f32, y: f32, from: [f32; 2], to: [f32; 2]) -> f32 {
    let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
    let (x, y) = (x - from[0], y - from[1]);
    let along = ((x * dx + y * dy) / (dx * dx + dy * dy)).clamp(0.0, 1.0);
    (x - dx * along).hypot(y - dy * along)
}
