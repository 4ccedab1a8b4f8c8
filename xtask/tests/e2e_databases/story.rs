//! What befalls a cluster, one thing after the other, while clients write and read through the balancer.

use std::{
    fs,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use xtask::world::{
    Balancer, Family,
    config::{Config, Health, Service},
};

use super::{
    cluster::{Cluster, PATIENCE},
    load::{self, Statement},
    session::{Dialect, is_lost},
    stage::Stage,
};

const WRITERS: u64 = 2;
/// What the story needs of ordinary days between its events.
const QUIET: Duration = Duration::from_millis(700);
/// Names of the services.
const WRITE: &str = "write";
const READ: &str = "read";

/// The whole story. Panics where clients see what they must not.
pub fn tell(stage: &Stage, cluster: &mut dyn Cluster) {
    let dialect = cluster.dialect();
    let config = |policy: &str| config(stage, cluster, policy).render();
    let configs = ["block", "keep-current", "highest-epoch"].map(config);
    let mut lb = stage.lb_running(&configs[0]);
    let scene = Scene { stage, dialect, configs };
    lb.wait_for_backends(WRITE, &scene.addresses(&[0]), PATIENCE).unwrap();
    lb.wait_for_backends(READ, &scene.addresses(&(1..cluster.servers()).collect::<Vec<_>>()), PATIENCE).unwrap();
    let stop = AtomicBool::new(false);
    let (told, writes, reads) = thread::scope(|scope| {
        let (client, stop) = (&stage.world.client, &stop);
        let _stopped = Stopped(stop);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || load::write(dialect, client, writing(dialect), writer, stop)))
            .collect();
        let reader = scope.spawn(move || load::read(dialect, client, reading(dialect), stop));
        thread::sleep(QUIET);
        let told = scene.everything(&mut lb, cluster);
        stop.store(true, Ordering::Relaxed);
        let writes: Vec<Statement> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
        (told, writes, reader.join().unwrap())
    });
    judge(dialect, cluster.max_lag().1, &told, &writes, &reads);
}

/// Also when the test fails: the scope waits for the clients.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What happened when, for those who judge the clients' records.
struct Told {
    /// The planned switchover: from the freeze to the thaw.
    frozen: Instant,
    thawed: Instant,
    parked: u64,
    /// Who was the primary, in order.
    primaries: Vec<usize>,
    /// While nobody was known to be the primary or a replica of it: readers may be refused.
    unsettled: Vec<Range<Instant>>,
    /// When the last primary was demoted without a warning.
    demoted: Instant,
}

struct Scene<'a> {
    stage: &'a Stage,
    dialect: Dialect,
    /// With `on-multiple-primaries` as `block`, `keep-current` and `highest-epoch`.
    configs: [String; 3],
}

impl Scene<'_> {
    fn everything(&self, lb: &mut Balancer<'_>, cluster: &mut dyn Cluster) -> Told {
        let (frozen, thawed, parked) = self.switchover(lb, cluster);
        thread::sleep(QUIET);
        self.lag(lb, cluster);
        let (dead, killed) = (1, Instant::now());
        cluster.kill(dead);
        let promoted = cluster.fail_over();
        lb.wait_for_backends(WRITE, &self.addresses(&[promoted]), PATIENCE).unwrap();
        let headless = killed..Instant::now();
        thread::sleep(QUIET);
        let blocked = self.split_brain(lb, cluster, promoted, dead);
        thread::sleep(QUIET);
        let demoted = self.demotion(lb, cluster, promoted);
        let unsettled = vec![frozen..thawed, headless, blocked];
        Told { frozen, thawed, parked, primaries: vec![0, 1, promoted], unsettled, demoted }
    }

    /// From the first server to the second: new connections wait, those that are open are reset before the
    /// first one becomes a replica.
    fn switchover(&self, lb: &mut Balancer<'_>, cluster: &mut dyn Cluster) -> (Instant, Instant, u64) {
        let frozen = Instant::now();
        lb.done(&["service", "freeze", WRITE, "--max", "30s"]).unwrap();
        let old = &self.addresses(&[0])[0];
        lb.done(&["backend", "drain", WRITE, old, "--timeout", "1s", "--force"]).unwrap();
        lb.until("the old primary has no connections", PATIENCE, |lb| {
            let last = last_event(lb)?;
            ensure!(last["flows"]["reset"].as_u64() > Some(0) && last["flows"]["left"] == 0, "{last}");
            Ok(())
        })
        .unwrap();
        cluster.hand_over(0, 1);
        lb.done(&["backend", "ready", WRITE, old]).unwrap();
        lb.wait_for_backends(WRITE, &self.addresses(&[1]), PATIENCE).unwrap();
        lb.done(&["service", "thaw", WRITE]).unwrap();
        let thawed = Instant::now();
        let stats = lb.json(&["stats"]).unwrap();
        let verdicts = stats["verdicts"].as_array().unwrap();
        let parked = verdicts.iter().find(|verdict| verdict["reason"] == "parked").unwrap();
        (frozen, thawed, parked["packets"].as_u64().unwrap())
    }

    /// A replica that falls behind takes no new readers, and takes them again when it has caught up.
    fn lag(&self, lb: &mut Balancer<'_>, cluster: &mut dyn Cluster) {
        let replica = if cluster.servers() > 2 { 2 } else { 0 };
        let name = &self.addresses(&[replica])[0];
        let reads = |lb: &Balancer<'_>| -> Result<()> {
            let used = lb.backends_in_use(READ)?;
            ensure!(used.contains(name), "{used:?}");
            Ok(())
        };
        lb.until("a replica gets readers", PATIENCE, reads).unwrap();
        cluster.fall_behind(replica);
        lb.until("a replica that lags gets no readers", PATIENCE, |lb| {
            let used = lb.backends_in_use(READ)?;
            ensure!(!used.contains(name) && !used.is_empty(), "{used:?}");
            Ok(())
        })
        .unwrap();
        cluster.catch_up(replica);
        lb.until("and gets them again", PATIENCE, reads).unwrap();
    }

    /// The one that died comes back and takes writes too: nobody is led to it. Returns for how long nobody
    /// counted as the primary.
    fn split_brain(
        &self,
        lb: &mut Balancer<'_>,
        cluster: &mut dyn Cluster,
        current: usize,
        other: usize,
    ) -> Range<Instant> {
        self.apply(lb, &self.configs[1]);
        cluster.come_back(other);
        until_so_many_claim(lb, 2);
        assert_eq!(lb.backends_in_use(WRITE).unwrap(), self.addresses(&[current]), "it keeps the flows");
        let blocked = Instant::now();
        self.apply(lb, &self.configs[0]);
        lb.wait_for_backends(WRITE, &[], PATIENCE).unwrap();
        let log = fs::read_to_string(self.stage.folder().join("lb.log")).unwrap();
        assert!(log.contains("say that they are the primary"), "it is told loudly:\n{log}");
        let mut refused = self.dialect.open(&self.stage.world.client, writing(self.dialect), Duration::from_secs(2));
        let answer = match &mut refused {
            Ok(session) => session.ask(&self.dialect.write(9 * super::session::OF_WRITER), Duration::from_secs(2)),
            Err(error) => Err(error.clone()),
        };
        assert!(answer.is_err(), "{answer:?}: new connections go to nobody while two say that they are the primary");
        self.apply(lb, &self.configs[2]);
        let ahead: Vec<_> = cluster.is_ahead(current, other).into_iter().collect();
        lb.wait_for_backends(WRITE, &self.addresses(&ahead), PATIENCE).unwrap();
        cluster.kill(other);
        until_so_many_claim(lb, 1);
        lb.wait_for_backends(WRITE, &self.addresses(&[current]), PATIENCE).unwrap();
        let blocked = blocked..Instant::now();
        self.apply(lb, &self.configs[0]);
        blocked
    }

    /// Connections of writers end with the primary's role, also one that says nothing.
    fn demotion(&self, lb: &mut Balancer<'_>, cluster: &mut dyn Cluster, primary: usize) -> Instant {
        let patience = Duration::from_secs(12);
        let mut idle = self.dialect.open(&self.stage.world.client, writing(self.dialect), patience).unwrap();
        let number = 8 * super::session::OF_WRITER;
        idle.ask(&self.dialect.write(number), patience).unwrap();
        let demoted = Instant::now();
        cluster.demote(primary);
        lb.wait_for_backends(WRITE, &[], PATIENCE).unwrap();
        lb.until("the flows are reset", PATIENCE, |lb| {
            let last = last_event(lb)?;
            ensure!(last["cause"] == "demoted" && last["policy"] == "reset" && last["flows"]["left"] == 0, "{last}");
            Ok(())
        })
        .unwrap();
        let error = idle.ask(&self.dialect.write(number + 1), patience).unwrap_err();
        assert!(is_lost(&error), "the connection ends, and the server is not asked any more: {error}");
        demoted
    }

    fn apply(&self, lb: &Balancer<'_>, config: &str) {
        fs::write(lb.config(), config).unwrap();
        lb.done(&["config", "apply", &lb.config().display().to_string()]).unwrap();
    }

    fn addresses(&self, servers: &[usize]) -> Vec<String> {
        let port = self.dialect.port();
        servers.iter().map(|&server| Family::V4.backend_port(server as u8, port).to_string()).collect()
    }
}

/// The receipt of the last failover of the writers' service.
fn last_event(lb: &Balancer<'_>) -> Result<Value> {
    let events = lb.json(&["events", "--service", WRITE])?;
    events["events"].as_array().and_then(|events| events.last().cloned()).context("no receipt")
}

/// Waits until so many say that they are the primary.
fn until_so_many_claim(lb: &Balancer<'_>, count: usize) {
    lb.until(&format!("{count} say that they are the primary"), PATIENCE, |lb| {
        let list = lb.json(&["backend", "list", WRITE])?;
        let backends = list["backends"].as_array().context("no backends")?;
        ensure!(backends.iter().filter(|backend| backend["role"] == "primary").count() == count, "{list}");
        Ok(())
    })
    .unwrap();
}

fn writing(dialect: Dialect) -> std::net::SocketAddr {
    Family::V4.service_port(dialect.port())
}

fn reading(dialect: Dialect) -> std::net::SocketAddr {
    Family::V4.service_port(dialect.port() + 1)
}

fn config(stage: &Stage, cluster: &dyn Cluster, policy: &str) -> Config {
    let port = cluster.dialect().port();
    let health = Health::Other { lines: format!("{}\ninterval = \"300ms\"\ntimeout = \"300ms\"", cluster.check()) };
    let service = |name: &str, port, lines: &[String]| Service {
        name: name.to_owned(),
        port,
        health: health.clone(),
        lines: lines.to_vec(),
        ..Service::tcp(Family::V4, "full-nat", port, (0..cluster.servers() as u8).collect(), cluster.dialect().port())
    };
    let policy = format!("on-multiple-primaries = \"{policy}\"");
    let writes = ["role = \"primary\"".to_owned(), policy.clone()];
    let lag = format!("max-lag = \"{}\"", cluster.max_lag().0);
    let reads = ["role = \"replica\"".to_owned(), lag, "replica-fallback = true".to_owned(), policy];
    Config::new(stage.world.topology, vec![service(WRITE, port, &writes), service(READ, port + 1, &reads)])
}

/// What the clients' records say.
fn judge(dialect: Dialect, max_lag: Duration, told: &Told, writes: &[Statement], reads: &[Statement]) {
    load::assert_one_writer_at_a_time(writes, &told.primaries);
    let errors = load::errors(writes, told.frozen, told.thawed + Duration::from_secs(1));
    assert!(errors.is_empty(), "clients that try again see no error of a planned switchover: {errors:?}");
    let waits = writes.iter().filter(|w| w.begun < told.thawed && w.ended > told.thawed && w.outcome.is_ok());
    let longest = waits.map(|write| write.ended - write.begun).max().expect("somebody waited");
    println!(
        "{dialect:?}, planned switchover: parked for {:?}, {} SYNs; the longest wait of a client {longest:?}, none saw an error",
        told.thawed - told.frozen,
        told.parked
    );
    assert!(told.parked > 0, "SYNs were parked");
    let blackout = load::blackout(writes, told.primaries[1], told.primaries[2]);
    println!("{dialect:?}, primary killed: {blackout:?} without a write");
    let first_write = writes.iter().filter(|write| write.done().is_some()).map(|write| write.ended).min();
    let first_write = first_write.expect("somebody wrote");
    let before = |read: &&Statement| read.begun > first_write && read.begun < told.demoted;
    let before: Vec<_> = reads.iter().filter(before).cloned().collect();
    let oldest = load::oldest_read(writes, &before);
    println!("{dialect:?}: {} writes, {} reads, the oldest {oldest:?} old", writes.len(), reads.len());
    // What the dead primary took in its last moments is nowhere else: readers wait for it as long as writers do.
    assert!(oldest <= max_lag + blackout, "read as it was {oldest:?} before, {max_lag:?} are allowed");
    let settled = |read: &&Statement| {
        let meets = |span: &Range<Instant>| read.begun < span.end && read.ended > span.start;
        read.ended < told.demoted && !told.unsettled.iter().any(meets)
    };
    let failed: Vec<_> = before.iter().filter(settled).filter(|read| read.outcome.is_err()).collect();
    assert!(failed.is_empty(), "reads failed while there was somebody to read from: {failed:#?}");
}
