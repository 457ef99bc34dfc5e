//! Names the library for the linker: programs that link it record this name, which changes when the C interface breaks.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libhetmem.so.0");
    println!("cargo::rerun-if-changed=build.rs");
}
