//! The programs of the bench in the kernel: the harness, and what runs under it besides the product.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun as _,
    maps::{Array, MapData, PerCpuArray, ProgramArray},
    programs::{ProgramError, ProgramFd, TestRunAttrs, TestRunOptions, Xdp},
};
use lb_common::{
    abi::DirectionCounters,
    bench::{FRAME_BYTES, Stream, StreamFlow, WINDOW, WINDOWS, names},
};
use lb_userspace::dataplane::kernel::SharedArray;

use super::stream::Kind;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-bench"));

/// Programs that the harness can call.
pub const PROGRAMS: [&str; 8] = [
    "floor_pass",
    "floor_tx",
    "floor_grow_v4",
    "floor_grow_v6",
    "floor_ipip_v4",
    "floor_ipip_v6",
    "textbook",
    "textbook_nat",
];

/// Live frames on their way at a time, as a driver's poll hands them on.
const LIVE_BATCH: u32 = 64;

/// Which program brings the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harness {
    /// A frame per flow.
    Run(Kind),
    /// The same, and notes what became of each.
    Capture(Kind),
    /// One frame.
    Fixed,
}

impl Harness {
    fn program(self) -> String {
        match self {
            Self::Run(kind) => format!("run_{}", kind.name()),
            Self::Capture(kind) => format!("capture_{}", kind.name()),
            Self::Fixed => "run_fixed".to_owned(),
        }
    }
}

/// What became of a number of frames.
#[derive(Clone, Debug)]
pub struct Ran {
    pub packets: u32,
    /// Nanoseconds a packet, by window.
    pub windows: Vec<f64>,
    /// By the kernel, over the whole call: whole nanoseconds a packet, rounded down.
    pub kernel_ns: u64,
    /// The last packet's `enum xdp_action`.
    pub action: u32,
}

/// Room in the textbook balancer's tables. The kernel's LRU hash takes all its memory at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    pub services: u32,
    pub backends: u32,
    /// Of all Maglev tables together.
    pub slots: u32,
    pub flows: u32,
    /// Of entries: two a flow.
    pub nat: u32,
}

impl Capacity {
    /// Of one service, with room for flows in either table.
    pub const fn flows(flows: u32, nat: u32) -> Self {
        Self { services: 1, backends: 4096, slots: 65_537, flows, nat }
    }
}

/// The loaded programs.
pub struct Object {
    ebpf: Ebpf,
    target: ProgramArray<MapData>,
    stream: SharedArray<Stream>,
    flows: SharedArray<StreamFlow>,
    seen: SharedArray<StreamFlow>,
    times: SharedArray<u64>,
}

impl Object {
    /// # Errors
    /// The kernel or its verifier refuses.
    pub fn load(capacity: Capacity) -> Result<Self> {
        ensure!(!OBJECT.is_empty(), "this binary was built without its eBPF programs: AYA_BUILD_SKIP was set");
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(names::TEXTBOOK_FLOWS, capacity.flows)
            .map_max_entries(names::TEXTBOOK_NAT, capacity.nat)
            .map_max_entries(names::TEXTBOOK_VIPS, capacity.services)
            .map_max_entries(names::TEXTBOOK_VIP_STATS, capacity.services)
            .map_max_entries(names::TEXTBOOK_BACKENDS, capacity.backends)
            .map_max_entries(names::TEXTBOOK_REAL_STATS, capacity.backends)
            .map_max_entries(names::TEXTBOOK_RING, capacity.slots);
        let mut ebpf = loader.load(OBJECT).context("making the maps of the bench")?;
        let target = ebpf.take_map(names::TARGET).context("the bench has no program array")?;
        Ok(Self {
            target: ProgramArray::try_from(target)?,
            stream: shared(&ebpf, names::STREAM)?,
            flows: shared(&ebpf, names::FLOWS)?,
            seen: shared(&ebpf, names::SEEN)?,
            times: shared(&ebpf, names::TIMES)?,
            ebpf,
        })
    }

    /// A program of the bench, to be put under test.
    ///
    /// # Errors
    /// The verifier refuses it.
    pub fn program(&mut self, name: &str) -> Result<ProgramFd> {
        let program = loaded(&mut self.ebpf, name)?;
        Ok(program.fd()?.try_clone()?)
    }

    /// The program itself, to be attached.
    ///
    /// # Errors
    /// As [`Self::program`].
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        loaded(&mut self.ebpf, name)
    }

    /// Puts a program under test.
    ///
    /// # Errors
    /// The kernel's: the program is of another kind.
    pub fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        self.target.set(0, program, 0).context("putting a program under test")
    }

    /// Sets the stream's flows, from the first.
    pub fn set_flows(&self, flows: &[StreamFlow]) {
        for (at, flow) in (0..).zip(flows) {
            self.flows.write(at, flow);
        }
    }

    /// What [`Harness::Capture`] has noted of the first flows.
    pub fn seen(&self, flows: u32) -> Vec<StreamFlow> {
        (0..flows).filter_map(|at| self.seen.read(at)).collect()
    }

    /// Sets the stream.
    pub fn set_stream(&self, stream: &Stream) {
        self.stream.write(0, stream);
    }

    /// Where the stream has come to.
    pub fn stream(&self) -> Stream {
        self.stream.read(0).unwrap_or_else(bytemuck::Zeroable::zeroed)
    }

    /// Sends frames through the program under test, as if they came in by this interface. The stream
    /// must have been set.
    ///
    /// # Errors
    /// The kernel refuses, or the program under test was not reached.
    pub fn run(&mut self, harness: Harness, ifindex: u32, repeats: u32) -> Result<Ran> {
        self.run_into(harness, ifindex, repeats, None)
    }

    /// The same for one frame, and the frame as it came out.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn one(&mut self, harness: Harness, ifindex: u32) -> Result<(Ran, Vec<u8>)> {
        let mut out = Vec::new();
        let ran = self.run_into(harness, ifindex, 1, Some(&mut out))?;
        Ok((ran, out))
    }

    fn run_into(&mut self, harness: Harness, ifindex: u32, repeats: u32, out: Option<&mut Vec<u8>>) -> Result<Ran> {
        let program = loaded(&mut self.ebpf, &harness.program())?;
        let frame = [0u8; FRAME_BYTES];
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(FRAME_BYTES as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let mut buffer = vec![0u8; if out.is_some() { 2048 } else { 0 }];
        let options = TestRunOptions {
            data_in: Some(&frame),
            data_out: out.is_some().then_some(&mut buffer),
            ctx_in: Some(&context),
            repeat: repeats,
            ..TestRunOptions::new()
        };
        let first = self.stream.read(0).context("the stream's state")?.sent;
        ensure!(first == 0 && repeats / WINDOW < WINDOWS, "a stream is measured from its beginning, {repeats} frames");
        let result = program.test_run(options).context("running frames through the program under test")?;
        // XDP_ABORTED: the harness itself ended the frame.
        ensure!(result.return_value != 0, "the harness could not call the program under test");
        if let Some(out) = out {
            buffer.truncate(result.data_size_out as usize);
            *out = buffer;
        }
        let kernel_ns = result.duration.as_nanos() as u64;
        Ok(Ran { packets: repeats, windows: self.windows(repeats), kernel_ns, action: result.return_value })
    }

    /// Whole windows of so many frames.
    fn windows(&self, repeats: u32) -> Vec<f64> {
        let noted: Vec<u64> = (0..repeats.div_ceil(WINDOW)).filter_map(|at| self.times.read(at)).collect();
        noted.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as f64 / f64::from(WINDOW)).collect()
    }

    /// Sends live frames of the stream out of the interface that it names, and waits until all are
    /// gone.
    ///
    /// # Errors
    /// The kernel refuses (live frames need Linux 5.18).
    pub fn generate(&mut self, kind: Kind, ifindex: u32, frames: u32) -> Result<()> {
        let program = loaded(&mut self.ebpf, &format!("generate_{}", kind.name()))?;
        let frame = [0u8; FRAME_BYTES];
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(FRAME_BYTES as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(LIVE_BATCH),
            ..TestRunOptions::new()
        };
        program.test_run(options).context("sending live frames")?;
        Ok(())
    }

    /// Packets that the textbook balancer has sent on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn textbook_sent(&self) -> Result<u64> {
        let map = self.ebpf.map(names::TEXTBOOK_TOTAL).context("the bench has no counters")?;
        let map: PerCpuArray<_, DirectionCounters> = PerCpuArray::try_from(map)?;
        Ok(map.get(&1, 0)?.iter().map(|counters| counters.packets).sum())
    }

    /// The sink's map, for [`super::Sink`].
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn sink_id(&self) -> Result<u32> {
        let Some(aya::maps::Map::PerCpuArray(data)) = self.ebpf.map(names::SINK) else { bail!("there is no sink") };
        Ok(data.info()?.id())
    }

    /// Writes an array of the textbook balancer from its first element.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_array<V: aya::Pod>(&mut self, name: &str, values: &[V]) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the bench has no map {name}"))?;
        let mut map: Array<_, V> = Array::try_from(map)?;
        for (at, value) in (0..).zip(values) {
            map.set(at, value, 0).with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    }

    /// Writes an entry of a hash map of the textbook balancer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn write_hash<K: aya::Pod, V: aya::Pod>(&mut self, name: &str, key: K, value: V) -> Result<()> {
        let map = self.ebpf.map_mut(name).with_context(|| format!("the bench has no map {name}"))?;
        let mut map: aya::maps::HashMap<_, K, V> = aya::maps::HashMap::try_from(map)?;
        map.insert(key, value, 0).with_context(|| format!("writing {name}"))
    }
}

/// The program, loaded when it is first asked for.
fn loaded<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program: &mut Xdp =
        ebpf.program_mut(name).with_context(|| format!("the bench has no program {name}"))?.try_into()?;
    if program.fd().is_err() {
        program.load().map_err(|error| match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                anyhow!(io_error).context(format!("the kernel refused {name}:\n{verifier_log}"))
            }
            other => anyhow!(other).context(format!("loading {name}")),
        })?;
    }
    Ok(program)
}

fn shared<T: bytemuck::Pod>(ebpf: &Ebpf, name: &str) -> Result<SharedArray<T>> {
    let Some(aya::maps::Map::Array(data)) = ebpf.map(name) else { bail!("the bench has no array {name}") };
    SharedArray::map(data).with_context(|| format!("mapping {name} into memory"))
}
