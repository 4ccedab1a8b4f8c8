//! One probe, from the first packet to the result.

use std::io;

use tokio::time::{Instant, timeout_at};

use super::{
    failure::Failure,
    http::{self, Leftover},
    tcp,
};
use crate::{
    config::{Check, StatusRange},
    core::{ProbeKey, ProbeOutcome},
};

/// A result, and what may be tidied up after it was reported.
pub struct Finished {
    pub outcome: ProbeOutcome,
    pub leftover: Option<Leftover>,
    /// When the probe's timeout ends; tidying up stops then.
    pub deadline: Instant,
}

/// Asks once. The timeout covers everything from the first packet to the result.
///
/// # Errors
/// This host lacked what a probe needs; the backend was not asked.
pub async fn probe(key: &ProbeKey) -> Result<Finished, io::Error> {
    let began = Instant::now();
    let deadline = began + key.timeout;
    let answer = ask(key, deadline).await;
    let took = began.elapsed();
    let (up, result, leftover) = match answer {
        Ok(Answer { up, result, leftover }) => (up, result, leftover),
        Err(Failure::Backend(result)) => (false, result, None),
        Err(Failure::Local(error)) => return Err(error),
    };
    Ok(Finished { outcome: ProbeOutcome { up, result, took }, leftover, deadline })
}

struct Answer {
    up: bool,
    result: String,
    leftover: Option<Leftover>,
}

async fn ask(key: &ProbeKey, deadline: Instant) -> Result<Answer, Failure> {
    if key.check == Check::None {
        return Ok(Answer { up: true, result: "not checked".to_owned(), leftover: None });
    }
    let stream = timeout_at(deadline, tcp::connect(key.target)).await.unwrap_or_else(|_| Err(timed_out("L4TOUT")))?;
    let Check::Http { path, host, expect } = &key.check else {
        return Ok(Answer { up: true, result: "L4OK".to_owned(), leftover: None });
    };
    let answer = http::get(stream, key.target, path, host.as_deref());
    let (status, leftover) = timeout_at(deadline, answer).await.unwrap_or_else(|_| Err(timed_out("L7TOUT")))?;
    let status = status.as_u16();
    let up = expect.iter().any(|&StatusRange { first, last }| (first..=last).contains(&status));
    let result = if up { format!("L7OK {status}") } else { format!("L7STS {status}") };
    Ok(Answer { up, result, leftover: Some(leftover) })
}

fn timed_out(phase: &str) -> Failure {
    Failure::Backend(phase.to_owned())
}
