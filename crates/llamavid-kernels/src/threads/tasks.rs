//! The rows of a product's weights, shared out among the threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crossbeam_utils::CachePadded;
use rayon::prelude::*;

use crate::threads::spin::spin_for_work;

/// Rows of weights of a task at most.
const TASK_ROWS: usize = 256;
/// The same of the last tasks of a share.
const LAST_ROWS: usize = 16;

/// Runs `task` on all rows of the weights, a multiple of `unit` each time: on all threads when `parallel`.
///
/// Each thread has a share of the rows that it reads from the front to the back, which is how memory is quickest; when it is
/// done it takes from the others' backs, so that nobody waits for a thread that came late. Towards the end of a share tasks are
/// smaller, so that all threads end at about the same time.
pub(crate) fn in_tasks(rows: usize, unit: usize, parallel: bool, task: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if !parallel || threads < 2 {
        return task(0..rows);
    }
    let length = rows.div_ceil(8 * threads).min(LAST_ROWS).next_multiple_of(unit);
    let most = (TASK_ROWS / length).max(1);
    let pieces = rows.div_ceil(length);
    // Each in a cache line of its own, which threads would take from each other with every task otherwise.
    let shares: Vec<_> = (0..threads)
        .map(|thread| pieces * thread / threads..pieces * (thread + 1) / threads)
        .map(|share| CachePadded::new(Mutex::new(share)))
        .collect();
    let caller = rayon::current_thread_index();
    (0..threads).into_par_iter().with_max_len(1).for_each(|own| {
        for turn in 0..threads {
            let share = &shares[(own + turn) % threads];
            while let Some(taken) = take(share, turn == 0, most) {
                task(taken.start * length..rows.min(taken.end * length));
            }
        }
        if rayon::current_thread_index() != caller {
            spin_for_work();
        }
    });
}

/// Takes the next pieces of a share from its front or its back: a quarter of what is left, and `most` of them at most.
fn take(share: &Mutex<Range<usize>>, front: bool, most: usize) -> Option<Range<usize>> {
    let mut left = share.lock().unwrap_or_else(PoisonError::into_inner);
    let count = left.len().div_ceil(4).min(most);
    let cut = if front { left.start + count } else { left.end - count };
    let [lower, upper] = [left.start..cut, cut..left.end];
    let (taken, rest) = if front { (lower, upper) } else { (upper, lower) };
    *left = rest;
    (count > 0).then_some(taken)
}
