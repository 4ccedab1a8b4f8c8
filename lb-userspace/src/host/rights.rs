//! What this process may do, and what to type when it may not.

use std::{fmt, path::PathBuf};

use caps::{CapSet, Capability};

/// A capability (`man 7 capabilities`) that `lb run` needs and does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Bpf,
    NetAdmin,
    Perfmon,
    NetRaw,
}

impl Right {
    pub const ALL: [Self; 4] = [Self::Bpf, Self::NetAdmin, Self::Perfmon, Self::NetRaw];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "CAP_BPF",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::NetRaw => "CAP_NET_RAW",
        }
    }

    pub const fn why(self) -> &'static str {
        match self {
            Self::Bpf => "to load the program and make its maps",
            Self::NetAdmin => "to attach it to an interface, add service addresses and change network settings",
            Self::Perfmon => "without it the kernel's verifier refuses programs that parse packets",
            Self::NetRaw => "to announce service addresses (gratuitous ARP, neighbour advertisements)",
        }
    }

    const fn capability(self) -> Capability {
        match self {
            Self::Bpf => Capability::CAP_BPF,
            Self::NetAdmin => Capability::CAP_NET_ADMIN,
            Self::Perfmon => Capability::CAP_PERFMON,
            Self::NetRaw => Capability::CAP_NET_RAW,
        }
    }
}

/// Rights that are missing, and how to get them. Displays as several lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingRights {
    pub rights: Vec<Right>,
    /// What to prefix with `sudo`: the command line of this process.
    command: String,
    executable: PathBuf,
}

impl std::error::Error for MissingRights {}

impl fmt::Display for MissingRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "not enough rights:")?;
        for right in &self.rights {
            writeln!(f, "  {:<14} is missing: {}", right.name(), right.why())?;
        }
        let all = Right::ALL.map(|right| right.name().to_lowercase()).join(",");
        writeln!(f, "Type one of:")?;
        writeln!(f, "  sudo {}", self.command)?;
        write!(f, "  sudo setcap {all}+ep {}", quoted(&self.executable.to_string_lossy()))
    }
}

/// Whether this thread has every right in its effective set.
///
/// # Errors
/// Those that are missing.
pub fn check() -> Result<(), MissingRights> {
    let has = |right: Right| caps::has_cap(None, CapSet::Effective, right.capability()).unwrap_or(false);
    missing(has)
}

/// Whether this thread may mount file systems.
pub(super) fn may_mount() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap_or(false)
}

fn missing(has: impl Fn(Right) -> bool) -> Result<(), MissingRights> {
    let rights: Vec<Right> = Right::ALL.into_iter().filter(|right| !has(*right)).collect();
    if rights.is_empty() {
        return Ok(());
    }
    let executable = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("lb"));
    // sudo searches its own PATH, so the program goes by its full path.
    let arguments = std::env::args().skip(1).map(|argument| quoted(&argument));
    let program = quoted(&executable.to_string_lossy());
    let command = std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ");
    Err(MissingRights { rights, command, executable })
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rights_are_enough() {
        assert_eq!(missing(|_| true), Ok(()));
    }

    #[test]
    fn the_message_names_what_is_missing_why_and_the_line_to_type() {
        let mut error = missing(|right| matches!(right, Right::Bpf | Right::NetAdmin)).unwrap_err();
        error.executable = "/opt/lb/bin/lb".into();
        error.command = "/opt/lb/bin/lb run --config lb.toml".into();
        assert_eq!(
            error.to_string(),
            "not enough rights:\n\
             \x20 CAP_PERFMON    is missing: without it the kernel's verifier refuses programs that parse packets\n\
             \x20 CAP_NET_RAW    is missing: to announce service addresses (gratuitous ARP, neighbour advertisements)\n\
             Type one of:\n\
             \x20 sudo /opt/lb/bin/lb run --config lb.toml\n\
             \x20 sudo setcap cap_bpf,cap_net_admin,cap_perfmon,cap_net_raw+ep /opt/lb/bin/lb"
        );
    }

    #[test]
    fn words_with_blanks_or_quotes_survive_a_shell() {
        assert_eq!(quoted("lb.toml"), "lb.toml");
        assert_eq!(quoted("my lb.toml"), "'my lb.toml'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
