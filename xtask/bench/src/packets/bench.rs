//! A setting under test, in the product and in the textbook balancer: their tables hold the same flows
//! and are sent the same streams.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lb_common::{
    abi::{Mode, Protocol},
    bench::{STREAM_FLOWS, Step, Stream, StreamFlow, WINDOW},
};
use lb_userspace::dataplane::kernel::ifindex;

use super::{
    lab,
    lane::{Lane, Which},
    object::{Capacity, Harness, Object, Ran},
    ours::{Marked, Ours, ProgramSize},
    rows::Case,
    setting::{FLOWS, Setting},
    stream::{self, ACK, Order, Renewal, SYN},
    textbook,
};

/// Flows of a stream in their order, shared by the lanes that send them.
pub type Flows = Arc<Vec<StreamFlow>>;

pub struct Bench {
    pub setting: Setting,
    pub object: Object,
    pub ours: Ours,
    pub ifindex: u32,
    ours_fd: ProgramFd,
    textbook_fd: ProgramFd,
    flows: Flows,
    /// How many of the flows are established.
    filled: u32,
    /// How backends answer to those, in the order of arrival.
    ours_replies: Vec<StreamFlow>,
    textbook_replies: Vec<StreamFlow>,
    /// The flows that the harness has now.
    sent_now: Option<Flows>,
}

impl Bench {
    /// Loads everything, in the namespace of [`lab::inside`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(setting: Setting) -> Result<Self> {
        let one_sided = Mode::is_one_sided(setting.mode as u8);
        let room = |wanted: bool, entries: u32| if wanted { entries } else { 1024 };
        let mut object = Object::load(Capacity {
            services: setting.services,
            backends: (setting.services * setting.backends_each()).next_power_of_two(),
            slots: setting.services * setting.table(),
            ..Capacity::flows(room(one_sided, FLOWS), room(!one_sided, 2 * FLOWS))
        })?;
        let mut ours = Ours::load(&setting)?;
        textbook::publish(&mut object, &setting).context("filling the textbook balancer")?;
        let textbook_fd = object.program(if one_sided { "textbook" } else { "textbook_nat" })?;
        Ok(Self {
            setting,
            ours_fd: ours.program()?,
            textbook_fd,
            object,
            ours,
            ifindex: ifindex(lab::INTERFACE)?,
            flows: Arc::new(stream::client_flows(setting.kind.v4, setting.visited)),
            filled: 0,
            ours_replies: Vec::new(),
            textbook_replies: Vec::new(),
            sent_now: None,
        })
    }

    /// # Errors
    /// The kernel tells nothing.
    pub fn program_size(&mut self) -> Result<ProgramSize> {
        self.ours.size()
    }

    /// The programs to compare for a case, ready to be sent its stream: the harness alone, the floor,
    /// ours, and the textbook balancer where there is one.
    ///
    /// # Errors
    /// The kernel refuses, or a flow could not be established.
    pub fn lanes(&mut self, case: Case) -> Result<Vec<Lane>> {
        if let Case::Hit(flows) | Case::Reply(flows) = case {
            self.fill(flows)?;
        }
        let kind = self.setting.kind;
        let harness = if matches!(case, Case::Arp | Case::Fragment) { Harness::Fixed } else { Harness::Run(kind) };
        let (order, flows) = self.order(case);
        let grows = Mode::is_tunnel(self.setting.mode as u8) && !case.passes();
        let textbook_grows = Mode::is_one_sided(self.setting.mode as u8) && !case.passes();
        let floor = match (case.passes(), grows, kind.v4) {
            (true, _, _) => "floor_pass",
            (false, false, _) => "floor_tx",
            (false, true, true) => "floor_ipip_v4",
            (false, true, false) => "floor_ipip_v6",
        };
        let mut lanes = Vec::new();
        let mut lane = |which, program, flows: &Flows, order: &Order, grows| {
            lanes.push(Lane::new(which, program, harness, flows.clone(), order, grows));
        };
        lane(Which::Harness, self.object.program("floor_pass")?, &flows, &order, false);
        if grows || textbook_grows {
            let program = if kind.v4 { "floor_grow_v4" } else { "floor_grow_v6" };
            lane(Which::Grow, self.object.program(program)?, &flows, &order, true);
        }
        lane(Which::Floor, self.object.program(floor)?, &flows, &order, grows);
        let reply = matches!(case, Case::Reply(_));
        let replies = |replies: &[StreamFlow]| {
            let mut replies = replies.to_vec();
            stream::shuffle(&mut replies);
            Arc::new(replies)
        };
        let own = if reply { replies(&self.ours_replies) } else { flows.clone() };
        lane(Which::Ours, self.ours_fd.try_clone()?, &own, &order, grows);
        // Fragments are nothing that it knows.
        if case != Case::Fragment {
            let own = if reply { replies(&self.textbook_replies) } else { flows.clone() };
            lane(Which::Textbook, self.textbook_fd.try_clone()?, &own, &order, textbook_grows);
        }
        Ok(lanes)
    }

    /// The lane of one established flow for our data path up to a step.
    ///
    /// # Errors
    /// The program is not loaded.
    pub fn step_lane(&self, step: Step, marked: &mut Marked) -> Result<Lane> {
        let (order, flows) = self.order(Case::Hit(1));
        let grows = Mode::is_tunnel(self.setting.mode as u8) && step >= Step::Room;
        let harness = Harness::Run(self.setting.kind);
        Ok(Lane::new(Which::Step(step), marked.program()?, harness, flows, &order, grows))
    }

    fn order(&self, case: Case) -> (Order, Flows) {
        let kind = self.setting.kind;
        let requests = |flags| stream::requests(kind, flags);
        let flows = case.flows();
        match case {
            Case::Hit(_) => (Order::of(&requests(ACK), flows, Renewal::None), self.flows.clone()),
            Case::Reply(_) => {
                let template = stream::replies(kind, ACK, self.reply_destination());
                (Order::of(&template, flows, Renewal::None), Arc::new(self.ours_replies.clone()))
            }
            Case::New => (Order::of(&requests(SYN), flows, Renewal::Ports), self.flows.clone()),
            Case::Flood => {
                let flows_of = Arc::new(stream::flood_flows(kind.v4));
                (Order::of(&requests(SYN), flows, Renewal::Sources), flows_of)
            }
            Case::NotService => {
                let template = stream::strangers(kind);
                (Order::of(&template, flows, Renewal::None), Arc::new(stream::stranger_flows()))
            }
            Case::Arp => (stream::arp(), Arc::default()),
            Case::Fragment => (stream::fragment(kind.v4), Arc::default()),
        }
    }

    /// Where backends send their replies, but for the last bytes.
    fn reply_destination(&self) -> IpAddr {
        let v4 = self.setting.kind.v4;
        if self.setting.mode == Mode::FullNat { lab::source(v4) } else { lab::client(v4, 0) }
    }

    /// Sends so many windows of a lane's stream, from where it has come to.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn turn(&mut self, lane: &mut Lane, windows: u32) -> Result<Ran> {
        self.prepare(&lane.program, &lane.flows)?;
        self.object.set_stream(&lane.stream);
        let ran = self.object.run(lane.harness, self.ifindex, windows * WINDOW + 1)?;
        lane.stream = Stream { sent: 0, ..self.object.stream() };
        Ok(ran)
    }

    /// Hands flows to the harness, for streams that are set by hand.
    pub fn send_flows(&mut self, flows: &Flows) {
        self.object.set_flows(flows);
        self.sent_now = Some(flows.clone());
    }

    /// The next frame of a lane's stream as its program leaves it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn next_frame(&mut self, lane: &mut Lane) -> Result<(Ran, Vec<u8>)> {
        self.prepare(&lane.program, &lane.flows)?;
        self.object.set_stream(&lane.stream);
        let out = self.object.one(lane.harness, self.ifindex)?;
        lane.stream = Stream { sent: 0, ..self.object.stream() };
        Ok(out)
    }

    /// Establishes flows up to this number: what their clients send first, what backends answer, and
    /// what the clients send then.
    fn fill(&mut self, upto: u32) -> Result<()> {
        let upto = upto.min(STREAM_FLOWS as u32);
        if upto <= self.filled {
            return Ok(());
        }
        let mut flows = self.flows[self.filled as usize..upto as usize].to_vec();
        // Another order than the one that is measured.
        flows.sort_by_key(|flow| (flow.source_port, flow.source));
        let flows = Arc::new(flows);
        let seen = self.establish(&self.ours_fd.try_clone()?, &flows).context("our data path")?;
        self.ours_replies.extend(seen);
        let seen = self.establish(&self.textbook_fd.try_clone()?, &flows).context("the textbook balancer")?;
        self.textbook_replies.extend(seen);
        self.filled = upto;
        Ok(())
    }

    /// Gives what backends answer.
    fn establish(&mut self, program: &ProgramFd, flows: &Flows) -> Result<Vec<StreamFlow>> {
        let (kind, count) = (self.setting.kind, flows.len() as u32);
        // One more: what has become of a frame is noted when the next one comes. It is another flow's, because
        // a SYN that comes again is sent to another backend.
        let first = Order::of(&stream::requests(kind, SYN), count, Renewal::Ports);
        self.stream(program, flows, &first, Harness::Capture(kind), count + 1)?;
        let mut replies = Vec::new();
        if !Mode::is_one_sided(self.setting.mode as u8) {
            replies = stream::reply_flows(&self.object.seen(count));
            let template = stream::replies(kind, SYN | ACK, self.reply_destination());
            let answers = Order::of(&template, count, Renewal::None);
            self.stream(program, &Arc::new(replies.clone()), &answers, Harness::Run(kind), count)?;
        }
        if kind.protocol == Protocol::Tcp {
            let second = Order::of(&stream::requests(kind, ACK), count, Renewal::None);
            self.stream(program, flows, &second, Harness::Run(kind), count)?;
        }
        Ok(replies)
    }

    fn stream(
        &mut self,
        program: &ProgramFd,
        flows: &Flows,
        order: &Order,
        harness: Harness,
        repeats: u32,
    ) -> Result<()> {
        self.prepare(program, flows)?;
        self.object.set_stream(&order.begin(0));
        let ran = self.object.run(harness, self.ifindex, repeats)?;
        // XDP_TX or XDP_REDIRECT.
        ensure!(
            matches!(ran.action, 3 | 4),
            "a flow could not be established: its packet ended with action {}",
            ran.action
        );
        Ok(())
    }

    fn prepare(&mut self, program: &ProgramFd, flows: &Flows) -> Result<()> {
        self.object.aim(program)?;
        if !self.sent_now.as_ref().is_some_and(|now| Arc::ptr_eq(now, flows)) {
            self.send_flows(flows);
        }
        Ok(())
    }
}
