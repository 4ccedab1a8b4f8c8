//! The balancer as a guest of its host: it leaves everything as it found it, and says what is wrong
//! when it cannot start.

mod stage;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use stage::{PATIENCE, Stage, XTASK, clients::curl_names, lb_program};
use xtask::{
    build, setup, shell,
    world::{
        Family, Namespace, Process, Topology, balancer,
        config::{Config, Service},
        process,
        servers::WEB_PORT,
    },
};

fn services() -> Vec<Service> {
    Family::BOTH.map(|family| Service::tcp(family, "full-nat", 80, vec![0], WEB_PORT)).into()
}

#[test]
fn detach_leaves_links_addresses_routes_and_settings_as_they_were() {
    for topology in Topology::BOTH {
        let stage = Stage::new("detach", topology, 1);
        let _web = stage.web(0);
        let before = host_state(&stage.world.lb);
        let mut lb = stage.lb(&services());
        curl_names(&stage.world.client, Family::V4.service_port(80), 3);
        let while_running = host_state(&stage.world.lb);
        for family in Family::BOTH {
            let address = family.service().to_string();
            assert!(while_running["addresses"].contains(&address), "{}", while_running["addresses"]);
        }
        assert!(while_running["links"].contains("xdp"), "{}", while_running["links"]);

        assert_eq!(lb.stop().unwrap().code(), Some(0));
        assert!(host_state(&stage.world.lb)["links"].contains("xdp"), "a stopped agent leaves the data path in place");
        lb.done(&["detach"]).unwrap();
        let after = host_state(&stage.world.lb);
        for (what, before) in &before {
            assert_eq!(before, &after[what], "{what} ({topology:?})");
        }
        assert!(!stage.world.pins().exists() || fs::read_dir(stage.world.pins()).unwrap().next().is_none());
        // Again: nothing to do, and no error.
        lb.done(&["detach"]).unwrap();
    }
}

#[test]
fn addresses_that_were_there_before_stay() {
    let stage = Stage::new("addresses_stay", Topology::TwoArm, 1);
    let _web = stage.web(0);
    stage.world.lb.ip(&[format!("address add {}/32 dev eth0", Family::V4.service())]).unwrap();
    let before = host_state(&stage.world.lb);
    let mut lb = stage.lb(&services());
    lb.stop().unwrap();
    lb.done(&["detach"]).unwrap();
    assert_eq!(before["addresses"], host_state(&stage.world.lb)["addresses"]);
}

#[test]
fn a_second_agent_on_the_interface_is_refused_and_does_no_harm() {
    let stage = Stage::new("second_agent", Topology::TwoArm, 1);
    let _web = stage.web(0);
    let _lb = stage.lb(&services());
    let config = stage.world.folder().join("lb.toml");

    let same = run(balancer::cli(&stage.world, lb_program(), &["run", "--config"]).arg(&config));
    assert_says(&same, 1, &["another agent (pid "]);

    let mut other = balancer::cli(&stage.world, lb_program(), &["run", "--config"]);
    other.arg(&config);
    for (key, name) in [("LB_SOCKET", "other.sock"), ("LB_STATE_DIR", "other")] {
        other.env(key, stage.world.folder().join(name));
    }
    other.env("LB_PIN_DIR", stage.world.pins().join("other"));
    assert_says(&run(&mut other), 1, &["eth0", "XDP"]);
    assert_eq!(curl_names(&stage.world.client, Family::V4.service_port(80), 5)["web1"], 5);
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() {
    let toolchain = setup::ebpf::Toolchain::proven().expect("cargo xtask setup has been run");
    let object = toolchain.proof();
    let stage = Stage::new("other_program", Topology::OneArm, 1);
    let object = object.to_str().unwrap();
    stage.world.lb.ip(&[format!("link set dev eth0 xdpdrv obj {object} sec xdp")]).unwrap();
    let before = host_state(&stage.world.lb);
    let answer = run_lb(&stage, &Config::new(stage.world.topology, services()).render());
    assert_says(&answer, 1, &["eth0", "XDP program"]);
    let after = host_state(&stage.world.lb);
    for (what, before) in &before {
        assert_eq!(before, &after[what], "{what}");
    }
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let stage = Stage::new("wrong_interface", Topology::OneArm, 1);
    let mut config = Config::new(stage.world.topology, services());
    config.interfaces = vec!["eth9".to_owned()];
    let before = host_state(&stage.world.lb);
    assert_says(&run_lb(&stage, &config.render()), 1, &["eth9", "eth0"]);
    let after = host_state(&stage.world.lb);
    assert_eq!(before, after, "nothing may stay of a start that failed");
}

#[test]
fn wrong_files_are_told_with_line_and_a_better_word() {
    let stage = Stage::new("wrong_file", Topology::OneArm, 1);
    let missing = run(&mut balancer::cli(&stage.world, lb_program(), &["run", "--config", "/nowhere/lb.toml"]));
    assert_says(&missing, 1, &["/nowhere/lb.toml", "No such file"]);
    let good = Config::new(stage.world.topology, services()).render();
    let wrong = good.replace("scheduler =", "sheduler =").replace("\"full-nat\"", "\"ful-nat\"");
    let answer = run_lb(&stage, &wrong);
    assert_says(&answer, 1, &["lb.toml", "sheduler", "scheduler", "ful-nat", "full-nat"]);
    assert_says(&run_lb(&stage, "interfaces = [\"eth0\"\n"), 1, &["lb.toml"]);
    let usage = run(&mut balancer::cli(&stage.world, lb_program(), &["run", "--no-such-option"]));
    assert_says(&usage, 2, &["--no-such-option"]);
    let unreachable = run(&mut balancer::cli(&stage.world, lb_program(), &["status"]));
    assert_says(&unreachable, 3, &["lb.sock"]);
}

#[test]
fn without_rights_the_missing_capabilities_are_named() {
    let stage = Stage::new("no_rights", Topology::OneArm, 1);
    let config = stage.world.folder().join("lb.toml");
    fs::write(&config, Config::new(stage.world.topology, services()).render()).unwrap();
    // Where `nobody` may read it.
    let program = stage.world.folder().join("lb");
    fs::copy(lb_program(), &program).unwrap();
    for path in [&program, &stage.world.folder().to_path_buf()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut command =
        balancer::cli(&stage.world, &shell::find("setpriv").unwrap(), &["--reuid=65534", "--regid=65534"]);
    command.args(["--clear-groups", "--inh-caps=-all", "--"]).arg(&program).args(["run", "--config"]).arg(&config);
    assert_says(&run(&mut command), 1, &["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
}

#[test]
fn cargo_xtask_run_serves_on_an_interface_of_the_machine() {
    let stage = Stage::new("xtask_run_iface", Topology::OneArm, 1);
    let _web = stage.web(0);
    // The file names another interface: the one on the command line counts.
    let mut config = Config::new(stage.world.topology, services());
    config.interfaces = vec!["eth9".to_owned()];
    let file = stage.folder().join("lb.toml");
    fs::write(&file, config.render()).unwrap();
    let mut command = balancer::cli(&stage.world, Path::new(XTASK), &["run", "--", "--iface", "eth0", "--config"]);
    command.arg(&file).env(build::PROGRAM_VARIABLE, lb_program());
    let mut agent = Process::start("cargo xtask run", &mut command, &stage.folder().join("lb.log")).unwrap();
    for family in Family::BOTH {
        process::until("the service answers", PATIENCE, || {
            if let Some(status) = agent.ended()? {
                panic!("ended with {status}:\n{}", agent.log_tail());
            }
            let url = format!("http://{}/", family.service_port(80));
            let body = stage.world.client.output("curl", &["-sS", "-g", "--fail", "--max-time", "2", &url])?;
            anyhow::ensure!(body == "web1\n", "{body}");
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(agent.terminate(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn maps_can_be_read_with_names_by_bpftool() {
    let stage = Stage::new("bpftool", Topology::OneArm, 1);
    let _web = stage.web(0);
    let _lb = stage.lb(&services());
    curl_names(&stage.world.client, Family::V4.service_port(80), 5);
    let pin = find(&stage.world.pins(), "service_stats").expect("service_stats is pinned");
    let mut bpftool = stage.world.lb.command("bpftool");
    let dump = shell::output(bpftool.args(["map", "dump", "pinned"]).arg(&pin)).unwrap();
    assert!(dump.contains("\"forward\"") && dump.contains("\"packets\""), "{dump}");
}

/// What `lb` may have touched of its host, by kind.
fn host_state(host: &Namespace) -> BTreeMap<&'static str, String> {
    let ip = |arguments: &[&str]| host.output("ip", arguments).unwrap();
    let routes = ["-4", "-6"].map(|family| ip(&[family, "route", "show", "table", "all"])).concat();
    BTreeMap::from([
        ("links", ip(&["-details", "link", "show"])),
        ("addresses", ip(&["address", "show"])),
        ("routes", sorted(&routes)),
        ("rules", ["-4", "-6"].map(|family| ip(&[family, "rule", "show"])).concat()),
        ("proxied neighbours", ["-4", "-6"].map(|family| ip(&[family, "neigh", "show", "proxy"])).concat()),
        ("settings", host.enter(|| settings(Path::new("/proc/sys/net")))),
    ])
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<_> = text.lines().map(str::trim).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Every network setting of the namespace that can be read and that does not count something.
fn settings(folder: &Path) -> String {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let mut text = String::new();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            text += &settings(&path);
        } else if let Ok(value) = fs::read_to_string(&path)
            && !name.ends_with("_count")
            && !name.contains("secret")
        {
            text += &format!("{} = {}\n", path.display(), value.trim());
        }
    }
    text
}

fn run_lb(stage: &Stage, config: &str) -> Output {
    let file = stage.world.folder().join("lb.toml");
    fs::write(&file, config).unwrap();
    run(balancer::cli(&stage.world, lb_program(), &["run", "--config"]).arg(&file))
}

/// Runs to its end; one that does not end by itself is killed, and fails the test by its status.
fn run(command: &mut Command) -> Output {
    use std::process::Stdio;
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ended = process::until("it ends by itself", Duration::from_secs(10), || {
        child.try_wait()?.ok_or_else(|| anyhow::anyhow!("it runs"))
    });
    if ended.is_err() {
        child.kill().unwrap();
    }
    child.wait_with_output().unwrap()
}

/// Panics unless it ended with this code and said all of this on standard error.
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{}: {text}", output.status);
    for word in words {
        assert!(text.contains(word), "no word of {word:?} in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn find(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| if path.is_dir() { find(&path, name) } else { path.ends_with(name).then_some(path) })
}
