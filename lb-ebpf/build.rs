fn main() {
    // 32-bit ALU brings atomics that return the old value and compare-and-swap (kernel 5.12).
    // Packet fields lie at odd places; every JIT this runs on loads them in one instruction.
    println!("cargo:rustc-link-arg-bins=--cpu-features=+alu32,+allows-misaligned-mem-access");
}
