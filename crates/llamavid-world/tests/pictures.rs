//! Rendered pixels against the definition of the world.

use llamavid_world::{Background, Colour, Motion, Object, Pose, Scene, Shape, Size};

fn scene(background: Background, shapes: &[(Colour, Shape, f64, f64, f64)]) -> Scene {
    let objects = shapes
        .iter()
        .map(|&(colour, shape, x, y, radius)| {
            let pose = Pose { x, y, radius };
            let (size, motion, fill) = (Size::Large, Motion::Still, colour.rgb());
            Object { colour, shape, size, motion, cell: 0, start: pose, end: pose, fill }
        })
        .collect();
    Scene { background, objects, seconds: 2.0 }
}

fn pixel(pixels: &[u8], width: usize, x: usize, y: usize) -> [u8; 3] {
    std::array::from_fn(|channel| pixels[(y * width + x) * 3 + channel])
}

#[test]
fn backgrounds_have_their_colours() {
    let cases = [
        (Background::Day, [150, 195, 240], [120, 165, 95]),
        (Background::Night, [8, 10, 40], [18, 18, 35]),
        (Background::Desert, [240, 215, 165], [180, 130, 75]),
        (Background::Forest, [30, 75, 40], [45, 60, 25]),
    ];
    let mut out = Vec::new();
    for (background, sky, ground) in cases {
        scene(background, &[]).render(0.0, 200, &mut out);
        assert_eq!(out.len(), 200 * 200 * 3);
        assert_eq!(pixel(&out, 200, 0, 0), sky, "{background}");
        assert_eq!(pixel(&out, 200, 0, 199), ground, "{background}");
    }
}

#[test]
fn the_night_has_stars_and_the_forest_five_stripes() {
    let mut out = Vec::new();
    scene(Background::Night, &[]).render(0.0, 300, &mut out);
    let light = |y: usize| (0..300).any(|x| pixel(&out, 300, x, y)[0] > 80);
    assert!((0..240).filter(|&y| light(y)).count() > 40);
    assert!(!(240..300).any(light));
    scene(Background::Forest, &[]).render(0.0, 300, &mut out);
    let dark: Vec<bool> = (0..300).map(|x| pixel(&out, 300, x, 0)[1] < 60).collect();
    assert_eq!(dark.windows(2).filter(|two| !two[0] && two[1]).count(), 5);
}

/// Inside, outside and outline of every shape, at points that tell the shapes apart, in units of the radius.
#[test]
fn shapes_have_their_outlines() {
    let inside: [(Shape, &[(f64, f64)]); 6] = [
        (Shape::Circle, &[(0.0, 0.0), (0.6, 0.6), (-0.6, 0.6)]),
        (Shape::Square, &[(0.0, 0.0), (0.75, 0.75), (-0.75, -0.75)]),
        (Shape::Triangle, &[(0.0, 0.0), (0.0, -0.7), (0.7, 0.65), (-0.7, 0.65)]),
        (Shape::Star, &[(0.0, 0.0), (0.0, -0.75), (0.7, -0.24), (0.45, 0.6), (-0.45, 0.6)]),
        (Shape::Cross, &[(0.0, 0.0), (0.85, 0.2), (-0.85, -0.2), (0.2, 0.85), (0.2, -0.85)]),
        (Shape::Ring, &[(0.74, 0.0), (0.0, 0.74), (-0.52, -0.52)]),
    ];
    let outside: [(Shape, &[(f64, f64)]); 6] = [
        (Shape::Circle, &[(0.75, 0.75), (1.05, 0.0)]),
        (Shape::Square, &[(0.93, 0.0), (0.0, -0.93)]),
        (Shape::Triangle, &[(0.0, 0.85), (0.6, -0.6), (-0.6, -0.6)]),
        (Shape::Star, &[(0.0, 0.6), (0.4, -0.6), (0.7, 0.3)]),
        (Shape::Cross, &[(0.45, 0.45), (-0.45, 0.45), (1.06, 0.0)]),
        (Shape::Ring, &[(0.0, 0.0), (0.3, 0.3), (0.75, 0.75)]),
    ];
    const SIDE: usize = 400;
    let mut out = Vec::new();
    for (shape, points) in inside {
        scene(Background::Day, &[(Colour::Red, shape, 0.5, 0.5, 0.4)]).render(0.0, SIDE, &mut out);
        let at = |(x, y): (f64, f64)| {
            pixel(&out, SIDE, ((0.5 + 0.4 * x) * 400.0) as usize, ((0.5 + 0.4 * y) * 400.0) as usize)
        };
        for &point in points {
            assert_eq!(at(point), Colour::Red.rgb(), "{shape} at {point:?}");
        }
        for &point in outside.iter().filter(|(other, _)| *other == shape).flat_map(|(_, points)| *points) {
            assert!(at(point)[2] > 90, "{shape} at {point:?}");
        }
        let outline = out.chunks_exact(3).filter(|pixel| **pixel == [20, 20, 20]).count();
        assert!(outline > 1500, "{shape}: {outline}");
    }
}

#[test]
fn areas_agree_with_geometry_at_every_size() {
    let areas = [
        (Shape::Circle, std::f64::consts::PI),
        (Shape::Square, 4.0 * 0.86 * 0.86),
        (Shape::Triangle, 0.95 * 1.75),
        (Shape::Star, 10.0 * 0.5 * 0.45 * 36f64.to_radians().sin()),
        (Shape::Cross, 8.0 * 0.34 - 4.0 * 0.34 * 0.34),
        (Shape::Ring, std::f64::consts::PI * (1.0 - 0.48 * 0.48)),
    ];
    let (mut out, mut empty) = (Vec::new(), Vec::new());
    for side in [84, 131, 320] {
        scene(Background::Day, &[]).render(0.0, side, &mut empty);
        for (shape, area) in areas {
            scene(Background::Day, &[(Colour::Red, shape, 0.47, 0.43, 0.3)]).render(0.0, side, &mut out);
            // Red and the outline hide the sky's blue of 240, at the edge in part.
            let covered: f64 = out
                .chunks_exact(3)
                .zip(empty.chunks_exact(3))
                .map(|(with, without)| {
                    let hidden = f64::from(without[2]) - f64::from(with[2]);
                    hidden
                        / (f64::from(without[2]) - if with[2] >= 29 && with[0] > 150 { 30.0 } else { 20.0 })
                })
                .map(|cover| cover.clamp(0.0, 1.0))
                .sum();
            let expected = area * (0.3 * side as f64).powi(2);
            assert!((covered / expected - 1.0).abs() < 0.02, "{shape} at {side}: {covered} of {expected}");
        }
    }
}

#[test]
fn motion_is_linear() {
    let mut scene = scene(Background::Desert, &[(Colour::Blue, Shape::Square, 0.2, 0.5, 0.1)]);
    scene.objects[0].end.x = 0.8;
    let mut out = Vec::new();
    for (progress, x) in [(0.0, 40), (0.5, 100), (1.0, 160)] {
        scene.render(progress, 200, &mut out);
        let blue: Vec<usize> = (0..200).filter(|&x| pixel(&out, 200, x, 100) == Colour::Blue.rgb()).collect();
        let middle = (blue.first().copied().unwrap_or(0) + blue.last().copied().unwrap_or(0)).div_ceil(2);
        assert!(middle.abs_diff(x) <= 1, "{middle} at {progress}");
    }
}

#[test]
fn frames_that_are_not_square_have_grey_bars() {
    let scene = scene(Background::Day, &[(Colour::Red, Shape::Star, 0.5, 0.5, 0.1)]);
    let (mut square, mut out) = (Vec::new(), Vec::new());
    scene.render(0.0, 100, &mut square);
    for (width, height) in [(160, 100), (100, 130)] {
        scene.render_frame(0.0, width, height, &mut out);
        assert_eq!(out.len(), width * height * 3);
        let (left, top) = ((width - 100) / 2, (height - 100) / 2);
        assert_eq!(pixel(&out, width, 0, 0), [90; 3]);
        assert_eq!(pixel(&out, width, width - 1, height - 1), [90; 3]);
        for y in 0..100 {
            let start = ((top + y) * width + left) * 3;
            assert_eq!(out[start..start + 300], square[y * 300..(y + 1) * 300]);
        }
    }
    scene.render_frame(0.0, 0, 0, &mut out);
    assert!(out.is_empty());
}
