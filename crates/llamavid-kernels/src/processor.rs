//! Which vectors the kernels use: the widest of this processor, unless `LLAMAVID_CPU` asks for narrower ones.

use std::sync::OnceLock;

use pulp::{Simd, WithSimd};

/// The environment variable that asks for narrower vectors, so that each path can be tested on one machine.
pub const PROCESSOR_VARIABLE: &str = "LLAMAVID_CPU";

/// A set of instructions that kernels are compiled for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Processor {
    /// The same with products of whole numbers (VNNI).
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(pulp::x86::V4),
    /// AVX-512 F, VL, BW, DQ and CD.
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    /// AVX2 with fused multiply-add and conversion of half precision.
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    /// What every processor of the architecture has.
    Portable,
}

impl Processor {
    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            Self::Portable => "portable",
        }
    }

    /// The same, but for products of whole numbers.
    pub(crate) fn without_whole_numbers(self) -> Self {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) => Self::Avx512(simd),
            other => other,
        }
    }

    /// Runs an operation in these vectors.
    pub(crate) fn run<Operation: WithSimd>(self, operation: Operation) -> Operation::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(simd) | Self::Avx512(simd) => Simd::vectorize(simd, operation),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => Simd::vectorize(simd, operation),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => Simd::vectorize(simd, operation),
            Self::Portable => pulp::Scalar::new().vectorize(operation),
        }
    }

    /// All that this processor has, the widest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("f16c") {
            let wider = pulp::x86::V4::try_new();
            found.extend(wider.filter(|_| is_x86_feature_detected!("avx512vnni")).map(Self::Avx512Vnni));
            found.extend(wider.map(Self::Avx512));
            found.extend(pulp::x86::V3::try_new().map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        found.extend(pulp::aarch64::Neon::try_new().map(Self::Neon));
        found.push(Self::Portable);
        found
    }
}

/// What the kernels of this process use.
pub(crate) fn processor() -> Processor {
    *chosen().as_ref().unwrap_or(&Processor::Portable)
}

/// The name of the instructions that the kernels of this process use: `avx512vnni`, `avx512`, `avx2`, `neon` or `portable`.
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
