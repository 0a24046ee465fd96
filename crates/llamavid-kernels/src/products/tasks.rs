//! The rows of a product's weights, shared out among the threads.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::awake::stay_awake;

/// Rows of weights of a task at most.
const TASK_ROWS: usize = 64;

/// Runs `task` on all rows of the weights, a multiple of `unit` each time: on all threads when `parallel`.
///
/// Each thread has a share of the rows that it reads from the front to the back, which is how memory is quickest; when it is
/// done it takes from the others' backs, so that nobody waits for a thread that came late.
pub(crate) fn in_tasks(rows: usize, unit: usize, parallel: bool, task: impl Fn(Range<usize>) + Sync) {
    let threads = rayon::current_num_threads();
    if !parallel || threads < 2 {
        return task(0..rows);
    }
    let length = rows.div_ceil(8 * threads).min(TASK_ROWS).next_multiple_of(unit);
    let tasks = rows.div_ceil(length);
    let shares: Vec<_> = (0..threads)
        .map(|thread| Mutex::new(tasks * thread / threads..tasks * (thread + 1) / threads))
        .collect();
    let caller = rayon::current_thread_index();
    (0..threads).into_par_iter().with_max_len(1).for_each(|own| {
        for turn in 0..threads {
            let share = &shares[(own + turn) % threads];
            let next = || {
                let mut left = share.lock().unwrap_or_else(PoisonError::into_inner);
                if turn == 0 { left.next() } else { left.next_back() }
            };
            while let Some(index) = next() {
                task(index * length..rows.min((index + 1) * length));
            }
        }
        if rayon::current_thread_index() != caller {
            stay_awake();
        }
    });
}
