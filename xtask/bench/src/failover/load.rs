//! Clients that come at a fixed pace: each opens a connection, asks once, and gives up after a second.
//! One thread, bounded in count and time.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use socket2::{Domain, Socket, Type};

/// From one connection to the next: 200 a second.
pub const PACE: Duration = Duration::from_millis(5);
/// When a client gives up.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Connections of the longest run.
const MOST: u32 = 4000;
/// No answer is longer.
const ANSWER: usize = 4096;
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\nHost: bench\r\n\r\n";

/// One connection with one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Since the load's beginning.
    pub begun: Duration,
    pub took: Duration,
    pub ended: Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By the backend of this number, from 1.
    Answered(u32),
    /// Refused, reset, given up, or not a whole answer.
    Failed(ErrorKind),
}

impl Attempt {
    /// When it was over, since the load's beginning.
    pub fn over(&self) -> Duration {
        self.begun + self.took
    }
}

/// What is asked, and from which addresses in turn.
#[derive(Clone, Debug)]
pub struct Load {
    pub target: SocketAddr,
    pub clients: Vec<IpAddr>,
}

/// What the load and whoever watches it tell each other.
#[derive(Debug, Default)]
pub struct Shared {
    /// No connection begins any more.
    pub stop: AtomicBool,
    /// How often each backend, from 1, has answered.
    pub answers: [AtomicU32; 5],
}

impl Load {
    /// Runs in the calling thread's namespace until it is told to stop.
    ///
    /// # Errors
    /// The kernel gives no sockets. Connections that go wrong are attempts and no error.
    pub fn run(&self, begun: Instant, shared: &Shared) -> Result<Vec<Attempt>> {
        let mut poll = Poll::new().context("watching sockets")?;
        let mut events = Events::with_capacity(256);
        let mut running = Running { begun, open: Vec::new(), free: Vec::new(), due: VecDeque::new() };
        let (mut attempts, mut number) = (Vec::new(), 0u32);
        loop {
            let stopped = shared.stop.load(Ordering::Relaxed) || number >= MOST;
            while !stopped && begun + PACE * number <= Instant::now() {
                let from = self.clients[number as usize % self.clients.len()];
                if let Some(attempt) = running.open(from, self.target, &poll, number)? {
                    attempts.push(attempt);
                }
                number += 1;
            }
            attempts.extend(running.give_up());
            if stopped && running.due.is_empty() {
                return Ok(attempts);
            }
            let next = if stopped { None } else { Some(begun + PACE * number) };
            let until = next.into_iter().chain(running.due.front().map(|due| due.0)).min();
            let wait = until.map_or(PACE, |until| until.saturating_duration_since(Instant::now()));
            poll.poll(&mut events, Some(wait)).context("waiting for sockets")?;
            for event in &events {
                if let Some(attempt) = running.step(event.token().0) {
                    if let Ended::Answered(by) = attempt.ended
                        && let Some(answers) = shared.answers.get(by as usize)
                    {
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    attempts.push(attempt);
                }
            }
        }
    }
}

/// Connections that are open, by slot.
struct Running {
    begun: Instant,
    open: Vec<Option<Client>>,
    free: Vec<usize>,
    /// When they are given up, in order: until when, slot, number.
    due: VecDeque<(Instant, usize, u32)>,
}

struct Client {
    stream: TcpStream,
    number: u32,
    begun: Instant,
    asked: bool,
    answer: Vec<u8>,
}

impl Running {
    /// Begins one; an attempt where it has failed at once.
    fn open(&mut self, from: IpAddr, to: SocketAddr, poll: &Poll, number: u32) -> Result<Option<Attempt>> {
        let begun = Instant::now();
        let mut stream = match connect(from, to) {
            Ok(stream) => stream,
            Err(error) => return Ok(Some(self.attempt(begun, Ended::Failed(error.kind())))),
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            self.open.len() - 1
        });
        let interests = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(slot), interests).context("watching a socket")?;
        self.open[slot] = Some(Client { stream, number, begun, asked: false, answer: Vec::new() });
        self.due.push_back((begun + PATIENCE, slot, number));
        Ok(None)
    }

    /// Goes as far as one can; an attempt where it is over.
    fn step(&mut self, slot: usize) -> Option<Attempt> {
        let client = self.open.get_mut(slot)?.as_mut()?;
        let ended = match client.step() {
            Ok(None) => return None,
            Ok(Some(by)) => Ended::Answered(by),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) => Ended::Failed(error.kind()),
        };
        Some(self.close(slot, ended))
    }

    /// Those whose time is over.
    fn give_up(&mut self) -> Vec<Attempt> {
        let (mut given_up, now) = (Vec::new(), Instant::now());
        while let Some((until, slot, number)) = self.due.front().copied() {
            let open = self.open[slot].as_ref().is_some_and(|client| client.number == number);
            if open && until > now {
                break;
            }
            self.due.pop_front();
            if open {
                given_up.push(self.close(slot, Ended::Failed(ErrorKind::TimedOut)));
            }
        }
        given_up
    }

    fn close(&mut self, slot: usize, ended: Ended) -> Attempt {
        let client = self.open[slot].take().expect("it was open");
        self.free.push(slot);
        self.attempt(client.begun, ended)
    }

    fn attempt(&self, begun: Instant, ended: Ended) -> Attempt {
        Attempt { begun: begun.duration_since(self.begun), took: begun.elapsed(), ended }
    }
}

fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

impl Client {
    /// Who has answered, at the end of the answer; `None`: it has to wait.
    fn step(&mut self) -> io::Result<Option<u32>> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        if !self.asked {
            // Not connected yet: it waits for the next event.
            if let Err(error) = self.stream.peer_addr() {
                return if error.kind() == ErrorKind::NotConnected { Ok(None) } else { Err(error) };
            }
            self.stream.write_all(REQUEST)?;
            self.asked = true;
        }
        let mut part = [0; 1024];
        loop {
            match self.stream.read(&mut part)? {
                0 => return backend(&self.answer).map(Some).ok_or_else(|| ErrorKind::InvalidData.into()),
                count if self.answer.len() + count > ANSWER => {
                    return Err(io::Error::new(ErrorKind::InvalidData, format!("{count} bytes too many")));
                }
                count => self.answer.extend_from_slice(&part[..count]),
            }
        }
    }
}

/// The number of `web2` in an answer of status 200.
fn backend(answer: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    if head.split(' ').nth(1)? != "200" {
        return None;
    }
    body.trim().strip_prefix("web")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, thread};

    use super::*;

    #[test]
    fn who_answered_stands_in_the_body_of_a_whole_answer() {
        assert_eq!(backend(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nweb3\n"), Some(3));
        assert_eq!(backend(b"HTTP/1.1 503 No\r\n\r\nweb3\n"), None);
        assert_eq!(backend(b"HTTP/1.1 200 OK\r\n"), None);
    }

    #[test]
    fn answers_refusals_and_silence_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let shared = Shared::default();
        // The first is answered, the second hears nothing, then nobody listens any more.
        let (attempts, begun) = thread::scope(|scope| {
            let begun = Instant::now();
            let load = Load { target, clients: vec!["127.0.0.1".parse().unwrap()] };
            let shared = &shared;
            let worker = scope.spawn(move || load.run(begun, shared).unwrap());
            let (mut first, _) = listener.accept().unwrap();
            first.write_all(b"HTTP/1.1 200 OK\r\n\r\nweb2\n").unwrap();
            let (mut request, mut length) = ([0; 64], 0);
            while length < REQUEST.len() {
                length += first.read(&mut request[length..]).unwrap();
            }
            drop(first);
            let (_silent, _) = listener.accept().unwrap();
            drop(listener);
            thread::sleep(Duration::from_millis(100));
            shared.stop.store(true, Ordering::Relaxed);
            (worker.join().unwrap(), begun)
        });
        assert!(begun.elapsed() < 10 * PATIENCE);
        assert_eq!(attempts.iter().filter(|attempt| attempt.ended == Ended::Answered(2)).count(), 1);
        assert_eq!(shared.answers[2].load(Ordering::Relaxed), 1);
        let silent = attempts.iter().find(|attempt| attempt.ended == Ended::Failed(ErrorKind::TimedOut)).unwrap();
        assert!(silent.took >= PATIENCE, "{silent:?}");
        let refused = attempts.iter().filter(|attempt| attempt.ended == Ended::Failed(ErrorKind::ConnectionRefused));
        assert!(refused.count() > 0, "{attempts:?}");
    }
}
