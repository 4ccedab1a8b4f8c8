//! One probe, from the first packet to the result.

use std::{io, pin::Pin};

use regex::bytes::Regex;
use tokio::time::{Instant, timeout_at};

use super::{
    agent_check, dns, exec,
    failure::Failure,
    mysql, patroni, postgres, redis,
    stream::Stream,
    target::Target,
    tls::Tls,
    trace::Trace,
    udp,
    ways::{KnownWays, Mark},
    web,
};
use crate::{
    config::Check,
    core::{AgentReply, Phase, ProbeKey, ProbeOutcome, RoleReport},
};

/// What may be done after the result was told: goodbyes, the rest of an answer.
pub type Leftover = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A result, and what may be tidied up after it was reported.
pub struct Finished {
    pub outcome: ProbeOutcome,
    pub leftover: Option<Leftover>,
    /// When the probe's timeout ends; tidying up stops then.
    pub deadline: Instant,
}

/// What a server's answer comes to.
pub struct Answer {
    pub up: bool,
    pub result: String,
    pub role: Option<RoleReport>,
    pub agent: Option<AgentReply>,
    leftover: Option<Leftover>,
}

impl Answer {
    pub fn up(result: impl Into<String>) -> Self {
        Self { up: true, result: result.into(), role: None, agent: None, leftover: None }
    }

    pub fn down(result: impl Into<String>) -> Self {
        Self { up: false, ..Self::up(result) }
    }

    /// With something to tidy up.
    #[must_use]
    pub fn and_then(self, leftover: impl Future<Output = ()> + Send + 'static) -> Self {
        Self { leftover: Some(Box::pin(leftover)), ..self }
    }
}

/// Everything that is made once for all probes of a key.
#[derive(Debug)]
pub struct Probe {
    key: ProbeKey,
    pattern: Result<Option<Regex>, String>,
}

impl Probe {
    pub fn new(key: ProbeKey) -> Self {
        let pattern = match &key.check {
            Check::Http(http) => web::pattern(http),
            _ => Ok(None),
        };
        Self { key, pattern }
    }

    pub fn key(&self) -> &ProbeKey {
        &self.key
    }

    /// Asks once. The timeout covers everything from the first packet to the result.
    ///
    /// # Errors
    /// This host lacked what a probe needs; the backend was not asked.
    pub async fn run(&self, tls: &Tls, ways: Option<&KnownWays>) -> Result<Finished, io::Error> {
        let (mark, instead) = self.way(ways).await;
        let began = Instant::now();
        let deadline = began + self.key.timeout;
        let mut trace = Trace::begin(first_phase(&self.key.check));
        let answer = timeout_at(deadline, self.ask(tls, mark.as_ref(), &mut trace)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(Failure::Backend(result))) => Answer::down(result),
            Ok(Err(Failure::Local(error))) => return Err(error),
            Err(_) => Answer::down(timed_out(trace.phase())),
        };
        let Answer { up, result, role, agent, leftover } = answer;
        let (phases, certificate) = trace.finish();
        let took = began.elapsed();
        let own_address = instead.or_else(|| missed(mark.as_ref()?, ways?));
        let outcome = ProbeOutcome { up, result, took, phases, role, certificate, agent, own_address };
        Ok(Finished { outcome, leftover, deadline })
    }

    /// The way to the service's address; why the backend's own is asked instead.
    async fn way(&self, ways: Option<&KnownWays>) -> (Option<Mark>, Option<String>) {
        let Some(way) = &self.key.way else { return (None, None) };
        let Some(ways) = ways else { return (None, Some("nobody has looked for a way".to_owned())) };
        match ways.mark(way, self.key.target.ip()).await {
            Ok(mark) => (Some(mark), None),
            Err(why) => (None, Some(why)),
        }
    }

    async fn ask(&self, tls: &Tls, mark: Option<&Mark>, trace: &mut Trace) -> Result<Answer, Failure> {
        let ProbeKey { target: address, timeout, .. } = self.key;
        let name = self.key.way.as_ref().map_or(address, |way| way.service);
        let target = Target { address, name, mark };
        match &self.key.check {
            Check::None => Ok(Answer::up("not checked")),
            Check::Tcp => Stream::open(target, None, tls, trace).await.map(|_| Answer::up("L4OK")),
            Check::Tls(check) => Stream::open(target, Some(check), tls, trace).await.map(|_| Answer::up("L6OK")),
            Check::Http(check) => {
                let pattern = self.pattern.as_ref().map_err(Failure::garbage)?;
                web::ask(target, check, pattern.as_ref(), tls, trace).await
            }
            Check::Udp(check) => udp::ask(target, check, trace).await,
            Check::Dns(check) => dns::ask(target, check, trace).await,
            Check::Exec(check) => exec::ask(address, check, timeout).await,
            Check::Mysql(login) => mysql::ask(target, login, tls, trace).await,
            Check::Postgres(login) => postgres::ask(target, login, tls, trace).await,
            Check::Redis(login) => redis::ask(target, login, tls, trace).await,
            Check::Patroni(check) => patroni::ask(target, check, tls, trace).await,
            Check::Agent(check) => agent_check::ask(address, check, trace).await,
        }
    }
}

/// Why the backend's own address answered, where that is what happened.
fn missed(mark: &Mark, ways: &KnownWays) -> Option<String> {
    mark.passed_by().then(|| {
        ways.missed.notify_one();
        "its packets left by an interface that has no program for it".to_owned()
    })
}

fn first_phase(check: &Check) -> Phase {
    match check {
        Check::Exec(_) => Phase::Run,
        Check::Udp(_) | Check::Dns(_) => Phase::Send,
        _ => Phase::Connect,
    }
}

fn timed_out(phase: Phase) -> &'static str {
    match phase {
        Phase::Connect => "L4TOUT",
        Phase::Tls => "L6TOUT",
        _ => "L7TOUT",
    }
}
