//! Threads that spin for a moment between the products of a token, instead of going to sleep.

use std::cell::Cell;
use std::hint::spin_loop;
use std::time::{Duration, Instant};

use rayon::Yield;

/// How long a thread spins. A token's products follow each other within some ten microseconds, and the next token's within a hundred;
/// to wake a thread takes longer, some 200 in a virtual machine.
const SPIN: Duration = Duration::from_micros(150);

thread_local! {
    static IS_SPINNING: Cell<bool> = const { Cell::new(false) };
}

/// Lets this thread of a pool spin after its task: it takes other work when there is some, and sleeps when none came.
pub(crate) fn spin_for_work() {
    if IS_SPINNING.get() {
        return;
    }
    let own = rayon::current_thread_index();
    // Behind the task, for which others may wait.
    rayon::spawn(move || {
        // Another thread that took this has something to do.
        if rayon::current_thread_index() != own || IS_SPINNING.replace(true) {
            return;
        }
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < SPIN {
            match rayon::yield_now() {
                Some(Yield::Executed) => idle_since = Instant::now(),
                _ => spin_loop(),
            }
        }
        IS_SPINNING.set(false);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_comes_at_once_is_done_by_a_spinning_thread() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        // The only thread can do what comes while it spins, or afterwards.
        let taken_awake = || {
            pool.install(spin_for_work);
            pool.install(|| IS_SPINNING.get())
        };
        assert!((0..10_000).any(|_| taken_awake()), "nothing came within {SPIN:?}");
        let taken_from_sleep = || {
            std::thread::sleep(20 * SPIN);
            !pool.install(|| IS_SPINNING.get())
        };
        assert!((0..100).any(|_| taken_from_sleep()), "it never sleeps");
    }
}
