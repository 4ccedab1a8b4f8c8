//! PostgreSQL: a primary and a streaming replica.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use lb_userspace::{
    config::{Check, LoginCheck, TlsCheck},
    core::{Epoch, Phase, Role},
};
use rustix::process::Signal;
use tempfile::TempDir;

use super::{
    certificates::{self, Certificates},
    server::{Server, command, file, folder, free_port, key, login, probe, probe_until, run},
};

/// The newest version that is installed.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: `cargo xtask setup --test` installs it");
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.unwrap().path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().expect("a version of PostgreSQL")
}

pub struct Postgres {
    pub server: Server,
    folder: TempDir,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Postgres {
    /// A primary with the users `lb`, who may nothing, and `copy`, who replicates.
    pub async fn primary(certificates: &Certificates, shared: &Path) -> Self {
        let folder = folder();
        let data = folder.path().join("data").display().to_string();
        let password = file(shared, "root-password", "root\n").display().to_string();
        let flags =
            ["-D", &data, "-U", "root", "-A", "scram-sha-256", "--pwfile", &password, "--no-sync", "-E", "UTF8"];
        run(&mut command(program("initdb"), &flags));
        let started = Self::start(folder, certificates, shared).await;
        started.sql(
            "CREATE USER lb PASSWORD 'secret'; CREATE DATABASE lb OWNER lb; CREATE USER copy REPLICATION PASSWORD 'copy'",
        );
        started
    }

    /// A copy of this server, which follows it.
    pub async fn replica(&self, certificates: &Certificates, shared: &Path) -> Self {
        let folder = folder();
        let data = folder.path().join("data").display().to_string();
        let from = format!("host=127.0.0.1 port={} user=copy password=copy", self.server.address.port());
        run(&mut command(
            program("pg_basebackup"),
            &["-D", &data, "-d", &from, "-R", "-X", "stream", "--no-sync", "-c", "fast"],
        ));
        Self::start(folder, certificates, shared).await
    }

    async fn start(folder: TempDir, certificates: &Certificates, shared: &Path) -> Self {
        let data = folder.path().join("data").display().to_string();
        let port = free_port();
        let mut arguments = vec!["-D".to_owned(), data, "-p".to_owned(), port.to_string()];
        for setting in [
            format!("unix_socket_directories={}", folder.path().display()),
            "listen_addresses=127.0.0.1".to_owned(),
            "fsync=off".to_owned(),
            "shared_buffers=8MB".to_owned(),
            "max_connections=20".to_owned(),
            "wal_receiver_status_interval=1s".to_owned(),
            "wal_retrieve_retry_interval=200ms".to_owned(),
            "ssl=on".to_owned(),
            format!("ssl_cert_file={}", certificates.certificate.display()),
            format!("ssl_key_file={}", certificates.key.display()),
        ] {
            arguments.extend(["-c".to_owned(), setting]);
        }
        let log = folder.path().join("log.txt");
        let server = Server::start(command(program("postgres"), &arguments), &log, port);
        let started = Self { server, folder, arguments, log };
        // As root of the database: `lb` is not there yet.
        let root = file(shared, "root-password", "root\n");
        let check = Check::Postgres(LoginCheck {
            user: Some("root".to_owned()),
            password_file: Some(root),
            database: Some("postgres".to_owned()),
            ..LoginCheck::default()
        });
        probe_until(started.server.address, &check, "PostgreSQL starts", |outcome| outcome.up).await;
        started
    }

    pub fn sql(&self, sql: &str) {
        let socket = self.folder.path().display().to_string();
        let port = self.server.address.port().to_string();
        let mut client =
            command(program("psql"), &["-X", "-q", "-h", &socket, "-p", &port, "-U", "root", "-v", "ON_ERROR_STOP=1"]);
        client.env("PGPASSWORD", "root").env("PGDATABASE", "postgres");
        for statement in sql.split("; ") {
            client.args(["-c", statement]);
        }
        run(&mut client);
    }

    /// Again after it was killed, on the same port.
    pub fn start_again(&mut self) {
        let port = self.server.address.port();
        self.server = Server::start(command(program("postgres"), &self.arguments), &self.log, port);
    }

    pub fn promote(&self) {
        self.sql("SELECT pg_promote(true, 60)");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_tells_primary_and_replica_apart_with_position_and_timeline() {
    let shared = folder();
    let certificates = certificates::make(shared.path());
    let password = file(shared.path(), "password", "secret\n");
    let check = Check::Postgres(login(&password));
    let primary = Postgres::primary(&certificates, shared.path()).await;
    let replica = primary.replica(&certificates, shared.path()).await;
    let (first, second) = (primary.server.address, replica.server.address);

    let outcome = probe(key(first, check.clone())).await;
    let role = outcome.role.clone().unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!((outcome.up, role.role, role.why.as_str()), (true, Role::Primary, "not in recovery"));
    assert_eq!(role.epoch, Some(Epoch::of("timeline", 1)));
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Login, Phase::Query]);

    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) AS n");
    let written = probe(key(first, check.clone())).await.role.unwrap().position.unwrap();
    let outcome = probe_until(second, &check, "the replica catches up", |outcome| {
        outcome.role.as_ref().is_some_and(|role| role.position >= Some(written))
    })
    .await;
    let role = outcome.role.unwrap();
    assert_eq!((role.role, role.delay), (Role::Replica, Some(Duration::ZERO)), "{}", role.why);

    lag(&primary, &replica, &check).await;
    wrong_logins(&primary, shared.path(), &password).await;
    encrypted(&primary, &certificates, &password).await;

    primary.sql("ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()");
    let read_only =
        |outcome: &lb_userspace::core::ProbeOutcome| outcome.role.as_ref().is_some_and(|role| role.role == Role::None);
    probe_until(first, &check, "a primary that takes no writes has no role", read_only).await;
    primary.sql("SET default_transaction_read_only = off; ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()");

    // The primary is gone; the replica can still be read, and then becomes the primary.
    primary.server.signal(Signal::QUIT);
    let alone = |outcome: &lb_userspace::core::ProbeOutcome| {
        outcome.role.as_ref().is_some_and(|role| role.why == "in recovery, receives from nobody")
    };
    let outcome = probe_until(second, &check, "the replica is alone", alone).await;
    assert_eq!(outcome.role.unwrap().role, Role::Replica);
    replica.promote();
    let role = probe(key(second, check)).await.role.unwrap();
    assert_eq!((role.role, role.epoch), (Role::Primary, Some(Epoch::of("timeline", 2))));
}

/// A replica that replays nothing: behind in bytes at once, and in time as that passes.
async fn lag(primary: &Postgres, replica: &Postgres, check: &Check) {
    replica.sql("SELECT pg_wal_replay_pause()");
    primary.sql("INSERT INTO t SELECT generate_series(1, 20000)");
    let written = probe(key(primary.server.address, check.clone())).await.role.unwrap().position.unwrap();
    let behind = |outcome: &lb_userspace::core::ProbeOutcome| {
        let role = outcome.role.as_ref().unwrap();
        role.delay.is_some_and(|delay| delay > Duration::from_secs(1)) && role.position < Some(written)
    };
    probe_until(replica.server.address, check, "the replica falls behind", behind).await;
    replica.sql("SELECT pg_wal_replay_resume()");
    let caught_up = |outcome: &lb_userspace::core::ProbeOutcome| {
        let role = outcome.role.as_ref().unwrap();
        role.delay == Some(Duration::ZERO) && role.position >= Some(written)
    };
    probe_until(replica.server.address, check, "the replica catches up again", caught_up).await;
}

async fn wrong_logins(primary: &Postgres, shared: &Path, password: &Path) {
    let address = primary.server.address;
    let wrong = file(shared, "wrong", "guess\n");
    let outcome = probe(key(address, Check::Postgres(login(&wrong)))).await;
    assert_eq!(outcome.result, "L7STS: password authentication failed for user \"lb\" (28P01)");
    assert!(!outcome.up && outcome.role.is_none());
    let nowhere = Check::Postgres(LoginCheck { database: Some("nowhere".to_owned()), ..login(password) });
    let outcome = probe(key(address, nowhere)).await;
    assert_eq!(outcome.result, "L7STS: database \"nowhere\" does not exist (3D000)");
}

async fn encrypted(primary: &Postgres, certificates: &Certificates, password: &Path) {
    let over = |tls| Check::Postgres(LoginCheck { tls: Some(tls), ..login(password) });
    let outcome = probe(key(primary.server.address, over(certificates.trusted()))).await;
    assert!(outcome.up && outcome.role.is_some() && outcome.certificate.is_some(), "{outcome:?}");
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Tls, Phase::Login, Phase::Query]);
    let outcome = probe(key(primary.server.address, over(TlsCheck::default()))).await;
    assert_eq!(outcome.result, "L6RSP: the certificate is signed by nobody that is trusted");
    let log = fs::read_to_string(&primary.log).unwrap();
    assert!(!log.contains("connection to client lost") && !log.contains("Connection reset by peer"), "{log}");
}
