//! The agent's writer is killed (SIGKILL) at random points of its writes, again and again, while packets of an
//! established flow come in: no packet meets half a service, no counter falls, and the next writer brings the
//! maps to what they should be.
//!
//! `LB_KILLS` sets how often; the default is a few hundred times.

use std::{
    env,
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lb_common::{
    abi::Protocol,
    flow::{TCP_ACK, TCP_SYN},
    verdict::Reason,
};
use lb_userspace::{
    config::Config,
    core::{Core, Input, OperatorLayer, ProbeOutcome, reconcile::Reconciler},
    dataplane::{Dataplane as _, kernel::KernelDataplane},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{
    lab::{Lab, Side, client, from_client, lab, packet, vip},
    reconcile::config_of,
};

const KILLS: u32 = 300;
/// Where a writer finds the maps, and what its random changes follow from. A test that is started with them is one.
const WRITE_TO: &str = "LB_TEST_WRITE_TO";
const SEED: &str = "LB_TEST_SEED";
const LASTING: u16 = 30_000;

/// What a killed process was doing: publishing one configuration after the other, as fast as it can.
fn write_for_ever(pin_dir: &Path, seed: u64) -> ! {
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = KernelDataplane::open(pin_dir).expect("the maps open");
    loop {
        let mut core = begin(&mut data, &mut random);
        let mut reconciler = Reconciler::new();
        for step in 1..50 {
            let now = Duration::from_secs(step);
            let config = config_of(&mut random, true);
            core.handle(Input::Config(Arc::new(config)), now);
            probe(&mut core, now);
            let desired = core.desired().clone();
            let report = reconciler.step_touched(&mut data, &desired, core.touched()).expect("the maps are written");
            core.handle(Input::Published { generation: report.generation }, now);
        }
    }
}

fn begin(data: &mut KernelDataplane, random: &mut StdRng) -> Core {
    core_of(data, config_of(random, true))
}

fn core_of(data: &mut KernelDataplane, config: Config) -> Core {
    let read = data.read().expect("the maps are read");
    let mut core = Core::new(Arc::new(config), OperatorLayer::default(), &read, Duration::ZERO);
    probe(&mut core, Duration::ZERO);
    core
}

/// Backends come and go, and change their tiers and weights; those that are there answer.
fn probe(core: &mut Core, now: Duration) {
    for key in core.probes() {
        core.handle(Input::Probe { key, outcome: ProbeOutcome::new(true, "L4", Duration::ZERO) }, now);
    }
}

/// Killed when dropped.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn writer(pin_dir: &Path, seed: u64) -> Writer {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "killed::a_writer_that_is_killed_at_random_points_leaves_a_whole_service", "--nocapture"])
        .env(WRITE_TO, pin_dir)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Writer(command.spawn().unwrap())
}

/// Where a packet to the service goes.
fn send(lab: &mut Lab, port: u16, flags: u8) -> Option<IpAddr> {
    let packet = packet((client(true), port).into(), (vip(true), 80).into(), 64, Protocol::Tcp, flags);
    let (exit, out) = lab.run(Side::Front, &from_client(&packet));
    (exit == "redirect").then(|| IpAddr::from([out[30], out[31], out[32], out[33]]))
}

#[test]
fn a_writer_that_is_killed_at_random_points_leaves_a_whole_service() {
    if let (Ok(pin_dir), Ok(seed)) = (env::var(WRITE_TO), env::var(SEED)) {
        write_for_ever(Path::new(&pin_dir), seed.parse().unwrap());
    }
    let kills = env::var("LB_KILLS").map_or(KILLS, |count| count.parse().expect("LB_KILLS is a number"));
    lab(move |lab| {
        let mut random = StdRng::seed_from_u64(7);
        let pin_dir = lab.pin_dir().to_owned();
        // The established flow is on the one backend that is always there.
        let mut alone = config_of(&mut random, true);
        alone.services[0].backends.truncate(1);
        let core = core_of(&mut lab.data, alone);
        publish(lab, core);
        let home = send(lab, LASTING, TCP_SYN).expect("a flow begins");
        let counter = |lab: &Lab| lab.stats().verdicts().unwrap()[&Reason::ToBackend];
        let (mut last, mut generations, mut moved) = (counter(lab), 0, 0);
        for kill in 0..kills {
            let before = lab.data.read().unwrap().generation;
            let mut child = writer(&pin_dir, u64::from(kill));
            // From when it has begun to write, up to some dozen changes.
            let began = Instant::now();
            while lab.data.read().map_or(before, |tables| tables.generation) == before {
                assert!(began.elapsed() < Duration::from_secs(60), "it does not write");
                assert_eq!(child.0.try_wait().unwrap(), None, "it ended by itself");
                thread::sleep(Duration::from_micros(200));
            }
            let life = Duration::from_micros(random.random_range(0..6000));
            let until = Instant::now() + life;
            let mut packets = 0;
            while Instant::now() < until || packets == 0 {
                assert_eq!(send(lab, LASTING, TCP_ACK), Some(home), "the established flow goes on, kill {kill}");
                packets += 1;
            }
            drop(child);
            assert_eq!(send(lab, LASTING, TCP_ACK), Some(home), "after kill {kill}");
            let now = counter(lab);
            assert!(now.packets > last.packets + packets, "counters fell: {last:?} {now:?}");
            last = now;
            generations += u64::from(lab.data.read().unwrap().generation.wrapping_sub(before));
            if kill % 10 == 0 {
                let core = begin(&mut lab.data, &mut random);
                publish(lab, core);
                assert!(
                    send(lab, 1024 + (kill % 20_000) as u16, TCP_SYN).is_some(),
                    "new flows begin after kill {kill}"
                );
                moved += 1;
            }
        }
        assert!(generations > u64::from(kills), "{generations} changes in {kills} lives");
        assert!(moved > 0);
    });
}

/// What the next agent does with what it finds.
fn publish(lab: &mut Lab, mut core: Core) {
    let desired = core.desired().clone();
    let report = Reconciler::new().step_touched(&mut lab.data, &desired, core.touched()).expect("the maps are written");
    core.handle(Input::Published { generation: report.generation }, Duration::ZERO);
    assert_eq!(lab.data.read().unwrap(), desired, "what was left half done is mended");
}
