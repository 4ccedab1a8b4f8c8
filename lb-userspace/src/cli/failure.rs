//! How a command fails: what failed, why, and what to type next.

use std::{path::Path, process::ExitCode};

use crate::api::{client::ClientError, model::ErrorView};

/// Exit codes of the command line; clap exits with 2 by itself on wrong usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    NotReachable = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub exit: Exit,
    pub what: String,
    pub why: String,
    pub next: String,
    /// Everything there is to say, on several lines, before these three.
    pub report: Option<String>,
}

impl Failure {
    pub fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, what: what.into(), why: why.into(), next: next.into(), report: None }
    }

    pub fn of_client(error: ClientError, socket: &Path) -> Self {
        let at = format!("the agent at {}", socket.display());
        match error {
            ClientError::NotReachable(e) => Self {
                exit: Exit::NotReachable,
                ..Self::new(
                    format!("cannot reach {at}"),
                    e.to_string(),
                    "start it: lb run --config FILE (or name its socket: --socket PATH)",
                )
            },
            ClientError::TimedOut => Self {
                exit: Exit::NotReachable,
                ..Self::new(
                    format!("{at} does not answer"),
                    error.to_string(),
                    "look at its log; traffic goes on without it, see: lb stats",
                )
            },
            ClientError::NotAllowed(e) => {
                Self::new(format!("may not talk to {at}"), e.to_string(), "repeat it with sudo")
            }
            ClientError::Broken(why) => {
                Self::new(format!("cannot understand {at}"), why, "use an `lb` of the agent's version: lb --version")
            }
            ClientError::Refused(ErrorView { what, why, next, report, .. }) => {
                Self { report, ..Self::new(what, why, next) }
            }
        }
    }

    pub fn view(&self) -> ErrorView {
        let Self { exit, what, why, next, report } = self.clone();
        ErrorView { code: exit as u8, what, why, next, report }
    }
}
