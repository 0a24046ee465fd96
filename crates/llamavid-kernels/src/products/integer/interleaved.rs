//! int8 dot products of a few rows with interleaved weights: the weights are read once, front to back, and a lane of a vector is a
//! row of weights.
//!
//! Reference: `rows` and `neon` beside it, which give the same of weights row after row, up to the order of sums.

use std::mem::MaybeUninit;
use std::sync::atomic::{Ordering, compiler_fence};

#[cfg(target_arch = "x86_64")]
use crate::formats::block_format::BlockFormat;
use crate::formats::block_types::{Q6K, each_eighth, with_block};
use crate::formats::interleaved::INTERLEAVED_ROWS;
use crate::formats::interleaved_blocks::{Interleaved, InterleavedBlock, Scales};
use crate::instructions::integer_vectors::IntegerVectors;
#[cfg(target_arch = "aarch64")]
use crate::instructions::integer_vectors::Neon;
#[cfg(target_arch = "x86_64")]
use crate::instructions::integer_vectors::{Avx2, Avx512Vnni, AvxVnni, Twice};
#[cfg(target_arch = "x86_64")]
use crate::instructions::processor::IntegerDot;
use crate::instructions::processor::Processor;
use crate::products::Output;
use crate::products::integer::quantised_rows::QuantisedRows;

/// Vectors of sixteen rows at most.
const MOST_VECTORS: usize = 2;
/// Bytes of a block of sixteen rows at most.
const MOST_BYTES: usize = INTERLEAVED_ROWS * Q6K::BLOCK_BYTES;

/// Adds the products of all rows of `x`, which are not in parts, with rows of weights, the bytes of which are whole `groups` of
/// interleaved ones; their results are the columns from `column` on.
///
/// # Safety
/// The processor has the instructions; the result lives, and nobody else uses these columns.
pub(crate) unsafe fn add_interleaved(
    processor: Processor,
    x: &QuantisedRows,
    groups: &[u8],
    column: usize,
    output: Output,
) {
    // Beside one row of `x`, memory is waited for more than there is to calculate, and the processor's own prefetches are ahead of a
    // program's. Beside more they come too late.
    let alone = x.count == 1;
    #[cfg(target_arch = "x86_64")]
    let scattered = with_block!(x.format, B => B::SCATTERED, false);
    // Short vectors have registers for one row and all sixteen rows of weights, which then are read once; several rows share what is
    // unpacked of eight, of which int8 have nothing.
    #[cfg(target_arch = "x86_64")]
    let bytes = x.format == BlockFormat::Q8_0;
    // SAFETY: as the caller promises.
    unsafe {
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, IntegerDot::Tiles) => add::<Avx512Vnni, 2>(x, groups, column, output),
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, IntegerDot::Quads) if alone || scattered => {
                add::<Avx512Vnni, 0>(x, groups, column, output)
            }
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512(_, IntegerDot::Quads) => add::<Avx512Vnni, 1>(x, groups, column, output),
            #[cfg(target_arch = "x86_64")]
            Processor::Avx2(_, IntegerDot::Quads) if alone => {
                add::<Twice<AvxVnni>, 0>(x, groups, column, output)
            }
            #[cfg(target_arch = "x86_64")]
            Processor::Avx2(_, IntegerDot::Quads) if bytes => {
                add::<Twice<AvxVnni>, 1>(x, groups, column, output)
            }
            #[cfg(target_arch = "x86_64")]
            Processor::Avx2(_, IntegerDot::Quads) => add::<AvxVnni, 1>(x, groups, column, output),
            #[cfg(target_arch = "x86_64")]
            _ if alone => add::<Twice<Avx2>, 0>(x, groups, column, output),
            #[cfg(target_arch = "x86_64")]
            _ if bytes => add::<Twice<Avx2>, 1>(x, groups, column, output),
            #[cfg(target_arch = "x86_64")]
            _ => add::<Avx2, 1>(x, groups, column, output),
            // Without prefetches, and without copies, which nobody has measured there.
            #[cfg(target_arch = "aarch64")]
            _ if alone => add::<Neon<4>, 1>(x, groups, column, output),
            #[cfg(target_arch = "aarch64")]
            _ => add::<Neon<2>, 1>(x, groups, column, output),
        }
    }
}

/// # Safety
/// As [`add_interleaved`].
unsafe fn add<V: Vectors, const PREFETCH: usize>(
    x: &QuantisedRows,
    groups: &[u8],
    column: usize,
    output: Output,
) {
    // SAFETY: as the caller promises.
    unsafe { with_block!(x.format, B => add_blocks::<B, V, PREFETCH>(x, groups, column, output), ()) }
}

/// # Safety
/// As [`add_interleaved`], and the blocks are of the format of `x`.
unsafe fn add_blocks<B: InterleavedBlock, V: Vectors, const PREFETCH: usize>(
    x: &QuantisedRows,
    groups: &[u8],
    column: usize,
    output: Output,
) {
    assert_eq!(x.group, B::GROUP, "rows that are rounded for another format");
    let (of_x, blocks) = (x.columns / x.group, x.row_bytes / B::BLOCK_BYTES);
    assert!(blocks * B::BLOCK_NUMBERS <= x.columns, "rows of another length");
    for (index, group) in groups.chunks_exact(INTERLEAVED_ROWS * x.row_bytes).enumerate() {
        let group = Group { at: group.as_ptr(), blocks };
        let mut first = 0;
        while first < x.count {
            let output = At { output, row: first, column: column + INTERLEAVED_ROWS * index };
            // SAFETY: `x` has rows from `first` on, each with the numbers of all blocks and so many groups.
            unsafe {
                let rows = Rows {
                    numbers: x.numbers.as_ptr().add(first * x.columns),
                    columns: x.columns,
                    scales: x.scales.as_ptr().add(first * of_x),
                    sums: x.sums.as_ptr().add(first * of_x),
                    begins: x.begins.as_ptr().add(first * of_x),
                    groups: of_x,
                };
                first += match V::X_ROWS.min(x.count - first) {
                    1 => V::products::<B, 1, PREFETCH>(rows, group, output),
                    2 | 3 => V::products::<B, 2, PREFETCH>(rows, group, output),
                    4..8 => V::products::<B, 4, PREFETCH>(rows, group, output),
                    _ => V::products::<B, 8, PREFETCH>(rows, group, output),
                };
            }
        }
    }
}

/// Sixteen interleaved rows.
#[derive(Clone, Copy)]
struct Group {
    at: *const u8,
    blocks: usize,
}

/// Room for a block of sixteen rows.
#[repr(align(64))]
struct Copied([MaybeUninit<u8>; MOST_BYTES]);

/// Where the sums of the first row of `x` go.
#[derive(Clone, Copy)]
struct At {
    output: Output,
    row: usize,
    column: usize,
}

/// Rows of `x` from some number on.
#[derive(Clone, Copy)]
struct Rows {
    numbers: *const i8,
    /// Numbers from a row to the next.
    columns: usize,
    /// Of the groups of each row, as in [`QuantisedRows`].
    scales: *const f32,
    sums: *const f32,
    begins: *const i32,
    /// Groups from a row to the next.
    groups: usize,
}

impl Rows {
    /// The same from a later block on.
    #[inline(always)]
    unsafe fn behind<B: InterleavedBlock>(self, blocks: usize) -> Self {
        let groups = blocks * (B::BLOCK_NUMBERS / B::GROUP);
        // SAFETY: whoever calls it has so many blocks, and below these rows and groups.
        unsafe {
            Self {
                numbers: self.numbers.add(blocks * B::BLOCK_NUMBERS),
                scales: self.scales.add(groups),
                sums: self.sums.add(groups),
                begins: self.begins.add(groups),
                ..self
            }
        }
    }

    /// Four numbers of a row, in all lanes.
    #[inline(always)]
    unsafe fn four<V: IntegerVectors>(&self, row: usize, place: usize) -> V::Integers {
        // SAFETY: as above.
        unsafe {
            V::splat_integers(self.numbers.add(row * self.columns + place).cast::<i32>().read_unaligned())
        }
    }

    /// What the sums of products of a group begin with for the offset of the weights.
    #[inline(always)]
    unsafe fn begin(&self, row: usize, group: usize) -> i32 {
        // SAFETY: as above.
        unsafe { *self.begins.add(row * self.groups + group) }
    }

    /// Adds products of `X` rows with a group of weights, times the scales of both.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "of several arrays")]
    unsafe fn scaled<V: IntegerVectors, const X: usize>(
        &self,
        group: usize,
        products: [V::Integers; X],
        scales: V::Floats,
        mut totals: [V::Floats; X],
    ) -> [V::Floats; X] {
        for row in 0..X {
            // SAFETY: as above.
            unsafe {
                let of_x = V::splat(*self.scales.add(row * self.groups + group));
                let products = V::multiply(V::converted(products[row]), scales);
                totals[row] = V::multiply_add(products, of_x, totals[row]);
            }
        }
        totals
    }

    /// Subtracts the min of a group of weights for each number of `X` rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "of several arrays")]
    unsafe fn less<V: IntegerVectors, const X: usize>(
        &self,
        group: usize,
        mins: V::Floats,
        mut totals: [V::Floats; X],
    ) -> [V::Floats; X] {
        for row in 0..X {
            // SAFETY: as above.
            unsafe {
                let of_x = V::splat(*self.sums.add(row * self.groups + group));
                totals[row] = V::multiply_subtract(mins, of_x, totals[row]);
            }
        }
        totals
    }
}

/// Adds the products of a block with `X` rows of `x`.
///
/// # Safety
/// As [`InterleavedBlock::quads`], and rows of `x` have the block's numbers.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "of several arrays")]
unsafe fn add_block<B: InterleavedBlock, V: IntegerVectors, const X: usize, const PREFETCH: usize>(
    block: Interleaved<PREFETCH>,
    x: Rows,
    mut totals: [V::Floats; X],
) -> [V::Floats; X] {
    // SAFETY: as the caller promises.
    unsafe {
        let scales = B::Scales::<V>::new(block);
        let run = V::run(B::BITS).min(B::STEPS);
        each_eighth!(part => {
            if part < B::PARTS {
                let places = B::places(part);
                let groups = [places[0] / B::GROUP, places[1] / B::GROUP];
                let mut products = [[V::splat_integers(0); X]; 2];
                for row in 0..X {
                    products[0][row] = begin::<B, V>(x.begin(row, groups[0]));
                    if groups[0] != groups[1] {
                        products[1][row] = begin::<B, V>(x.begin(row, groups[1]));
                    }
                }
                for first in (0..B::STEPS).step_by(run) {
                    let mut narrow = products;
                    for which in 0..2 {
                        for row in 0..X {
                            narrow[which][row] = V::narrow(B::BITS, products[which][row]);
                        }
                    }
                    for step in first..first + run {
                        // Compilers read what lies behind, and run out of registers.
                        compiler_fence(Ordering::SeqCst);
                        let numbers = B::quads::<V, PREFETCH>(block, part, step);
                        for which in 0..2 {
                            for row in 0..X {
                                let four = x.four::<V>(row, places[which] + 4 * step);
                                narrow[which][row] = match B::EIGHT_BITS {
                                    true => V::dot_signed(narrow[which][row], numbers[which], four),
                                    false => V::dot(narrow[which][row], numbers[which], four),
                                };
                            }
                        }
                    }
                    for which in 0..2 {
                        for row in 0..X {
                            products[which][row] = V::widened(B::BITS, products[which][row], narrow[which][row]);
                        }
                    }
                }
                if groups[0] == groups[1] {
                    for row in 0..X {
                        products[0][row] = V::add(products[0][row], products[1][row]);
                    }
                }
                for which in 0..2 {
                    if which == 0 || groups[0] != groups[1] {
                        let [scale, mins] = scales.of(groups[which]);
                        totals = x.scaled::<V, X>(groups[which], products[which], scale, totals);
                        if B::HAS_MINS {
                            totals = x.less::<V, X>(groups[which], mins, totals);
                        }
                    }
                }
            }
        });
    }
    totals
}

/// What sums of products begin with.
#[inline(always)]
unsafe fn begin<B: InterleavedBlock, V: IntegerVectors>(offset: i32) -> V::Integers {
    // SAFETY: whoever calls it has the instructions.
    unsafe {
        match B::EIGHT_BITS {
            true => V::begin_signed(offset),
            false => V::splat_integers(offset),
        }
    }
}

/// The products of `X` rows of `x` with sixteen rows of weights, and how many rows of `x` they were.
///
/// # Safety
/// As [`add_block`]; the result lives, and nobody else uses these columns.
#[inline(always)]
unsafe fn add_group<B: InterleavedBlock, V: IntegerVectors, const X: usize, const PREFETCH: usize>(
    x: Rows,
    group: Group,
    to: At,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe {
        // Of all rows before the next block: of vectors that take half of a cache line, the second finds it in the L1 cache, and memory
        // is read without a break.
        let mut totals = [[V::splat(0.0); X]; MOST_VECTORS];
        let mut copy = Copied([const { MaybeUninit::uninit() }; MOST_BYTES]);
        for block in 0..group.blocks {
            let bytes = INTERLEAVED_ROWS * B::BLOCK_BYTES;
            let mut at = group.at.add(block * bytes);
            // The processor prefetches only what is read in the order of memory.
            if B::SCATTERED && PREFETCH == 0 {
                copy.0[..bytes].as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(at, bytes);
                at = copy.0.as_ptr().cast();
            }
            let x = x.behind::<B>(block);
            for (row, totals) in (0..INTERLEAVED_ROWS).step_by(V::LANES).zip(&mut totals) {
                *totals = add_block::<B, V, X, PREFETCH>(Interleaved { at, row }, x, *totals);
            }
        }
        for (row, totals) in (0..INTERLEAVED_ROWS).step_by(V::LANES).zip(totals) {
            for (of_x, total) in totals.into_iter().enumerate() {
                let mut sums = [0f32; INTERLEAVED_ROWS];
                V::store(sums.as_mut_ptr(), total);
                to.output.add(to.row + of_x, to.column + row, &sums[..V::LANES]);
            }
        }
    }
    X
}

/// The vectors of a group.
trait Vectors: IntegerVectors {
    /// Rows of `x` at most: two int32 sums of each and their totals take most of the registers.
    const X_ROWS: usize;

    /// [`add_group`] in these vectors.
    unsafe fn products<B: InterleavedBlock, const X: usize, const PREFETCH: usize>(
        x: Rows,
        group: Group,
        to: At,
    ) -> usize;
}

macro_rules! vectors {
    ($name:ty, $features:literal, $x_rows:literal) => {
        impl Vectors for $name {
            const X_ROWS: usize = $x_rows;

            #[inline(always)]
            unsafe fn products<B: InterleavedBlock, const X: usize, const PREFETCH: usize>(
                x: Rows,
                group: Group,
                to: At,
            ) -> usize {
                #[target_feature(enable = $features)]
                unsafe fn products<B: InterleavedBlock, const X: usize, const PREFETCH: usize>(
                    x: Rows,
                    group: Group,
                    to: At,
                ) -> usize {
                    // SAFETY: as the caller promises.
                    unsafe { add_group::<B, $name, X, PREFETCH>(x, group, to) }
                }
                // SAFETY: as the caller promises.
                unsafe { products::<B, X, PREFETCH>(x, group, to) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
vectors!(Avx512Vnni, "avx512f,avx512bw,avx512vnni,avx2,fma,f16c", 8);
#[cfg(target_arch = "x86_64")]
vectors!(AvxVnni, "avx2,fma,f16c,avxvnni", 2);
#[cfg(target_arch = "x86_64")]
vectors!(Avx2, "avx2,fma,f16c", 4);
#[cfg(target_arch = "x86_64")]
vectors!(Twice<AvxVnni>, "avx2,fma,f16c,avxvnni", 2);
#[cfg(target_arch = "x86_64")]
vectors!(Twice<Avx2>, "avx2,fma,f16c", 2);
#[cfg(target_arch = "aarch64")]
vectors!(Neon<4>, "neon,dotprod", 1);
#[cfg(target_arch = "aarch64")]
vectors!(Neon<2>, "neon,dotprod", 4);

#[cfg(test)]
mod tests {
    use crate::formats::block_format::{BlockFormat, decode};
    use crate::formats::interleaved::has_products;
    #[cfg(target_arch = "x86_64")]
    use crate::instructions::processor::IntegerDot;
    use crate::instructions::processor::Processor;
    use crate::noise::noise;
    use crate::products::integer::IntegerProduct;
    use crate::products::integer::quantised_rows::QuantisedRows;
    use crate::products::{Output, Weights};

    /// What a processor makes of rows and interleaved weights, added to ones.
    fn products(
        processor: Processor,
        format: BlockFormat,
        weights: &[u8],
        x: &[f32],
        columns: usize,
    ) -> Vec<f32> {
        let weights_rows = weights.len() / format.row_bytes(columns).unwrap();
        let mut result = vec![1f32; x.len() / columns * weights_rows];
        let output = Output::new(&mut result, weights_rows);
        let weights = Weights::Interleaved(format, weights);
        let product = IntegerProduct::new(processor, weights, x, columns).unwrap();
        // SAFETY: nobody else has the result.
        unsafe { product.add(weights, 0, output) };
        result
    }

    /// Rows of any number, whole groups of weights or not, blocks that end within 256 numbers: each sum is that of the rounded rows, and
    /// a row gives the same alone.
    #[test]
    fn few_rows_give_the_sums_of_rounded_ones_each_as_it_does_alone() {
        for processor in Processor::tested().into_iter().filter(|processor| has_products(*processor)) {
            for format in BlockFormat::ALL.into_iter().filter(|format| format.interleaves()) {
                for (rows, blocks, count) in [
                    (16, 1, 1),
                    (32, 3, 2),
                    (35, 2, 3),
                    (48, 7, 4),
                    (17, 9, 5),
                    (31, 4, 6),
                    (16, 11, 7),
                    (15, 5, 2),
                    (49, 1, 8),
                ] {
                    let columns = blocks * format.block_length();
                    let in_order = format.encode(&noise(rows * columns, 3), columns).unwrap();
                    let weights = format.interleave(&in_order, columns).unwrap();
                    let mut numbers = vec![0f32; rows * columns];
                    decode(Processor::Portable, format, &in_order, &mut numbers);
                    let x = noise(count * columns, 4);
                    // Those that are laid out may share scales.
                    let sharing = match processor {
                        #[cfg(target_arch = "x86_64")]
                        Processor::Avx512(_, IntegerDot::Quads) | Processor::Avx2(_, IntegerDot::Quads)
                            if count >= 8 =>
                        {
                            crate::products::integer::panels::sharing(format)
                        }
                        _ => 1,
                    };
                    let rounded = QuantisedRows::sharing(format, &x, columns, None, sharing).unwrap();
                    let result = products(processor, format, &weights, &x, columns);
                    for (of_x, sums) in result.chunks_exact(rows).enumerate() {
                        let what =
                            format!("{processor:?} {} {rows} x {columns}, {of_x} of {count}", format.name());
                        let x_of = |column: usize| {
                            let at = of_x * rounded.columns + column;
                            f64::from(rounded.numbers[at]) * f64::from(rounded.scales[at / rounded.group])
                        };
                        for (sum, weights) in sums.iter().zip(numbers.chunks_exact(columns)) {
                            let products = weights
                                .iter()
                                .enumerate()
                                .map(|(column, weight)| f64::from(*weight) * x_of(column));
                            let (exact, all) = products
                                .fold((1.0, 1.0), |(sum, all), product| (sum + product, all + product.abs()));
                            // Written so that NaN fails.
                            assert!(
                                (f64::from(*sum) - exact).abs() <= 1e-6 * all,
                                "{what}: {sum} instead of {exact}"
                            );
                        }
                        // Tiles and panels, which many rows are multiplied in, add up in another order.
                        if count < 8 {
                            let alone = products(
                                processor,
                                format,
                                &weights,
                                &x[of_x * columns..][..columns],
                                columns,
                            );
                            assert_eq!(alone, sums, "{what}");
                        }
                    }
                }
            }
        }
    }
}
