//! Stretches of a video that stand out on its timeline.

/// Frames in a row whose relevance stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Its first frame.
    pub first: usize,
    /// Its last frame.
    pub last: usize,
    /// Its most relevant frame.
    pub peak: usize,
}

/// At most this many moments are given.
const MOST: usize = 10;

/// The moments of a video by the relevance of its frames, the most relevant first: frames in a row that reach at least half of the
/// way from the median frame to the highest. Where all frames are alike there are none.
pub fn moments(relevance: &[f32]) -> Vec<Moment> {
    let mut sorted = relevance.to_vec();
    sorted.sort_by(f32::total_cmp);
    let (Some(median), Some(highest)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
        return Vec::new();
    };
    let border = f32::midpoint(*median, *highest);
    let mut found: Vec<Moment> = Vec::new();
    for (frame, value) in relevance.iter().enumerate().filter(|(_, value)| **value > border) {
        match found.last_mut() {
            Some(moment) if moment.last + 1 == frame => {
                moment.last = frame;
                if *value > relevance[moment.peak] {
                    moment.peak = frame;
                }
            }
            _ => found.push(Moment { first: frame, last: frame, peak: frame }),
        }
    }
    found.sort_by(|left, right| relevance[right.peak].total_cmp(&relevance[left.peak]));
    found.truncate(MOST);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_in_a_row_are_one_moment() {
        let relevance = [0.0, 0.1, 3.0, 4.0, 0.2, 0.0, 0.1, 5.0, 0.3, 0.1, 1.0];
        let expected = [Moment { first: 7, last: 7, peak: 7 }, Moment { first: 2, last: 3, peak: 3 }];
        assert_eq!(moments(&relevance), expected);
    }

    #[test]
    fn where_nothing_stands_out_there_are_none() {
        for alike in [&[][..], &[2.0], &[0.5; 7], &[f32::NAN; 3]] {
            assert_eq!(moments(alike), []);
        }
        let ramp: Vec<f32> = (0..1000).map(|frame| if frame % 2 == 0 { frame as f32 } else { 0.0 }).collect();
        assert_eq!(moments(&ramp).len(), MOST);
    }
}
