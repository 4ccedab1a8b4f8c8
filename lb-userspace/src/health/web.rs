//! HTTP checks: whether the answer is as expected.

use hyper::http::{HeaderMap, HeaderName};
use regex::bytes::{Regex, RegexBuilder};

use super::{
    failure::Failure,
    http::{self, Ask},
    probe::Answer,
    stream::Stream,
    target::Target,
    tls::Tls,
    trace::Trace,
};
use crate::{
    config::{BodyMatch, HeaderMatch, HttpCheck, REGEX_SIZE, StatusRange},
    core::Phase,
};

/// A body's pattern, compiled once for all probes of a key.
///
/// # Errors
/// It does not compile: nobody validated it.
pub fn pattern(check: &HttpCheck) -> Result<Option<Regex>, String> {
    match &check.body {
        Some(BodyMatch::Regex(pattern)) => {
            let built = RegexBuilder::new(pattern).size_limit(REGEX_SIZE).build();
            built.map(Some).map_err(|error| error.to_string())
        }
        _ => Ok(None),
    }
}

/// Asks once.
///
/// # Errors
/// There was no answer that could be judged.
pub async fn ask(
    target: Target<'_>,
    check: &HttpCheck,
    pattern: Option<&Regex>,
    tls: &Tls,
    trace: &mut Trace,
) -> Result<Answer, Failure> {
    let stream = Stream::open(target, check.tls.as_ref(), tls, trace).await?;
    let usual_port = if check.tls.is_some() { 443 } else { 80 };
    let HttpCheck { method, path, host, .. } = check;
    let ask = Ask { target: target.name, method: *method, path, host: host.as_deref(), usual_port };
    let (head, mut rest) = http::ask(stream, &ask, trace).await?;
    let status = head.status.as_u16();
    let expected = check.expect.iter().any(|&StatusRange { first, last }| (first..=last).contains(&status));
    if !expected {
        return Ok(Answer::down(format!("L7STS {status}")).and_then(rest.discard()));
    }
    if let Some(missing) = missing_header(&check.headers, &head.headers) {
        return Ok(Answer::down(format!("L7RSP: {missing}")).and_then(rest.discard()));
    }
    if let Some(wanted) = &check.body {
        trace.enter(Phase::Body);
        let body = rest.read().await?;
        if !found(wanted, pattern, &body) {
            let what = match wanted {
                BodyMatch::Contains(text) => format!("{text:?}"),
                BodyMatch::Regex(pattern) => format!("what matches /{pattern}/"),
            };
            return Ok(Answer::down(format!("L7RSP: status {status}, but its body has not {what} in it"))
                .and_then(rest.discard()));
        }
    }
    Ok(Answer::up(format!("L7OK {status}")).and_then(rest.discard()))
}

fn found(wanted: &BodyMatch, pattern: Option<&Regex>, body: &[u8]) -> bool {
    match wanted {
        BodyMatch::Contains(text) => contains(body, text.as_bytes()),
        BodyMatch::Regex(_) => pattern.is_some_and(|pattern| pattern.is_match(body)),
    }
}

/// Whether the bytes have these in them.
pub fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// The first header that is not as wanted, in words.
fn missing_header(wanted: &[HeaderMatch], headers: &HeaderMap) -> Option<String> {
    let fits = |wanted: &&HeaderMatch| {
        let Ok(name) = HeaderName::try_from(wanted.name.as_str()) else { return false };
        headers.get_all(name).iter().any(|value| contains(value.as_bytes(), wanted.value.as_bytes()))
    };
    let missing = wanted.iter().find(|wanted| !fits(wanted))?;
    Some(match missing.value.as_str() {
        "" => format!("the answer has no header {}", missing.name),
        value => format!("the answer has no header {} with {value:?} in it", missing.name),
    })
}
