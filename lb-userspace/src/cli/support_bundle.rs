//! `lb support-bundle`: everything that somebody who is to help has to know, in one file. What cannot be
//! had is said in its place. Passwords stand in files of their own, which are not read; what could be a
//! secret all the same is blotted out.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use flate2::{Compression, write::GzEncoder};
use regex::Regex;
use serde_json::Value;

use super::{Exit, Failure, args::Global, output::Printer, render};
use crate::api::model::Bundle;

/// A part that is larger is cut, at its beginning: what came last says most.
const PART_BYTES: usize = 8 * 1024 * 1024;
/// No command may hold up the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Commands of this program, by the name of the part. All of them read only.
const OWN: &[(&str, &[&str])] = &[
    ("version.txt", &["--version"]),
    ("status.json", &["status", "-o", "json"]),
    ("services.json", &["service", "list", "-o", "json"]),
    ("backends.json", &["backend", "list", "-o", "json"]),
    ("stats.json", &["stats", "-o", "json"]),
    ("flows.json", &["flows", "--limit", "1000", "-o", "json"]),
    ("doctor.json", &["doctor", "-o", "json"]),
];

/// The host, as other programs tell it.
const HOST: &[(&str, &str, &[&str])] = &[
    ("host/kernel.txt", "uname", &["-a"]),
    ("host/os-release.txt", "cat", &["/etc/os-release"]),
    ("host/cpu.txt", "lscpu", &[]),
    ("host/links.txt", "ip", &["-details", "-statistics", "link", "show"]),
    ("host/addresses.txt", "ip", &["address", "show"]),
    ("host/routes.txt", "ip", &["route", "show", "table", "all"]),
    ("host/routes6.txt", "ip", &["-6", "route", "show", "table", "all"]),
    ("host/rules.txt", "ip", &["rule", "show"]),
    ("host/neighbours.txt", "ip", &["neighbour", "show"]),
    (
        "host/sysctl.txt",
        "sysctl",
        &["net.core", "net.ipv4.ip_forward", "net.ipv4.ip_local_reserved_ports", "net.ipv4.ip_local_port_range"],
    ),
    ("host/bpf-programs.txt", "bpftool", &["prog", "show"]),
    ("host/bpf-maps.txt", "bpftool", &["map", "show"]),
    ("host/bpf-net.txt", "bpftool", &["net", "show"]),
    ("host/unit.txt", "systemctl", &["status", "--no-pager", "--full", "lb"]),
    ("host/log.txt", "journalctl", &["--no-pager", "-u", "lb", "-n", "5000", "-o", "short-iso-precise"]),
];

pub fn support_bundle(global: &Global, printer: &Printer, file: Option<PathBuf>) -> Result<Exit, Failure> {
    let name = format!("lb-support-{}", seconds_since_1970());
    let path = file.unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let failed = |e: io::Error| {
        Failure::new(
            format!("cannot write {}", path.display()),
            e.to_string(),
            "name another place: lb support-bundle FILE",
        )
    };
    let parts = parts(global);
    // For its owner's eyes, until they pass it on.
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    let bytes = pack(out, &name, &parts).map_err(failed)?;
    let missing = parts.iter().filter(|part| part.missing).map(|part| part.name.clone()).collect();
    let bundle = Bundle { path: path.display().to_string(), bytes, parts: parts.len(), missing };
    printer.print(bundle, render::bundle)?;
    Ok(Exit::Done)
}

struct Part {
    name: String,
    text: String,
    missing: bool,
}

fn parts(global: &Global) -> Vec<Part> {
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lb"));
    let asked = |arguments: &[&str]| {
        let mut command = Command::new(&own);
        command.arg("--socket").arg(&global.socket).arg("--pin-dir").arg(&global.pin_dir);
        command.arg("--state-dir").arg(&global.state_dir).args(arguments);
        command
    };
    let mut parts: Vec<Part> = OWN.iter().map(|(name, arguments)| part(name, asked(arguments))).collect();
    parts.push(configuration(asked(&["config", "show", "-o", "json"])));
    parts.push(file("host-record.json", &global.state_dir.join("host.json")));
    parts.extend(HOST.iter().map(|(name, program, arguments)| {
        let mut command = Command::new(program);
        command.args(*arguments);
        part(name, command)
    }));
    parts
}

/// What a command says, in both of its ways.
fn part(name: &str, command: Command) -> Part {
    let (text, missing) = match said(command) {
        Ok(Said { out, err, code }) => {
            let ended = if code == Some(0) { String::new() } else { format!("\n[ended with {code:?}]\n") };
            (format!("{out}{err}{ended}"), out.is_empty() && code != Some(0))
        }
        Err(error) => (format!("[not there: {error}]\n"), true),
    };
    Part { name: name.to_owned(), text: blotted(&text), missing }
}

/// The effective configuration without the files: their comments may say anything.
fn configuration(command: Command) -> Part {
    let shown = said(command).ok().and_then(|said| {
        let value: Value = serde_json::from_str(&said.out).ok()?;
        Some(value["toml"].as_str()?.to_owned())
    });
    let missing = shown.is_none();
    let text = shown.unwrap_or_else(|| "[the agent does not answer]\n".to_owned());
    Part { name: "configuration.toml".to_owned(), text: blotted(&without_words(&text)), missing }
}

fn file(name: &str, path: &Path) -> Part {
    let read = std::fs::read_to_string(path);
    let missing = read.is_err();
    let text = read.unwrap_or_else(|error| format!("[{}: {error}]\n", path.display()));
    Part { name: name.to_owned(), text: blotted(&text), missing }
}

struct Said {
    out: String,
    err: String,
    code: Option<i32>,
}

/// Runs a command for so long and no longer.
fn said(mut command: Command) -> io::Result<Said> {
    let (out, err) = (tempfile()?, tempfile()?);
    let mut child =
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(err.try_clone()?).env("LC_ALL", "C").spawn()?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            drop(child.kill());
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok(Said { out: tail(out)?, err: tail(err)?, code: status.code() })
}

/// Without a name, in memory.
fn tempfile() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("lb-support", rustix::fs::MemfdFlags::CLOEXEC)?.into())
}

fn tail(mut file: File) -> io::Result<String> {
    use io::{Read as _, Seek as _, SeekFrom};
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(PART_BYTES as u64)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Values that operators write freely: commands with their arguments, what is sent, who logs in, what
/// a path asks for.
fn without_words(toml: &str) -> String {
    let free = Regex::new(r"(?m)^(\s*(?:command|arguments|send|user|headers)\s*=).*$").expect("a regular expression");
    let asked = Regex::new(r#"(\?)[^"'\s]*"#).expect("a regular expression");
    asked.replace_all(&free.replace_all(toml, "${1} \"***\""), "${1}***").into_owned()
}

/// Whatever is called a secret.
fn blotted(text: &str) -> String {
    let named = r#"(?i)((?:password|passwd|passphrase|secret|token|api[-_]?key|authorization)"?\s*[:=]\s*"?(?:bearer |basic )?)[^\s"',;&]+"#;
    let named = Regex::new(named).expect("a regular expression");
    let in_url = Regex::new(r"(://[^/\s:@]*:)[^/\s@]+@").expect("a regular expression");
    in_url.replace_all(&named.replace_all(text, "${1}***"), "${1}***@").into_owned()
}

/// The size of the file.
fn pack(out: File, folder: &str, parts: &[Part]) -> io::Result<u64> {
    let mut archive = tar::Builder::new(GzEncoder::new(out, Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds_since_1970());
        header.set_cksum();
        archive.append_data(&mut header, format!("{folder}/{}", part.name), part.text.as_bytes())?;
    }
    let out = archive.into_inner()?.finish()?;
    out.sync_all()?;
    Ok(out.metadata()?.len())
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_blotted_out_wherever_they_stand() {
        for (text, wanted) in [
            ("password = \"hunter2\"", "password = \"***\""),
            ("PGPASSWORD=hunter2 psql", "PGPASSWORD=*** psql"),
            ("{\"token\": \"abc\", \"n\": 1}", "{\"token\": \"***\", \"n\": 1}"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
            ("redis://anna:hunter2@db:6379/0", "redis://anna:***@db:6379/0"),
            ("password-file = \"/etc/lb/pw\"", "password-file = \"/etc/lb/pw\""),
            ("http://10.0.0.1:80/x", "http://10.0.0.1:80/x"),
        ] {
            assert_eq!(blotted(text), wanted);
        }
    }

    #[test]
    fn what_operators_write_freely_stays_with_them() {
        let toml = "name = \"web\"\ncommand = [\"/bin/x\", \"--pw\", \"hunter2\"]\npath = \"/h?key=hunter2\"\nuser = \"anna\"\n";
        let shown = without_words(toml);
        assert!(!shown.contains("hunter2") && !shown.contains("anna"), "{shown}");
        assert!(shown.contains("name = \"web\"") && shown.contains("path = \"/h?***\""), "{shown}");
    }

    #[test]
    fn a_command_that_hangs_or_is_not_there_is_said_to() {
        let missing = part("x", Command::new("/nonexistent/program"));
        assert!(missing.missing && missing.text.contains("not there"));
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo out; echo err >&2; exit 3"]);
        let Part { text, missing, .. } = part("x", failing);
        assert_eq!((text.as_str(), missing), ("out\nerr\n\n[ended with Some(3)]\n", false));
    }
}
