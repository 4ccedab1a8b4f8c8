//! The agent as a service: an ordinary user with four capabilities, a service manager that is told, and
//! what somebody who is to help gets.

use std::{
    fs,
    os::unix::{fs::chown, net::UnixDatagram},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    BOTH,
    world::{ONE, Server, TWO, World, text},
};

const NOBODY: u32 = 65_534;
/// Those of the unit in deploy/.
const CAPABILITIES: [&str; 4] = ["bpf", "net_admin", "perfmon", "net_raw"];

fn next(socket: &UnixDatagram) -> Option<String> {
    let mut bytes = [0; 1024];
    let length = socket.recv(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

#[test]
fn an_ordinary_user_with_four_capabilities_serves_and_tells_the_service_manager() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/lb.service")).unwrap();
    let named = CAPABILITIES.map(|name| format!("CAP_{}", name.to_uppercase())).join(" ");
    assert!(unit.contains(&format!("AmbientCapabilities={named}\n")), "{unit}");
    assert!(unit.contains(&format!("CapabilityBoundingSet={named}\n")), "{unit}");

    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let readable = world.for_user(NOBODY);
    let notify = readable.join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    chown(&notify, Some(NOBODY), Some(NOBODY)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();

    let all = CAPABILITIES.map(|name| format!("+{name}")).join(",");
    let mut command = world.balancer.command("setpriv");
    let run = world.lb("lb", &["run", "--config", readable.join("lb.toml").to_str().unwrap()]);
    command
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"])
        .args([
            format!("--inh-caps=-all,{all}"),
            format!("--ambient-caps=-all,{all}"),
            format!("--bounding-set=-all,{all}"),
        ])
        .arg(readable.join("lb"))
        .args(run.get_args())
        .envs(run.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "3000000")
        .stderr(fs::File::create(readable.join("log")).unwrap())
        .stdin(Stdio::null());
    let mut agent = command.spawn().unwrap();
    let log = || fs::read_to_string(readable.join("log")).unwrap();
    let ready = next(&socket).unwrap_or_else(|| panic!("{}", log()));
    assert_eq!(ready, "READY=1\nSTATUS=1 services with 2 backends on lbc, lbs", "{}", log());
    for _ in 0..3 {
        assert_eq!(next(&socket).as_deref(), Some("WATCHDOG=1"));
    }
    world.until("both backends", || {
        let status = world.document(&["status"]);
        status["services"][0]["used"] == 2
    });
    world.get(80).unwrap();

    let pid = Pid::from_child(&agent);
    kill_process(pid, Signal::STOP).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    while next(&socket).is_some() {}
    world.get(80).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(next(&socket).as_deref(), Some("WATCHDOG=1"), "and goes on when it does");
    kill_process(pid, Signal::TERM).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    while next(&socket).expect("it says that it ends") != "STOPPING=1" {}
    assert_eq!(agent.wait().unwrap().code(), Some(0), "{}", log());
    let log = log();
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_support_bundle_tells_everything_and_no_secret() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    let text_of = world.text(&BOTH, &[80]);
    let with_secret = text_of.replace(
        "type = \"tcp\"",
        "# the password is hunter2\ntype = \"exec\"\ncommand = \"/bin/true\"\narguments = [\"hunter2\"]",
    );
    world.write("lb.toml", &with_secret);
    let agent = world.run(1);
    let file = world.write("bundle", "");
    fs::remove_file(&file).unwrap();
    let told = world.document(&["support-bundle", &file]);
    let missing = told["missing"].as_array().unwrap();
    for wanted in ["status.json", "configuration.toml", "stats.json", "doctor.json", "host/links.txt"] {
        assert!(missing.iter().all(|name| name != wanted), "{told}");
    }
    let unpacked = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["-xzf", &file, "-C", unpacked.path().to_str().unwrap(), "--strip-components=1"]);
    assert!(tar.status().unwrap().success());
    let read = |name: &str| fs::read_to_string(unpacked.path().join(name)).unwrap();
    assert!(read("status.json").contains("\"kind\": \"Status\""), "{}", read("status.json"));
    assert!(read("configuration.toml").contains(ONE), "{}", read("configuration.toml"));
    assert!(read("host/links.txt").contains("lbc"));
    let found = Command::new("grep").args(["-rl", "hunter2", unpacked.path().to_str().unwrap()]).output().unwrap();
    assert_eq!(text(&found.stdout), "", "the secret is in it");
    let again = world.asks(&["support-bundle", &file]);
    assert_eq!(again.status.code(), Some(1), "what is there is not written over");

    // Also when nobody answers.
    agent.end(Signal::KILL);
    let told = world.document(&["support-bundle", &format!("{file}-2")]);
    let missing = told["missing"].as_array().unwrap();
    assert!(missing.iter().any(|name| name == "configuration.toml") && missing.iter().all(|name| name != "stats.json"));
}

#[test]
fn the_doctor_of_a_balancer_finds_what_is_wrong() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    let config = world.configure(&BOTH, &[80]);
    let find = |document: &serde_json::Value, name: &str| {
        let checks = document["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).cloned().unwrap_or_else(|| panic!("{name}: {document}"))
    };
    let diagnose = |arguments: &[&str]| -> serde_json::Value {
        let output = world.asks(&[&["doctor", "-o", "json"], arguments].concat());
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)))
    };
    let before = diagnose(&["--config", config.to_str().unwrap()]);
    assert_eq!(find(&before, "interface lbc")["result"], "ok");
    // A kernel that tells it says what a veth can do.
    assert!(["ok", "skip"].contains(&find(&before, "xdp ability lbc")["result"].as_str().unwrap()), "{before}");
    assert_eq!(
        (&find(&before, "xdp lbc")["result"], &find(&before, "agent")["result"]),
        (&"skip".into(), &"skip".into())
    );
    let agent = world.run(1);
    let running = diagnose(&[]);
    for name in ["kernel", "btf", "rights", "bpffs", "jit", "xdp lbc", "forwarding lbs", "agent", "drift", "dead man"] {
        assert_eq!(find(&running, name)["result"], "ok", "{running}");
    }
    assert_eq!(find(&running, &format!("backend {ONE}"))["result"], "ok");

    world.balancer.run("sysctl", &["-qw", "net.ipv4.conf.lbs.forwarding=0"]);
    let failing = diagnose(&[]);
    let check = find(&failing, "forwarding lbs");
    assert_eq!(check["result"], "fail");
    // What it says to type mends it.
    let words: Vec<&str> = check["fix"].as_str().unwrap().split(' ').collect();
    world.balancer.run(words[0], &words[1..]);
    assert_eq!(find(&diagnose(&[]), "forwarding lbs")["result"], "ok");

    agent.end(Signal::KILL);
    let output = world.asks(&["doctor", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let alone: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(find(&alone, "agent")["result"], "fail");
    assert!(find(&alone, "agent")["fix"].as_str().unwrap().contains("journalctl"));
}
