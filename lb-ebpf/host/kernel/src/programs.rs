//! The context of an XDP program.

use core::ffi::c_void;

use crate::{EbpfContext, bindings::xdp_md};

pub struct XdpContext {
    pub ctx: *mut xdp_md,
}

impl XdpContext {
    pub const fn new(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[inline]
    pub fn data(&self) -> usize {
        // SAFETY: the machine starts programs with its own context.
        unsafe { (*self.ctx).data as usize }
    }

    #[inline]
    pub fn data_end(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.ctx).data_end as usize }
    }

    #[inline]
    pub fn ingress_ifindex(&self) -> usize {
        // SAFETY: as above.
        unsafe { (*self.ctx).ingress_ifindex as usize }
    }
}

impl EbpfContext for XdpContext {
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.cast()
    }
}
