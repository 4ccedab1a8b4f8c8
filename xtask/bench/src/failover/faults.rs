//! What befalls a backend, and its end.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use xtask::world::{
    World,
    plan::backend_name,
    servers::{WEB_PORT, Web},
};

use super::scene::LOST;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGKILL: its kernel refuses from then on.
    Killed,
    /// The host takes nothing in and says nothing, not even to questions for its link-layer address.
    Silent,
    /// The cable is out.
    LinkDown,
    /// Its firewall drops what comes for the port.
    Firewalled,
    /// It takes connections as ever, and answers each request after 300 ms.
    Slow,
}

impl Fault {
    pub const ALL: [Self; 5] = [Self::Killed, Self::Silent, Self::LinkDown, Self::Firewalled, Self::Slow];

    /// In tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "process killed",
            Self::Silent => "host silent",
            Self::LinkDown => "link down",
            Self::Firewalled => "port firewalled",
            Self::Slow => "slow",
        }
    }
}

/// A fault that lasts until it is repaired.
pub struct Broken {
    fault: Fault,
    slow: Option<SlowServer>,
}

impl Broken {
    /// # Errors
    /// The kernel refuses.
    pub fn strike(fault: Fault, world: &World, web: &mut Web) -> Result<Self> {
        let mut slow = None;
        match fault {
            Fault::Killed => web.kill()?,
            Fault::Silent => {
                nft(
                    world,
                    "add table netdev silent; add chain netdev silent in { type filter hook ingress device eth0 \
                     priority 0; policy drop; }",
                )?;
            }
            Fault::LinkDown => world.switch.ip(&[format!("link set {} down", backend_name(LOST))])?,
            Fault::Firewalled => nft(
                world,
                &format!(
                    "add table ip wall; add chain ip wall in {{ type filter hook input priority 0; }}; \
                     add rule ip wall in tcp dport {WEB_PORT} drop"
                ),
            )?,
            Fault::Slow => {
                slow = Some(SlowServer::start(world)?);
                nft(
                    world,
                    &format!(
                        "add table ip slow; add chain ip slow in {{ type nat hook prerouting priority dstnat; }}; \
                         add rule ip slow in tcp dport {WEB_PORT} redirect to :{SLOW_PORT}"
                    ),
                )?;
            }
        }
        Ok(Self { fault, slow })
    }

    /// All is as it was; a server that was killed listens again.
    ///
    /// # Errors
    /// The kernel refuses, or the server does not start.
    pub fn repair(&self, world: &World, web: &mut Web) -> Result<()> {
        match self.fault {
            Fault::Killed => {
                web.restart(world, &std::env::current_exe()?)?;
            }
            Fault::Silent => nft(world, "delete table netdev silent")?,
            Fault::LinkDown => world.switch.ip(&[format!("link set {} up", backend_name(LOST))])?,
            Fault::Firewalled => nft(world, "delete table ip wall")?,
            Fault::Slow => {
                // Those that were redirected end as they began.
                nft(world, "flush chain ip slow in")?;
            }
        }
        Ok(())
    }

    /// Takes off what [`Self::repair`] has left for connections that were under way.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn clear(self, world: &World) -> Result<()> {
        if self.slow.is_some() { nft(world, "delete table ip slow") } else { Ok(()) }
    }
}

fn nft(world: &World, rules: &str) -> Result<()> {
    world.backends[usize::from(LOST)].output("nft", &[rules]).map(drop)
}

/// Answers as the backend does, but each request only after a while.
struct SlowServer {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

const SLOW_PORT: u16 = WEB_PORT + 1;
const TAKES: Duration = Duration::from_millis(300);

impl SlowServer {
    fn start(world: &World) -> Result<Self> {
        let listener = world.backends[usize::from(LOST)].enter(|| TcpListener::bind(("0.0.0.0", SLOW_PORT)))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // A client that went away is no reason to stop.
                        Ok((stream, _)) => drop(thread::spawn(move || answer(stream))),
                        Err(_) => thread::sleep(Duration::from_millis(2)),
                    }
                }
            }
        });
        Ok(Self { stop, worker: Some(worker) })
    }
}

impl Drop for SlowServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut request, mut part) = (Vec::new(), [0; 512]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    thread::sleep(TAKES);
    let body = format!("{}\n", backend_name(LOST));
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes())
}
