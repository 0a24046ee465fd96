//! Vectors of x86-64.

use std::arch::x86_64::{
    __m256, __m256i, __m512, __m512i, _mm_cvtsi32_si128, _mm_loadu_si128, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_dpbusd_avx_epi32,
    _mm256_dpwssd_avx_epi32, _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_or_si256, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_sign_epi8, _mm256_sll_epi32,
    _mm256_sra_epi32, _mm256_srl_epi32, _mm256_storeu_ps, _mm256_storeu_si256, _mm256_sub_epi8,
    _mm256_xor_si256, _mm512_add_epi32, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtph_ps,
    _mm512_dpbusd_epi32, _mm512_dpwssd_epi32, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps,
    _mm512_loadu_si512, _mm512_mul_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_sll_epi32,
    _mm512_sra_epi32, _mm512_srl_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_epi8,
    _mm512_xor_si512,
};

use std::marker::PhantomData;

use super::IntegerVectors;

/// A mask of the sign of each byte.
const SIGNS: i32 = i32::from_ne_bytes([0x80; 4]);

macro_rules! vectors {
    ($(#[$meta:meta])* $name:ident, $integers:ty, $floats:ty, $lanes:literal,
        $splat:ident, $splat_integers:ident, $load:ident, $load_integers:ident, $load_f16:ident, $from_f16:ident, $store_integers:ident, $store:ident,
        $add:ident, $less:ident, $and:ident, $or:ident, $left:ident, $right:ident, $right_signed:ident,
        $converted:ident, $multiply:ident, $multiply_add:ident, $multiply_subtract:ident; $($own:tt)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl IntegerVectors for $name {
            type Integers = $integers;
            type Floats = $floats;
            const LANES: usize = $lanes;

            vectors!(splat($splat; value: f32) -> $floats);
            vectors!(splat_integers($splat_integers; value: i32) -> $integers);
            vectors!(load($load; at: *const f32) -> $floats);
            vectors!(add($add; a: $integers, b: $integers) -> $integers);
            vectors!(less($less; a: $integers, b: $integers) -> $integers);
            vectors!(and($and; a: $integers, b: $integers) -> $integers);
            vectors!(or($or; a: $integers, b: $integers) -> $integers);
            vectors!(converted($converted; values: $integers) -> $floats);
            vectors!(multiply($multiply; a: $floats, b: $floats) -> $floats);
            vectors!(multiply_add($multiply_add; a: $floats, b: $floats, c: $floats) -> $floats);
            vectors!(multiply_subtract($multiply_subtract; a: $floats, b: $floats, c: $floats) -> $floats);
            vectors!(left($left of $integers));
            vectors!(right($right of $integers));
            vectors!(right_signed($right_signed of $integers));
            $($own)*

            #[inline(always)]
            unsafe fn load_integers(at: *const u8) -> $integers {
                // SAFETY: as the caller promises.
                unsafe { $load_integers(at.cast()) }
            }

            #[inline(always)]
            unsafe fn load_f16(at: *const u8) -> $floats {
                // SAFETY: as the caller promises.
                unsafe { $from_f16($load_f16(at.cast())) }
            }

            #[inline(always)]
            unsafe fn store_integers(at: *mut u8, values: $integers) {
                // SAFETY: as the caller promises.
                unsafe { $store_integers(at.cast(), values) }
            }

            #[inline(always)]
            unsafe fn store(at: *mut f32, values: $floats) {
                // SAFETY: as the caller promises.
                unsafe { $store(at, values) }
            }
        }
    };
    ($name:ident($instruction:ident; $($argument:ident: $type:ty),*) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: as the caller promises.
            unsafe { $instruction($($argument),*) }
        }
    };
    ($name:ident($instruction:ident of $integers:ty)) => {
        #[inline(always)]
        unsafe fn $name(values: $integers, places: i32) -> $integers {
            // SAFETY: as the caller promises.
            unsafe { $instruction(values, _mm_cvtsi32_si128(places)) }
        }
    };
}

/// Products of int8 weights where the instruction takes unsigned ones: 128 is added to them.
macro_rules! without_sign {
    ($integers:ty, $xor:ident) => {
        #[inline(always)]
        unsafe fn dot_signed(sums: $integers, weights: $integers, x: $integers) -> $integers {
            // SAFETY: as the caller promises.
            unsafe { Self::dot(sums, $xor(weights, Self::splat_integers(SIGNS)), x) }
        }

        #[inline(always)]
        unsafe fn begin_signed(offset: i32) -> $integers {
            // SAFETY: as the caller promises.
            unsafe { Self::splat_integers(offset) }
        }
    };
}

vectors!(
    /// AVX-512 with VNNI.
    Avx512Vnni, __m512i, __m512, 16,
    _mm512_set1_ps, _mm512_set1_epi32, _mm512_loadu_ps, _mm512_loadu_si512, _mm256_loadu_si256, _mm512_cvtph_ps, _mm512_storeu_si512, _mm512_storeu_ps,
    _mm512_add_epi32, _mm512_sub_epi8, _mm512_and_si512, _mm512_or_si512, _mm512_sll_epi32, _mm512_srl_epi32, _mm512_sra_epi32,
    _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps;
    vectors!(dot(_mm512_dpbusd_epi32; sums: __m512i, weights: __m512i, x: __m512i) -> __m512i);
    vectors!(dot_pairs(_mm512_dpwssd_epi32; sums: __m512i, weights: __m512i, x: __m512i) -> __m512i);
    without_sign!(__m512i, _mm512_xor_si512);
);

/// Vectors of AVX2, which differ in how products are added up.
macro_rules! vectors_of_eight {
    ($(#[$meta:meta])* $name:ident; $($own:tt)*) => {
        vectors!(
            $(#[$meta])*
            $name, __m256i, __m256, 8,
            _mm256_set1_ps, _mm256_set1_epi32, _mm256_loadu_ps, _mm256_loadu_si256, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_si256, _mm256_storeu_ps,
            _mm256_add_epi32, _mm256_sub_epi8, _mm256_and_si256, _mm256_or_si256, _mm256_sll_epi32, _mm256_srl_epi32, _mm256_sra_epi32,
            _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_fmadd_ps, _mm256_fnmadd_ps;
            $($own)*
        );
    };
}

vectors_of_eight!(
    /// AVX2 with AVX-VNNI.
    AvxVnni;
    vectors!(dot(_mm256_dpbusd_avx_epi32; sums: __m256i, weights: __m256i, x: __m256i) -> __m256i);
    vectors!(dot_pairs(_mm256_dpwssd_avx_epi32; sums: __m256i, weights: __m256i, x: __m256i) -> __m256i);
    without_sign!(__m256i, _mm256_xor_si256);
);
vectors_of_eight!(
    /// AVX2: products are added up in pairs in int16. Numbers of `x` are up to 127, so that pairs of weights of `b` bits stay below 2^(8 +
    /// b), of which 2^(7 - b) may be added up. Those of 8 bits are added up in 32 at once.
    Avx2;
    const IN_PAIRS: bool = true;

    #[inline(always)]
    fn run(bits: u32) -> usize {
        if bits == 8 { usize::MAX } else { 1 << (7 - bits) }
    }

    #[inline(always)]
    unsafe fn narrow(bits: u32, sums: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        if bits == 8 { sums } else { unsafe { _mm256_setzero_si256() } }
    }

    #[inline(always)]
    unsafe fn widened(bits: u32, sums: __m256i, narrow: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        if bits == 8 { narrow } else { unsafe { Self::dot_pairs(sums, narrow, _mm256_set1_epi16(1)) } }
    }

    #[inline(always)]
    unsafe fn dot(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { _mm256_add_epi16(sums, _mm256_maddubs_epi16(weights, x)) }
    }

    #[inline(always)]
    unsafe fn dot_pairs(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(weights, x)) }
    }

    #[inline(always)]
    unsafe fn dot_signed(sums: __m256i, weights: __m256i, x: __m256i) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe {
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
            Self::dot_pairs(sums, products, _mm256_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn begin_signed(_offset: i32) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { _mm256_setzero_si256() }
    }
);

/// Two vectors that are one: sixteen rows are read at once.
#[derive(Clone, Copy)]
pub(crate) struct Twice<V>(PhantomData<V>);

/// A function of both vectors.
macro_rules! both {
    ($name:ident($($argument:ident: $type:ty),*) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($($argument: $type),*) -> $result {
            // SAFETY: as the caller promises.
            unsafe { [V::$name($($argument[0]),*), V::$name($($argument[1]),*)] }
        }
    };
    ($name:ident($value:ident: $type:ty, the same) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($value: $type) -> $result {
            // SAFETY: as the caller promises.
            unsafe { [V::$name($value); 2] }
        }
    };
    ($name:ident($at:ident: $type:ty, $behind:expr) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($at: $type) -> $result {
            // SAFETY: as the caller promises.
            unsafe { [V::$name($at), V::$name($at.add($behind))] }
        }
    };
    ($name:ident($values:ident by $places:ident) -> $result:ty) => {
        #[inline(always)]
        unsafe fn $name($values: $result, $places: i32) -> $result {
            // SAFETY: as the caller promises.
            unsafe { [V::$name($values[0], $places), V::$name($values[1], $places)] }
        }
    };
}

impl<V: IntegerVectors> IntegerVectors for Twice<V> {
    type Integers = [V::Integers; 2];
    type Floats = [V::Floats; 2];
    const LANES: usize = 2 * V::LANES;
    const IN_PAIRS: bool = V::IN_PAIRS;

    #[inline(always)]
    fn run(bits: u32) -> usize {
        V::run(bits)
    }

    #[inline(always)]
    unsafe fn narrow(bits: u32, sums: Self::Integers) -> Self::Integers {
        // SAFETY: as the caller promises.
        unsafe { [V::narrow(bits, sums[0]), V::narrow(bits, sums[1])] }
    }

    #[inline(always)]
    unsafe fn widened(bits: u32, sums: Self::Integers, narrow: Self::Integers) -> Self::Integers {
        // SAFETY: as the caller promises.
        unsafe { [V::widened(bits, sums[0], narrow[0]), V::widened(bits, sums[1], narrow[1])] }
    }

    both!(splat(value: f32, the same) -> Self::Floats);
    both!(splat_integers(value: i32, the same) -> Self::Integers);
    both!(begin_signed(offset: i32, the same) -> Self::Integers);
    both!(load(at: *const f32, V::LANES) -> Self::Floats);
    both!(load_integers(at: *const u8, 4 * V::LANES) -> Self::Integers);
    both!(load_f16(at: *const u8, 2 * V::LANES) -> Self::Floats);
    both!(dot(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers);
    both!(dot_signed(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers);
    both!(dot_pairs(sums: Self::Integers, weights: Self::Integers, x: Self::Integers) -> Self::Integers);
    both!(add(a: Self::Integers, b: Self::Integers) -> Self::Integers);
    both!(less(a: Self::Integers, b: Self::Integers) -> Self::Integers);
    both!(and(a: Self::Integers, b: Self::Integers) -> Self::Integers);
    both!(or(a: Self::Integers, b: Self::Integers) -> Self::Integers);
    both!(left(values by places) -> Self::Integers);
    both!(right(values by places) -> Self::Integers);
    both!(right_signed(values by places) -> Self::Integers);
    both!(converted(values: Self::Integers) -> Self::Floats);
    both!(multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats);
    both!(multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats);
    both!(multiply_subtract(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats);

    #[inline(always)]
    unsafe fn store(at: *mut f32, values: Self::Floats) {
        // SAFETY: as the caller promises.
        unsafe {
            V::store(at, values[0]);
            V::store(at.add(V::LANES), values[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_integers(at: *mut u8, values: Self::Integers) {
        // SAFETY: as the caller promises.
        unsafe {
            V::store_integers(at, values[0]);
            V::store_integers(at.add(4 * V::LANES), values[1]);
        }
    }
}
