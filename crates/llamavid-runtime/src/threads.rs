//! How many threads compute.

use std::num::NonZero;
use std::sync::OnceLock;

use crate::{Error, Result};

/// What a user says; what rayon and candle read.
const OURS: &str = "LLAMAVID_THREADS";
const RAYON: &str = "RAYON_NUM_THREADS";

/// Threads that compute: `LLAMAVID_THREADS`, else `RAYON_NUM_THREADS`, else one for each core that this process may use, which its
/// affinity and the quota of its control group limit.
///
/// # Errors
/// `INVALID_ARGUMENT` for a `LLAMAVID_THREADS` that is not a whole number of at least 1.
pub fn thread_count() -> Result<usize> {
    let read = |name| std::env::var(name).ok();
    chosen(read(OURS).as_deref(), read(RAYON).as_deref())
}

fn chosen(ours: Option<&str>, rayon: Option<&str>) -> Result<usize> {
    if let Some(text) = ours.filter(|text| !text.is_empty()) {
        return text.parse().map(NonZero::get).map_err(|_| {
            Error::argument(format!("{OURS} is {text:?}, but must be a whole number of at least 1"))
        });
    }
    // Rayon's own rule for its variable: 0 and what is no number say nothing.
    let rayon = rayon.and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    Ok(rayon.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZero::get)))
}

/// Makes rayon and candle start so many threads. Once they have, another number changes nothing.
///
/// Left alone, candle counts the machine's physical cores: in a container that may use 2 of 64 it would start 32 threads that wait
/// for each other, and on a virtual machine with one core of two threads it would use one.
pub(crate) fn use_threads() -> Result<()> {
    static USED: OnceLock<()> = OnceLock::new();
    let count = thread_count()?;
    USED.get_or_init(|| {
        // SAFETY: candle has no other setting and reads this variable through std, which holds the same lock as
        // `set_var`. What else reads the environment in this process is C code at its own risk, just as with
        // `process.env.X = …` in JavaScript, which makes the same call.
        unsafe { std::env::set_var(RAYON, count.to_string()) };
        // Fails where a pool is there already, which then has other names.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(count);
        let _ = pool.thread_name(|index| format!("compute {index}")).build_global();
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    #[test]
    fn our_variable_comes_first() {
        assert_eq!(chosen(Some("3"), Some("5")).unwrap(), 3);
        assert_eq!(chosen(None, Some("5")).unwrap(), 5);
        assert_eq!(chosen(Some(""), Some("5")).unwrap(), 5);
    }

    #[test]
    fn without_a_word_it_is_the_cores_that_may_be_used() {
        let cores = std::thread::available_parallelism().unwrap().get();
        for rayon in [None, Some("0"), Some("many")] {
            assert_eq!(chosen(None, rayon).unwrap(), cores, "{rayon:?}");
        }
    }

    #[test]
    fn a_number_that_is_none_is_refused() {
        for text in ["0", "-1", "two", "1.5"] {
            let error = chosen(Some(text), None).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument);
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
