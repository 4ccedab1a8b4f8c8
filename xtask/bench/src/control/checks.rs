//! The far end of all checks: answers for every backend, and well or badly for a rack as it is told.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::world::Namespace;

use super::scene::{OWN_PORT, Rack, SHARED_PORT, STEADY_PORT};

/// Connections that may wait: those of a rack come at once.
const BACKLOG: i32 = 4096;
/// Without a question for so long, all checks of this second are over.
const QUIET: Duration = Duration::from_millis(200);

/// Answers until the process ends.
pub struct Checks {
    shared: Arc<End>,
    own: Arc<End>,
}

#[derive(Default)]
struct End {
    failed: AtomicBool,
    asked: AtomicU64,
    /// When it was answered since it last failed or came back.
    told: Mutex<Vec<Instant>>,
}

impl Checks {
    /// Listens on every address of the host.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(host: &Namespace) -> Result<Self> {
        let (steady, shared, own) = (Arc::<End>::default(), Arc::<End>::default(), Arc::<End>::default());
        for (port, end) in [(STEADY_PORT, &steady), (SHARED_PORT, &shared), (OWN_PORT, &own)] {
            let listener = host.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)));
            let listener = listener.with_context(|| format!("listening on port {port}"))?;
            // SAFETY: no memory is passed; a second call sets a longer queue.
            let listening = unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
            ensure!(listening == 0, "listening with a longer queue: {}", std::io::Error::last_os_error());
            let end = Arc::clone(end);
            thread::spawn(move || end.answer(&listener));
        }
        Ok(Self { shared, own })
    }

    /// Waits for a moment between two rounds of checks.
    pub fn wait_for_quiet(&self, rack: Rack) {
        let end = self.end(rack);
        let mut asked = end.asked.load(Ordering::Relaxed);
        loop {
            thread::sleep(QUIET);
            let now = end.asked.load(Ordering::Relaxed);
            if std::mem::replace(&mut asked, now) == now {
                return;
            }
        }
    }

    /// A rack fails, or is well again.
    pub fn set(&self, rack: Rack, failed: bool) {
        let end = self.end(rack);
        let mut told = end.told();
        told.clear();
        end.failed.store(failed, Ordering::Relaxed);
    }

    /// When so many answers had been given since then; the first is number 1.
    pub fn told(&self, rack: Rack, number: usize) -> Option<Instant> {
        self.end(rack).told().get(number - 1).copied()
    }

    fn end(&self, rack: Rack) -> &End {
        match rack {
            Rack::Shared => &self.shared,
            Rack::Own => &self.own,
        }
    }
}

impl End {
    fn told(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One question a connection, as the agent asks.
    fn answer(&self, listener: &TcpListener) {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            self.asked.fetch_add(1, Ordering::Relaxed);
            // A question that breaks off is asked again.
            let mut question = [0; 1024];
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            if !stream.read(&mut question).is_ok_and(|read| read > 0) {
                continue;
            }
            let mut told = self.told();
            let failed = self.failed.load(Ordering::Relaxed);
            let status = if failed { "503 Service Unavailable" } else { "200 OK" };
            told.push(Instant::now());
            drop(told);
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}
