//! What was measured, as JSON.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::packets::ProgramSize;

/// Everything of one run of the bench.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    /// RFC 3339, UTC.
    pub date: String,
    /// Fewer rows and rounds.
    pub quick: bool,
    /// Of the data path.
    pub program: Option<ProgramSize>,
    /// In-kernel cost by packet.
    #[serde(default)]
    pub rows: Vec<RowResult>,
    /// Where the time of a packet goes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepResult>,
    /// Live frames through the driver.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub driver: Vec<DriverResult>,
    /// What users see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserResult>,
    /// What clients notice of a backend that is lost, and what probes cost.
    #[serde(default, skip_serializing_if = "FailoverResults::is_empty")]
    pub failover: FailoverResults,
    /// What changes cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<ControlResult>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    /// Processes that wanted a CPU in the last minute, ours included.
    pub load: f64,
}

/// One row; all times are nanoseconds a packet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    pub name: String,
    pub mode: Option<String>,
    pub scheduler: Option<String>,
    /// `ipv4` or `ipv6`.
    pub family: Option<String>,
    pub protocol: Option<String>,
    pub flows: u32,
    pub services: u32,
    /// Over the rounds, with the harness.
    pub median_ns: f64,
    pub min_ns: f64,
    pub max_ns: f64,
    /// The same by the kernel's own count, which rounds down to whole nanoseconds.
    pub kernel_ns: f64,
    /// The least that a program of this kind does, with the harness.
    pub floor_ns: f64,
    /// What is left without the harness.
    pub net_ns: f64,
    pub textbook_net_ns: Option<f64>,
    /// Net cost over that of the textbook balancer: the median over the rounds.
    pub textbook_ratio: Option<f64>,
    pub target: Option<String>,
    pub met: Option<bool>,
    /// Flows that gave way to others meanwhile.
    pub evicted: u64,
}

/// One step of a packet's way; nanoseconds a packet, without the harness.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    pub way: String,
    pub step: String,
    /// What ending behind the step costs more than ending before it: the median over the rounds.
    pub step_ns: f64,
    /// Up to the end of the step.
    pub net_ns: f64,
    pub min_ns: f64,
}

/// Packets through the driver, on one CPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriverResult {
    pub name: String,
    pub flows: u32,
    /// Nanoseconds a packet: the best window of a run, then the median over the runs.
    pub median_ns: f64,
    pub min_ns: f64,
    pub max_ns: f64,
    /// Over a program that only turns frames round, in the same run.
    pub over_floor_ns: f64,
    pub mpps: f64,
    /// Frames that came back, in percent of those that were sent.
    pub delivered_percent: f64,
}

/// What users of one balancer see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UserResult {
    /// `direct`, `full-nat`, `nftables`, `haproxy`, ...
    pub balancer: String,
    /// `keep-alive`, `connections`, `udp 1000`, ...
    pub load: String,
    pub per_second: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Processor time of all parts together for each request, connection or packet.
    pub cpu_us: f64,
    /// Of that, what comes on top of having no balancer.
    pub over_direct_us: f64,
    /// Of that, what the balancer's own processes take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_us: Option<f64>,
    /// Processor seconds of all parts for each gigabyte.
    pub cpu_s_per_gb: Option<f64>,
    pub failed: u64,
    pub target: Option<String>,
    pub met: Option<bool>,
}

/// One kind of change, until the maps are right.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlResult {
    pub name: String,
    pub samples: usize,
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    /// Processor time of the agent meanwhile, whatever for: the median. Where it is far less than the time, the
    /// machine had other things to do, or the agent waited.
    pub cpu_ms: f64,
    /// Of the agent meanwhile, whatever for: the median.
    pub syscalls: u64,
    /// Resident afterwards; of a start and a reload the most that it ever was.
    pub memory_mib: f64,
    pub target: Option<String>,
    pub met: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailoverResults {
    /// When, if that was another run than the rest: RFC 3339, UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// Processes that wanted a CPU when it began.
    #[serde(default)]
    pub load: f64,
    /// Of each balancer and fault.
    #[serde(default)]
    pub trials: u32,
    #[serde(default)]
    pub rows: Vec<FailoverRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<ProbesRow>,
}

impl FailoverResults {
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.probes.is_empty()
    }
}

/// One balancer and one fault: medians over the trials.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FailoverRow {
    /// Ours go by the mode.
    pub peer: String,
    pub fault: String,
    /// Refused, reset, or not answered within a second.
    pub failed: u32,
    /// Answered, but after more than 50 ms.
    pub slow_over_50ms: u32,
    pub worst_ms: f64,
    /// From the fault to the beginning of the last of these; none of them: `None`.
    pub last_bad_s: Option<f64>,
    /// From the repair to the backend's first answer; `None`: not while it was watched.
    pub back_s: Option<f64>,
    /// Connections that were open when the fault came, or began later.
    pub attempts: u32,
    /// Failed or slow before there was a fault, in all trials: what else the machine does.
    pub noise: u32,
    /// Ours: connections that were sent to another backend.
    pub rescued: Option<u64>,
    /// Ours: every trial has left a receipt.
    pub receipt: Option<bool>,
    pub target: Option<String>,
    pub met: Option<bool>,
}

/// The agent while it probes many targets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbesRow {
    pub targets: u32,
    /// Of them, those that never answer.
    pub hanging: u32,
    pub interval_ms: u64,
    pub per_second: f64,
    /// Of one CPU.
    pub cpu_percent: f64,
    /// Between the interval and what lay between two probes of a target.
    pub error_p50_ms: f64,
    pub error_p99_ms: f64,
    pub error_worst_ms: f64,
}

impl Results {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json()?)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// # Errors
    /// The file cannot be read, or is of another kind.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::of_json(&text).with_context(|| format!("{} is no result of `xtask bench --json`", path.display()))
    }

    /// Where nothing but failovers was measured, they are the rows.
    fn json(&self) -> Result<Value> {
        let mut json = serde_json::to_value(self)?;
        if self.rows.is_empty() && !self.failover.rows.is_empty() {
            json["rows"] = json["failover"]["rows"].clone();
        }
        Ok(json)
    }

    fn of_json(text: &str) -> Result<Self> {
        let mut json: Value = serde_json::from_str(text)?;
        if json["rows"][0].get("peer").is_some() {
            json["rows"] = Value::Array(Vec::new());
        }
        Ok(serde_json::from_value(json)?)
    }

    /// What the other one has measured takes the place of what is here.
    pub fn join(&mut self, other: Self) {
        fn newer<T>(here: &mut Vec<T>, other: Vec<T>) {
            if !other.is_empty() {
                *here = other;
            }
        }
        newer(&mut self.rows, other.rows);
        newer(&mut self.driver, other.driver);
        newer(&mut self.users, other.users);
        if !other.failover.rows.is_empty() {
            self.failover.date = Some(other.date);
            (self.failover.load, self.failover.trials) = (other.machine.load, other.failover.trials);
        }
        newer(&mut self.control, other.control);
        newer(&mut self.failover.rows, other.failover.rows);
        newer(&mut self.failover.probes, other.failover.probes);
        self.program = other.program.or(self.program);
        self.quick |= other.quick;
    }
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_survive_a_file() {
        let row =
            RowResult { name: "nat maglev tcp4 hit 1".to_owned(), flows: 1, median_ns: 61.25, ..Default::default() };
        let results = Results { machine: Machine::here(), rows: vec![row], ..Results::default() };
        let path = std::env::temp_dir().join(format!("lb-bench-results-{}.json", std::process::id()));
        results.write(&path).unwrap();
        let read = Results::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), results);
    }

    #[test]
    fn failovers_alone_are_the_rows_and_are_read_back_as_failovers() {
        let row = FailoverRow { peer: "nat".to_owned(), fault: "host silent".to_owned(), ..Default::default() };
        let failover = FailoverResults { rows: vec![row], ..FailoverResults::default() };
        let alone = Results { failover, ..Results::default() };
        let json = alone.json().unwrap();
        for key in ["peer", "fault", "failed", "slow_over_50ms", "worst_ms", "last_bad_s", "back_s"] {
            assert!(json["rows"][0].get(key).is_some(), "{key}");
        }
        assert_eq!(Results::of_json(&json.to_string()).unwrap(), alone);
        let both = Results { rows: vec![RowResult::default()], ..alone };
        assert!(both.json().unwrap()["rows"][0].get("peer").is_none());
        assert_eq!(Results::of_json(&both.json().unwrap().to_string()).unwrap(), both);
    }

    #[test]
    fn of_two_runs_the_later_one_counts_where_it_has_measured() {
        let named = |name: &str| RowResult { name: name.to_owned(), ..Default::default() };
        let row = |peer: &str| FailoverRow { peer: peer.to_owned(), ..Default::default() };
        let failover = |peer: &str| FailoverResults { rows: vec![row(peer)], ..FailoverResults::default() };
        let mut results = Results { rows: vec![named("a")], failover: failover("old"), ..Results::default() };
        let date = "2026-01-02T03:04:05Z".to_owned();
        results.join(Results { failover: failover("new"), date: date.clone(), ..Results::default() });
        assert_eq!(results.failover.date, Some(date), "the page tells that it was another run");
        assert_eq!((results.rows[0].name.as_str(), results.failover.rows[0].peer.as_str()), ("a", "new"));
    }

    #[test]
    fn rows_have_the_keys_that_were_agreed_on() {
        let json = serde_json::to_value(RowResult::default()).unwrap();
        for key in [
            "name",
            "mode",
            "family",
            "flows",
            "median_ns",
            "min_ns",
            "max_ns",
            "floor_ns",
            "net_ns",
            "textbook_ratio",
            "target",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }
}
