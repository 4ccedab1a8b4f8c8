//! Kernel settings under `/proc/sys`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::HostError;

/// Settings are named by their path below `/proc/sys`, never by a dotted key: interface names may
/// contain dots (`eth0.100`).
#[derive(Clone, Debug)]
pub struct Sysctl {
    root: PathBuf,
}

impl Default for Sysctl {
    fn default() -> Self {
        Self::at("/proc/sys")
    }
}

impl Sysctl {
    /// For tests: settings below another directory.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The value without the newline; `None`: there is no such setting (an interface that is gone,
    /// a kernel without IPv6).
    ///
    /// # Errors
    /// The setting is there and cannot be read.
    pub fn read(&self, setting: &Path) -> Result<Option<String>, HostError> {
        let path = self.root.join(setting);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::file("read", path)(error)),
        }
    }

    /// # Errors
    /// The setting is missing, or the kernel refused the value.
    pub fn write(&self, setting: &Path, value: &str) -> Result<(), HostError> {
        let path = self.root.join(setting);
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            // One write call: the kernel takes each as a whole value.
            .and_then(|mut file| io::Write::write_all(&mut file, format!("{value}\n").as_bytes()))
            .map_err(HostError::file("write", path))
    }
}

/// Whether packets that come in by the interface may be forwarded; `bpf_fib_lookup` answers only
/// where this is 1.
pub fn ipv4_forwarding(interface: &str) -> PathBuf {
    Path::new("net/ipv4/conf").join(interface).join("forwarding")
}

/// As [`ipv4_forwarding`]; it also makes the interface a router in neighbour discovery.
pub fn ipv6_forwarding(interface: &str) -> PathBuf {
    Path::new("net/ipv6/conf").join(interface).join("forwarding")
}

/// Router advertisements: 0 ignored, 1 accepted unless forwarding, 2 accepted.
pub fn accept_ra(interface: &str) -> PathBuf {
    Path::new("net/ipv6/conf").join(interface).join("accept_ra")
}

/// 1: the interface has no IPv6.
pub fn disable_ipv6(interface: &str) -> PathBuf {
    Path::new("net/ipv6/conf").join(interface).join("disable_ipv6")
}

/// Ports that the kernel gives to nobody who did not ask for them by number.
pub fn reserved_ports() -> PathBuf {
    PathBuf::from("net/ipv4/ip_local_reserved_ports")
}

/// First and last ephemeral port, of IPv6 too.
pub fn ephemeral_ports() -> PathBuf {
    PathBuf::from("net/ipv4/ip_local_port_range")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_with_dots_stays_one_directory() {
        assert_eq!(ipv4_forwarding("eth0.100"), Path::new("net/ipv4/conf/eth0.100/forwarding"));
        assert_eq!(accept_ra("a.b.c"), Path::new("net/ipv6/conf/a.b.c/accept_ra"));
    }

    #[test]
    fn a_missing_setting_reads_as_none_and_refuses_to_be_written() {
        let root = tempfile::tempdir().unwrap();
        let sysctl = Sysctl::at(root.path());
        assert_eq!(sysctl.read(Path::new("net/none")).unwrap(), None);
        let error = sysctl.write(Path::new("net/none"), "1").unwrap_err().to_string();
        assert!(error.contains("net/none") && error.contains("No such file"), "{error}");
    }

    #[test]
    fn what_was_written_is_read_without_its_newline() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("setting"), "a longer value before\n").unwrap();
        let sysctl = Sysctl::at(root.path());
        sysctl.write(Path::new("setting"), "1").unwrap();
        assert_eq!(sysctl.read(Path::new("setting")).unwrap().as_deref(), Some("1"));
    }
}
