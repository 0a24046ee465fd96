//! Which instructions the kernels use: the widest vectors of this processor, unless `LLAMAVID_CPU` names others.

use std::sync::OnceLock;

use pulp::{Simd, WithSimd};

/// The environment variable that names other instructions, so that each path can be tested on one machine.
pub const PROCESSOR_VARIABLE: &str = "LLAMAVID_CPU";

/// A set of instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Processor {
    /// AVX-512 F, VL, BW, DQ and CD, with VNNI where it has [`IntegerDot::Quads`], and AMX, BF16 and VBMI as well where it has tiles.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4, IntegerDot),
    /// AVX2 with fused multiply-add and conversion of half precision.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3, IntegerDot),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon, IntegerDot),
    /// What every processor of the architecture has.
    Portable,
}

/// Which integer dot products rows are multiplied by with weights in blocks. Many rows beside weights in f16 or bf16 are
/// quantised to int16 as well, where [`crate::products::int16`] is quicker than f32, or split for AMX ([`crate::products::pieces`]).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntegerDot {
    /// None: rows are multiplied in f32, as they are.
    None,
    /// Rows in int8, whose products are added up in pairs in int16 (`maddubs`). Many rows beside weights of more than five bits only
    /// where f32 has vectors of eight.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// Rows in int8, whose products are added up in fours in int32 (VNNI, `sdot`).
    Quads,
    /// The same, and more rows as products of small matrices (AMX tiles, i8mm); many with AMX in bf16 pieces.
    Tiles,
}

impl Processor {
    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_, IntegerDot::Tiles) => "avx512amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_, IntegerDot::Quads) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_, IntegerDot::Pairs) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_, IntegerDot::None) => "avx512-f32",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_, IntegerDot::None) => "avx2-f32",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_, IntegerDot::Pairs) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(..) => "avxvnni",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_, IntegerDot::Tiles) => "neon-i8mm",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_, IntegerDot::Quads) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_, IntegerDot::None) => "neon",
            Self::Portable => "portable",
        }
    }

    /// The same without integer dot products: nothing is quantised.
    pub(crate) fn without_integer_dot(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd, _) => Self::Avx512(simd, IntegerDot::None),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd, _) => Self::Avx2(simd, IntegerDot::None),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd, _) => Self::Neon(simd, IntegerDot::None),
            Self::Portable => Self::Portable,
        }
    }

    /// Which integer dot products it has for weights in blocks.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn integer_dot(self) -> IntegerDot {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_, dot) | Self::Avx2(_, dot) => dot,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_, dot) => dot,
            Self::Portable => IntegerDot::None,
        }
    }

    /// Runs an operation in these vectors.
    pub(crate) fn run<Operation: WithSimd>(self, operation: Operation) -> Operation::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd, _) => Simd::vectorize(simd, operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd, _) => Simd::vectorize(simd, operation),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd, _) => Simd::vectorize(simd, operation),
            Self::Portable => pulp::Scalar::new().vectorize(operation),
        }
    }

    /// All that this processor has, the widest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("f16c") {
            if let Some(simd) = pulp::x86::V4::try_new() {
                if is_x86_feature_detected!("avx512vnni") {
                    if is_x86_feature_detected!("avx512bf16")
                        && is_x86_feature_detected!("avx512vbmi")
                        && crate::instructions::amx::available()
                    {
                        found.push(Self::Avx512(simd, IntegerDot::Tiles));
                    }
                    found.push(Self::Avx512(simd, IntegerDot::Quads));
                }
                found.extend([IntegerDot::Pairs, IntegerDot::None].map(|dot| Self::Avx512(simd, dot)));
            }
            if let Some(simd) = pulp::x86::V3::try_new() {
                if is_x86_feature_detected!("avxvnni") {
                    found.push(Self::Avx2(simd, IntegerDot::Quads));
                }
                found.extend([IntegerDot::Pairs, IntegerDot::None].map(|dot| Self::Avx2(simd, dot)));
            }
        }
        #[cfg(target_arch = "aarch64")]
        if let Some(simd) = pulp::aarch64::Neon::try_new() {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                if std::arch::is_aarch64_feature_detected!("i8mm") {
                    found.push(Self::Neon(simd, IntegerDot::Tiles));
                }
                found.push(Self::Neon(simd, IntegerDot::Quads));
            }
            found.push(Self::Neon(simd, IntegerDot::None));
        }
        found.push(Self::Portable);
        found
    }

    /// The same for tests, and AMX as well: where the processor has all else that goes with it but no tiles, something stands in for them.
    #[cfg(test)]
    pub(crate) fn tested() -> Vec<Self> {
        let available = Self::available();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Self::Avx512(simd, IntegerDot::Quads) = available[0]
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vbmi")
        {
            crate::instructions::amx::trap::set();
            return [vec![Self::Avx512(simd, IntegerDot::Tiles)], available].concat();
        }
        available
    }
}

/// What the kernels of this process use.
pub(crate) fn processor() -> Processor {
    *chosen().as_ref().unwrap_or(&Processor::Portable)
}

/// The name of the instructions that the kernels of this process use: `avx512amx`, `avx512vnni`, `avx512`, `avxvnni`, `avx2`, `neon-i8mm`,
/// `neon-dotprod` or `portable`. All but the last quantise rows to int8 beside weights in blocks, and `avx512amx`, `avx512vnni`, `avxvnni`
/// and `avx2` many rows beside weights in f16 or bf16 to 16 bits; `avx512-f32`, `avx2-f32` and `neon` are the same without that.
///
/// # Errors
/// `LLAMAVID_CPU` names none that this processor has; the kernels run without vectors then.
pub fn instruction_set() -> Result<&'static str, &'static str> {
    chosen().as_ref().map(|processor| processor.name()).map_err(String::as_str)
}

fn chosen() -> &'static Result<Processor, String> {
    static CHOSEN: OnceLock<Result<Processor, String>> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let available = Processor::available();
        let Some(wanted) = std::env::var_os(PROCESSOR_VARIABLE).filter(|wanted| !wanted.is_empty()) else {
            return Ok(available[0]);
        };
        let found = available.iter().find(|processor| wanted == processor.name());
        found.copied().ok_or_else(|| {
            let names: Vec<_> = available.iter().map(|processor| processor.name()).collect();
            format!(
                "{PROCESSOR_VARIABLE} is {}: this processor has {}",
                wanted.to_string_lossy(),
                names.join(", ")
            )
        })
    })
}
