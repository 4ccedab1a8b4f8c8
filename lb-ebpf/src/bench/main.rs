//! Programs that measure the data path, never shipped with it:
//! - [`harness`] restores a frame and tail-calls the program under test, so that each repeat of
//!   BPF_PROG_TEST_RUN is a packet of its own; it also makes live frames;
//! - [`decap`] is the far end of a tunnel;
//! - [`floors`] do the least a program can do;
//! - [`textbook`] and [`textbook_nat`] are the balancer that everybody writes first, for comparison.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(clippy::needless_borrows_for_generic_args, reason = "a value would be copied to the stack, which is short")]

#[path = "../ctx.rs"]
#[allow(dead_code, reason = "the data path uses the rest")]
mod ctx;
mod decap;
mod floors;
mod harness;
mod maps;
#[path = "../opaque.rs"]
mod opaque;
mod textbook;
mod textbook_nat;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in the programs panics; the verifier would refuse this loop if anything reached it.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
