//! Work of a sub-layer, shared out among the threads.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::int8::Sums;
use super::parts::Step;
#[cfg(target_arch = "x86_64")]
use super::tile_rows::TileRow;

/// Rows that a thread makes one after the other at least.
const TASK_ROWS: usize = 8;

/// Scratch memory of a thread, for what its tasks need beside their inputs. It stays from one product to the next.
#[derive(Debug, Default)]
pub(super) struct ThreadScratch {
    pub(super) row: Vec<f32>,
    pub(super) sums: Vec<Step>,
    pub(super) integer_sums: Vec<Sums>,
    pub(super) widened: Vec<Step>,
    pub(super) keys: Vec<Step>,
    pub(super) values: Vec<Step>,
    pub(super) probabilities: Vec<f32>,
    /// A part of a panel for tiles.
    #[cfg(target_arch = "x86_64")]
    pub(super) lines: Vec<TileRow>,
}

/// As many numbers as are wanted; they are any.
pub(super) fn resized<T: Copy>(numbers: &mut Vec<T>, length: usize, fresh: T) -> &mut [T] {
    if numbers.len() < length {
        numbers.resize(length, fresh);
    }
    &mut numbers[..length]
}

/// Runs tasks on all threads. Each thread begins with a share of its own, the same of as many tasks each time, so that it finds in its
/// caches what it wrote itself; then it takes what others have not begun, so that at the end none waits longer than a task takes.
pub(super) fn share_out(
    tasks: usize,
    scratches: &mut Vec<ThreadScratch>,
    work: impl Fn(&mut ThreadScratch, usize) + Sync,
) {
    let threads = rayon::current_num_threads();
    scratches.resize_with(threads, ThreadScratch::default);
    let begin = |share: usize| share * tasks / threads;
    let next: Vec<_> = (0..threads).map(|share| AtomicUsize::new(begin(share))).collect();
    scratches.par_iter_mut().with_max_len(1).for_each(|room| {
        let own = rayon::current_thread_index().unwrap_or_default();
        for share in (own..own + threads).map(|share| share % threads) {
            loop {
                let task = next[share].fetch_add(1, Ordering::Relaxed);
                if task >= begin(share + 1) {
                    break;
                }
                work(room, task);
            }
        }
    });
}

/// Runs `work` with each of some rows, and with room for as many numbers, which are any; on all threads.
pub(super) fn share_rows(
    rows: usize,
    numbers: usize,
    scratches: &mut Vec<ThreadScratch>,
    work: impl Fn(&mut [f32], usize) + Sync,
) {
    share_out(rows.div_ceil(TASK_ROWS), scratches, |scratch, task| {
        let row = resized(&mut scratch.row, numbers, 0.0);
        for index in task * TASK_ROWS..rows.min((task + 1) * TASK_ROWS) {
            work(row, index);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_run_once() {
        let mut scratches = Vec::new();
        for tasks in [0, 1, 2, 3, 7, 64, 1000] {
            let runs: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            share_out(tasks, &mut scratches, |_, task| {
                runs[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{tasks}");
        }
        let rows: Vec<_> = (0..21).map(|_| AtomicUsize::new(0)).collect();
        share_rows(rows.len(), 5, &mut scratches, |row, index| {
            assert_eq!(row.len(), 5);
            rows[index].fetch_add(1, Ordering::Relaxed);
        });
        assert!(rows.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
    }
}
