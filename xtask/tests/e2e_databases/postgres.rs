//! PostgreSQL: a primary and a streaming replica.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::ensure;
use rustix::process::Signal;
use xtask::{shell, world::World};

use super::{
    cluster::{Cluster, Hosts},
    session::Dialect,
};

pub struct Postgres<'w> {
    hosts: Hosts<'w>,
}

impl<'w> Postgres<'w> {
    pub fn new(world: &'w World) -> Self {
        let mut database = Self { hosts: Hosts::new(world, "postgres", 2) };
        let data = database.data(0);
        let flags = ["-D", &data, "-U", "root", "-A", "trust", "--no-sync", "-E", "UTF8"].map(str::to_owned);
        shell::output(&mut database.hosts.command(0, &program("initdb"), &flags)).unwrap();
        let access = format!("{data}/pg_hba.conf");
        let all = "host all all 0.0.0.0/0 trust\nhost replication all 0.0.0.0/0 trust\n";
        fs::write(&access, fs::read_to_string(&access).unwrap() + all).unwrap();
        database.start(0);
        let table = "CREATE TABLE t (n BIGINT PRIMARY KEY)";
        for statement in ["CREATE USER app", "CREATE USER lb", table, "GRANT SELECT, INSERT ON t TO app"] {
            database.sql(0, statement);
        }
        let from = format!("host={} user=root", database.hosts.address(0));
        let flags = ["-D", &database.data(1), "-d", &from, "-R", "-X", "stream", "--no-sync", "-c", "fast"];
        let mut copy = database.hosts.command(1, &program("pg_basebackup"), &flags.map(str::to_owned));
        shell::output(&mut copy).unwrap();
        database.start(1);
        database
    }

    fn data(&self, server: usize) -> String {
        self.hosts.path(server, "data").display().to_string()
    }

    fn start(&mut self, server: usize) {
        let mut arguments = vec!["-D".to_owned(), self.data(server)];
        for setting in [
            "unix_socket_directories=".to_owned(),
            format!("cluster_name={}", self.hosts.name(server)),
            format!("port={}", Dialect::Postgres.port()),
            "listen_addresses=*".to_owned(),
            "fsync=off".to_owned(),
            "shared_buffers=8MB".to_owned(),
            "max_connections=40".to_owned(),
            "wal_receiver_status_interval=1s".to_owned(),
            "wal_retrieve_retry_interval=200ms".to_owned(),
        ] {
            arguments.extend(["-c".to_owned(), setting]);
        }
        self.hosts.start(server, &program("postgres"), &arguments);
        self.hosts.until("PostgreSQL starts", server, || shell::output(&mut self.client(server, "SELECT 1")).map(drop));
    }

    fn client(&self, server: usize, sql: &str) -> Command {
        let mut command = self.hosts.host(server).command(program("psql"));
        command.args(["-X", "-q", "-A", "-t", "-U", "root", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        command.args(["-h", &self.hosts.address(server), "-p", &Dialect::Postgres.port().to_string()]);
        command
    }

    fn sql(&self, server: usize, sql: &str) -> String {
        let answer = shell::output(&mut self.client(server, sql));
        answer.unwrap_or_else(|error| panic!("{sql}: {error:#}")).trim().to_owned()
    }

    fn promote(&self, server: usize) {
        assert_eq!(self.sql(server, "SELECT pg_promote(true, 60)"), "t");
    }
}

/// The newest version that is installed.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: `cargo xtask setup --test` installs it");
    let mut found: Vec<PathBuf> = versions.map(|entry| entry.unwrap().path().join("bin").join(name)).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().expect("a version of PostgreSQL")
}

impl Cluster for Postgres<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    fn servers(&self) -> usize {
        2
    }

    fn check(&self) -> String {
        "type = \"postgres\"\nuser = \"lb\"\ndatabase = \"postgres\"".to_owned()
    }

    /// And a round of probes.
    fn max_lag(&self) -> (&'static str, Duration) {
        ("1s", Duration::from_secs(3))
    }

    /// A clean shutdown gives all that was written to the replica.
    fn hand_over(&mut self, from: usize, to: usize) {
        self.hosts.end(from, Signal::INT);
        self.promote(to);
        let folder = PathBuf::from(self.data(from));
        let primary = format!("primary_conninfo = 'host={} user=root'\n", self.hosts.address(to));
        fs::write(folder.join("standby.signal"), "").unwrap();
        let settings = folder.join("postgresql.auto.conf");
        fs::write(&settings, fs::read_to_string(&settings).unwrap() + &primary).unwrap();
        self.start(from);
        self.hosts.until("the old primary follows", from, || {
            let streams = self.sql(from, "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'");
            ensure!(streams == "1", "{streams} streams");
            Ok(())
        });
    }

    fn kill(&mut self, server: usize) {
        self.hosts.kill(server);
    }

    fn fail_over(&mut self) -> usize {
        self.promote(0);
        0
    }

    fn come_back(&mut self, server: usize) {
        self.start(server);
        assert_eq!(self.sql(server, "SELECT pg_is_in_recovery()"), "f");
    }

    /// By its timeline.
    fn is_ahead(&self, current: usize, _other: usize) -> Option<usize> {
        Some(current)
    }

    fn fall_behind(&mut self, replica: usize) {
        self.sql(replica, "SELECT pg_wal_replay_pause()");
    }

    fn catch_up(&mut self, replica: usize) {
        self.sql(replica, "SELECT pg_wal_replay_resume()");
    }

    fn demote(&mut self, primary: usize) {
        self.sql(primary, "ALTER SYSTEM SET default_transaction_read_only = on");
        self.sql(primary, "SELECT pg_reload_conf()");
    }
}
