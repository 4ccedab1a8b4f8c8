#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
use aya_ebpf::{macros::{btf_map, map, xdp}, btf_maps::Array, programs::XdpContext, bindings::xdp_action};
use core::arch::asm;

#[repr(C)]
pub struct Bucket { pub words: [u64; 8] }

#[btf_map]
static FLOWS: Array<Bucket, 1024, 1024> = Array::new();

#[inline(always)]
unsafe fn cas(p: *mut u64, old: u64, new: u64) -> u64 {
    let seen: u64;
    unsafe { asm!("r0 = cmpxchg_64({p} + 0, r0, {new})", p = in(reg) p, new = in(reg) new, inout("r0") old => seen); }
    seen
}
#[inline(always)]
unsafe fn fetch_or(p: *mut u64, bits: u64) -> u64 {
    let mut v = bits;
    unsafe { asm!("{v} = atomic_fetch_or((u64 *)({p} + 0), {v})", p = in(reg) p, v = inout(reg) v); }
    v
}

#[xdp]
pub fn lb(ctx: XdpContext) -> u32 {
    let i = (ctx.data_end() - ctx.data()) as u32 & 1023;
    if let Some(b) = FLOWS.get_ptr_mut(i) {
        let p = unsafe { core::ptr::addr_of_mut!((*b).words[(i & 7) as usize]) };
        let old = unsafe { core::ptr::read_volatile(p) };
        let seen = unsafe { cas(p, old, old + 1) };
        let f = unsafe { fetch_or(p, 1 << 40) };
        if seen == old && f & 1 == 0 { return xdp_action::XDP_TX; }
    }
    xdp_action::XDP_PASS
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { loop {} }
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
