//! Puts the program on interfaces, by pinned BPF links: it stays when the agent ends, and a new
//! agent replaces it without a packet passing in between.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::programs::{
    ProgramError, Xdp, XdpMode as AyaMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{
    detach, foreign,
    netlink::{self, AttachedMode},
    pins::Pins,
    sys,
};
use crate::config::XdpMode;

/// The program on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub interface: String,
    pub ifindex: u32,
    pub mode: AttachedMode,
    pub program_id: u32,
    /// It replaced the program of an agent before, at once.
    pub replaced: bool,
    /// What an operator should know, in a sentence: why it is not native.
    pub note: Option<String>,
}

/// Attaches the loaded program to `interface`, or replaces the one that an agent before left there.
/// With `replace` another program gives way, whoever put it there.
///
/// # Errors
/// The interface does not exist, another program is on it, or the kernel or the driver refuses;
/// with the kernel's sentence and what to type.
pub fn attach(program: &mut Xdp, pins: &Pins, interface: &str, mode: XdpMode, replace: bool) -> Result<Attachment> {
    let mut attacher = Attacher { ifindex: ifindex(interface)?, program, pins, interface };
    if replace && attacher.own_link()?.is_none() {
        foreign::throw_off(attacher.ifindex)
            .with_context(|| format!("taking another program off the interface {interface}"))?;
    }
    attacher.run(mode).with_context(|| format!("attaching to the interface {interface}"))
}

/// The index of an interface in this network namespace.
///
/// # Errors
/// There is none of that name.
pub fn ifindex(interface: &str) -> Result<u32> {
    let name = CString::new(interface).context("an interface name with a zero byte")?;
    // SAFETY: a valid C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index != 0, "there is no interface {interface} here: `ip link` lists them");
    Ok(index)
}

/// The name of an interface in this network namespace; `None`: there is none of that index.
pub fn interface_name(ifindex: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call wants.
    let found = unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: the kernel wrote a C string there.
    Some(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}

struct Attacher<'a> {
    program: &'a mut Xdp,
    pins: &'a Pins,
    interface: &'a str,
    ifindex: u32,
}

impl Attacher<'_> {
    fn run(&mut self, mode: XdpMode) -> Result<Attachment> {
        let before = self.own_link()?;
        match (before, mode) {
            (Some(AttachedMode::Generic), XdpMode::Native) => self.change_mode(AyaMode::Driver, AyaMode::Skb),
            (Some(AttachedMode::Native | AttachedMode::Offloaded), XdpMode::Generic) => {
                self.change_mode(AyaMode::Skb, AyaMode::Driver)
            }
            (Some(before), _) => self.replace(before),
            (None, _) => self.attach_new(mode),
        }
    }

    /// The mode of our pinned link on this interface. Pins of links that lead nowhere, or to
    /// another interface (renamed, or made anew), are removed.
    fn own_link(&self) -> Result<Option<AttachedMode>> {
        let path = self.pins.link(self.interface);
        let link = match sys::open_pin(&path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening the pinned link {}", path.display())),
        };
        let info = sys::xdp_link_info(link.as_fd()).with_context(|| format!("asking about {}", path.display()))?;
        if let Some(info) = info.filter(|info| info.ifindex == self.ifindex) {
            let attached = netlink::attached(self.ifindex).context("reading what is on the interface")?;
            if let Some((mode, _)) = attached.iter().find(|(_, id)| *id == info.program_id) {
                return Ok(Some(*mode));
            }
        }
        drop(link);
        detach::detach_link(&path)?;
        Ok(None)
    }

    fn replace(&mut self, before: AttachedMode) -> Result<Attachment> {
        let path = self.pins.link(self.interface);
        let link = PinnedLink::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        let id = self
            .program
            .attach_to_link(XdpLink::try_from(FdLink::from(link))?)
            .with_context(|| format!("replacing the program of {}", path.display()))?;
        // The pin keeps the link; this process needs no hold on it.
        drop(self.program.take_link(id)?);
        let note = (before == AttachedMode::Generic).then(|| {
            format!(
                "{} stays in generic mode, as it was attached before; `lb detach` and a new start try native again",
                self.interface
            )
        });
        self.report(true, note)
    }

    fn attach_new(&mut self, mode: XdpMode) -> Result<Attachment> {
        self.refuse_foreign()?;
        if mode == XdpMode::Generic {
            self.link(AyaMode::Skb)?;
            return self.report(false, None);
        }
        match self.link(AyaMode::Driver) {
            Ok(()) => self.report(false, None),
            Err(native) if mode == XdpMode::Auto => {
                self.link(AyaMode::Skb)
                    .with_context(|| format!("native: {native:#}; and the generic mode after it"))?;
                let note =
                    format!("{} runs in generic mode, which is slower: native was refused: {native:#}", self.interface);
                self.report(false, Some(note))
            }
            Err(native) => Err(anyhow!(
                "native mode was refused: {native:#}; xdp-mode = \"auto\" or \"generic\" does without it, more slowly"
            )),
        }
    }

    /// Takes our program off and puts it on in another mode: the kernel cannot do that in one step.
    fn change_mode(&mut self, to: AyaMode, from: AyaMode) -> Result<Attachment> {
        detach::detach_link(&self.pins.link(self.interface))?;
        match self.link(to) {
            Ok(()) => self.report(false, None),
            Err(error) => {
                self.link(from).context("the mode before could not be restored")?;
                Err(anyhow!("{error:#}; the program stays in the mode it was in"))
            }
        }
    }

    /// Attaches and pins.
    fn link(&mut self, mode: AyaMode) -> Result<()> {
        let link = match self.program.attach_to_if_index(self.ifindex, mode) {
            Ok(id) => self.program.take_link(id)?,
            Err(error) => return Err(self.explain(error, mode)),
        };
        let path = self.pins.link(self.interface);
        let link = FdLink::try_from(link).context("this kernel has no XDP links: Linux 6.1 or newer is needed")?;
        link.pin(&path).with_context(|| format!("pinning the link as {}", path.display()))?;
        Ok(())
    }

    /// The error, in the words of whoever refused.
    fn explain(&self, error: ProgramError, mode: AyaMode) -> anyhow::Error {
        // Somebody else may have come in between.
        if let Err(foreign) = self.refuse_foreign() {
            return foreign;
        }
        let generic = matches!(mode, AyaMode::Skb);
        let sentence = self.program_fd().ok().and_then(|fd| netlink::refusal(self.ifindex, fd, generic));
        let cause = match error {
            ProgramError::SyscallError(error) => anyhow!(error.io_error),
            other => anyhow!(other),
        };
        match sentence {
            Some(sentence) => cause.context(sentence),
            None => cause,
        }
    }

    fn program_fd(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.program.fd()?.as_fd())
    }

    fn refuse_foreign(&self) -> Result<()> {
        let attached = netlink::attached(self.ifindex).context("reading what is on the interface")?;
        let Some((mode, id)) = attached.first() else { return Ok(()) };
        bail!("{}", foreign::describe(self.interface, self.ifindex, *mode, *id))
    }

    fn report(&self, replaced: bool, note: Option<String>) -> Result<Attachment> {
        let program_id = self.program.info()?.id();
        let attached = netlink::attached(self.ifindex).context("reading what is on the interface")?;
        let (mode, _) = attached
            .iter()
            .find(|(_, id)| *id == program_id)
            .context("the kernel took the program, but does not list it on the interface")?;
        Ok(Attachment {
            interface: self.interface.into(),
            ifindex: self.ifindex,
            mode: *mode,
            program_id,
            replaced,
            note,
        })
    }
}

/// Interfaces that carry pinned links, with what is on them now, sorted by name. For
/// `lb status` and `lb doctor`; needs no agent.
///
/// # Errors
/// The pin directory cannot be read.
pub fn attachments(pins: &Pins) -> Result<Vec<Attachment>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(pins.dir()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error).with_context(|| format!("listing {}", pins.dir().display())),
    };
    for entry in entries {
        let path = entry?.path();
        if let Some(attachment) = attachment_of(&path)? {
            found.push(attachment);
        }
    }
    found.sort_by(|a, b| a.interface.cmp(&b.interface));
    Ok(found)
}

fn attachment_of(path: &Path) -> Result<Option<Attachment>> {
    let Some(interface) = path.file_name().and_then(|name| name.to_str()).and_then(super::pins::interface_of) else {
        return Ok(None);
    };
    let link = sys::open_pin(path).with_context(|| format!("opening {}", path.display()))?;
    let Some(info) = sys::xdp_link_info(link.as_fd())?.filter(|info| info.ifindex != 0) else { return Ok(None) };
    let attached = netlink::attached(info.ifindex)?;
    let mode = attached.iter().find(|(_, id)| *id == info.program_id).map(|(mode, _)| *mode);
    Ok(mode.map(|mode| Attachment {
        interface,
        ifindex: info.ifindex,
        mode,
        program_id: info.program_id,
        replaced: false,
        note: None,
    }))
}
