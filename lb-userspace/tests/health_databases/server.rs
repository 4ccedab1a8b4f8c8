//! Servers of tests: started in a folder of their own, stopped by their process id.

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use lb_userspace::{
    config::{Check, LoginCheck},
    core::{ProbeKey, ProbeOutcome},
    health::Prober,
};
use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

/// Databases do not run as root: then they run as `nobody`.
const NOBODY: u32 = 65534;
/// What a loaded machine may need to start a server.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A folder that the servers may use.
pub fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("lb-db-").tempdir().unwrap();
    give_away(folder.path());
    folder
}

/// A file in a server's folder.
pub fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    give_away(&path);
    path
}

fn give_away(path: &Path) {
    if getuid().is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A program with these arguments, without rights of root.
pub fn command<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: &[A]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").current_dir("/");
    if getuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Runs a program to its end.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| {
        panic!("{:?}: {error}; `cargo xtask setup --test` installs what the tests need", command.get_program())
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A server that runs until it is dropped or stopped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    /// Starts it; whether it is ready is for the caller to find out.
    pub fn start(mut command: Command, log: &Path, port: u16) -> Self {
        let log = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", command.get_program()));
        Self { child, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)) }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn key(target: SocketAddr, check: Check) -> ProbeKey {
    let (interval, timeout) = (Duration::from_secs(60), Duration::from_secs(10));
    ProbeKey { target, check, interval, fast: None, timeout, jitter_percent: 0, way: None }
}

/// The first outcome of one key.
pub async fn probe(key: ProbeKey) -> ProbeOutcome {
    let (tx, mut rx) = mpsc::channel(1);
    let mut prober = Prober::new(tx);
    prober.set(vec![key]);
    timeout(Duration::from_secs(30), rx.recv()).await.expect("an outcome").unwrap().1
}

/// Asks until the outcome is as wanted.
pub async fn probe_until(
    target: SocketAddr,
    check: &Check,
    what: &str,
    wanted: impl Fn(&ProbeOutcome) -> bool,
) -> ProbeOutcome {
    let begun = Instant::now();
    loop {
        let outcome = probe(key(target, check.clone())).await;
        if wanted(&outcome) {
            return outcome;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: still {outcome:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A login of the user `lb`, with the password in this file.
pub fn login(password_file: &Path) -> LoginCheck {
    LoginCheck {
        user: Some("lb".to_owned()),
        password_file: Some(password_file.into()),
        role: true,
        ..LoginCheck::default()
    }
}
