//! The backend's end of tunnels: a program of its own, put on an interface, taken off and read
//! without any agent.
//!
//! Everything of one interface is pinned under `<pin_dir>/decap/<interface>`, as [`Pins`] lays it
//! out. A program brings its own maps, so that a new one replaces the old at once and whole.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap, Map, MapData, PerCpuArray,
        lpm_trie::{Key, LpmTrie},
    },
};
use lb_common::{
    abi::{
        Address, DirectionCounters, Port, VerdictCounters,
        decap::{self, Settings},
    },
    decap::Outcome,
};

use super::{
    attach::{self, Attachment},
    detach::{self, Detached},
    load,
    pins::{self, Pins},
};
use crate::config::XdpMode;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/decap"));

/// Addresses with this prefix in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    pub address: IpAddr,
    /// At most the bits of the address.
    pub length: u8,
}

/// What is stripped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Addresses of services: packets for others stay in their tunnel. At least one.
    pub vips: Vec<IpAddr>,
    /// Outer sources. At least one.
    pub balancers: Vec<Prefix>,
    /// Outer destinations; none: any.
    pub own: Vec<IpAddr>,
    /// UDP port of GUE; `None`: IP in IP and GRE only.
    pub gue_port: Option<u16>,
}

/// One interface's program, rules and counters, as they are pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripping {
    pub interface: String,
    /// `None`: the interface or its program is gone, only pins are left.
    pub attachment: Option<Attachment>,
    pub rules: Rules,
    /// Stripped for each address, as it came in, since the program was loaded.
    pub vips: Vec<(IpAddr, DirectionCounters)>,
    /// Every outcome.
    pub outcomes: Vec<(Outcome, VerdictCounters)>,
}

/// Puts the program on an interface, or another one with other rules in the place of the one there.
///
/// # Errors
/// The rules do not fit, rights are missing, the interface has another program, or the kernel refuses.
pub fn attach(pin_dir: &Path, interface: &str, mode: XdpMode, rules: &Rules) -> Result<Attachment> {
    ensure!(!rules.vips.is_empty() && !rules.balancers.is_empty(), "neither a service address nor a balancer");
    ensure!(
        !OBJECT.is_empty(),
        "this binary was built without its data path (AYA_BUILD_SKIP was set): build it again without that variable"
    );
    attach::ifindex(interface)?;
    let mut ebpf = EbpfLoader::new().load(OBJECT).context("making the maps")?;
    write_rules(&mut ebpf, rules)?;
    load::program(&mut ebpf, decap::PROGRAM)?.load().map_err(load::explain_refusal).context("loading the program")?;
    // Who reads always finds whole pins: those of the program before until the new one is there.
    let pins = pins_of(pin_dir, interface);
    pins.create()?;
    let fresh = !pins.link(interface).exists();
    let attached = pin_maps(&mut ebpf, &pins, fresh).and_then(|()| {
        let program = load::program(&mut ebpf, decap::PROGRAM)?;
        attach::attach(program, &pins, interface, mode, false)
    });
    let done = attached.and_then(|attachment| publish_pins(&pins).map(|()| attachment));
    match done {
        Err(error) if fresh => match off(pin_dir, interface) {
            Ok(_) => Err(error),
            Err(left) => Err(error.context(format!("and cleaning up failed: {left:#}"))),
        },
        done => done,
    }
}

/// Takes the program off an interface and removes its pins. Nothing to do is not an error.
///
/// # Errors
/// The kernel's.
pub fn off(pin_dir: &Path, interface: &str) -> Result<Detached> {
    let done = detach::detach(pins_of(pin_dir, interface).root())?;
    // Not empty: other interfaces strip too.
    let _ = fs::remove_dir(pin_dir.join(FOLDER));
    let _ = fs::remove_dir(pin_dir);
    Ok(done)
}

/// What is pinned for every interface, sorted by its name.
///
/// # Errors
/// The pin directory or a map in it cannot be read.
pub fn read(pin_dir: &Path) -> Result<Vec<Stripping>> {
    let folder = pin_dir.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", folder.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let Some(interface) = name.to_str().map(pins::interface_name) else { continue };
        match read_one(pin_dir, &interface) {
            Ok(stripping) => found.push(stripping),
            // On its way in or out.
            Err(_) if !pins_of(pin_dir, &interface).link(&interface).exists() => {}
            Err(error) => return Err(error.context(format!("reading what {interface} strips"))),
        }
    }
    found.sort_by(|a, b| a.interface.cmp(&b.interface));
    Ok(found)
}

const FOLDER: &str = "decap";

fn pins_of(pin_dir: &Path, interface: &str) -> Pins {
    Pins::new(&pin_dir.join(FOLDER).join(pins::file_name(interface)))
}

fn write_rules(ebpf: &mut Ebpf, rules: &Rules) -> Result<()> {
    let gue_port = rules.gue_port.map_or(Port::ANY, Port::new);
    let flags = if rules.own.is_empty() { 0 } else { Settings::OWN_ADDRESSES };
    Array::try_from(map(ebpf, decap::SETTINGS)?)?.set(0, Settings { gue_port, flags, reserved: 0 }, 0)?;
    let mut vips: HashMap<_, Address, u32> = HashMap::try_from(map(ebpf, decap::VIPS)?)?;
    for (index, vip) in (0..).zip(&rules.vips) {
        vips.insert(Address::from(*vip), index, 0)
            .with_context(|| format!("{vip}; there is room for {} service addresses", decap::VIPS_MAX))?;
    }
    let mut balancers: LpmTrie<_, Address, u8> = LpmTrie::try_from(map(ebpf, decap::SOURCES)?)?;
    for prefix in &rules.balancers {
        balancers
            .insert(&prefix.key(), 1, 0)
            .with_context(|| format!("{prefix}; there is room for {} balancers", decap::SOURCES_MAX))?;
    }
    let mut own: HashMap<_, Address, u8> = HashMap::try_from(map(ebpf, decap::OWN)?)?;
    for address in &rules.own {
        own.insert(Address::from(*address), 1, 0)
            .with_context(|| format!("{address}; there is room for {} addresses of this host", decap::OWN_MAX))?;
    }
    Ok(())
}

fn map<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Map> {
    ebpf.map_mut(name).with_context(|| format!("the program has no map `{name}`"))
}

/// Pins the maps beside those that are in use, or at once where there are none.
fn pin_maps(ebpf: &mut Ebpf, pins: &Pins, fresh: bool) -> Result<()> {
    for name in decap::MAPS {
        let path = next_pin(pins, name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing the old pin {}", path.display()));
            }
            _ => {}
        }
        map(ebpf, name)?.pin(&path).with_context(|| format!("pinning the map as {}", path.display()))?;
    }
    if fresh { publish_pins(pins) } else { Ok(()) }
}

/// Puts the pins of the new maps in the place of the old ones; again is fine.
fn publish_pins(pins: &Pins) -> Result<()> {
    for name in decap::MAPS {
        match fs::rename(next_pin(pins, name), pins.map(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("pinning the map as {}", pins.map(name).display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn next_pin(pins: &Pins, name: &str) -> PathBuf {
    pins.map(&format!("{name}-next"))
}

fn read_one(pin_dir: &Path, interface: &str) -> Result<Stripping> {
    let pins = pins_of(pin_dir, interface);
    let settings: Settings = Array::try_from(Map::Array(open(&pins, decap::SETTINGS)?))?.get(&0, 0)?;
    let vips: HashMap<_, Address, u32> = HashMap::try_from(Map::HashMap(open(&pins, decap::VIPS)?))?;
    let mut vips: Vec<(Address, u32)> = vips.iter().collect::<Result<_, _>>()?;
    vips.sort_by_key(|(_, index)| *index);
    let own: HashMap<_, Address, u8> = HashMap::try_from(Map::HashMap(open(&pins, decap::OWN)?))?;
    let mut own: Vec<IpAddr> = own.keys().map(|key| key.map(IpAddr::from)).collect::<Result<_, _>>()?;
    own.sort();
    let balancers: LpmTrie<_, Address, u8> = LpmTrie::try_from(Map::LpmTrie(open(&pins, decap::SOURCES)?))?;
    let mut balancers: Vec<Prefix> =
        balancers.keys().map(|key| key.map(|key| Prefix::of(&key))).collect::<Result<_, _>>()?;
    balancers.sort();
    let per_vip = per_cpu::<DirectionCounters>(&pins, decap::VIP_STATS)?;
    let stats = per_cpu::<VerdictCounters>(&pins, decap::STATS)?;
    let outcomes = Outcome::ALL.iter().map(|outcome| {
        // A program that an earlier version has left at work knows fewer.
        if *outcome as u32 >= stats.len() {
            return Ok((*outcome, VerdictCounters { packets: 0, bytes: 0 }));
        }
        let sum = stats.get(&(*outcome as u32), 0)?.iter().fold((0, 0), |sum, cpu| add(sum, cpu.packets, cpu.bytes));
        Ok((*outcome, VerdictCounters { packets: sum.0, bytes: sum.1 }))
    });
    let counted = vips.iter().map(|(vip, index)| {
        let sum = per_vip.get(index, 0)?.iter().fold((0, 0), |sum, cpu| add(sum, cpu.packets, cpu.bytes));
        Ok((IpAddr::from(*vip), DirectionCounters { packets: sum.0, bytes: sum.1 }))
    });
    Ok(Stripping {
        interface: interface.to_owned(),
        attachment: attach::attachments(&pins)?.into_iter().find(|attached| attached.interface == interface),
        outcomes: outcomes.collect::<Result<_>>()?,
        vips: counted.collect::<Result<_>>()?,
        rules: Rules {
            vips: vips.iter().map(|(vip, _)| IpAddr::from(*vip)).collect(),
            balancers,
            own,
            gue_port: (settings.gue_port != Port::ANY).then(|| settings.gue_port.get()),
        },
    })
}

fn add(sum: (u64, u64), packets: u64, bytes: u64) -> (u64, u64) {
    (sum.0.wrapping_add(packets), sum.1.wrapping_add(bytes))
}

fn per_cpu<V: Pod>(pins: &Pins, name: &str) -> Result<PerCpuArray<MapData, V>> {
    Ok(PerCpuArray::try_from(Map::PerCpuArray(open(pins, name)?))?)
}

fn open(pins: &Pins, name: &str) -> Result<MapData> {
    let path: PathBuf = pins.map(name);
    MapData::from_pin(&path).map_err(|error| anyhow!(error)).with_context(|| format!("opening {}", path.display()))
}

impl Prefix {
    /// IPv4 is mapped into IPv6: its prefixes are 96 bits longer there.
    const MAPPED: u32 = 96;

    fn key(&self) -> Key<Address> {
        let mapped = if self.address.is_ipv4() { Self::MAPPED } else { 0 };
        Key::new(u32::from(self.length) + mapped, self.address.into())
    }

    fn of(key: &Key<Address>) -> Self {
        let address = IpAddr::from(key.data());
        let mapped = if address.is_ipv4() { Self::MAPPED } else { 0 };
        Self { address, length: key.prefix_len().saturating_sub(mapped) as u8 }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}
