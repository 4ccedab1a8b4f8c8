//! What was measured, as JSON.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

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
    /// Processor seconds of all parts for each gigabyte.
    pub cpu_s_per_gb: Option<f64>,
    pub failed: u64,
    pub target: Option<String>,
    pub met: Option<bool>,
}

impl Results {
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// # Errors
    /// The file cannot be read, or is of another kind.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no result of `xtask bench --json`", path.display()))
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
