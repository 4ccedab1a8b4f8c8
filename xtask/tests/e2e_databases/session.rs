//! A client's conversation with a database: the database's own client program on a pipe, or a socket.

use std::{
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use xtask::world::Namespace;

/// Each writer's numbers lie below the next one's.
pub const OF_WRITER: u64 = 1_000_000;

/// How a database is spoken to. Every answer ends in a line `ok`, which is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    MariaDb,
    Postgres,
    Redis,
}

/// The beginning of what is told of a conversation that has no other end any more.
const LOST: &str = "lost: ";

impl Dialect {
    /// Where servers listen.
    pub const fn port(self) -> u16 {
        match self {
            Self::MariaDb => 3306,
            Self::Postgres => 5432,
            Self::Redis => 6379,
        }
    }

    /// Stores a number; the answer names the server.
    pub fn write(self, number: u64) -> String {
        match self {
            Self::MariaDb => format!("INSERT INTO shop.t VALUES ({number}); SELECT @@report_host; SELECT 'ok';\n"),
            Self::Postgres => {
                format!("INSERT INTO t VALUES ({number}) RETURNING current_setting('cluster_name'); SELECT 'ok';\n")
            }
            // As long as a row of a table with what belongs to it.
            Self::Redis => {
                let (key, pad) = (number / OF_WRITER, "x".repeat(1000));
                format!("SET t{key} {number}\r\nSET pad {pad}\r\nCONFIG GET pidfile\r\nECHO ok\r\n")
            }
        }
    }

    /// The greatest number of the first writer that was stored; the answer names the server too.
    pub fn read(self) -> String {
        match self {
            Self::MariaDb => {
                format!("SELECT MAX(n) FROM shop.t WHERE n < {OF_WRITER}; SELECT @@report_host; SELECT 'ok';\n")
            }
            Self::Postgres => format!(
                "SELECT max(n) FROM t WHERE n < {OF_WRITER}; SELECT current_setting('cluster_name'); SELECT 'ok';\n"
            ),
            Self::Redis => "GET t0\r\nCONFIG GET pidfile\r\nECHO ok\r\n".to_owned(),
        }
    }

    /// Begins a conversation; the client's kernel knocks again for as long as `patience`.
    pub fn open(self, client: &Namespace, to: SocketAddr, patience: Duration) -> Result<Session, String> {
        let (host, port) = (to.ip().to_string(), to.port().to_string());
        let seconds = patience.as_secs().max(1);
        let command = match self {
            Self::MariaDb => {
                let mut command = client.command("mariadb");
                command.args(["--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--skip-reconnect"]);
                command.args(["--user=app", "--protocol=tcp", "--host", &host, "--port", &port]);
                command.arg(format!("--connect-timeout={seconds}"));
                command
            }
            Self::Postgres => {
                let mut command = client.command("psql");
                command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"]);
                command.args(["-h", &host, "-p", &port, "-U", "app", "-d", "postgres"]);
                command.env("PGCONNECT_TIMEOUT", seconds.max(2).to_string());
                command
            }
            Self::Redis => {
                let stream = client.enter(|| TcpStream::connect_timeout(&to, patience));
                return stream.and_then(Session::socket).map_err(|error| format!("{LOST}{error}"));
            }
        };
        Session::program(command).map_err(|error| format!("cannot start the client: {error}"))
    }
}

/// Whether a conversation ended because the connection did: the client tries again.
pub fn is_lost(error: &str) -> bool {
    [
        LOST,
        "Lost connection",
        "has gone away",
        "server closed the connection",
        "Connection reset",
        "connection to server was lost",
        "terminating connection due to administrator command",
    ]
    .iter()
    .any(|words| error.contains(words))
}

pub struct Session {
    input: Box<dyn Write + Send>,
    lines: Receiver<io::Result<String>>,
    other_end: OtherEnd,
}

enum OtherEnd {
    Program(Child),
    Socket(TcpStream),
}

impl Session {
    fn program(mut command: Command) -> io::Result<Self> {
        let (output, writer) = io::pipe()?;
        command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // It holds the pipe's writing end.
        drop(command);
        let input = child.stdin.take().expect("piped");
        Ok(Self { input: Box::new(input), lines: lines_of(output), other_end: OtherEnd::Program(child) })
    }

    fn socket(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (input, output) = (stream.try_clone()?, stream.try_clone()?);
        Ok(Self { input: Box::new(input), lines: lines_of(output), other_end: OtherEnd::Socket(stream) })
    }

    /// The lines of the answer but the last one, `ok`.
    pub fn ask(&mut self, text: &str, patience: Duration) -> Result<Vec<String>, String> {
        // What is wrong with the connection stands in what was read of it.
        let written = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        let (mut answer, deadline) = (Vec::<String>::new(), Instant::now() + patience);
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(line)) if line == "ok" => break,
                Ok(Ok(line)) => answer.push(line),
                Ok(Err(error)) => return Err(format!("{LOST}{error} {}", answer.join(" "))),
                Err(RecvTimeoutError::Timeout) => return Err(format!("silent for {patience:?} {}", answer.join(" "))),
                Err(RecvTimeoutError::Disconnected) if answer.is_empty() => {
                    return Err(format!("{LOST}the other end is gone ({written:?})"));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(answer.join(" ")),
            }
        }
        let refused = answer.iter().find(|line| line.starts_with('-') || line.starts_with("ERROR"));
        match refused {
            Some(words) => Err(words.clone()),
            None => Ok(answer),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        match &mut self.other_end {
            OtherEnd::Program(child) => {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
            OtherEnd::Socket(stream) => {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

/// Ends with the other end, or when nobody wants them any more.
fn lines_of(output: impl Read + Send + 'static) -> Receiver<io::Result<String>> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let over = line.is_err();
            if sender.send(line).is_err() || over {
                return;
            }
        }
    });
    lines
}

/// The server's number, from 0, in an answer that names it `web1`, `web2`, ...
pub fn server(answer: &[String]) -> Option<usize> {
    let name = |line: &String| line.rsplit('/').next()?.strip_prefix("web")?.trim_end_matches(".pid").parse().ok();
    answer.iter().find_map(name).map(|number: usize| number - 1)
}
