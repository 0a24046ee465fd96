//! An f32 slice that several tasks write at once.

/// Where numbers are of which each task writes its own. Nothing is borrowed: whoever writes there, or reads, promises that they live and
/// that nobody else uses them meanwhile. They need not be initialised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedFloats {
    first: *mut f32,
    length: usize,
}

// SAFETY: it tells where numbers are; what is done there is promised by those who do it.
unsafe impl Sync for SharedFloats {}
// SAFETY: as above.
unsafe impl Send for SharedFloats {}

impl SharedFloats {
    pub(crate) fn new(first: *mut f32, length: usize) -> Self {
        Self { first, length }
    }

    pub(crate) fn length(self) -> usize {
        self.length
    }

    /// Where `length` of them begin that lie together.
    #[inline(always)]
    pub(crate) fn at(self, start: usize, length: usize) -> *mut f32 {
        assert!(start + length <= self.length, "numbers beyond the end");
        self.first.wrapping_add(start)
    }

    /// Those from a place on.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn behind(self, start: usize) -> Self {
        assert!(start <= self.length, "numbers beyond the end");
        Self { first: self.first.wrapping_add(start), length: self.length - start }
    }
}
