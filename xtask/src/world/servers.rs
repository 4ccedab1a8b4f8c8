//! Real servers on the backends of a world.

use std::{fs, net::TcpStream, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use super::{Family, World, plan, process, process::Process};
use crate::shell;

/// Where web servers listen.
pub const WEB_PORT: u16 = 8080;
/// Where DNS servers listen.
pub const DNS_PORT: u16 = 53;
/// More than one packet of an ordinary network holds: texts of this length.
pub const LARGE_RECORD: usize = 12 * LARGE_TEXT;
const LARGE_TEXT: usize = 250;

/// A web server on one backend: `/` answers the backend's name. With nginx also `/files/NAME` (GET
/// and PUT) and `/slow/NAME` (GET at 20 MB/s per connection).
pub struct Web {
    index: u8,
    name: String,
    folder: PathBuf,
    process: Process,
}

impl Web {
    /// Starts it on the backend of this index (from 0) and waits until it listens. `xtask` is the
    /// program that stands in where there is no nginx.
    ///
    /// # Errors
    /// It does not start; the error holds its log.
    pub fn start(world: &World, index: u8, xtask: &std::path::Path) -> Result<Self> {
        let name = plan::backend_name(index);
        let folder = world.subfolder(&name)?;
        let process = start_web(world, index, &name, &folder, xtask)?;
        let web = Self { index, name, folder, process };
        web.wait_until_listening(world)?;
        Ok(web)
    }

    /// One on every backend.
    ///
    /// # Errors
    /// The first that does not start.
    pub fn on_all(world: &World, xtask: &std::path::Path) -> Result<Vec<Self>> {
        (0..world.backends.len() as u8).map(|index| Self::start(world, index, xtask)).collect()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub const fn index(&self) -> u8 {
        self.index
    }

    /// The server's process alone, which then nobody restarts.
    pub fn into_process(self) -> Process {
        self.process
    }

    /// What `/files/` and `/slow/` serve, and where uploads land.
    pub fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// SIGKILL: its connections end as they do when a server crashes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again after [`Self::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn restart(&mut self, world: &World, xtask: &std::path::Path) -> Result<()> {
        self.process = start_web(world, self.index, &self.name, &self.folder, xtask)?;
        self.wait_until_listening(world)
    }

    fn wait_until_listening(&self, world: &World) -> Result<()> {
        let host = &world.backends[usize::from(self.index)];
        for family in Family::BOTH {
            let address = family.backend_port(self.index, WEB_PORT);
            process::until(&format!("{} listens on {address}", self.name), Duration::from_secs(10), || {
                host.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)))
                    .map(drop)
                    .with_context(|| format!("its log ends:\n{}", self.process.log_tail()))
            })?;
        }
        Ok(())
    }
}

/// What answers on [`WEB_PORT`] here, in words.
pub fn web_server() -> &'static str {
    if shell::find("nginx").is_some() { "nginx" } else { "a small web server of this project (nginx is not installed)" }
}

fn start_web(
    world: &World,
    index: u8,
    name: &str,
    folder: &std::path::Path,
    xtask: &std::path::Path,
) -> Result<Process> {
    let host = &world.backends[usize::from(index)];
    let log = folder.join("log");
    let Some(nginx) = shell::find("nginx") else {
        let mut command = host.command(xtask);
        command.args(["serve", "--name", name, "--port", &WEB_PORT.to_string()]);
        return Process::start(name, &mut command, &log);
    };
    for sub in ["files", "temp"] {
        fs::create_dir_all(folder.join(sub))?;
    }
    fs::write(folder.join("nginx.conf"), nginx_configuration(name, &folder.display().to_string()))?;
    let mut command = host.command(nginx);
    command.args(["-e", "stderr", "-p"]).arg(folder).args(["-c", "nginx.conf"]);
    Process::start(name, &mut command, &log)
}

/// One process without a master, so that one SIGKILL takes the whole server.
fn nginx_configuration(name: &str, folder: &str) -> String {
    format!(
        r#"daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {folder}/temp/body;
    proxy_temp_path {folder}/temp/proxy;
    fastcgi_temp_path {folder}/temp/fastcgi;
    uwsgi_temp_path {folder}/temp/uwsgi;
    scgi_temp_path {folder}/temp/scgi;
    server {{
        listen 0.0.0.0:{WEB_PORT} backlog=4096;
        listen [::]:{WEB_PORT} ipv6only=on backlog=4096;
        location / {{ default_type text/plain; return 200 "{name}\n"; }}
        location /files/ {{ alias {folder}/files/; dav_methods PUT; }}
        location /slow/ {{ alias {folder}/files/; limit_rate 20m; }}
    }}
}}
"#
    )
}

/// dnsmasq on one backend: `whoami.test` has a TXT record with the backend's name, `large.test` one of
/// [`LARGE_RECORD`] bytes.
///
/// # Errors
/// It does not start; the error holds its log.
pub fn dns(world: &World, index: u8) -> Result<Process> {
    let name = plan::backend_name(index);
    let folder = world.subfolder(&format!("{name}-dns"))?;
    let host = &world.backends[usize::from(index)];
    let mut command = host.command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root"]);
    command.args(["--bind-interfaces", "--log-facility=-"]);
    command.arg(format!("--port={DNS_PORT}"));
    command.arg(format!("--pid-file={}", folder.join("pid").display()));
    command.arg(format!("--txt-record=whoami.test,{name}"));
    let texts = vec!["x".repeat(LARGE_TEXT); LARGE_RECORD / LARGE_TEXT];
    command.arg(format!("--txt-record=large.test,{}", texts.join(","))).arg("--edns-packet-max=4096");
    for family in Family::BOTH {
        command.arg(format!("--listen-address={}", family.backend(index)));
    }
    let server = Process::start(&format!("{name} dnsmasq"), &mut command, &folder.join("log"))?;
    for family in Family::BOTH {
        let address = family.backend_port(index, DNS_PORT);
        process::until(&format!("dnsmasq listens on {address}"), Duration::from_secs(10), || {
            host.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)))
                .map(drop)
                .with_context(|| format!("its log ends:\n{}", server.log_tail()))
        })?;
    }
    Ok(server)
}
