//! Load from one thread: HTTP over TCP, bounded in count and time.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mio::{Events, Interest, Poll, Token, net::TcpStream};

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A connection for each request.
    Connections,
    /// All requests over connections that stay.
    KeepAlive,
}

#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub target: SocketAddr,
    pub path: &'static str,
    pub kind: Kind,
    /// Connections at the same time.
    pub parallel: usize,
    /// Requests in all.
    pub count: usize,
}

/// How it went.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub answered: usize,
    pub failed: usize,
    pub took: Duration,
    /// From the beginning of a connection, or of a request where it stays, to its end; sorted.
    pub latencies: Vec<Duration>,
    /// Of answers, headers included.
    pub bytes: u64,
}

/// Nothing happens for so long: what is open has failed.
const PATIENCE: Duration = Duration::from_secs(5);

impl Load {
    /// Runs it in the calling thread's namespace.
    ///
    /// # Errors
    /// The kernel gives no sockets. Requests that go wrong are counted and no error.
    pub fn run(&self) -> Result<Outcome> {
        let mut poll = Poll::new().context("watching sockets")?;
        let mut events = Events::with_capacity(256);
        let mut clients: Vec<Option<Client>> = (0..self.parallel).map(|_| None).collect();
        let mut buffer = vec![0; 256 * 1024];
        let (mut outcome, mut started, begun) = (Outcome::default(), 0, Instant::now());
        for (at, client) in clients.iter_mut().enumerate().take(self.count) {
            *client = Some(Client::connect(self, &poll, at)?);
            started += 1;
        }
        while outcome.answered + outcome.failed < self.count {
            poll.poll(&mut events, Some(PATIENCE)).context("waiting for sockets")?;
            if events.is_empty() {
                outcome.failed = self.count - outcome.answered;
                break;
            }
            for event in &events {
                let at = event.token().0;
                let Some(client) = &mut clients[at] else { continue };
                let Some(ended) = client.step(self, &mut buffer) else { continue };
                match &ended {
                    Ok(answer) => {
                        outcome.answered += 1;
                        outcome.bytes += answer.bytes;
                        outcome.latencies.push(answer.took);
                    }
                    Err(_) => outcome.failed += 1,
                }
                let again = started < self.count;
                if ended.is_ok() && self.kind == Kind::KeepAlive && again {
                    client.ask(self);
                } else {
                    clients[at] = if again { Some(Client::connect(self, &poll, at)?) } else { None };
                }
                started += usize::from(again);
            }
        }
        outcome.took = begun.elapsed();
        outcome.latencies.sort_unstable();
        Ok(outcome)
    }

    fn request(&self) -> String {
        let connection = match self.kind {
            Kind::Connections => "close",
            Kind::KeepAlive => "keep-alive",
        };
        format!("GET {} HTTP/1.1\r\nHost: bench\r\nConnection: {connection}\r\n\r\n", self.path)
    }
}

struct Client {
    stream: TcpStream,
    begun: Instant,
    asked: bool,
    answer: Answering,
}

struct Answer {
    took: Duration,
    bytes: u64,
}

impl Client {
    fn connect(load: &Load, poll: &Poll, at: usize) -> Result<Self> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(load.target).context("opening a socket")?;
        let interests = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(at), interests).context("watching a socket")?;
        Ok(Self { stream, begun, asked: false, answer: Answering::default() })
    }

    /// Sends the next request over the connection.
    fn ask(&mut self, load: &Load) {
        self.begun = Instant::now();
        self.answer = Answering::default();
        // A request is far smaller than an empty send buffer; what fails shows when it is read.
        let _ = self.stream.write_all(load.request().as_bytes());
    }

    /// Goes as far as it can; `None`: it has to wait.
    fn step(&mut self, load: &Load, buffer: &mut [u8]) -> Option<std::io::Result<Answer>> {
        match self.try_step(load, buffer) {
            Ok(None) => None,
            Ok(Some(bytes)) => Some(Ok(Answer { took: self.begun.elapsed(), bytes })),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn try_step(&mut self, load: &Load, buffer: &mut [u8]) -> std::io::Result<Option<u64>> {
        if !self.asked {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            match self.stream.peer_addr() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(None),
                Err(error) => return Err(error),
            }
            self.stream.set_nodelay(true)?;
            self.stream.write_all(load.request().as_bytes())?;
            self.asked = true;
        }
        loop {
            let read = self.stream.read(buffer)?;
            if read > 0 {
                self.answer.take(&buffer[..read]);
            }
            let whole = self.answer.is_whole();
            match load.kind {
                Kind::KeepAlive if whole => return Ok(Some(self.answer.bytes)),
                // The server ends the connection, as it was asked to.
                Kind::Connections if read == 0 && whole => return Ok(Some(self.answer.bytes)),
                _ if read == 0 => return Err(ErrorKind::UnexpectedEof.into()),
                _ => {}
            }
        }
    }
}

/// An answer that is being read.
#[derive(Default)]
struct Answering {
    /// Its head, until that is whole.
    head: Vec<u8>,
    bytes: u64,
    /// Bytes of head and body together, once they are known.
    wanted: Option<u64>,
}

impl Answering {
    fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.wanted.is_some() {
            return;
        }
        self.head.extend_from_slice(bytes);
        let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else { return };
        let head = String::from_utf8_lossy(&self.head[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
        self.wanted = length.map(|length| length + end as u64 + 4);
    }

    fn is_whole(&self) -> bool {
        self.wanted.is_some_and(|wanted| self.bytes >= wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{Shutdown, TcpListener},
        thread,
    };

    use super::*;

    /// Answers requests until its listener goes, each by `answer`; the connection stays when `keep`.
    fn server(keep: bool, answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).is_ok_and(|read| read > 0) {
                        if stream.write_all(answer.as_bytes()).is_err() || !keep {
                            break;
                        }
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        address
    }

    const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    fn load(target: SocketAddr, kind: Kind) -> Load {
        Load { target, path: "/", kind, parallel: 3, count: 20 }
    }

    #[test]
    fn every_request_is_answered_over_connections_that_stay_or_not() {
        for (keep, kind) in [(true, Kind::KeepAlive), (false, Kind::Connections)] {
            let outcome = load(server(keep, ANSWER), kind).run().unwrap();
            assert_eq!((outcome.answered, outcome.failed), (20, 0), "{kind:?}");
            assert_eq!(outcome.bytes, 20 * ANSWER.len() as u64);
            assert_eq!(outcome.latencies.len(), 20);
            assert!(outcome.latencies.is_sorted());
        }
    }

    #[test]
    fn half_an_answer_and_a_closed_port_are_failures() {
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
        let outcome = load(server(false, half), Kind::Connections).run().unwrap();
        assert_eq!((outcome.answered, outcome.failed), (0, 20));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let outcome = load(closed, Kind::Connections).run().unwrap();
        assert_eq!((outcome.answered, outcome.failed), (0, 20));
    }
}
