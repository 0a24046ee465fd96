//! What each kernel is given and how it is launched, apart from any device: the test without one uses the same.
//!
//! The structs equal those at the head of the kernels' sources, field by field. Pointers are addresses on the device.

use candle_core::{DType, Result, bail};

use super::Source;
use crate::{BlockFormat, WIDEST_FUSED_HEAD};

/// Kernels of a source, and how many blocks of how many threads run one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) source: Source,
    pub(crate) kernel: String,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of shared memory beside what the kernel declares.
    pub(crate) shared: u32,
}

/// A name in the kernels' names.
pub(crate) fn name_of(dtype: DType) -> Result<&'static str> {
    match dtype {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        DType::BF16 => Ok("bf16"),
        other => bail!("no kernel computes in {other:?}"),
    }
}

/// Rows of heads: where the first one is, and how far it is to the next sequence, head and row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HeadRows {
    pub(crate) pointer: u64,
    pub(crate) strides: [i64; 3],
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// As numbers of this dtype; strides are in numbers.
    Numbers(DType),
    /// In blocks of 32 numbers of 8 bits; strides are in bytes.
    EightBit,
    /// In blocks of 32 numbers of 4 bits; strides are in bytes.
    FourBit,
}

impl Stored {
    fn name(self) -> Result<&'static str> {
        match self {
            Self::Numbers(dtype) => name_of(dtype),
            Self::EightBit => Ok("q8_0"),
            Self::FourBit => Ok("q4_0"),
        }
    }
}

/// One attention, whatever kernel does it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionCall {
    pub(crate) dtype: DType,
    pub(crate) stored: Stored,
    pub(crate) batch: usize,
    pub(crate) heads: usize,
    pub(crate) key_heads: usize,
    pub(crate) query_count: usize,
    pub(crate) key_count: usize,
    pub(crate) width: usize,
    pub(crate) scale: f32,
    /// Whether a row sees no key behind its own; the last row is at the last key.
    pub(crate) causal: bool,
    pub(crate) queries: HeadRows,
    pub(crate) keys: HeadRows,
    pub(crate) values: HeadRows,
    /// f32 numbers added to the scaled scores, and their strides of batch, head, query and key.
    pub(crate) bias: Option<(u64, [i64; 4])>,
    /// Added to queries and to values, (H · d) each.
    pub(crate) biases: Option<[u64; 2]>,
    /// (B, Q, H · d).
    pub(crate) result: u64,
}

/// Query rows of a warp of the kernel for tensor cores.
const WARP_ROWS: usize = 32;
/// Query rows (of all heads of a key head) up to which the other kernel is used for 16-bit numbers too.
pub(super) const FEW_ROWS: usize = 16;
/// Multiprocessors of a large device.
const MULTIPROCESSORS: usize = 132;
/// Blocks of attention that keep it busy: as many as run at once. The kernel has a counter for each.
const ATTENTION_BLOCKS: usize = 4 * MULTIPROCESSORS;
/// Those of products of a row.
const PRODUCT_BLOCKS: usize = 2 * MULTIPROCESSORS;
/// Keys that a split has at least.
const SPLIT_KEYS: usize = 128;
/// Largest second and third size of a grid.
const LARGEST_GRID: usize = 65_535;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionArguments {
    queries: u64,
    keys: u64,
    values: u64,
    result: u64,
    query_bias: u64,
    value_bias: u64,
    bias: u64,
    /// Room for what splits find.
    pub(crate) parts: u64,
    query_strides: [i64; 3],
    key_strides: [i64; 3],
    value_strides: [i64; 3],
    bias_strides: [i64; 4],
    heads: i32,
    group: i32,
    query_count: i32,
    key_count: i32,
    width: i32,
    causal: i32,
    splits: i32,
    vectors: i32,
    scale: f32,
    unused: i32,
}

/// How an [`AttentionCall`] is done.
#[derive(Debug)]
pub(crate) enum AttentionPlan {
    /// On tensor cores.
    Tiles(Launch, AttentionArguments),
    /// Row by row, with room for so many f32 numbers that splits of the keys find.
    Rows(Launch, AttentionArguments, usize),
}

impl AttentionCall {
    /// Which kernel, with what.
    ///
    /// # Errors
    /// Sizes that no kernel takes.
    pub(crate) fn plan(&self) -> Result<AttentionPlan> {
        let fits = self.width > 0
            && self.width <= WIDEST_FUSED_HEAD
            && self.key_heads > 0
            && self.heads.is_multiple_of(self.key_heads)
            && self.query_count > 0
            && self.key_count > 0
            && !(self.causal && self.query_count > self.key_count)
            && self.key_count <= i32::MAX as usize / 256
            && self.heads <= LARGEST_GRID
            && self.batch <= LARGEST_GRID;
        if !fits {
            bail!("no kernel attends with {self:?}");
        }
        let in_vectors = |rows: &HeadRows, dtype: DType| {
            let multiple = 16 / dtype.size_in_bytes() as i64;
            rows.pointer.is_multiple_of(16) && rows.strides.iter().all(|stride| stride % multiple == 0)
        };
        // Blocks are never read in vectors, so it does not matter how they lie.
        let vectors = self.width.is_multiple_of(8)
            && in_vectors(&self.queries, self.dtype)
            && match self.stored {
                Stored::Numbers(dtype) => in_vectors(&self.keys, dtype) && in_vectors(&self.values, dtype),
                Stored::EightBit | Stored::FourBit => true,
            };
        let rows = self.query_count * (self.heads / self.key_heads);
        let halves = self.dtype != DType::F32 && self.stored == Stored::Numbers(self.dtype);
        if halves && vectors && self.result.is_multiple_of(4) && rows > FEW_ROWS {
            return self.tiles();
        }
        self.rows(rows, vectors)
    }

    fn tiles(&self) -> Result<AttentionPlan> {
        // Warps, keys of each of two tiles, and how far apart rows lie in shared memory: as the kernels of these widths have them.
        let (width, warps, keys, stride) = match self.width {
            0..=64 => (64, 4, 32, 64),
            65..=96 => (96, 3, 32, 104),
            _ => (128, 4, 64, 128),
        };
        let rows = warps * WARP_ROWS;
        let launch = Launch {
            source: Source::Attention,
            kernel: format!("attention_{}_{width}", name_of(self.dtype)?),
            grid: [self.query_count.div_ceil(rows) as u32, self.heads as u32, self.batch as u32],
            threads: 32 * warps as u32,
            shared: ((rows + 4 * keys) * stride * self.dtype.size_in_bytes()) as u32,
        };
        Ok(AttentionPlan::Tiles(launch, self.arguments(1, true)))
    }

    fn rows(&self, rows: usize, vectors: bool) -> Result<AttentionPlan> {
        let of_a_block = if rows == 1 { 1 } else { 4 };
        let blocks = rows.div_ceil(of_a_block) * self.key_heads * self.batch;
        let splits = ATTENTION_BLOCKS
            .div_ceil(blocks)
            .min(self.key_count.div_ceil(SPLIT_KEYS))
            .min(LARGEST_GRID / self.batch)
            .max(1);
        let dtype = name_of(self.dtype)?;
        let attend = Launch {
            source: Source::AttentionRows,
            kernel: format!("attention_rows_{dtype}_{}_{of_a_block}", self.stored.name()?),
            grid: [rows.div_ceil(of_a_block) as u32, self.key_heads as u32, (self.batch * splits) as u32],
            threads: WIDEST_FUSED_HEAD as u32,
            shared: 0,
        };
        let all_rows = self.batch * self.heads * self.query_count;
        let parts = if splits > 1 { all_rows * splits * (self.width + 2) } else { 0 };
        Ok(AttentionPlan::Rows(attend, self.arguments(splits, vectors), parts))
    }

    fn arguments(&self, splits: usize, vectors: bool) -> AttentionArguments {
        let (bias, bias_strides) = self.bias.unwrap_or_default();
        let [query_bias, value_bias] = self.biases.unwrap_or_default();
        AttentionArguments {
            queries: self.queries.pointer,
            keys: self.keys.pointer,
            values: self.values.pointer,
            result: self.result,
            query_bias,
            value_bias,
            bias,
            parts: 0,
            query_strides: self.queries.strides,
            key_strides: self.keys.strides,
            value_strides: self.values.strides,
            bias_strides,
            heads: self.heads as i32,
            group: (self.heads / self.key_heads) as i32,
            query_count: self.query_count as i32,
            key_count: self.key_count as i32,
            width: self.width as i32,
            causal: self.causal.into(),
            splits: splits as i32,
            vectors: vectors.into(),
            scale: self.scale,
            unused: 0,
        }
    }
}

/// Threads of a block of all other kernels.
const THREADS: usize = 256;

fn launch(source: Source, kernel: String, blocks: usize) -> Launch {
    Launch { source, kernel, grid: [blocks as u32, 1, 1], threads: THREADS as u32, shared: 0 }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NormArguments {
    pub(crate) x: u64,
    /// A second input, 0 for none.
    pub(crate) added: u64,
    pub(crate) added_bias: u64,
    pub(crate) weight: u64,
    /// 0 for none.
    pub(crate) bias: u64,
    pub(crate) result: u64,
    /// Where the sum of both inputs goes.
    pub(crate) sum: u64,
    pub(crate) rows: i64,
    pub(crate) width: i64,
    pub(crate) vectors: i32,
    pub(crate) eps: f32,
}

/// Norm of rows; `centred` is that of layers, else that of root mean squares.
pub(crate) fn norm(dtype: DType, centred: bool, arguments: &mut NormArguments) -> Result<Launch> {
    /// Numbers of a row that one warp reads, 48 to 64 a lane, while others are on their way to other warps.
    const SHORT: usize = 2048;
    const WARPS: usize = THREADS / 32;
    let NormArguments { x, added, added_bias, weight, bias, result, sum, rows, width, .. } = *arguments;
    let pointers = [x, added, added_bias, weight, bias, result, sum];
    arguments.vectors = in_vectors(width as usize, &pointers).into();
    let kind = if centred { "layer_norm" } else { "rms_norm" };
    let (rows, width, name) = (rows as usize, width as usize, name_of(dtype)?);
    // Of few rows a block each leaves more of the device something to do.
    Ok(match width <= SHORT && rows > 4 * MULTIPROCESSORS {
        true => launch(Source::Rows, format!("short_{kind}_{name}"), rows.div_ceil(WARPS)),
        false => launch(Source::Rows, format!("{kind}_{name}"), rows),
    })
}

/// A function of each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Each {
    /// The exact GELU.
    Gelu,
    /// CLIP's approximation of it.
    QuickGelu,
    /// `silu(x) · other`.
    SwiGlu,
    /// `x + other`.
    Sum,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct EachArguments {
    pub(crate) x: u64,
    /// 0 for none.
    pub(crate) other: u64,
    /// Added to each row of x, 0 for none.
    pub(crate) bias: u64,
    pub(crate) result: u64,
    pub(crate) count: i64,
    pub(crate) width: i64,
    pub(crate) vectors: i32,
    pub(crate) unused: i32,
}

/// The function of all numbers.
pub(crate) fn each(dtype: DType, function: Each, arguments: &mut EachArguments) -> Result<Launch> {
    let EachArguments { x, other, bias, result, count, width, .. } = *arguments;
    arguments.vectors = in_vectors(width as usize, &[x, other, bias, result]).into();
    let kind = match function {
        Each::Gelu => "gelu",
        Each::QuickGelu => "quick_gelu",
        Each::SwiGlu => "swiglu",
        Each::Sum => "sum",
    };
    // More than these do not run at once; each takes what is left in turns.
    let blocks = (count as usize).div_ceil(8 * THREADS).min(32 * MULTIPROCESSORS);
    Ok(launch(Source::Rows, format!("{kind}_{}", name_of(dtype)?), blocks))
}

fn in_vectors(width: usize, pointers: &[u64]) -> bool {
    width.is_multiple_of(8) && pointers.iter().all(|pointer| pointer.is_multiple_of(16))
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ProductArguments {
    /// The row.
    pub(crate) x: u64,
    /// The weights of its norm of root mean squares, 0 for none.
    pub(crate) norm: u64,
    /// Added to the first result, 0 for none.
    pub(crate) residual: u64,
    /// Of up to three matrices.
    pub(crate) weights: [u64; 3],
    /// 0 for none.
    pub(crate) biases: [u64; 3],
    pub(crate) results: [u64; 3],
    /// 0 of a matrix that is not there.
    pub(crate) rows: [i32; 3],
    /// Whether blocks are those of Q6_K, and not of Q4_K.
    pub(crate) six_bits: [i32; 3],
    pub(crate) columns: i32,
    pub(crate) eps: f32,
}

/// Shared memory that each architecture since 8.0 has for a block.
const MOST_SHARED: usize = 96 << 10;

/// Matrices times one row: numbers of `dtype`, or `blocks`. When `gated`, the first of two makes the gate of the second, and that is the one
/// result. None for what the kernels do not take.
pub(crate) fn product(
    dtype: DType,
    blocks: bool,
    gated: bool,
    arguments: &ProductArguments,
) -> Result<Option<Launch>> {
    let ProductArguments { x, norm, weights, rows, columns, .. } = *arguments;
    let (columns, rows) = (columns as usize, rows.map(|rows| rows as usize));
    // The row has zeros up to whole turns of a warp: in 8 bits with two numbers for each 32, or in f32.
    let padded = columns.next_multiple_of(if blocks { 2048 } else { 1024 });
    let (unit, shared) = if blocks { (256, padded + padded / 4) } else { (8, 4 * padded) };
    let lies_well = [x, norm].into_iter().chain(weights).all(|pointer| pointer.is_multiple_of(16));
    if dtype == DType::F32 || !lies_well || !columns.is_multiple_of(unit) || shared > MOST_SHARED {
        return Ok(None);
    }
    let pairs = if gated { rows[0] } else { rows.iter().map(|rows| rows.div_ceil(2)).sum() };
    let needed = pairs.div_ceil(THREADS / 32);
    // Each takes as many turns as all others.
    let blocks_at_once = needed.div_ceil(needed.div_ceil(PRODUCT_BLOCKS).max(1));
    let kind = [if blocks { "_blocks" } else { "" }, if gated { "_gated" } else { "" }].concat();
    let kernel = format!("product{kind}_{}", name_of(dtype)?);
    Ok(Some(Launch { shared: shared as u32, ..launch(Source::RowProducts, kernel, blocks_at_once) }))
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnpackArguments {
    pub(crate) blocks: u64,
    pub(crate) result: u64,
    /// Of numbers.
    pub(crate) count: i64,
}

/// Blocks into numbers of `dtype`. None for a format without blocks, and for what does not lie in vectors.
pub(crate) fn unpack(
    dtype: DType,
    format: BlockFormat,
    arguments: &UnpackArguments,
) -> Result<Option<Launch>> {
    let UnpackArguments { blocks, result, count } = *arguments;
    let name = match format {
        BlockFormat::Q8_0 => "q8_0",
        BlockFormat::Q4_0 => "q4_0",
        BlockFormat::Q4K => "q4_k",
        BlockFormat::Q5K => "q5_k",
        BlockFormat::Q6K => "q6_k",
        BlockFormat::F32 | BlockFormat::F16 | BlockFormat::BF16 => return Ok(None),
    };
    let thread_blocks = (count as usize).div_ceil(8 * THREADS);
    if !blocks.is_multiple_of(16) || !result.is_multiple_of(16) || thread_blocks > i32::MAX as usize {
        return Ok(None);
    }
    Ok(Some(launch(Source::Unpack, format!("unpack_{name}_{}", name_of(dtype)?), thread_blocks)))
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct LargestArguments {
    pub(crate) x: u64,
    pub(crate) result: u64,
    pub(crate) width: i64,
}

/// What the kernel gives for a row with a number that is not finite.
pub(crate) const NOT_FINITE: u32 = u32::MAX;

/// The place of the largest number of each of `rows`.
pub(crate) fn largest(rows: usize) -> Launch {
    launch(Source::Rows, "largest".to_owned(), rows)
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RotateArguments {
    pub(crate) queries: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    /// Queries, one after the other.
    pub(crate) rotated: u64,
    pub(crate) key_cache: u64,
    pub(crate) value_cache: u64,
    pub(crate) cosines: u64,
    pub(crate) sines: u64,
    pub(crate) query_strides: [i64; 3],
    pub(crate) key_strides: [i64; 3],
    pub(crate) value_strides: [i64; 3],
    pub(crate) cache_strides: [i64; 3],
    /// B, heads, key heads, rows and d. No key heads where there are queries alone.
    pub(crate) sizes: [i32; 5],
    pub(crate) vectors: i32,
}

/// The rotation of rows by their positions, keys and values into their caches.
pub(crate) fn rotate(dtype: DType, arguments: &mut RotateArguments) -> Result<Launch> {
    let RotateArguments { queries, keys, values, rotated, key_cache, value_cache, cosines, sines, .. } =
        *arguments;
    let [batch, heads, key_heads, rows, width] = arguments.sizes.map(|size| size as usize);
    let pointers = [queries, keys, values, rotated, key_cache, value_cache, cosines, sines];
    let RotateArguments { query_strides, key_strides, value_strides, cache_strides, .. } = *arguments;
    let strides = [query_strides, key_strides, value_strides, cache_strides];
    let multiples = strides.as_flattened().iter().all(|stride| stride % 8 == 0);
    arguments.vectors = (multiples && in_vectors(width / 2, &pointers)).into();
    let threads = batch * (heads + 2 * key_heads) * rows * (width / 2).div_ceil(8);
    Ok(launch(Source::Cache, format!("rotate_{}", name_of(dtype)?), threads.div_ceil(THREADS)))
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct StoreArguments {
    pub(crate) numbers: u64,
    pub(crate) held: u64,
    pub(crate) number_strides: [i64; 3],
    /// In bytes.
    pub(crate) held_strides: [i64; 3],
    /// B, heads, rows and d.
    pub(crate) sizes: [i32; 4],
}

/// Numbers into the form that they are held in, or `back`.
pub(crate) fn store(dtype: DType, held: Stored, back: bool, arguments: &StoreArguments) -> Result<Launch> {
    if !matches!(held, Stored::Numbers(DType::F16) | Stored::EightBit | Stored::FourBit) {
        bail!("keys and values are not held as {held:?}");
    }
    let verb = if back { "read" } else { "store" };
    let numbers: usize = arguments.sizes.iter().map(|size| *size as usize).product();
    let kernel = format!("{verb}_{}_{}", name_of(dtype)?, held.name()?);
    Ok(launch(Source::Cache, kernel, numbers.div_ceil(THREADS)))
}
