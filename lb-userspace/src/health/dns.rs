//! One DNS question over UDP, asked again over TCP where the answer does not fit (RFC 1035, 4.2).

use std::str::FromStr;

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::io::AsyncReadExt;

use super::{failure::Failure, probe::Answer, stream::Stream, target::Target, tcp, trace::Trace, udp};
use crate::{
    config::{DnsCheck, DnsResponse},
    core::Phase,
};

/// Asks once.
///
/// # Errors
/// The server refuses, or its answer is no DNS.
pub async fn ask(target: Target<'_>, check: &DnsCheck, trace: &mut Trace) -> Result<Answer, Failure> {
    let id = rand::random();
    let question = question(id, check)?;
    let socket = udp::send(target, &question, trace).await?;
    let mut bytes = vec![0; 4096];
    let message = loop {
        let len = udp::receive(&socket, target, &mut bytes).await?;
        let message = Message::from_vec(&bytes[..len])
            .map_err(|error| Failure::garbage(format!("the answer is no DNS: {error}")))?;
        // A late answer to an earlier question of another socket with the same port.
        if message.id == id {
            break message;
        }
    };
    trace.enter(Phase::Body);
    let message =
        if message.truncation && check.answer.is_some() { over_tcp(target, &question).await? } else { message };
    Ok(judge(&message, check))
}

fn question(id: u16, check: &DnsCheck) -> Result<Vec<u8>, Failure> {
    let cannot = |what: String| Failure::Backend(format!("L7RSP: cannot ask for `{}`: {what}", check.name));
    let mut name = Name::from_ascii(&check.name).map_err(|error| cannot(error.to_string()))?;
    name.set_fqdn(true);
    let record_type = RecordType::from_str(&check.record_type).map_err(|error| cannot(error.to_string()))?;
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, record_type));
    message.to_vec().map_err(|error| cannot(error.to_string()))
}

/// The same question on a connection: each message follows its length.
async fn over_tcp(target: Target<'_>, question: &[u8]) -> Result<Message, Failure> {
    let mut stream = Stream::plain(tcp::connect(target).await?);
    let length = u16::try_from(question.len()).map_err(|_| Failure::garbage("the question is too long"))?;
    stream.send(&[&length.to_be_bytes(), question].concat()).await?;
    let read = async {
        let mut bytes = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = read.await.map_err(|error: std::io::Error| Failure::exchange(&error))?;
    Message::from_vec(&bytes).map_err(|error| Failure::garbage(format!("the answer is no DNS: {error}")))
}

fn judge(message: &Message, check: &DnsCheck) -> Answer {
    let code = message.response_code;
    let expected = match check.response {
        DnsResponse::NoError => code == ResponseCode::NoError,
        DnsResponse::NxDomain => code == ResponseCode::NXDomain,
        DnsResponse::Refused => code == ResponseCode::Refused,
        DnsResponse::Any => code != ResponseCode::ServFail,
    };
    if !expected {
        return Answer::down(format!("L7STS {}", word(code)));
    }
    let values: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    match &check.answer {
        Some(wanted) if !values.iter().any(|value| value == wanted) => {
            let found = if values.is_empty() { "nothing".to_owned() } else { values.join(", ") };
            Answer::down(format!("L7RSP: the answer is {}, not {wanted}", super::failure::printable(&found)))
        }
        _ => Answer::up(format!("L7OK {}", word(code))),
    }
}

/// As dig prints it.
fn word(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        other => format!("response code {}", u16::from(other)),
    }
}
