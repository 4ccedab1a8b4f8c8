//! Marks between the steps of the short way, where the bench can end packets to see what each step costs.
//! Without the feature `steps` there are none.

/// Ends the packet's way here, with the values computed, where the program was loaded so.
macro_rules! step {
    ($step:ident $(, $value:expr)*) => {
        #[cfg(feature = "steps")]
        {
            $($crate::steps::kept($value as usize);)*
            if $crate::steps::is_last(lb_common::bench::Step::$step) {
                return lb_common::verdict::Verdict::transmit(lb_common::verdict::Reason::ToBackend);
            }
        }
    };
}

#[cfg(feature = "steps")]
pub use marks::{is_last, kept};

#[cfg(feature = "steps")]
mod marks {
    use core::arch::asm;

    use aya_ebpf::Global;
    use lb_common::bench::Step;

    /// A [`Step`].
    #[unsafe(no_mangle)]
    static LAST_STEP: Global<u32> = Global::new(0);

    #[inline(always)]
    pub fn is_last(step: Step) -> bool {
        LAST_STEP.load() == step as u32
    }

    /// The value is computed before this, whoever needs it.
    #[inline(always)]
    pub fn kept(value: usize) {
        // SAFETY: moves a register onto itself.
        unsafe { asm!("{0} = {0}", inout(reg) value => _, options(nostack)) };
    }
}
