//! HTTP requests from the client of a world, one connection each, and the record of how they went.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::world::{Family, Namespace, http};

/// Requests that run at the same time; half of them IPv4.
const CLIENTS: usize = 4;
/// Between two requests of one client: bounds the load on small machines.
const PAUSE: Duration = Duration::from_millis(4);
const TIMEOUT: Duration = Duration::from_secs(3);

/// How one request went.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) family: Family,
    pub(super) begun: Instant,
    pub(super) ended: Instant,
    /// The backend's name, or what went wrong.
    pub(super) outcome: Result<String, String>,
}

/// What happened so far, shared by the clients and whoever looks on.
pub(super) struct Record {
    requests: Mutex<Vec<Request>>,
    stop: AtomicBool,
}

impl Record {
    pub(super) const fn new() -> Self {
        Self { requests: Mutex::new(Vec::new()), stop: AtomicBool::new(false) }
    }

    /// Clients finish the request they are at and end.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Requests that ended after this instant.
    pub(super) fn since(&self, instant: Instant) -> Vec<Request> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        // They are recorded in the order in which they ended.
        let first = requests.partition_point(|request| request.ended <= instant);
        requests[first..].to_vec()
    }

    /// Drops what ended before, so that a demo that runs for days does not grow.
    pub(super) fn forget_before(&self, instant: Instant) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let first = requests.partition_point(|request| request.ended <= instant);
        requests.drain(..first);
    }

    fn add(&self, family: Family, begun: Instant, outcome: Result<String, String>) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.push(Request { family, begun, ended: Instant::now(), outcome });
    }
}

/// Sends requests to the services from the client's namespace until the record says stop.
pub(super) fn clients<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    client: &'scope Namespace,
    service: impl Fn(Family) -> SocketAddr,
    record: &'scope Record,
) {
    for number in 0..CLIENTS {
        let family = Family::BOTH[number % 2];
        let target = service(family);
        scope.spawn(move || {
            client.join_thread();
            while !record.stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let answer = http::get(target, "/", TIMEOUT);
                record.add(family, begun, answer.map(|body| body.trim().to_owned()).map_err(|e| e.to_string()));
                thread::sleep(PAUSE);
            }
        });
    }
}

/// Sums over some requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) by_backend: BTreeMap<String, u64>,
    pub(super) failed: u64,
}

impl Tally {
    pub(super) fn of<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Self {
        let mut tally = Self::default();
        for request in requests {
            match &request.outcome {
                Ok(backend) => *tally.by_backend.entry(backend.clone()).or_default() += 1,
                Err(_) => tally.failed += 1,
            }
        }
        tally
    }

    pub(super) fn answered(&self) -> u64 {
        self.by_backend.values().sum()
    }

    /// The backend's part of the answers, in percent.
    pub(super) fn share(&self, backend: &str) -> f64 {
        let mine = self.by_backend.get(backend).copied().unwrap_or(0);
        100.0 * mine as f64 / self.answered().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_answers_and_failures_are_counted_apart() {
        let now = Instant::now();
        let request = |outcome: Result<&str, &str>| Request {
            family: Family::V4,
            begun: now,
            ended: now,
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
        };
        let requests = [Ok("web1"), Ok("web2"), Ok("web1"), Err("reset"), Ok("web1")].map(request);
        let tally = Tally::of(&requests);
        assert_eq!((tally.answered(), tally.failed), (4, 1));
        assert_eq!(tally.share("web1"), 75.0);
        assert_eq!(tally.share("web3"), 0.0);
        assert_eq!(Tally::default().share("web1"), 0.0);
    }

    #[test]
    fn a_record_is_read_and_forgotten_by_time() {
        let record = Record::new();
        record.add(Family::V4, Instant::now(), Ok("web1".to_owned()));
        thread::sleep(Duration::from_millis(2));
        let middle = Instant::now();
        thread::sleep(Duration::from_millis(2));
        record.add(Family::V6, Instant::now(), Err("reset".to_owned()));
        assert_eq!(record.since(middle).len(), 1);
        record.forget_before(middle);
        assert_eq!(record.since(middle - Duration::from_secs(1)).len(), 1);
    }
}
