//! What was seen, and whether it is what a balancer owes.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use super::load::{Request, Tally};
use crate::world::Family;

/// Percentage points that a share may be off while all backends are up: a few thousand requests,
/// each new flow in turn per CPU.
const TOLERANCE: f64 = 3.0;
/// Fewer requests than this prove nothing.
const ENOUGH: u64 = 100;

pub(super) struct Findings {
    names: Vec<String>,
    /// While all backends were up.
    pub(super) balanced: Tally,
    /// While one was gone.
    pub(super) outage: Option<Outage>,
    /// From the restart to its first answer.
    pub(super) returned: Option<Duration>,
    /// Requests that failed after the restart.
    pub(super) later_failures: u64,
}

impl Findings {
    pub(super) const fn new(names: Vec<String>) -> Self {
        Self {
            names,
            balanced: Tally { by_backend: std::collections::BTreeMap::new(), failed: 0 },
            outage: None,
            returned: None,
            later_failures: 0,
        }
    }

    /// Takes in the requests since the restart of the backend.
    pub(super) fn back(&mut self, requests: &[Request], restarted: Instant, backend: &str) {
        let first = requests.iter().find(|request| request.outcome.as_deref() == Ok(backend));
        self.returned = first.map(|request| request.ended - restarted);
        self.later_failures = Tally::of(requests).failed;
    }

    pub(super) fn tell_return(&self, backend: &str) -> String {
        match self.returned {
            Some(after) => format!("{backend} answers again, {} ms after its restart", after.as_millis()),
            None => format!("{backend} has not answered since its restart"),
        }
    }

    /// Prints the sum and turns it into the exit code.
    pub(super) fn conclude(&self) -> ExitCode {
        let missing = self.missing();
        for what in &missing {
            println!("missing: {what}");
        }
        if missing.is_empty() {
            println!("seen: balanced shares, failover, no later failure, return");
            return ExitCode::SUCCESS;
        }
        ExitCode::FAILURE
    }

    /// What should have been seen and was not.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = self.unbalanced();
        match &self.outage {
            None => missing.push("the failover: ended before a backend was killed".to_owned()),
            Some(outage) => missing.extend(outage.missing()),
        }
        if self.returned.is_none() {
            missing.push("the return of the killed backend".to_owned());
        }
        if self.later_failures > 0 {
            missing.push(format!("{} requests failed after the restart; none should", self.later_failures));
        }
        missing
    }

    fn unbalanced(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.balanced.answered() < ENOUGH {
            missing.push(format!("balanced shares: only {} requests were answered", self.balanced.answered()));
        }
        if self.balanced.failed > 0 {
            missing.push(format!("{} requests failed while all backends were up", self.balanced.failed));
        }
        let fair = 100.0 / self.names.len() as f64;
        for name in &self.names {
            let share = self.balanced.share(name);
            if (share - fair).abs() > TOLERANCE {
                missing.push(format!("balanced shares: {name} got {share:.1} %, fair are {fair:.1} %"));
            }
        }
        missing
    }
}

/// What the loss of one backend did to the requests that ended after it.
#[derive(Debug)]
pub(super) struct Outage {
    backend: String,
    /// Requests that failed, and of these the ones that had begun before the kill.
    failed: u64,
    in_flight: u64,
    /// From the kill to the end of the last request that failed; none failed: zero.
    took: Duration,
    /// Requests begun later than the budget allows that failed still.
    late: Vec<String>,
    /// Answers by the other backends to requests begun after the last failure, by family.
    answered_after: [u64; 2],
}

impl Outage {
    pub(super) fn of(requests: &[Request], killed: Instant, budget: Duration, backend: &str) -> Self {
        let failed: Vec<_> = requests.iter().filter(|request| request.outcome.is_err()).collect();
        let last = failed.iter().map(|request| request.ended).max().unwrap_or(killed);
        let late = failed.iter().filter(|request| request.begun > killed + budget);
        let answered_after = Family::BOTH.map(|family| {
            let after = requests.iter().filter(|r| r.family == family && r.begun > last && r.outcome.is_ok());
            after.count() as u64
        });
        Self {
            backend: backend.to_owned(),
            failed: failed.len() as u64,
            in_flight: failed.iter().filter(|request| request.begun <= killed).count() as u64,
            took: last - killed,
            late: late.map(|request| request.outcome.clone().unwrap_err()).collect(),
            answered_after,
        }
    }

    pub(super) fn tell(&self) -> String {
        if self.failed == 0 {
            return format!("failover: no request failed after the kill of {}", self.backend);
        }
        format!(
            "failover took {} ms from the kill to the last failed request; {} failed ({} in flight at the kill); \
             since then {} answered, {} failed",
            self.took.as_millis(),
            self.failed,
            self.in_flight,
            self.answered_after.iter().sum::<u64>(),
            self.late.len(),
        )
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(first) = self.late.first() {
            let count = self.late.len();
            missing.push(format!("{count} requests failed long after the kill, the first with: {first}"));
        }
        for (family, answered) in Family::BOTH.iter().zip(self.answered_after) {
            if answered < ENOUGH / 4 {
                missing.push(format!("failover: only {answered} {} requests were answered after it", family.name()));
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(family: Family, kill: Instant, begun: i64, ended: u64, outcome: Result<&str, &str>) -> Request {
        let begun = if begun < 0 {
            kill - Duration::from_millis(begun.unsigned_abs())
        } else {
            kill + Duration::from_millis(begun.unsigned_abs())
        };
        let outcome = outcome.map(str::to_owned).map_err(str::to_owned);
        Request { family, begun, ended: kill + Duration::from_millis(ended), outcome }
    }

    fn story(late_failure: bool) -> Outage {
        let kill = Instant::now() + Duration::from_secs(1);
        let mut requests =
            vec![request(Family::V4, kill, -3, 1, Err("reset")), request(Family::V6, kill, 100, 230, Err("refused"))];
        for n in 0..50 {
            requests.push(request(Family::BOTH[n as usize % 2], kill, 300 + n, 310 + n as u64, Ok("web1")));
        }
        if late_failure {
            requests.push(request(Family::V4, kill, 1200, 1201, Err("refused")));
        }
        Outage::of(&requests, kill, Duration::from_secs(1), "web2")
    }

    #[test]
    fn a_failover_is_told_in_numbers() {
        let outage = story(false);
        assert_eq!(outage.missing(), Vec::<String>::new());
        assert_eq!(
            outage.tell(),
            "failover took 230 ms from the kill to the last failed request; 2 failed (1 in flight at the kill); \
             since then 50 answered, 0 failed"
        );
    }

    #[test]
    fn a_request_that_fails_long_after_the_kill_is_a_fault() {
        let missing = story(true).missing();
        assert!(missing[0].contains("1 requests failed long after the kill, the first with: refused"), "{missing:?}");
    }

    #[test]
    fn nothing_seen_is_everything_missing() {
        let missing = Findings::new(vec!["web1".to_owned()]).missing().join("\n");
        for part in ["only 0 requests", "ended before a backend was killed", "the return"] {
            assert!(missing.contains(part), "{missing}");
        }
    }

    #[test]
    fn unequal_shares_are_named() {
        let mut findings = Findings::new(vec!["web1".to_owned(), "web2".to_owned()]);
        findings.balanced.by_backend = [("web1".to_owned(), 600), ("web2".to_owned(), 400)].into();
        assert!(findings.unbalanced()[0].contains("web1 got 60.0 %, fair are 50.0 %"));
        findings.balanced.by_backend = [("web1".to_owned(), 505), ("web2".to_owned(), 495)].into();
        assert_eq!(findings.unbalanced(), Vec::<String>::new());
    }
}
