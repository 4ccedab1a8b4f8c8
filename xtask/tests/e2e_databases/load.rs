//! Writers and readers that run all the time, and what they saw.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use xtask::world::Namespace;

use super::session::{Dialect, OF_WRITER, Session, is_lost, server};

/// A connection that waits for a frozen service knocks after 1, 3 and 7 seconds.
const CONNECTS: Duration = Duration::from_secs(12);
/// What a loaded machine may need for one answer.
const ANSWERS: Duration = Duration::from_secs(5);
/// From one statement to the next.
const PACE: Duration = Duration::from_millis(20);

/// One statement.
#[derive(Clone, Debug)]
pub struct Statement {
    pub begun: Instant,
    pub ended: Instant,
    /// Written or read.
    pub number: u64,
    /// The server that did it, or why it did not come about.
    pub outcome: Result<usize, String>,
}

impl Statement {
    pub fn done(&self) -> Option<usize> {
        self.outcome.as_ref().ok().copied()
    }
}

/// Writes rising numbers over a connection that it keeps for as long as that lives.
pub fn write(dialect: Dialect, client: &Namespace, to: SocketAddr, writer: u64, stop: &AtomicBool) -> Vec<Statement> {
    let (mut statements, mut session) = (Vec::new(), None::<Session>);
    for number in writer * OF_WRITER + 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let begun = Instant::now();
        let outcome = match &mut session {
            Some(session) => session.ask(&dialect.write(number), ANSWERS),
            None => dialect.open(client, to, CONNECTS).and_then(|opened| {
                // The client program connects while it is asked.
                session.insert(opened).ask(&dialect.write(number), CONNECTS)
            }),
        };
        let outcome = outcome.and_then(|answer| server(&answer).ok_or_else(|| format!("no server in {answer:?}")));
        if outcome.is_err() {
            session = None;
        }
        statements.push(Statement { begun, ended: Instant::now(), number, outcome });
        thread::sleep(PACE);
    }
    statements
}

/// Reads the first writer's greatest number, over a new connection each time: where a replica lags, those
/// that are open stay.
pub fn read(dialect: Dialect, client: &Namespace, to: SocketAddr, stop: &AtomicBool) -> Vec<Statement> {
    let mut statements = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = dialect.open(client, to, CONNECTS).and_then(|mut session| session.ask(&dialect.read(), ANSWERS));
        let numbered = answer.and_then(|answer| {
            let number = answer.iter().find_map(|line| line.parse().ok());
            number.zip(server(&answer)).ok_or_else(|| format!("no number or no server in {answer:?}"))
        });
        let number = numbered.as_ref().map_or(0, |(number, _)| *number);
        statements.push(Statement {
            begun,
            ended: Instant::now(),
            number,
            outcome: numbered.map(|(_, server)| server),
        });
        thread::sleep(PACE);
    }
    statements
}

/// Panics unless the servers that took writes did so one after the other, in this order.
pub fn assert_one_writer_at_a_time(writes: &[Statement], order: &[usize]) {
    let mut done: Vec<_> = writes.iter().filter_map(|write| Some((write.ended, write.done()?))).collect();
    done.sort();
    let mut seen: Vec<usize> = done.iter().map(|(_, server)| *server).collect();
    seen.dedup();
    assert_eq!(seen, order, "servers that took writes, in the order of their answers");
}

/// For how long nothing was written: from the end of the last write that the old server took to the end of
/// the first one after it that the new one took.
pub fn blackout(writes: &[Statement], from: usize, to: usize) -> Duration {
    let of = |server| writes.iter().filter(move |write| write.done() == Some(server)).map(|write| write.ended);
    let last = of(from).max().expect("the old one took writes");
    of(to).filter(|ended| *ended > last).min().expect("the new one takes writes") - last
}

/// How old what was read was at the worst: since when something newer had been written.
pub fn oldest_read(writes: &[Statement], reads: &[Statement]) -> Duration {
    let mut written: Vec<_> =
        writes.iter().filter(|w| w.number < OF_WRITER && w.done().is_some()).map(|w| (w.number, w.ended)).collect();
    written.sort();
    let age = |read: &Statement| {
        let newer = written.get(written.partition_point(|(number, _)| *number <= read.number))?;
        read.begun.checked_duration_since(newer.1)
    };
    reads.iter().filter(|read| read.done().is_some()).filter_map(age).max().unwrap_or_default()
}

/// Errors of clients that try again when their connection is reset: those that are left.
pub fn errors(statements: &[Statement], from: Instant, until: Instant) -> Vec<&str> {
    let meant = statements.iter().filter(|statement| statement.ended > from && statement.begun < until);
    meant.filter_map(|statement| statement.outcome.as_ref().err()).filter(|e| !is_lost(e)).map(String::as_str).collect()
}
