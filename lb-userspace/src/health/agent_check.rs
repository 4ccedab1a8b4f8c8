//! HAProxy's agent-check: one line of text from a program on the backend (HAProxy's configuration
//! manual, `agent-check`).

use std::net::SocketAddr;

use tokio::io::AsyncReadExt;

use super::{
    failure::{Failure, printable},
    probe::Answer,
    stream::Stream,
    tcp,
    trace::Trace,
};
use crate::{
    config::AgentCheck,
    core::{AgentAdmin, AgentReply, Phase},
};

/// Longest line.
const LINE_MAX: usize = 1024;
/// Largest share of a weight that an agent can ask for, as in HAProxy.
const PERCENT_MAX: u16 = 256;

/// Asks once.
///
/// # Errors
/// The agent refuses, or says nothing.
pub async fn ask(target: SocketAddr, check: &AgentCheck, trace: &mut Trace) -> Result<Answer, Failure> {
    let mut stream = Stream::plain(tcp::connect(target.into()).await?);
    trace.exchange(&stream.stamps);
    if !check.send.is_empty() {
        stream.send(check.send.as_bytes()).await?;
    }
    trace.enter(Phase::FirstByte);
    let line = line(&mut stream).await?;
    let text = String::from_utf8_lossy(&line);
    let mut answer = Answer::up(format!("L7OK {}", printable(&text)));
    answer.agent = Some(parse(&text));
    Ok(answer)
}

/// Everything up to the first line break, or to the end.
async fn line(stream: &mut Stream) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    let mut part = [0; 256];
    loop {
        let len = stream.read(&mut part).await.map_err(|error| Failure::exchange(&error))?;
        line.extend_from_slice(&part[..len]);
        if let Some(end) = line.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            line.truncate(end);
            return Ok(line);
        }
        if len == 0 && line.is_empty() {
            return Err(Failure::garbage("the agent hung up without a word"));
        }
        if len == 0 || line.len() >= LINE_MAX {
            line.truncate(LINE_MAX);
            return Ok(line);
        }
    }
}

/// Words in any order, separated by blanks, tabs or commas; `#` begins a reason. Words that are not
/// known are passed over, as HAProxy does.
fn parse(line: &str) -> AgentReply {
    let mut reply = AgentReply::default();
    let (words, reason) = line.split_once('#').unwrap_or((line, ""));
    for word in words.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        match word.to_ascii_lowercase().as_str() {
            "ready" => reply.admin = Some(AgentAdmin::Ready),
            "drain" => reply.admin = Some(AgentAdmin::Drain),
            "maint" => reply.admin = Some(AgentAdmin::Maintenance),
            "up" => reply.state = Some(Ok(())),
            "down" | "failed" | "stopped" => reply.state = Some(Err(printable(reason))),
            other => {
                let percent = other.strip_suffix('%').and_then(|number| number.parse::<u16>().ok());
                reply.percent = percent.map(|percent| percent.min(PERCENT_MAX)).or(reply.percent);
            }
        }
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_in_any_order_and_unknown_ones_are_passed_over() {
        let reply = parse("up, 75% ready\tmaxconn:30 hello");
        assert_eq!(reply, AgentReply { percent: Some(75), admin: Some(AgentAdmin::Ready), state: Some(Ok(())) });
        assert_eq!(parse("DRAIN").admin, Some(AgentAdmin::Drain));
        assert_eq!(parse("maint").admin, Some(AgentAdmin::Maintenance));
        assert_eq!(parse("9999%").percent, Some(256));
        for odd in ["", "%", "-5%", "50", "99999999%"] {
            assert_eq!(parse(odd), AgentReply::default(), "{odd:?}");
        }
    }

    #[test]
    fn a_reason_follows_the_hash() {
        assert_eq!(parse("failed #disk 100% full").state, Some(Err("disk 100% full".to_owned())));
        assert_eq!(parse("stopped").state, Some(Err(String::new())));
    }
}
