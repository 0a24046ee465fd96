//! Products of small matrices by Intel AMX: one instruction multiplies a tile of 16 rows of `x`, up to 64 int8 or 32 bf16 numbers of
//! each, with a tile of as many numbers of 16 rows of weights, which lie 32 bits of each row at a time.
//!
//! Rust has no functions for these instructions yet, and no compiler uses a tile by itself. Each block of assembly here takes what it
//! needs from memory and leaves its results there, so that between two of them nothing but the configuration has to last; only
//! [`Tiles::next_products`] leaves its own in a tile, for the next one. The configuration belongs to the thread: [`Tiles`] loads it for
//! a task, and releases it at the end, since the system saves tiles that are in use whenever it gives the processor to another thread.
//!
//! Reference: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, "Programming with Intel Advanced Matrix
//! Extensions". Processors without the instructions run the same code in tests, see `trap`.

use std::arch::asm;
use std::marker::PhantomData;

use half::bf16;

use crate::instructions::prefetch::CACHE_LINE;

#[cfg(all(test, target_os = "linux"))]
pub(crate) mod trap;

/// Rows of a tile, and its columns of 32 bits.
pub(crate) const SIDE: usize = 16;
/// Rows of `x`, and of weights, of the functions of [`Tiles`] that add to sums.
pub(crate) const ROWS: usize = 2 * SIDE;
/// Bytes of a row of `x` that the rows of a tile have at most.
pub(crate) const LONGEST: usize = 64;
/// Groups of numbers that [`Tiles::products`] multiplies, each on its own.
pub(crate) const GROUPS: usize = 4;
/// Whether the processor has the instructions, AVX-512 provided, and Linux lets this process use them, which it has to request.
pub fn available() -> bool {
    #[cfg(target_os = "linux")]
    {
        present() && permitted()
    }
    #[cfg(not(target_os = "linux"))]
    false
}

/// Whether the processor has them, and the system saves tiles.
#[cfg(target_os = "linux")]
fn present() -> bool {
    use std::arch::x86_64::{__cpuid_count, _xgetbv};
    /// AMX-BF16, AMX-TILE and AMX-INT8 among the features of leaf 7, in EDX. No processor has one of them alone.
    const FEATURES: u32 = 1 << 22 | 0b11 << 24;
    /// The configuration and the tiles among what the system saves.
    const SAVED: u64 = 0b11 << 17;
    /// XGETBV is there, in ECX of leaf 1.
    const OSXSAVE: u32 = 1 << 27;
    #[target_feature(enable = "xsave")]
    fn saved() -> u64 {
        // SAFETY: the register is there with the instruction.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: every x86-64 has the instruction.
    #[allow(unused_unsafe, reason = "newer compilers know that")]
    let [most, first, seventh] = [0, 1, 7].map(|leaf| unsafe { __cpuid_count(leaf, 0) });
    most.eax >= 7
        && seventh.edx & FEATURES == FEATURES
        && first.ecx & OSXSAVE != 0
        // SAFETY: the instruction is there.
        && unsafe { saved() } & SAVED == SAVED
}

/// Whether the system lets the process use tiles. It does not, for instance, where a thread's stack for signals has no room for them.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    /// From Linux' `asm/prctl.h`.
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call reads and writes no memory of ours.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Bytes that are read later: with each step of a product so many cache lines of them, one at least, are prefetched to the L2 cache,
/// few enough to arrive while the step is computed. The addresses need not be valid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefetch {
    pub(crate) first: *const u8,
    pub(crate) lines: usize,
}

/// Products of a group of numbers: of each row of `x`, one with each row of weights.
pub(crate) type ProductsOfGroup = [[i32; SIDE]; SIDE];

/// Products of [`GROUPS`] groups.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Products(pub(crate) [ProductsOfGroup; GROUPS]);

impl Products {
    pub(crate) const ZERO: Self = Self([[[0; SIDE]; SIDE]; GROUPS]);
}

/// Numbers of a row of a [`Piece`]: those of two tiles.
pub(crate) const RUN: usize = 4 * SIDE;

/// A piece of [`RUN`] numbers of [`ROWS`] rows: the first 32 numbers of each row, then the others. On the right of a product, the first
/// pair of numbers of 16 rows, 15 more, the same of the other 16 rows, and all that of the other 32 numbers.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Piece(pub(crate) [[[bf16; 2 * SIDE]; ROWS]; RUN / (2 * SIDE)]);

impl Piece {
    pub(crate) const ZERO: Self = Self([[[bf16::ZERO; 2 * SIDE]; ROWS]; RUN / (2 * SIDE)]);
}

/// Sums of products of [`ROWS`] rows with as many others: the first 16 with the first 16 and with the others, then those of the others.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[[f32; SIDE]; SIDE]; 4]);

impl Sums {
    pub(crate) const ZERO: Self = Self([[[0.0; SIDE]; SIDE]; 4]);
}

/// The tiles of this thread, configured until this is dropped: 0 to 3 for sums of 16 rows with 16 others, 4 and 5 for 16 rows of
/// `x`, 6 and 7 for 16 rows of weights.
pub(crate) struct Tiles {
    /// Numbers of a row of `x`.
    length: usize,
    of_this_thread: PhantomData<*const ()>,
}

/// What LDTILECFG reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// For rows of `x` of `length` numbers, a multiple of 4.
    ///
    /// # Safety
    /// [`available`] was true in this process, and no other `Tiles` lives on this thread.
    pub(crate) unsafe fn new(length: usize) -> Self {
        assert!(length > 0 && length <= LONGEST && length.is_multiple_of(4), "rows that no tile has");
        let whole = [4 * SIDE as u16; 4];
        let mut row_bytes = [0; 16];
        row_bytes[..4].copy_from_slice(&whole);
        row_bytes[4..6].fill(length as u16);
        row_bytes[6..8].copy_from_slice(&whole[..2]);
        let mut rows = [0; 16];
        rows[..6].fill(SIDE as u8);
        rows[6..8].fill((length / 4) as u8);
        let configuration = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: 64 bytes of a configuration that palette 1 has; the caller promises that the process may use tiles.
        unsafe {
            asm!(
                "ldtilecfg [{}]", in(reg) &raw const configuration,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, readonly)
            );
        }
        Self { length, of_this_thread: PhantomData }
    }

    /// Adds the products of `pairs` of halves of pieces, in their order, to `sums`, or to zeros in their place when `anew`. A half that the
    /// pair before has as well is not read again, so that an order with many such ones is quick. Sums are rounded to f32 behind every
    /// product of tiles; what is less than 2^-126 counts as 0.
    ///
    /// `prefetch` is done with each pair.
    ///
    /// # Safety
    /// These are for rows of [`LONGEST`] bytes. Halves of pieces of these numbers can be read; nobody else uses the sums.
    pub(crate) unsafe fn add_products_of_pieces(
        &self,
        [left, right]: [*const Piece; 2],
        pairs: &[[usize; 2]],
        anew: bool,
        sums: *mut Sums,
        prefetch: Prefetch,
    ) {
        assert!(self.length == LONGEST && !pairs.is_empty(), "tiles of other rows");
        assert!(prefetch.lines > 0, "nothing to prefetch");
        // SAFETY: halves of pieces are two tiles each, the sums four.
        unsafe {
            asm!(
                "test {anew}, {anew}",
                "jnz 2f",
                "tileloadd tmm0, [{sums} + {side}]",
                "tileloadd tmm1, [{sums} + {side} + {tile}]",
                "tileloadd tmm2, [{sums} + {side} + 2 * {tile}]",
                "tileloadd tmm3, [{sums} + {side} + 3 * {tile}]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "mov {x}, [{pairs}]",
                "shl {x}, {half}",
                "add {x}, {left}",
                "cmp {x}, {read_x}",
                "je 4f",
                "mov {read_x}, {x}",
                "tileloadd tmm4, [{x} + {side}]",
                "tileloadd tmm5, [{x} + {side} + {tile}]",
                "4:",
                "mov {x}, [{pairs} + 8]",
                "shl {x}, {half}",
                "add {x}, {right}",
                "cmp {x}, {read_y}",
                "je 5f",
                "mov {read_y}, {x}",
                "tileloadd tmm6, [{x} + {side}]",
                "tileloadd tmm7, [{x} + {side} + {tile}]",
                "5:",
                "mov {x}, {lines}",
                "6:",
                "prefetcht1 [{prefetch}]",
                "add {prefetch}, {line}",
                "dec {x}",
                "jnz 6b",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {pairs}, 16",
                "dec {count}",
                "jnz 3b",
                "tilestored [{sums} + {side}], tmm0",
                "tilestored [{sums} + {side} + {tile}], tmm1",
                "tilestored [{sums} + {side} + 2 * {tile}], tmm2",
                "tilestored [{sums} + {side} + 3 * {tile}], tmm3",
                anew = in(reg) u64::from(anew),
                sums = in(reg) sums,
                side = in(reg) LONGEST,
                left = in(reg) left,
                right = in(reg) right,
                pairs = inout(reg) pairs.as_ptr() => _,
                count = inout(reg) pairs.len() => _,
                x = out(reg) _,
                read_x = inout(reg) 0u64 => _,
                read_y = inout(reg) 0u64 => _,
                prefetch = inout(reg) prefetch.first => _,
                lines = in(reg) prefetch.lines,
                line = const CACHE_LINE,
                half = const (size_of::<Piece>() / 2).ilog2(),
                tile = const LONGEST * SIDE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// The products of 16 rows of `x` with 16 rows of weights, of [`GROUPS`] groups of numbers, which follow one another. Both have signs.
    ///
    /// # Safety
    /// The groups' numbers can be read, as many of each as these are for, where rows of `x` start `stride` bytes after one another, and
    /// steps of weights, and their groups, so many bytes.
    pub(crate) unsafe fn products(
        &self,
        x: *const i8,
        stride: usize,
        weights: *const i8,
        [step, group]: [usize; 2],
        into: &mut Products,
    ) {
        macro_rules! group {
            ($sums:literal, $x:literal, $weights:literal) => {
                concat!(
                    "tilezero ",
                    $sums,
                    "\n",
                    "tileloadd ",
                    $x,
                    ", [{x} + {stride}]\n",
                    "tileloadd ",
                    $weights,
                    ", [{weights} + {step}]\n",
                    "tdpbssd ",
                    $sums,
                    ", ",
                    $x,
                    ", ",
                    $weights,
                    "\n",
                    "add {x}, {length}\n",
                    "add {weights}, {group}\n",
                )
            };
        }
        // SAFETY: tiles of 16 rows are read as far as there are groups, as the caller promises, and there is room for four of sums.
        unsafe {
            asm!(
                group!("tmm0", "tmm4", "tmm6"),
                group!("tmm1", "tmm5", "tmm7"),
                group!("tmm2", "tmm4", "tmm6"),
                group!("tmm3", "tmm5", "tmm7"),
                "tilestored [{into} + {side}], tmm0",
                "tilestored [{into} + {side} + {sums}], tmm1",
                "tilestored [{into} + {side} + 2 * {sums}], tmm2",
                "tilestored [{into} + {side} + 3 * {sums}], tmm3",
                x = inout(reg) x => _,
                stride = in(reg) stride,
                weights = inout(reg) weights => _,
                step = in(reg) step,
                length = in(reg) self.length,
                group = in(reg) group,
                into = in(reg) into,
                side = in(reg) 4 * SIDE,
                sums = const 4 * SIDE * SIDE,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }

    /// Writes the products that the call before has left, and begins those of 16 rows of `x` with 16 rows of weights, of one group of
    /// numbers with signs: a product takes its time, and who writes the one before it need not wait.
    ///
    /// # Safety
    /// The group's numbers can be read, as many of each row as these are for, where rows of `x` start `stride` bytes after one another,
    /// and steps of weights `step` bytes. Nothing of these tiles has been used in between.
    #[inline(always)]
    pub(crate) unsafe fn next_products(
        &self,
        x: *const i8,
        stride: usize,
        weights: *const i8,
        step: usize,
        before: &mut ProductsOfGroup,
    ) {
        // SAFETY: tiles of 16 rows are read, as the caller promises, and there is room for one of sums.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {stride}]",
                "tileloadd tmm6, [{weights} + {step}]",
                "tilestored [{before} + {side}], tmm0",
                "tilezero tmm0",
                "tdpbssd tmm0, tmm4, tmm6",
                x = in(reg) x,
                stride = in(reg) stride,
                weights = in(reg) weights,
                step = in(reg) step,
                before = in(reg) before,
                side = in(reg) 4 * SIDE,
                out("tmm0") _, out("tmm4") _, out("tmm6") _,
                options(nostack, preserves_flags)
            );
        }
    }

    /// Writes the products that [`Self::next_products`] has left.
    ///
    /// # Safety
    /// Nothing of these tiles has been used in between.
    #[inline(always)]
    pub(crate) unsafe fn last_products(&self, before: &mut ProductsOfGroup) {
        // SAFETY: there is room for a tile of sums.
        unsafe {
            asm!(
                "tilestored [{before} + {side}], tmm0",
                before = in(reg) before,
                side = in(reg) 4 * SIDE,
                options(nostack, preserves_flags)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured, so that the instruction is there.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, preserves_flags, nomem)
            );
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::instructions::processor::{IntegerDot, Processor};

    /// Whether this machine has tiles, or what stands in for them.
    fn tiles() -> bool {
        matches!(Processor::tested()[0], Processor::Avx512(_, IntegerDot::Tiles))
    }

    /// Bytes without a pattern, the outermost ones of both kinds among them.
    fn random(count: usize, seed: u32) -> Vec<u8> {
        let mut state = seed;
        (0..count)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                match state >> 29 {
                    0 => 0,
                    1 => 127,
                    2 => 128,
                    3 => 255,
                    _ => (state >> 16) as u8,
                }
            })
            .collect()
    }

    /// The configuration of this thread.
    fn configuration() -> [u8; 64] {
        let mut bytes = [1; 64];
        // SAFETY: there is room for it, and the processor has the instruction, or what stands in for it.
        unsafe { asm!("sttilecfg [{}]", in(reg) &raw mut bytes, options(nostack, preserves_flags)) };
        bytes
    }

    #[test]
    fn sums_of_pieces_are_those_of_the_pairs_that_are_asked_for() {
        if !tiles() {
            return;
        }
        // Integers of few bits: their sums are exact.
        let pieces = |count: usize, seed: u32| -> Vec<Piece> {
            let mut bytes = random(count * ROWS * RUN, seed).into_iter();
            let mut next = || bf16::from_f32(f32::from(bytes.next().unwrap_or(0) as i8));
            (0..count)
                .map(|_| {
                    let mut piece = Piece([[[bf16::ZERO; 2 * SIDE]; ROWS]; 2]);
                    piece
                        .0
                        .as_flattened_mut()
                        .as_flattened_mut()
                        .iter_mut()
                        .for_each(|number| *number = next());
                    piece
                })
                .collect()
        };
        for (pairs, anew) in
            [(&[[0, 0]][..], false), (&[[0, 1], [1, 1], [1, 0], [0, 0]], true), (&[[5, 0], [3, 4]], false)]
        {
            let [left, right] = [3, 5].map(|seed| pieces(3, seed));
            let mut sums = Sums([[[7.0; SIDE]; SIDE]; 4]);
            // SAFETY: three pieces of each are there.
            unsafe {
                let tiles = Tiles::new(LONGEST);
                let into = &raw mut sums;
                let operands = [left.as_ptr(), right.as_ptr()];
                let prefetch = Prefetch { first: operands[0].cast(), lines: 2 };
                tiles.add_products_of_pieces(operands, pairs, anew, into, prefetch);
            }
            for (row, other) in (0..ROWS).flat_map(|row| (0..ROWS).map(move |other| (row, other))) {
                let mut expected = if anew { 0.0 } else { 7.0 };
                for [a, b] in pairs {
                    for column in 0..RUN / 2 {
                        let a = left[*a / 2].0[*a % 2][row][column];
                        let b = right[*b / 2].0[*b % 2][other / SIDE * SIDE + column / 2];
                        expected += f32::from(a) * f32::from(b[2 * (other % SIDE) + column % 2]);
                    }
                }
                let found = sums.0[row / SIDE * 2 + other / SIDE][row % SIDE][other % SIDE];
                assert_eq!(found, expected, "{pairs:?} {row} {other}");
            }
        }
    }

    #[test]
    fn sums_of_groups_are_exact_and_begin_anew() {
        /// Bytes from a step of weights to the next: four numbers of each of 32 rows.
        const STEP: usize = 4 * ROWS;
        if !tiles() {
            return;
        }
        for (length, stride) in [(32, 512), (16, 256), (64, 256), (4, 19)] {
            let signed = |bytes: Vec<u8>| bytes.into_iter().map(|byte| byte as i8).collect::<Vec<_>>();
            let x = signed(random(15 * stride + GROUPS * length, 7));
            let weights = signed(random(GROUPS * length * ROWS, 9));
            let mut found = Products([[[3; SIDE]; SIDE]; GROUPS]);
            let steps = [STEP, length / 4 * STEP];
            // SAFETY: groups of these lengths are there, and the first 16 rows of weights are read.
            unsafe {
                Tiles::new(length).products(x.as_ptr(), stride, weights.as_ptr(), steps, &mut found);
            }
            for (group, rows) in found.0.iter().enumerate() {
                for (row, sums) in rows.iter().enumerate() {
                    for (of_weights, sum) in sums.iter().enumerate() {
                        let products = (group * length..(group + 1) * length).map(|column| {
                            let weight = weights[column / 4 * STEP + 4 * of_weights + column % 4];
                            i32::from(x[row * stride + column]) * i32::from(weight)
                        });
                        assert_eq!(*sum, products.sum::<i32>(), "{length} {group} {row} {of_weights}");
                    }
                }
            }
        }
    }

    #[test]
    fn tiles_are_released_with_their_task() {
        if !tiles() {
            return;
        }
        // SAFETY: one at a time.
        let tiles = unsafe { Tiles::new(32) };
        assert_eq!((configuration()[0], configuration()[16], configuration()[48]), (1, 64, 16));
        drop(tiles);
        assert_eq!(configuration(), [0; 64]);
    }
}
