//! What the processor of this machine can do.

use crate::{Error, Result};

/// The instructions that the kernels of this process use, such as `avx512vnni`, `avx2` or `portable`. `LLAMAVID_CPU` chooses
/// among those that the processor has.
///
/// # Errors
/// `INVALID_ARGUMENT` when that variable names others.
pub fn instruction_set() -> Result<&'static str> {
    llamavid_kernels::instruction_set().map_err(Error::argument)
}

/// Instruction sets that the kernels use where they are there, with whether they are.
pub fn processor_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("avxvnni", std::arch::is_x86_feature_detected!("avxvnni")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("amx-int8", llamavid_kernels::amx_available()),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}
