//! The kernel's helpers as the program calls them. What the kernel refuses is refused here.

#[expect(clippy::missing_safety_doc, reason = "as in the kernel's own list of helpers")]
pub mod generated {
    use core::{ffi::c_void, ptr::null_mut, slice::from_raw_parts};

    use crate::{
        bindings::{bpf_fib_lookup as FibLookup, bpf_sock, bpf_sock_tuple, xdp_action, xdp_md},
        machine::{State, with},
    };

    const EINVAL: i64 = -22;
    /// The kernel leaves no frame shorter than a link-layer header.
    const ETHERNET: usize = 14;
    /// Bytes that `bpf_csum_diff` takes at once.
    const SUMMED_MAX: u32 = 512;

    pub unsafe fn bpf_ktime_get_coarse_ns() -> u64 {
        with(|state| state.coarse_ns.get())
    }

    /// Of a kernel with HZ=250.
    pub unsafe fn bpf_jiffies64() -> u64 {
        with(|state| state.coarse_ns.get()) / 4_000_000
    }

    pub unsafe fn bpf_ktime_get_ns() -> u64 {
        with(|state| state.fine_ns.get())
    }

    pub unsafe fn bpf_get_prandom_u32() -> u32 {
        with(State::random)
    }

    pub unsafe fn bpf_get_smp_processor_id() -> u32 {
        with(|state| state.cpu.get())
    }

    pub unsafe fn bpf_redirect(ifindex: u32, flags: u64) -> i64 {
        assert_eq!(flags, 0, "the program asks for nothing special");
        with(|state| state.redirect.set(ifindex));
        i64::from(xdp_action::XDP_REDIRECT)
    }

    pub unsafe fn bpf_xdp_get_buff_len(_: *mut xdp_md) -> u64 {
        with(|state| (state.linear().len() + state.rest.borrow().len()) as u64)
    }

    pub unsafe fn bpf_xdp_adjust_head(_: *mut xdp_md, delta: i32) -> i64 {
        with(|state| {
            let (grown, len) = (-(delta as isize), state.linear().len());
            let (headroom, new_len) = (state.headroom.get().checked_add_signed(-grown), len.checked_add_signed(grown));
            match (headroom, new_len) {
                (Some(headroom), Some(new_len)) if new_len >= ETHERNET => {
                    state.resize(grown, new_len);
                    state.headroom.set(headroom);
                    0
                }
                _ => EINVAL,
            }
        })
    }

    pub unsafe fn bpf_xdp_adjust_tail(_: *mut xdp_md, delta: i32) -> i64 {
        with(|state| {
            let (linear, rest) = (state.linear().len(), state.rest.borrow().len());
            if delta > 0 {
                assert_eq!(rest, 0, "the program grows no frame of several buffers");
                if delta as usize > state.tailroom() {
                    return EINVAL;
                }
                state.resize(0, linear + delta as usize);
                return 0;
            }
            let cut = delta.unsigned_abs() as usize;
            if linear + rest < cut + ETHERNET {
                return EINVAL;
            }
            state.rest.borrow_mut().truncate(rest.saturating_sub(cut));
            if cut > rest {
                state.resize(0, linear - (cut - rest));
            }
            0
        })
    }

    pub unsafe fn bpf_xdp_load_bytes(_: *mut xdp_md, offset: u32, to: *mut c_void, len: u32) -> i64 {
        let (offset, len) = (offset as usize, len as usize);
        with(|state| {
            let whole = [&*state.linear(), &state.rest.borrow()[..]].concat();
            let Some(bytes) = whole.get(offset..offset + len) else { return EINVAL };
            // SAFETY: the caller vouches for the place.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.cast(), len) };
            0
        })
    }

    pub unsafe fn bpf_xdp_store_bytes(_: *mut xdp_md, offset: u32, from: *mut c_void, len: u32) -> i64 {
        let (offset, len) = (offset as usize, len as usize);
        // SAFETY: the caller vouches for the place.
        let bytes = unsafe { from_raw_parts(from.cast::<u8>(), len) };
        with(|state| {
            let linear = state.linear();
            let mut rest = state.rest.borrow_mut();
            if offset + len > linear.len() + rest.len() {
                return EINVAL;
            }
            for (at, byte) in (offset..).zip(bytes) {
                match at.checked_sub(linear.len()) {
                    None => linear[at] = *byte,
                    Some(at) => rest[at] = *byte,
                }
            }
            0
        })
    }

    pub unsafe fn bpf_csum_diff(from: *mut u32, from_size: u32, to: *mut u32, to_size: u32, seed: u32) -> i64 {
        assert!(from.is_null() && from_size == 0, "the program subtracts nothing");
        if !to_size.is_multiple_of(4) || to_size > SUMMED_MAX {
            return EINVAL;
        }
        // SAFETY: the caller vouches for the place.
        let bytes = unsafe { from_raw_parts(to.cast::<u8>(), to_size as usize) };
        let words = bytes.as_chunks::<4>().0.iter().map(|word| u64::from(u32::from_ne_bytes(*word)));
        let mut sum = u64::from(seed) + words.sum::<u64>();
        while sum >> 32 != 0 {
            sum = (sum & 0xffff_ffff) + (sum >> 32);
        }
        sum as i64
    }

    pub unsafe fn bpf_fib_lookup(_: *mut c_void, params: *mut FibLookup, len: i32, flags: u32) -> i64 {
        assert_eq!((len as usize, flags), (size_of::<FibLookup>(), 0));
        let routes = with(|state| state.routes.borrow().clone()).expect("somebody has set the routes");
        // SAFETY: the caller vouches for the place.
        routes(unsafe { &mut *params })
    }

    /// This host has no sockets.
    pub unsafe fn bpf_skc_lookup_tcp(_: *mut c_void, _: *mut bpf_sock_tuple, _: u32, _: u64, _: u64) -> *mut bpf_sock {
        null_mut()
    }

    /// As [`bpf_skc_lookup_tcp`].
    pub unsafe fn bpf_sk_lookup_udp(_: *mut c_void, _: *mut bpf_sock_tuple, _: u32, _: u64, _: u64) -> *mut bpf_sock {
        null_mut()
    }

    pub unsafe fn bpf_sk_release(_: *mut c_void) -> i64 {
        panic!("there is no socket to release")
    }
}
