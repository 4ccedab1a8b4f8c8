//! Redis: a master and a replica.

use std::{path::Path, process::Command, time::Duration};

use anyhow::ensure;
use xtask::{shell, world::World};

use super::{
    cluster::{Cluster, Hosts},
    session::Dialect,
};

pub struct Redis<'w> {
    hosts: Hosts<'w>,
}

impl<'w> Redis<'w> {
    pub fn new(world: &'w World) -> Self {
        let mut redis = Self { hosts: Hosts::new(world, "redis-server", 2) };
        redis.start(0, None);
        redis.start(1, Some(0));
        redis
    }

    fn start(&mut self, server: usize, primary: Option<usize>) {
        let (name, folder) = (self.hosts.name(server), self.hosts.folder.path().display().to_string());
        let mut arguments: Vec<String> = ["--port", "6379", "--protected-mode", "no", "--save", "", "--dir", &folder]
            .into_iter()
            .chain(["--dbfilename", &format!("{name}.rdb"), "--pidfile", &format!("{folder}/{name}.pid")])
            .chain(["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"])
            .map(str::to_owned)
            .collect();
        if let Some(primary) = primary {
            arguments.extend(["--replicaof".to_owned(), self.hosts.address(primary), "6379".to_owned()]);
        }
        self.hosts.start(server, Path::new("redis-server"), &arguments);
        self.hosts.until("Redis starts", server, || {
            let answer = shell::output(&mut self.cli(server, &["PING"]))?;
            ensure!(answer.trim() == "PONG", "{answer}");
            Ok(())
        });
    }

    fn cli(&self, server: usize, words: &[&str]) -> Command {
        let mut command = self.hosts.host(server).command("redis-cli");
        command.args(words);
        command
    }

    fn tell(&self, server: usize, words: &[&str]) {
        let answer = shell::output(&mut self.cli(server, words)).unwrap();
        assert_eq!(answer.trim(), "OK", "{words:?}");
    }

    fn nft(&self, server: usize, rules: &str) {
        self.hosts.host(server).output("nft", &[rules]).unwrap();
    }
}

impl Cluster for Redis<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::Redis
    }

    fn servers(&self) -> usize {
        2
    }

    fn check(&self) -> String {
        "type = \"redis\"".to_owned()
    }

    /// Of writes with a thousand bytes each, fifty in a second and writer.
    fn max_lag(&self) -> (&'static str, Duration) {
        ("64kB", Duration::from_secs(2))
    }

    fn hand_over(&mut self, from: usize, to: usize) {
        self.tell(from, &["FAILOVER", "TO", &self.hosts.address(to), "6379"]);
        self.hosts.until("the roles are changed", from, || {
            let role = |server| shell::output(&mut self.cli(server, &["ROLE"]));
            ensure!(role(from)?.starts_with("slave") && role(to)?.starts_with("master"), "{}", role(from)?);
            Ok(())
        });
    }

    fn kill(&mut self, server: usize) {
        self.hosts.kill(server);
    }

    fn fail_over(&mut self) -> usize {
        self.tell(0, &["REPLICAOF", "NO", "ONE"]);
        0
    }

    fn come_back(&mut self, server: usize) {
        self.start(server, None);
    }

    fn is_ahead(&self, _current: usize, _other: usize) -> Option<usize> {
        None
    }

    /// The network between the two swallows what the primary sends; the connection itself stays.
    fn fall_behind(&mut self, replica: usize) {
        self.nft(
            replica,
            "add table ip behind; add chain ip behind in { type filter hook input priority 0; }; \
             add rule ip behind in ip saddr 10.71.2.11-10.71.2.19 tcp sport 6379 drop",
        );
    }

    fn catch_up(&mut self, replica: usize) {
        self.nft(replica, "delete table ip behind");
    }

    fn demote(&mut self, primary: usize) {
        // Of nobody: there is no server at that address.
        self.tell(primary, &["REPLICAOF", "10.71.2.99", "6379"]);
    }
}
