//! With CUDA: lets the program be linked without NVIDIA's libraries, which it opens for itself (`tools/cuda`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        // A shared library may leave functions open anyway; the linker that comes with Rust lets a program do so too.
        println!("cargo::rustc-link-arg-bins=-Wl,--unresolved-symbols=ignore-all");
    }
}
