//! Formats of blocks as types: what depends on one is decided when it is compiled.

/// Numbers that are read at a time: those of a large block, or of eight small ones.
pub(crate) const NUMBERS: usize = 256;

/// 256 numbers of a format.
pub(crate) trait BlockType {
    /// The bytes that they take.
    const BYTES: usize;
    /// Vectors of eight groups that share a scale: one for groups of 32 numbers, two for groups of 16.
    const VECTORS: usize = 1;
    /// Whether mins are stored. Otherwise the min is the scale times a zero point, the same for all groups.
    const HAS_MINS: bool = false;
    /// Groups of a row of `x` that share a scale where there are many rows: small groups are scaled so often that it takes as long as
    /// their products.
    #[cfg(target_arch = "x86_64")]
    const SHARING: usize = 1;
    /// Bits of an integer.
    const BITS: u32;
    /// Whether they are eight, and not fewer.
    const EIGHT_BITS: bool = Self::BITS == 8;
}

pub(crate) struct Q8_0;

impl BlockType for Q8_0 {
    const BYTES: usize = 8 * 34;
    const BITS: u32 = 8;
}

pub(crate) struct Q4_0;

impl BlockType for Q4_0 {
    const BYTES: usize = 8 * 18;
    const BITS: u32 = 4;
}

pub(crate) struct Q4K;

impl BlockType for Q4K {
    const BYTES: usize = 144;
    const BITS: u32 = 4;
    const HAS_MINS: bool = true;
}

pub(crate) struct Q5K;

impl BlockType for Q5K {
    const BYTES: usize = 176;
    const BITS: u32 = 5;
    const HAS_MINS: bool = true;
}

pub(crate) struct Q6K;

impl BlockType for Q6K {
    const BYTES: usize = 210;
    const BITS: u32 = 6;
    const VECTORS: usize = 2;
    #[cfg(target_arch = "x86_64")]
    const SHARING: usize = 4;
}

/// Runs `$body` with the type of a format as `$Block`; `$other` for a format without blocks.
macro_rules! with_block {
    ($format:expr, $Block:ident => $body:expr, $other:expr) => {{
        use $crate::formats::block_format::BlockFormat;
        use $crate::formats::block_types as blocks;
        match $format {
            BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => $other,
            BlockFormat::Q8_0 => {
                type $Block = blocks::Q8_0;
                $body
            }
            BlockFormat::Q4_0 => {
                type $Block = blocks::Q4_0;
                $body
            }
            BlockFormat::Q4K => {
                type $Block = blocks::Q4K;
                $body
            }
            BlockFormat::Q5K => {
                type $Block = blocks::Q5K;
                $body
            }
            BlockFormat::Q6K => {
                type $Block = blocks::Q6K;
                $body
            }
        }
    }};
}
pub(crate) use with_block;

/// Runs `$body` for each eighth, a constant each time, so that all that depends on it is decided when it is compiled.
macro_rules! each_eighth {
    ($eighth:ident => $body:block) => {
        $crate::formats::block_types::each_eighth!($eighth => $body, 0 1 2 3 4 5 6 7)
    };
    ($eighth:ident => $body:block, $($number:literal)*) => {
        $({
            const EIGHTH: usize = $number;
            let $eighth = EIGHTH;
            $body
        })*
    };
}
pub(crate) use each_eighth;
