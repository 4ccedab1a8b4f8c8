//! Redis: a master and a replica.

use lb_userspace::{
    config::{Check, LoginCheck},
    core::{Phase, Role},
};
use tempfile::TempDir;

use super::{
    certificates,
    server::{Server, command, file, folder, free_port, key, probe, probe_until, run},
};

struct Redis {
    server: Server,
    _folder: TempDir,
}

impl Redis {
    fn start(more: &[String]) -> Self {
        let folder = folder();
        let port = free_port();
        let mut arguments: Vec<String> =
            ["--bind", "127.0.0.1", "--save", "", "--requirepass", "secret", "--masterauth", "secret"]
                .map(str::to_owned)
                .into();
        arguments.extend(["--dir".to_owned(), folder.path().display().to_string()]);
        arguments.extend(["--port".to_owned(), port.to_string()]);
        arguments.extend_from_slice(more);
        let server = Server::start(command("redis-server", &arguments), &folder.path().join("log.txt"), port);
        Self { server, _folder: folder }
    }

    fn cli(&self, words: &[&str]) {
        let port = self.server.address.port().to_string();
        run(command("redis-cli", &["-p", &port]).args(words).env("REDISCLI_AUTH", "secret"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_tells_master_and_replica_apart_and_refuses_strangers() {
    let shared = folder();
    let login = |name: &str, password: &str| LoginCheck {
        password_file: Some(file(shared.path(), name, password)),
        role: true,
        ..LoginCheck::default()
    };
    let check = Check::Redis(login("password", "secret"));
    let master = Redis::start(&[]);
    let first = master.server.address;
    let outcome = probe_until(first, &check, "Redis starts", |outcome| outcome.up).await;
    assert_eq!(outcome.result, "L7OK primary");
    let phases: Vec<Phase> = outcome.phases.iter().map(|(phase, _)| *phase).collect();
    assert_eq!(phases, [Phase::Connect, Phase::Login, Phase::Query]);

    let replica = Redis::start(&["--replicaof".to_owned(), "127.0.0.1".to_owned(), first.port().to_string()]);
    let second = replica.server.address;
    let connected = |outcome: &lb_userspace::core::ProbeOutcome| {
        outcome.role.as_ref().is_some_and(|role| role.role == Role::Replica && role.why.ends_with("connected"))
    };
    probe_until(second, &check, "the replica is connected", connected).await;
    master.cli(&["SET", "key", "value"]);
    let written = probe(key(first, check.clone())).await.role.unwrap().position;
    let caught_up = |outcome: &lb_userspace::core::ProbeOutcome| outcome.role.as_ref().unwrap().position >= written;
    probe_until(second, &check, "the replica has the master's offset", caught_up).await;

    for (check, words) in [
        (Check::Redis(LoginCheck::default()), "L7STS: NOAUTH Authentication required."),
        (Check::Redis(login("wrong", "guess")), "L7STS: WRONGPASS invalid username-password pair or user is disabled."),
    ] {
        let outcome = probe(key(first, check)).await;
        assert_eq!((outcome.up, outcome.result.as_str()), (false, words));
    }
    master.cli(&["ACL", "SETUSER", "lb", "on", ">other", "+ping"]);
    let user = LoginCheck { user: Some("lb".to_owned()), ..login("other", "other") };
    let outcome = probe(key(first, Check::Redis(user.clone()))).await;
    assert!(outcome.result.starts_with("L7STS: NOPERM"), "ROLE is not allowed to this user: {}", outcome.result);
    let outcome = probe(key(first, Check::Redis(LoginCheck { role: false, ..user }))).await;
    assert_eq!((outcome.up, outcome.result.as_str()), (true, "L7OK PONG"));

    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let outcome = probe(key(second, check)).await;
    assert_eq!(outcome.role.unwrap().role, Role::Primary);
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_asked_over_tls() {
    let shared = folder();
    let certificates = certificates::make(shared.path());
    let tls_port = free_port();
    let option = |name: &str, value: String| [name.to_owned(), value];
    let more = [
        option("--tls-port", tls_port.to_string()),
        option("--tls-cert-file", certificates.certificate.display().to_string()),
        option("--tls-key-file", certificates.key.display().to_string()),
        option("--tls-ca-cert-file", certificates.ca.display().to_string()),
        option("--tls-auth-clients", "no".to_owned()),
    ]
    .concat();
    let master = Redis::start(&more);
    let mut address = master.server.address;
    address.set_port(tls_port);
    let login = LoginCheck {
        password_file: Some(file(shared.path(), "password", "secret")),
        tls: Some(certificates.trusted()),
        ..LoginCheck::default()
    };
    let outcome = probe_until(address, &Check::Redis(login.clone()), "Redis starts", |outcome| outcome.up).await;
    assert!(
        outcome.certificate.is_some() && outcome.phases.iter().any(|(phase, _)| *phase == Phase::Tls),
        "{outcome:?}"
    );
    let plain = Check::Redis(LoginCheck { tls: None, ..login });
    let outcome = probe(key(address, plain)).await;
    assert!(!outcome.up && outcome.result.starts_with("L7RSP: "), "{}", outcome.result);
}
