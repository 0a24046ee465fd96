//! Orders of samples, and chats cut into parts.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use llamavid_train::data::{
    Media, Message, Order, Record, Sampler, Speaker, grouped_order, shuffled_order, split_chat,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::oracle::{array, of, read_json};

fn some(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

#[test]
fn grouped_orders_are_the_references() {
    let file = read_json("text/decoding.json");
    for case in array(&file["grouped_sampler"], "cases") {
        let lengths: Vec<i64> = of(&case["lengths"]);
        let mut drawn = of::<Vec<Vec<usize>>>(&case["permutations_in_order_drawn"]).into_iter();
        let order = grouped_order(
            &lengths,
            some(of(&case["batch_size"])),
            some(of(&case["world_size"])),
            &mut |count| {
                let permutation = drawn.next().unwrap();
                assert_eq!(permutation.len(), count);
                permutation
            },
        );
        assert_eq!(order, of::<Vec<usize>>(&case["order"]));
        assert!(drawn.next().is_none());
    }
}

#[test]
fn every_order_hands_out_each_sample_once() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..300 {
        let count = rng.random_range(0..60);
        let kinds = rng.random_range(0..4);
        let lengths: Vec<i64> = (0..count)
            .map(|_| match kinds {
                0 => rng.random_range(1..50),
                1 => -rng.random_range(1..50),
                _ => rng.random_range(-50..50),
            })
            .collect();
        let (batch, world) = (rng.random_range(1..6), rng.random_range(1..4));
        let order =
            grouped_order(&lengths, some(batch), some(world), &mut |count| shuffled_order(count, &mut rng));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..count).collect::<Vec<_>>());
        // All but the leftovers of the two kinds stand in groups of one kind.
        let mixed = order
            .chunks(batch * world)
            .filter(|group| {
                let kinds: HashSet<bool> = group.iter().map(|index| lengths[*index] >= 0).collect();
                kinds.len() > 1
            })
            .count();
        assert!(mixed <= 2, "{mixed} mixed groups");
    }
}

#[test]
fn groups_hold_like_lengths() {
    let lengths: Vec<i64> = (0..800).map(|index| if index % 2 == 0 { index + 1 } else { -index }).collect();
    let sampler = Sampler::new(lengths.clone(), Order::Grouped { batch: some(4), world: some(2) }, 1);
    let order = sampler.epoch(0);
    for group in order.chunks(8) {
        let halves: Vec<i64> =
            group.chunks(4).map(|half| half.iter().map(|at| lengths[*at].abs()).sum()).collect();
        let longest = group.iter().map(|at| lengths[*at].abs()).max().unwrap();
        assert!((halves[0] - halves[1]).abs() <= longest, "{halves:?}");
    }
}

#[test]
fn a_sampler_is_its_seed_and_position() {
    let lengths: Vec<i64> = (1..=23).map(|index| if index % 3 == 0 { -index } else { index }).collect();
    for order in [Order::Listed, Order::Shuffled, Order::Grouped { batch: some(2), world: some(3) }] {
        let whole: Vec<usize> = Sampler::new(lengths.clone(), order, 5).take(100).collect();
        for start in [0, 1, 22, 23, 24, 70] {
            let mut sampler = Sampler::new(lengths.clone(), order, 5);
            sampler.resume(start as u64);
            assert_eq!(sampler.by_ref().take(100 - start).collect::<Vec<_>>(), whole[start..]);
            assert_eq!(sampler.position(), 100);
        }
        let epochs: Vec<&[usize]> = whole.chunks(23).take(4).collect();
        for epoch in &epochs {
            assert_eq!(epoch.iter().collect::<HashSet<_>>().len(), 23);
        }
        if order != Order::Listed {
            assert_ne!(epochs[0], epochs[1]);
            assert_ne!(whole, Sampler::new(lengths.clone(), order, 6).take(100).collect::<Vec<_>>());
        }
    }
    assert_eq!(Sampler::new(Vec::new(), Order::Shuffled, 0).next(), None);
}

fn records(list: &Value) -> Vec<Record> {
    let record = |item: &Value| {
        let path = |key: &str| item[key].as_str().map(str::to_owned);
        let media = match (path("image"), path("video")) {
            (Some(path), _) => Media::Image(path),
            (_, Some(path)) => Media::video(path),
            _ => Media::None,
        };
        let turns = array(item, "conversations")
            .iter()
            .map(|turn| Message {
                from: Speaker::by_name(turn["from"].as_str().unwrap()).unwrap(),
                value: of(&turn["value"]),
            })
            .collect();
        Record { id: of(&item["id"]), media, turns }
    };
    list.as_array().unwrap().iter().map(record).collect()
}

#[test]
fn long_chats_are_cut_as_the_reference_cuts_them() {
    let file = read_json("text/split_chat.json");
    let max_rounds = some(of(&file["max_round"]));
    for (draw, expected) in file["output_by_draw"].as_object().unwrap() {
        let mut coin = || draw == "1";
        let parts: Vec<Record> = records(&file["input"])
            .into_iter()
            .flat_map(|record| split_chat(record, max_rounds, &mut coin))
            .collect();
        assert_eq!(parts, records(expected), "draw {draw}");
    }
}
