//! The real `lb` in a world: its agent, and its command line.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{World, process, process::Process};
use crate::shell;

/// How the agent is started.
pub struct Launch<'a> {
    /// The `lb` program.
    pub program: &'a Path,
    /// Content of the configuration file.
    pub config: &'a str,
    /// Further arguments of `lb run`.
    pub arguments: &'a [&'a str],
    /// Where its log goes.
    pub log: &'a Path,
}

/// Dropped, the agent is killed; what it left in the kernel goes with the world.
pub struct Balancer<'w> {
    world: &'w World,
    program: PathBuf,
    arguments: Vec<String>,
    config: PathBuf,
    agent: Process,
}

impl<'w> Balancer<'w> {
    /// Starts the agent; it is not ready yet.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(world: &'w World, launch: &Launch) -> Result<Self> {
        let config = world.folder().join("lb.toml");
        fs::write(&config, launch.config)?;
        let arguments: Vec<String> = launch.arguments.iter().map(|&argument| argument.to_owned()).collect();
        let agent = start_agent(world, launch.program, &config, &arguments, launch.log)?;
        Ok(Self { world, program: launch.program.to_owned(), arguments, config, agent })
    }

    pub fn agent(&mut self) -> &mut Process {
        &mut self.agent
    }

    /// The agent's process alone, which then nobody asks or restarts.
    pub fn into_agent(self) -> Process {
        self.agent
    }

    /// The configuration file that the agent was started with.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Starts a new agent after the last one has ended.
    ///
    /// # Errors
    /// The last one still runs, or the program cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        if self.agent.ended()?.is_none() {
            bail!("the agent still runs");
        }
        let log = self.agent.log().to_owned();
        self.agent = start_agent(self.world, &self.program, &self.config, &self.arguments, &log)?;
        Ok(())
    }

    /// `lb` with these arguments, in the balancer's namespace and talking to this agent.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        cli(self.world, &self.program, arguments)
    }

    /// Runs `lb` and returns what it printed, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn answer(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.cli(arguments).output()?)
    }

    /// Runs `lb` and demands exit code 0.
    ///
    /// # Errors
    /// Another exit code; the error holds what it wrote.
    pub fn done(&self, arguments: &[&str]) -> Result<String> {
        shell::output(&mut self.cli(arguments))
    }

    /// Runs `lb ... -o json` and parses the answer.
    ///
    /// # Errors
    /// Another exit code than 0, or no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-o", "json"]);
        let text = self.done(&arguments)?;
        serde_json::from_str(&text).with_context(|| format!("no JSON from lb {}: {text}", arguments.join(" ")))
    }

    /// Waits until the agent answers and exactly these backends (names as `ADDRESS:PORT`) take new
    /// flows of the service.
    ///
    /// # Errors
    /// The agent ended, or it is not so in time; the error holds the last answer and the log.
    pub fn wait_for_backends(&mut self, service: &str, backends: &[String], patience: Duration) -> Result<()> {
        let mut wanted = backends.to_vec();
        wanted.sort();
        let deadline = std::time::Instant::now() + patience;
        loop {
            if let Some(status) = self.agent.ended()? {
                bail!("the agent ended with {status}; its log ends:\n{}", self.agent.log_tail());
            }
            let used = self.backends_in_use(service);
            match used {
                Ok(used) if used == wanted => return Ok(()),
                used if std::time::Instant::now() > deadline => bail!(
                    "service {service} should use {wanted:?} within {patience:?}; last answer: {used:?}; log ends:\n{}",
                    self.agent.log_tail()
                ),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Backends that take new flows of the service now, sorted.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn backends_in_use(&self, service: &str) -> Result<Vec<String>> {
        let list = self.json(&["backend", "list", service])?;
        let backends = list["backends"].as_array().with_context(|| format!("no backends in {list}"))?;
        let used = backends.iter().filter(|backend| backend["effective"]["used"].as_bool() == Some(true));
        let mut names: Vec<_> = used.filter_map(|backend| backend["address"].as_str()).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// SIGTERM, and the exit status.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.agent.terminate(Duration::from_secs(10))
    }

    /// Waits until something is so that the command line can tell.
    ///
    /// # Errors
    /// It was not so in time.
    pub fn until<T>(&self, what: &str, patience: Duration, mut ask: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        process::until(what, patience, || ask(self))
    }
}

/// `lb` with these arguments in the balancer's namespace; no agent is needed for it.
pub fn cli<S: AsRef<OsStr>>(world: &World, program: &Path, arguments: &[S]) -> Command {
    let mut command = world.lb.command(program);
    command.env("LB_SOCKET", world.folder().join("lb.sock"));
    command.env("LB_PIN_DIR", world.pins());
    command.env("LB_STATE_DIR", world.folder().join("state"));
    command.env("NO_COLOR", "1");
    command.args(arguments);
    command
}

fn start_agent(world: &World, program: &Path, config: &Path, arguments: &[String], log: &Path) -> Result<Process> {
    let mut command = cli(world, program, &["run", "--config"]);
    command.arg(config).args(arguments);
    Process::start("lb run", &mut command, log)
}
