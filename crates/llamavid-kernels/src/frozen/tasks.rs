//! Work of a sub-layer, shared out among the threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::bytes::Sums;
#[cfg(target_arch = "x86_64")]
use super::lines::Line;
use super::parts::Step;

/// Room of a thread for what its tasks need beside their inputs. It stays from one product to the next.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) sums: Vec<Step>,
    pub(super) whole: Vec<Sums>,
    pub(super) widened: Vec<Step>,
    pub(super) keys: Vec<Step>,
    pub(super) values: Vec<Step>,
    pub(super) shares: Vec<f32>,
    /// Shares in 16 bits.
    pub(super) pairs: Vec<f32>,
    /// A part of a panel for tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) lines: Vec<Line>,
}

/// As many numbers as are wanted; they are any.
pub(super) fn room<T: Copy>(numbers: &mut Vec<T>, length: usize, fresh: T) -> &mut [T] {
    if numbers.len() < length {
        numbers.resize(length, fresh);
    }
    &mut numbers[..length]
}

/// Runs tasks on all threads. Each thread takes the next task when it has done one, so that at the end none waits longer than one
/// takes.
pub(super) fn share_out(tasks: usize, rooms: &mut Vec<Room>, work: impl Fn(&mut Room, usize) + Sync) {
    rooms.resize_with(rayon::current_num_threads(), Room::default);
    let next = AtomicUsize::new(0);
    rooms.par_iter_mut().with_max_len(1).for_each(|room| {
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                break;
            }
            work(room, task);
        }
    });
}
