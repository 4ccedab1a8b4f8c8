//! MariaDB: a primary and a replica that really replicates.

use std::{path::Path, time::Duration};

use lb_userspace::{
    config::{Check, LoginCheck, TlsCheck},
    core::{Phase, Role},
};
use tempfile::TempDir;

use super::{
    certificates::{self, Certificates},
    server::{PATIENCE, Server, command, file, folder, free_port, key, login, probe, probe_until, run},
};

struct MariaDb {
    server: Server,
    folder: TempDir,
}

impl MariaDb {
    fn start(id: u32, certificates: &Certificates) -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let data = path("data");
        run(&mut command(
            "mariadb-install-db",
            &[
                "--no-defaults",
                "--skip-test-db",
                "--auth-root-authentication-method=normal",
                &format!("--datadir={data}"),
            ],
        ));
        let port = free_port();
        let arguments = [
            "--no-defaults".to_owned(),
            format!("--datadir={data}"),
            format!("--socket={}", path("socket")),
            format!("--pid-file={}", path("pid")),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--server-id={id}"),
            "--log-bin=log".to_owned(),
            "--max-connect-errors=5".to_owned(),
            "--innodb-buffer-pool-size=8M".to_owned(),
            "--innodb-flush-log-at-trx-commit=0".to_owned(),
            format!("--ssl-cert={}", certificates.certificate.display()),
            format!("--ssl-key={}", certificates.key.display()),
        ];
        let server = Server::start(command("mariadbd", &arguments), &folder.path().join("log.txt"), port);
        let started = Self { server, folder };
        let begun = std::time::Instant::now();
        while !started.client("SELECT 1").status().unwrap().success() {
            assert!(begun.elapsed() < PATIENCE, "{}", started.log());
            std::thread::sleep(Duration::from_millis(100));
        }
        started
    }

    fn client(&self, sql: &str) -> std::process::Command {
        let socket = format!("--socket={}", self.folder.path().join("socket").display());
        let mut client = command("mariadb", &["--no-defaults", "--user=root", &socket, "-e", sql]);
        client.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        client
    }

    fn sql(&self, sql: &str) {
        let socket = format!("--socket={}", self.folder.path().join("socket").display());
        run(&mut command("mariadb", &["--no-defaults", "--user=root", &socket, "-e", sql]));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log.txt")).unwrap()
    }
}

const USERS: &str = "SET SESSION sql_log_bin = 0; \
    CREATE USER lb@'%' IDENTIFIED BY 'secret'; GRANT SLAVE MONITOR ON *.* TO lb@'%'; \
    CREATE USER poor@'%' IDENTIFIED BY 'secret'; \
    CREATE USER copy@'%' IDENTIFIED BY 'copy'; GRANT REPLICATION SLAVE ON *.* TO copy@'%'";

fn follow(replica: &MariaDb, primary: &MariaDb) {
    let port = primary.server.address.port();
    replica.sql(&format!(
        "CHANGE MASTER TO master_host='127.0.0.1', master_port={port}, master_user='copy', master_password='copy', \
         master_use_gtid=slave_pos, master_connect_retry=1; START SLAVE; SET GLOBAL read_only=1"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_tells_primary_and_replica_apart_and_why_a_server_is_neither() {
    let shared = folder();
    let certificates = certificates::make(shared.path());
    let password = file(shared.path(), "password", "secret\n");
    let (primary, replica) = (MariaDb::start(1, &certificates), MariaDb::start(2, &certificates));
    for server in [&primary, &replica] {
        server.sql(USERS);
    }
    let check = Check::Mysql(login(&password));
    let (first, second) = (primary.server.address, replica.server.address);
    primary.sql("CREATE DATABASE shop; CREATE TABLE shop.t (n INT); INSERT INTO shop.t VALUES (1)");
    follow(&replica, &primary);

    let outcome = probe(key(first, check.clone())).await;
    let role = outcome.role.clone().unwrap_or_else(|| panic!("{outcome:?}"));
    assert_eq!((outcome.up, role.role, role.why.as_str()), (true, Role::Primary, "read_only is off"));
    assert!(outcome.result.starts_with("L7OK 1") && outcome.result.ends_with(" primary"), "{}", outcome.result);
    assert!(role.epoch.is_some_and(|epoch| epoch.to_string().starts_with("0-1 ")));
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::FirstByte, Phase::Login, Phase::Query]);

    let outcome = probe_until(second, &check, "the replica runs", |outcome| {
        outcome.role.as_ref().is_some_and(|role| role.role == Role::Replica && role.delay == Some(Duration::ZERO))
    })
    .await;
    assert_eq!(outcome.role.unwrap().why, "read_only is on, replication runs");

    let poor = Check::Mysql(LoginCheck { user: Some("poor".to_owned()), ..login(&password) });
    let outcome = probe(key(second, poor)).await;
    assert!(outcome.up && outcome.role.unwrap().why.contains("grant SLAVE MONITOR"), "it says what is missing");

    broken_replication(&primary, &replica, &check).await;
    wrong_logins(&primary, shared.path(), &password).await;
    encrypted(&primary, &certificates, &password).await;
    many_probes_do_not_block_the_host(&primary, &check).await;
}

async fn broken_replication(primary: &MariaDb, replica: &MariaDb, check: &Check) {
    let second = replica.server.address;
    replica.sql("STOP SLAVE SQL_THREAD");
    let outcome = probe(key(second, check.clone())).await;
    let role = outcome.role.unwrap();
    assert_eq!((role.role, role.why.as_str()), (Role::None, "replication does not run: stopped"));
    replica.sql("START SLAVE SQL_THREAD; STOP SLAVE IO_THREAD");
    let outcome = probe(key(second, check.clone())).await;
    let role = outcome.role.unwrap();
    assert_eq!((role.role, role.delay), (Role::Replica, None), "it can be read, but does not know how old it is");
    // Two writers: both claim to be primary, and the histories part.
    replica.sql("STOP SLAVE; SET GLOBAL read_only=0; CREATE DATABASE split");
    let (one, other) =
        (probe(key(primary.server.address, check.clone())).await, probe(key(second, check.clone())).await);
    let (one, other) = (one.role.unwrap(), other.role.unwrap());
    assert_eq!((one.role, other.role), (Role::Primary, Role::Primary));
    assert!(other.epoch > one.epoch, "the one has all of the other's history and more");
    primary.sql("CREATE DATABASE too_late");
    let one = probe(key(primary.server.address, check.clone())).await.role.unwrap();
    assert_eq!(one.epoch.partial_cmp(&other.epoch), None, "neither has all of the other's");
}

async fn wrong_logins(primary: &MariaDb, shared: &Path, password: &Path) {
    let address = primary.server.address;
    let wrong = file(shared, "wrong", "guess\n");
    let outcome = probe(key(address, Check::Mysql(login(&wrong)))).await;
    assert!(!outcome.up && outcome.result.starts_with("L7STS: Access denied for user 'lb'"), "{}", outcome.result);
    assert_eq!(outcome.role, None);
    let nowhere = Check::Mysql(LoginCheck { database: Some("nowhere".to_owned()), ..login(password) });
    let outcome = probe(key(address, nowhere)).await;
    assert!(!outcome.up && outcome.result.starts_with("L7STS: "), "{}", outcome.result);
    let plain = Check::Mysql(LoginCheck { role: false, ..login(password) });
    let outcome = probe(key(address, plain)).await;
    assert!(outcome.up && outcome.role.is_none(), "a role is told only where it is asked for: {outcome:?}");
}

async fn encrypted(primary: &MariaDb, certificates: &Certificates, password: &Path) {
    let address = primary.server.address;
    primary.sql("ALTER USER lb@'%' REQUIRE SSL");
    let outcome = probe(key(address, Check::Mysql(login(password)))).await;
    assert!(!outcome.up && outcome.result.starts_with("L7STS: Access denied"), "{}", outcome.result);
    let over = |tls| Check::Mysql(LoginCheck { tls: Some(tls), ..login(password) });
    let outcome = probe(key(address, over(certificates.trusted()))).await;
    assert!(outcome.up && outcome.role.is_some() && outcome.certificate.is_some(), "{outcome:?}");
    assert!(outcome.phases.iter().any(|(phase, _)| *phase == Phase::Tls));
    let outcome = probe(key(address, over(TlsCheck::default()))).await;
    assert_eq!(outcome.result, "L6RSP: the certificate is signed by nobody that is trusted");
    primary.sql("ALTER USER lb@'%' REQUIRE NONE");
}

/// The server lets five broken handshakes pass (`max_connect_errors`).
async fn many_probes_do_not_block_the_host(primary: &MariaDb, check: &Check) {
    for n in 0..20 {
        let outcome = probe(key(primary.server.address, check.clone())).await;
        assert!(outcome.up, "probe {n}: {}", outcome.result);
    }
    let log = primary.log();
    let broken: Vec<&str> =
        log.lines().filter(|line| line.contains("Aborted") && line.contains("user: 'lb'")).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
