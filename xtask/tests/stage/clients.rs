//! Clients: curl, and connections that stay open.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use xtask::world::{Namespace, Process, http};

/// `curl` of the same page so many times, a new connection each; answers by backend.
///
/// Panics when one of them is not answered: curl's words are in the message.
pub fn curl_names(client: &Namespace, service: SocketAddr, requests: u32) -> BTreeMap<String, u32> {
    let mut config = String::new();
    for _ in 0..requests {
        config += &format!("url = \"http://{service}/\"\n");
    }
    let mut command = client.command("curl");
    command.args(["-sS", "--fail", "--max-time", "20", "-H", "Connection: close", "-K", "-"]);
    let text = with_input(&mut command, &config);
    let mut names = BTreeMap::new();
    for line in text.lines() {
        *names.entry(line.to_owned()).or_default() += 1;
    }
    assert_eq!(names.values().sum::<u32>(), requests, "{names:?}");
    names
}

/// Panics unless every backend got its turn: shares differ by no more than one turn per CPU.
pub fn assert_in_turn(names: &BTreeMap<String, u32>, backends: &[String]) {
    let total: u32 = names.values().sum();
    let fair = total / backends.len() as u32;
    let cpus = thread::available_parallelism().unwrap().get() as u32;
    assert_eq!(names.keys().collect::<Vec<_>>(), backends.iter().collect::<Vec<_>>());
    for (name, count) in names {
        assert!(count.abs_diff(fair) <= cpus, "{name} got {count} of {total}, fair are {fair}: {names:?}");
    }
}

/// A curl that runs beside the test and writes what it gets into a file.
pub fn curl_into(client: &Namespace, url: &str, file: &Path) -> Process {
    let mut command = client.command("curl");
    command.args(["-sS", "--fail", "--max-time", "120", "-o"]).arg(file).arg(url);
    Process::start(&format!("curl {url}"), &mut command, &file.with_extension("log")).unwrap()
}

/// An HTTP connection that stays open, to see whether a flow keeps its backend.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub fn open(client: &Namespace, service: SocketAddr) -> io::Result<Self> {
        let stream = client.enter(|| TcpStream::connect_timeout(&service, Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream })
    }

    pub fn send(&mut self) -> io::Result<()> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: world\r\n\r\n")
    }

    /// The name in the answer to the last request.
    pub fn receive(&mut self) -> io::Result<String> {
        let (mut answer, mut part) = (Vec::new(), [0; 1024]);
        loop {
            let count = self.stream.read(&mut part)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&part[..count]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((_, body)) = text.split_once("\r\n\r\n")
                && let Some(name) = body.strip_suffix('\n')
            {
                return Ok(name.to_owned());
            }
        }
    }

    /// Sends a request and returns the name in the answer.
    pub fn ask(&mut self) -> io::Result<String> {
        self.send()?;
        self.receive()
    }
}

/// So many requests reach the backends in turn, and a connection keeps its backend; it is left open.
///
/// # Panics
/// They do not.
#[track_caller]
pub fn assert_balanced(client: &Namespace, service: SocketAddr, backends: &[String], requests: u32) -> Connection {
    assert_in_turn(&curl_names(client, service, requests), backends);
    let mut connection = Connection::open(client, service).unwrap();
    let first = connection.ask().unwrap();
    for _ in 0..20 {
        assert_eq!(connection.ask().unwrap(), first, "a connection stays on its backend");
    }
    connection
}

/// Requests one after the other until told to stop, on a thread of their own.
pub struct Load<'scope> {
    stop: &'scope AtomicBool,
    worker: Option<thread::ScopedJoinHandle<'scope, Vec<Attempt>>>,
}

impl Drop for Load<'_> {
    /// Also when the test fails: the scope waits for the worker.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub struct Attempt {
    pub begun: Instant,
    pub outcome: Result<String, String>,
}

impl<'scope> Load<'scope> {
    pub fn start(
        scope: &'scope thread::Scope<'scope, '_>,
        stop: &'scope AtomicBool,
        client: &'scope Namespace,
        service: SocketAddr,
    ) -> Self {
        let worker = scope.spawn(move || {
            client.join_thread();
            let mut attempts = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let outcome = http::get(service, "/", Duration::from_secs(5));
                attempts.push(Attempt { begun, outcome: outcome.map_err(|error| error.to_string()) });
                thread::sleep(Duration::from_millis(5));
            }
            attempts
        });
        Self { stop, worker: Some(worker) }
    }

    /// Everything that was tried.
    pub fn finish(mut self) -> Vec<Attempt> {
        self.stop.store(true, Ordering::Relaxed);
        self.worker.take().expect("finished once").join().unwrap()
    }
}

fn with_input(command: &mut std::process::Command, input: &str) -> String {
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
