//! What the agent changed on this host, on disk before it is changed.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{HostError, PortSet, boot::Boot, namespace};
use crate::config::PortRange;

const FILE: &str = "host.json";
const API_VERSION: &str = "lb/v1";
const KIND: &str = "HostRecord";

/// The changes that `lb detach` undoes, in the file `host.json` of the state directory.
///
/// Each change is written here (atomically, and through to the disk) before it is made. So after a
/// crash the record may name a change that was never made, but no change is ever missing; undoing
/// one that was not made does nothing. No change survives a reboot, so neither does the record's
/// content.
#[derive(Debug)]
pub struct HostRecord {
    path: PathBuf,
    changes: Changes,
}

/// The content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    api_version: String,
    kind: String,
    boot_id: String,
    /// See [`Boot`].
    #[serde(default)]
    boot_id_hidden: bool,
    #[serde(default)]
    booted: u64,
    /// The network namespace that was changed.
    #[serde(default)]
    namespace: String,
    /// Service addresses the agent added.
    #[serde(default)]
    pub addresses: BTreeSet<AddedAddress>,
    /// In the order of the changes; each setting once, with the value from before the first.
    #[serde(default)]
    pub sysctls: Vec<ChangedSysctl>,
    #[serde(default)]
    reserved_ports: Vec<(u16, u16)>,
    /// Interfaces that carry the XDP program.
    #[serde(default)]
    pub attached: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddedAddress {
    pub interface: String,
    pub address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedSysctl {
    /// Below `/proc/sys`.
    pub setting: PathBuf,
    pub previous: String,
    pub set: String,
}

impl Changes {
    /// Ports the agent added to `ip_local_reserved_ports`.
    pub fn reserved_ports(&self) -> PortSet {
        PortSet::new(self.reserved_ports.iter().map(|&(first, last)| PortRange { first, last }))
    }

    /// The boot in which they were made.
    fn boot(&self) -> Boot {
        Boot { id: self.boot_id.clone(), hidden: self.boot_id_hidden, began: self.booted }
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty()
            && self.sysctls.is_empty()
            && self.reserved_ports.is_empty()
            && self.attached.is_empty()
    }
}

impl HostRecord {
    /// Reads the record of the state directory; an empty one where there is none, or where it is
    /// from before the last boot or of a network namespace that is gone.
    ///
    /// # Errors
    /// The file cannot be read, or is no record; or it tells of another network namespace, where
    /// the changes still are.
    pub fn load(state_dir: &Path) -> Result<Self, HostError> {
        let boot = Boot::current()?;
        let here = namespace::current()?;
        let record = Self::read(state_dir, &boot, &here)?;
        if record.changes.namespace == here {
            return Ok(record);
        }
        match namespace::find(&record.changes.namespace) {
            Some(namespace) => Err(HostError::OtherNamespace { record: record.path, namespace }),
            None => Ok(Self { changes: empty(&boot, &here), ..record }),
        }
    }

    fn read(state_dir: &Path, boot: &Boot, namespace: &str) -> Result<Self, HostError> {
        let path = state_dir.join(FILE);
        let empty = empty(boot, namespace);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self { path, changes: empty }),
            Err(error) => return Err(HostError::file("read", path)(error)),
        };
        let refuse = |why: String| HostError::Record { path: path.clone(), why };
        let changes: Changes = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        if (changes.api_version.as_str(), changes.kind.as_str()) != (API_VERSION, KIND) {
            return Err(refuse(format!("it is a {} {}", changes.api_version, changes.kind)));
        }
        let changes = if changes.boot().is(boot) { changes } else { empty };
        Ok(Self { path, changes })
    }

    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Before adding service addresses.
    ///
    /// # Errors
    /// The record could not be written: do not make the change.
    pub fn note_addresses(&mut self, added: impl IntoIterator<Item = AddedAddress>) -> Result<(), HostError> {
        self.update(|changes| changes.addresses.extend(added))
    }

    /// After an address was taken off, or turned out to have been there already.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn forget_addresses(&mut self, gone: &[AddedAddress]) -> Result<(), HostError> {
        self.update(|changes| changes.addresses.retain(|address| !gone.contains(address)))
    }

    /// Before changing a setting from `previous` to `set`. A setting changed again keeps the value
    /// from before the first change.
    ///
    /// # Errors
    /// The record could not be written: do not make the change.
    pub fn note_sysctl(&mut self, setting: &Path, previous: &str, set: &str) -> Result<(), HostError> {
        self.update(|changes| match changes.sysctls.iter_mut().find(|changed| changed.setting == setting) {
            Some(changed) => set.clone_into(&mut changed.set),
            None => changes.sysctls.push(ChangedSysctl {
                setting: setting.to_owned(),
                previous: previous.to_owned(),
                set: set.to_owned(),
            }),
        })
    }

    /// After a setting has its old value again.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn forget_sysctl(&mut self, setting: &Path) -> Result<(), HostError> {
        self.update(|changes| changes.sysctls.retain(|changed| changed.setting != setting))
    }

    /// Before reserving ports in addition to those noted earlier.
    ///
    /// # Errors
    /// The record could not be written: do not make the change.
    pub fn note_reserved_ports(&mut self, added: &PortSet) -> Result<(), HostError> {
        let all = self.changes.reserved_ports().union(added);
        self.update(|changes| changes.reserved_ports = pairs(&all))
    }

    /// After the noted ports were given back.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn forget_reserved_ports(&mut self) -> Result<(), HostError> {
        self.update(|changes| changes.reserved_ports.clear())
    }

    /// Before the program is attached to an interface.
    ///
    /// # Errors
    /// The record could not be written: do not attach.
    pub fn note_attached(&mut self, interface: &str) -> Result<(), HostError> {
        self.update(|changes| {
            changes.attached.insert(interface.to_owned());
        })
    }

    /// After the program was taken off an interface.
    ///
    /// # Errors
    /// The record could not be written.
    pub fn forget_attached(&mut self, interface: &str) -> Result<(), HostError> {
        self.update(|changes| {
            changes.attached.remove(interface);
        })
    }

    /// Changes the record on disk, then in memory. Writes nothing where nothing changes.
    fn update(&mut self, change: impl FnOnce(&mut Changes)) -> Result<(), HostError> {
        let mut changes = self.changes.clone();
        change(&mut changes);
        if changes == self.changes {
            return Ok(());
        }
        if changes.is_empty() {
            self.remove()?
        } else {
            self.save(&changes)?
        }
        self.changes = changes;
        Ok(())
    }

    fn save(&self, changes: &Changes) -> Result<(), HostError> {
        let text = serde_json::to_vec_pretty(changes)
            .map_err(|error| HostError::Record { path: self.path.clone(), why: error.to_string() })?;
        write_atomically(&self.path, &text).map_err(HostError::file("write", &self.path))
    }

    fn remove(&self) -> Result<(), HostError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HostError::file("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}

fn empty(boot: &Boot, namespace: &str) -> Changes {
    Changes {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        boot_id: boot.id.clone(),
        boot_id_hidden: boot.hidden,
        booted: boot.began,
        namespace: namespace.to_owned(),
        ..Changes::default()
    }
}

fn pairs(ports: &PortSet) -> Vec<(u16, u16)> {
    ports.ranges().iter().map(|range| (range.first, range.last)).collect()
}

/// The file has either its old or its new content, also after a power cut.
fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    let temporary = path.with_extension("json.new");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // The rename itself lasts once the directory is written.
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(id: &str) -> Boot {
        Boot { id: id.to_owned(), ..Boot::default() }
    }

    fn address(text: &str) -> AddedAddress {
        AddedAddress { interface: "eth0.1".to_owned(), address: text.parse().unwrap() }
    }

    #[test]
    fn what_was_noted_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = HostRecord::read(&dir.path().join("made/on/demand"), &boot("boot-1"), "4:1").unwrap();
        record.note_addresses([address("192.0.2.1"), address("2001:db8::1")]).unwrap();
        record.note_sysctl(Path::new("net/a"), "0", "1").unwrap();
        record.note_reserved_ports(&PortSet::parse("20000-29999").unwrap()).unwrap();
        record.note_reserved_ports(&PortSet::parse("30000-30010").unwrap()).unwrap();
        record.note_attached("eth0.1").unwrap();

        let read = HostRecord::read(&dir.path().join("made/on/demand"), &boot("boot-1"), "4:1").unwrap();
        assert_eq!(read.changes(), record.changes());
        assert_eq!(read.changes().addresses.len(), 2);
        assert_eq!(read.changes().reserved_ports().to_string(), "20000-30010");
        assert_eq!(read.changes().attached.first().unwrap(), "eth0.1");
    }

    #[test]
    fn a_setting_changed_twice_keeps_the_value_from_before_the_first_change() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = HostRecord::read(dir.path(), &boot("boot-1"), "4:1").unwrap();
        record.note_sysctl(Path::new("net/a"), "0", "1").unwrap();
        record.note_sysctl(Path::new("net/a"), "1", "2").unwrap();
        let [changed] = record.changes().sysctls.as_slice() else { panic!("{:?}", record.changes()) };
        assert_eq!((changed.previous.as_str(), changed.set.as_str()), ("0", "2"));
    }

    #[test]
    fn a_reboot_undid_everything_so_the_record_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = HostRecord::read(dir.path(), &boot("boot-1"), "4:1").unwrap();
        record.note_addresses([address("192.0.2.1")]).unwrap();
        let read = HostRecord::read(dir.path(), &boot("boot-2"), "4:1").unwrap();
        assert!(read.changes().is_empty());
    }

    #[test]
    fn the_file_is_gone_once_nothing_is_left_to_undo() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = HostRecord::read(dir.path(), &boot("boot-1"), "4:1").unwrap();
        record.note_addresses([address("192.0.2.1")]).unwrap();
        record.note_attached("eth0.1").unwrap();
        record.forget_addresses(&[address("192.0.2.1")]).unwrap();
        assert!(dir.path().join(FILE).exists());
        record.forget_attached("eth0.1").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_change_that_cannot_be_recorded_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let occupied = dir.path().join("state");
        let mut record = HostRecord::read(&occupied, &boot("boot-1"), "4:1").unwrap();
        fs::write(&occupied, "a file where the directory should be").unwrap();
        assert!(record.note_attached("eth0").is_err());
        assert!(record.changes().is_empty(), "memory follows the disk");
    }

    #[test]
    fn a_damaged_record_is_an_error_that_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["{", r#"{"apiVersion":"lb/v9","kind":"HostRecord","bootId":"boot-1"}"#] {
            fs::write(dir.path().join(FILE), content).unwrap();
            let error = HostRecord::read(dir.path(), &boot("boot-1"), "4:1").unwrap_err().to_string();
            assert!(error.contains("host.json") && error.contains("remove the file"), "{error}");
        }
    }
}
