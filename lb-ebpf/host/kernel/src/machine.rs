//! The one CPU that programs run on: its frame, its clocks, its dice.

use core::{
    cell::{Cell, RefCell},
    marker::PhantomData,
    ptr::null_mut,
};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{
    bindings::{bpf_fib_lookup, xdp_action, xdp_md},
    btf_maps,
};

/// A program as `#[xdp]` makes it.
pub type Program = fn(*mut xdp_md) -> u32;
/// Answers `bpf_fib_lookup`.
pub type Routes = std::rc::Rc<dyn Fn(&mut bpf_fib_lookup) -> i64>;

/// The kernel's headroom of a test run, less what it keeps for itself (`struct xdp_frame`).
pub(crate) const HEADROOM: usize = 256 - 40;
/// What a frame's first buffer has room for behind the headroom: a page less `struct skb_shared_info`.
const ROOM: usize = 4096 - 320 - 256;
const PAGE: usize = 4096;
/// Stands in the headroom, where no program has anything to write before it has asked for it.
const CANARY: u8 = 0xc5;
/// Tail calls before the kernel follows no more.
const TAIL_CALLS: u32 = 33;

/// The machine. There is one, and who has it runs programs alone.
pub struct Machine {
    _only: MutexGuard<'static, ()>,
    /// State is the thread's.
    _here: PhantomData<*const ()>,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// An `xdp_action`.
    pub action: u32,
    pub frame: Vec<u8>,
    /// With `XDP_REDIRECT`: the interface.
    pub ifindex: u32,
}

/// The end of a program that has handed its packet to another one: it is unwound to where it began.
pub struct TailCall(pub(crate) u32);

thread_local! {
    static STATE: State = State::new();
}

pub(crate) struct State {
    md: *mut xdp_md,
    /// First byte that the frame can begin at, and the end of memory.
    floor: usize,
    end: usize,
    /// Bytes before the frame that it can grow by.
    pub(crate) headroom: Cell<usize>,
    /// What does not lie in the frame's first buffer.
    pub(crate) rest: RefCell<Vec<u8>>,
    pub(crate) coarse_ns: Cell<u64>,
    pub(crate) fine_ns: Cell<u64>,
    pub(crate) cpu: Cell<u32>,
    random: Cell<u64>,
    thrown: Cell<Option<u32>>,
    pub(crate) redirect: Cell<u32>,
    pub(crate) routes: RefCell<Option<Routes>>,
}

/// What helpers see.
pub(crate) fn with<T>(see: impl FnOnce(&State) -> T) -> T {
    STATE.with(see)
}

impl Machine {
    /// Waits until nobody else has it. Every map is empty.
    pub fn new() -> Self {
        static ONLY: Mutex<()> = Mutex::new(());
        // Who failed with it has left nothing that the next one sees.
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = Self { _only: only, _here: PhantomData };
        btf_maps::clear_all();
        with(|state| state.random.set(0x9e37_79b9_7f4a_7c15));
        machine
    }

    /// Sets both clocks; in nanoseconds.
    pub fn set_time(&mut self, ns: u64) {
        with(|state| {
            state.coarse_ns.set(ns);
            state.fine_ns.set(ns);
        });
    }

    pub fn set_cpu(&mut self, cpu: u32) {
        with(|state| state.cpu.set(cpu));
    }

    pub fn set_routes(&mut self, routes: Routes) {
        with(|state| *state.routes.borrow_mut() = Some(routes));
    }

    /// What the dice show from now on; `None`: they roll.
    pub fn set_random(&mut self, next: Option<u32>) {
        with(|state| state.thrown.set(next));
    }

    /// Runs a program, and those that it hands the packet to, on a frame of which the first buffer holds
    /// `first` bytes. `find` gives the program behind an index that is called.
    ///
    /// # Panics
    /// When the frame does not fit, or the program has written where it may not.
    pub fn run(
        &mut self,
        program: Program,
        find: impl Fn(u32) -> Option<Program>,
        ifindex: u32,
        frame: &[u8],
        first: usize,
    ) -> Output {
        let md = with(|state| state.load(frame, first, ifindex));
        let action = follow(program, find, md);
        with(|state| state.take(action))
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

fn follow(mut program: Program, find: impl Fn(u32) -> Option<Program>, md: *mut xdp_md) -> u32 {
    for _ in 0..=TAIL_CALLS {
        match std::panic::catch_unwind(|| program(md)) {
            Ok(action) => return action,
            Err(end) => match end.downcast::<TailCall>() {
                Ok(call) => program = find(call.0).unwrap_or_else(|| panic!("there is no program {}", call.0)),
                Err(panic) => std::panic::resume_unwind(panic),
            },
        }
    }
    panic!("more than {TAIL_CALLS} tail calls");
}

impl State {
    fn new() -> Self {
        let bytes = HEADROOM + ROOM;
        let inner = bytes.next_multiple_of(PAGE);
        // Addresses of frames have 32 bits in the context; a page without access on either side.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT;
        // SAFETY: new memory, which stays for as long as the process runs.
        let start = unsafe {
            let start = libc::mmap(null_mut(), inner + 2 * PAGE, libc::PROT_NONE, flags, -1, 0);
            assert!(start != libc::MAP_FAILED, "memory below 4 GiB");
            let refused = libc::mprotect(start.byte_add(PAGE), inner, libc::PROT_READ | libc::PROT_WRITE);
            assert_eq!(refused, 0, "memory");
            start as usize + PAGE
        };
        let md = Box::leak(Box::new(xdp_md {
            data: 0,
            data_end: 0,
            data_meta: 0,
            ingress_ifindex: 0,
            rx_queue_index: 0,
            egress_ifindex: 0,
        }));
        Self {
            md,
            floor: start,
            end: start + inner,
            headroom: Cell::new(0),
            rest: RefCell::default(),
            coarse_ns: Cell::new(0),
            fine_ns: Cell::new(0),
            cpu: Cell::new(0),
            random: Cell::new(1),
            thrown: Cell::new(None),
            redirect: Cell::new(0),
            routes: RefCell::new(None),
        }
    }

    fn load(&self, frame: &[u8], first: usize, ifindex: u32) -> *mut xdp_md {
        assert!(first <= ROOM, "{first} bytes in a first buffer of {ROOM}");
        // SAFETY: the machine's own memory; the first buffer fits.
        unsafe {
            std::slice::from_raw_parts_mut(self.floor as *mut u8, self.end - self.floor).fill(CANARY);
            self.place(&frame[..first]);
            (*self.md).ingress_ifindex = ifindex;
        }
        self.headroom.set(HEADROOM);
        *self.rest.borrow_mut() = frame[first..].to_vec();
        self.md
    }

    /// Puts the first buffer where memory ends.
    fn place(&self, bytes: &[u8]) {
        let start = self.end - bytes.len();
        // SAFETY: as in `load`; the source may be the frame itself, at another place.
        unsafe {
            core::ptr::copy(bytes.as_ptr(), start as *mut u8, bytes.len());
            (*self.md).data = start as u32;
            (*self.md).data_end = self.end as u32;
            (*self.md).data_meta = start as u32;
        }
    }

    /// The bytes of the first buffer.
    #[expect(clippy::mut_from_ref, reason = "the memory is not the state's own, and one thread uses it")]
    pub(crate) fn linear(&self) -> &mut [u8] {
        // SAFETY: the machine's own memory; helpers use one such slice at a time, and programs none.
        unsafe {
            let start = (*self.md).data as usize;
            std::slice::from_raw_parts_mut(start as *mut u8, self.end - start)
        }
    }

    /// Makes the first buffer one of so many bytes, which begins with `grown` new ones where that is
    /// positive, and without so many where it is negative.
    pub(crate) fn resize(&self, grown: isize, len: usize) {
        self.assert_canary();
        let old = self.linear().to_vec();
        let mut bytes = match grown {
            0.. => [vec![CANARY; grown as usize], old].concat(),
            _ => old[grown.unsigned_abs()..].to_vec(),
        };
        bytes.resize(len, 0);
        // SAFETY: as in `load`. What was the frame is headroom again.
        unsafe { std::slice::from_raw_parts_mut(self.floor as *mut u8, self.end - self.floor).fill(CANARY) };
        self.place(&bytes);
    }

    fn assert_canary(&self) {
        let start = self.end - self.linear().len();
        // SAFETY: as in `load`.
        let headroom = unsafe { std::slice::from_raw_parts(self.floor as *const u8, start - self.floor) };
        assert!(headroom.iter().all(|byte| *byte == CANARY), "something was written before the frame's start");
    }

    fn take(&self, action: u32) -> Output {
        self.assert_canary();
        let frame = [&*self.linear(), &self.rest.borrow()[..]].concat();
        let ifindex = if action == xdp_action::XDP_REDIRECT { self.redirect.get() } else { 0 };
        Output { action, frame, ifindex }
    }

    /// Bytes that the first buffer can grow by at its end.
    pub(crate) fn tailroom(&self) -> usize {
        (HEADROOM + ROOM).saturating_sub(self.headroom.get() + self.linear().len())
    }

    /// xorshift64* (G. Marsaglia, "Xorshift RNGs", 2003).
    pub(crate) fn random(&self) -> u32 {
        if let Some(thrown) = self.thrown.get() {
            return thrown;
        }
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}
