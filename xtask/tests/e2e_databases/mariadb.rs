//! MariaDB: a primary and two replicas that follow it by GTID.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use anyhow::ensure;
use xtask::{
    shell,
    world::{Process, World},
};

use super::{
    cluster::{Cluster, Hosts},
    session::Dialect,
};

const SERVERS: usize = 3;
const SETTINGS: [&str; 7] = [
    "--no-defaults",
    "--log-bin=log",
    "--log-slave-updates",
    // There is nobody to ask for names.
    "--skip-name-resolve",
    "--innodb-buffer-pool-size=8M",
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=2",
];
const USERS: &str = "SET SESSION sql_log_bin = 0; CREATE USER app@'%'; \
    GRANT SELECT, INSERT ON shop.* TO app@'%'; CREATE USER lb@'%'; GRANT SLAVE MONITOR ON *.* TO lb@'%'; \
    CREATE USER copy@'%'; GRANT REPLICATION SLAVE ON *.* TO copy@'%'; CREATE DATABASE shop; \
    CREATE TABLE shop.t (n BIGINT PRIMARY KEY)";

pub struct MariaDb<'w> {
    hosts: Hosts<'w>,
    dead: Vec<usize>,
    /// Keeps a replica from writing.
    lock: Option<Process>,
}

impl<'w> MariaDb<'w> {
    pub fn new(world: &'w World) -> Self {
        let mut database = Self { hosts: Hosts::new(world, "mariadbd", SERVERS), dead: Vec::new(), lock: None };
        // One installation, three copies of it.
        let data = database.hosts.path(0, "data");
        let mut arguments =
            ["--no-defaults", "--innodb-log-file-size=4M", "--skip-test-db"].map(str::to_owned).to_vec();
        arguments.push("--auth-root-authentication-method=normal".to_owned());
        arguments.push(format!("--datadir={}", data.display()));
        shell::output(&mut database.hosts.command(0, Path::new("mariadb-install-db"), &arguments)).unwrap();
        for server in 1..SERVERS {
            let copy =
                shell::tool("cp").arg("-a").arg(&data).arg(database.hosts.path(server, "data")).status().unwrap();
            assert!(copy.success());
        }
        for server in 0..SERVERS {
            database.launch(server);
        }
        for server in 0..SERVERS {
            database.wait(server);
            database.sql(server, USERS);
        }
        for server in 1..SERVERS {
            database.follow(server, 0);
        }
        database
    }

    fn launch(&mut self, server: usize) {
        let path = |name: &str| self.hosts.path(server, name).display().to_string();
        let mut arguments: Vec<String> = SETTINGS.iter().map(|&setting| setting.to_owned()).collect();
        arguments.extend([
            format!("--datadir={}", path("data")),
            format!("--socket={}", path("socket")),
            format!("--pid-file={}", path("pid")),
            format!("--server-id={}", server + 1),
            format!("--report-host={}", self.hosts.name(server)),
        ]);
        self.hosts.start(server, Path::new("mariadbd"), &arguments);
    }

    fn wait(&self, server: usize) {
        self.hosts.until("MariaDB starts", server, || shell::output(&mut self.client(server, "SELECT 1")).map(drop));
    }

    fn client(&self, server: usize, sql: &str) -> Command {
        let socket = format!("--socket={}", self.hosts.path(server, "socket").display());
        let mut command = self.hosts.host(server).command("mariadb");
        command.args(["--no-defaults", "--batch", "--skip-column-names", "--user=root", &socket, "-e", sql]);
        command
    }

    fn sql(&self, server: usize, sql: &str) -> String {
        let answer = shell::output(&mut self.client(server, sql));
        answer.unwrap_or_else(|error| panic!("{sql}: {error:#}")).trim().to_owned()
    }

    /// Of its replication, a line for each value.
    fn status(&self, server: usize) -> String {
        let mut client = self.client(server, "SHOW SLAVE STATUS\\G");
        shell::output(client.arg("--column-names")).unwrap()
    }

    /// How far the server's own history goes: the number of its last transaction.
    fn position(&self, server: usize) -> u64 {
        let gtid = self.sql(server, "SELECT @@gtid_binlog_pos");
        gtid.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    fn follow(&self, server: usize, primary: usize) {
        let host = self.hosts.address(primary);
        self.sql(
            server,
            &format!(
                "SET GLOBAL read_only = 1; STOP SLAVE; SET GLOBAL gtid_slave_pos = @@gtid_binlog_pos; \
                 CHANGE MASTER TO master_host = '{host}', master_user = 'copy', master_use_gtid = slave_pos, \
                 master_connect_retry = 1; START SLAVE"
            ),
        );
        self.hosts.until("it follows", server, || {
            let status = self.status(server);
            ensure!(status.matches("Running: Yes").count() == 2, "{status}");
            Ok(())
        });
    }

    fn lead(&mut self, server: usize) {
        self.sql(server, "STOP SLAVE; RESET SLAVE ALL; SET GLOBAL read_only = 0");
    }

    /// Until it has executed what it has received.
    fn settle(&self, server: usize) {
        self.sql(server, "STOP SLAVE IO_THREAD");
        self.hosts.until("the relay log is executed", server, || {
            let status = self.status(server);
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.trim().strip_prefix(name));
                line.map(|value| value.trim_start_matches(": ").to_owned())
            };
            ensure!(of("Read_Master_Log_Pos") == of("Exec_Master_Log_Pos"), "{status}");
            Ok(())
        });
    }
}

impl Cluster for MariaDb<'_> {
    fn dialect(&self) -> Dialect {
        Dialect::MariaDb
    }

    fn servers(&self) -> usize {
        SERVERS
    }

    fn check(&self) -> String {
        "type = \"mysql\"\nuser = \"lb\"".to_owned()
    }

    /// In whole seconds, as MariaDB tells it; and a round of probes.
    fn max_lag(&self) -> (&'static str, Duration) {
        ("2s", Duration::from_secs(4))
    }

    fn hand_over(&mut self, from: usize, to: usize) {
        self.sql(from, "SET GLOBAL read_only = 1");
        let position = self.sql(from, "SELECT @@gtid_binlog_pos");
        for server in (0..SERVERS).filter(|server| *server != from) {
            let reached = self.sql(server, &format!("SELECT MASTER_GTID_WAIT('{position}', 30)"));
            assert_eq!(reached, "0", "{} has all that was written", self.hosts.name(server));
        }
        self.lead(to);
        for server in (0..SERVERS).filter(|server| *server != to) {
            self.follow(server, to);
        }
    }

    fn kill(&mut self, server: usize) {
        self.hosts.kill(server);
        self.dead.push(server);
    }

    fn fail_over(&mut self) -> usize {
        let left: Vec<usize> = (0..SERVERS).filter(|server| !self.dead.contains(server)).collect();
        left.iter().for_each(|&server| self.settle(server));
        let first = left.iter().copied().max_by_key(|&server| (self.position(server), SERVERS - server)).unwrap();
        self.lead(first);
        left.iter().filter(|server| **server != first).for_each(|&server| self.follow(server, first));
        first
    }

    fn come_back(&mut self, server: usize) {
        self.launch(server);
        self.wait(server);
        assert_eq!(self.sql(server, "SELECT @@read_only"), "0");
    }

    fn is_ahead(&self, current: usize, other: usize) -> Option<usize> {
        // What was written in the other one's last moment may be nowhere else.
        let history = |server| -> BTreeMap<String, u64> {
            let state = self.sql(server, "SELECT @@gtid_binlog_state");
            let of = |gtid: &str| gtid.rsplit_once('-').map(|(who, n)| (who.to_owned(), n.parse().unwrap()));
            state.split(',').filter_map(of).collect()
        };
        let (mine, theirs) = (history(current), history(other));
        theirs.iter().all(|(who, number)| mine.get(who) >= Some(number)).then_some(current)
    }

    /// Nothing can be written there, while somebody holds the lock.
    fn fall_behind(&mut self, replica: usize) {
        let log = self.hosts.path(replica, "lock");
        let mut command = self.client(replica, "FLUSH TABLES WITH READ LOCK; SELECT SLEEP(600)");
        self.lock = Some(Process::start("the lock", &mut command, &log).unwrap());
    }

    fn catch_up(&mut self, replica: usize) {
        self.lock = None;
        // The server notices late that the client is gone.
        let sleeping = "SELECT id FROM information_schema.processlist WHERE info LIKE 'SELECT SLEEP(600)%'";
        self.sql(replica, &format!("KILL {}", self.sql(replica, sleeping)));
    }

    fn demote(&mut self, primary: usize) {
        self.sql(primary, "SET GLOBAL read_only = 1");
    }
}
