//! What an operator may decide at run time: checked against configuration and health, then written
//! into the operator's layer. Nothing is changed here; the new layer becomes an input like others.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
};

use lb_common::abi::Mode;

use super::{
    Admin, Aspect, Core, HealthState, Mark, OperatorLayer, Override,
    configure::{Wanted, wanted, word},
    service::{Member, Service},
};
use crate::config;

/// A decision about one backend of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A backend that the file does not have, or one of the file's that was removed before.
    Add {
        service: String,
        address: SocketAddr,
        weight: u16,
        tier: u8,
    },
    Remove {
        service: String,
        address: SocketAddr,
    },
    Drain {
        service: String,
        address: SocketAddr,
    },
    Ready {
        service: String,
        address: SocketAddr,
    },
    Maintenance {
        service: String,
        address: SocketAddr,
    },
    Weight {
        service: String,
        address: SocketAddr,
        weight: u16,
    },
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("there is no service `{name}`{}", Known(known, suggestion))]
    UnknownService { name: String, suggestion: Option<String>, known: Vec<String> },
    #[error("service `{service}` has no backend {address}{}", Known(known, suggestion))]
    UnknownBackend { service: String, address: SocketAddr, suggestion: Option<String>, known: Vec<String> },
    #[error(
        "service `{service}` has a backend {address} already: change it with `lb backend weight`, `drain`, `ready` or `maintenance`"
    )]
    Duplicate { service: String, address: SocketAddr },
    #[error(
        "{address} is an {} address, but service `{service}` listens on {listen}: both must be {}",
        family(address),
        family(listen)
    )]
    Family { service: String, address: SocketAddr, listen: SocketAddr },
    #[error(
        "{address} has no port: port 0 (the port that the client asked for) is only for services that listen on port 0, and `{service}` listens on {listen}"
    )]
    Port { service: String, address: SocketAddr, listen: SocketAddr },
    #[error(
        "service `{service}` is in mode {mode}, which cannot translate ports: the backend must have the port of {listen}, not that of {address}"
    )]
    OtherPort { service: String, address: SocketAddr, listen: SocketAddr, mode: &'static str },
    #[error("{address} cannot be a backend of service `{service}`: {why}")]
    Unusable { service: String, address: SocketAddr, why: &'static str },
    #[error("a weight of {weight} is too much: from 0 to {}", config::MAX_WEIGHT)]
    Weight { weight: u16 },
    #[error("there is no tier {tier}: from 0 to {}", config::MAX_TIER)]
    NoSuchTier { tier: u8 },
    #[error("the file has {address} in tier {tier}: change the tier there, or add it with tier {tier}")]
    Tier { address: SocketAddr, tier: u8 },
    #[error(
        "{address} is the last ready backend of service `{service}`: after this, new flows would be refused; make another backend ready first, or repeat the command with --force"
    )]
    LastReady { service: String, address: SocketAddr },
    #[error(
        "{address} is the last ready backend of tier {tier}, which serves `{service}`: after this, new flows would go to tier {next}; make another backend of tier {tier} ready first, or repeat the command with --force"
    )]
    LastOfTier { service: String, address: SocketAddr, tier: u8, next: u8 },
}

impl Command {
    /// The service that the command is about.
    pub fn service(&self) -> &str {
        match self {
            Self::Add { service, .. }
            | Self::Remove { service, .. }
            | Self::Drain { service, .. }
            | Self::Ready { service, .. }
            | Self::Maintenance { service, .. }
            | Self::Weight { service, .. } => service,
        }
    }

    /// The backend that the command is about.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Add { address, .. }
            | Self::Remove { address, .. }
            | Self::Drain { address, .. }
            | Self::Ready { address, .. }
            | Self::Maintenance { address, .. }
            | Self::Weight { address, .. } => *address,
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (service, address) = (self.service(), self.address());
        match self {
            Self::Add { weight, tier, .. } => write!(f, "add {service} {address} weight {weight} tier {tier}"),
            Self::Remove { .. } => write!(f, "remove {service} {address}"),
            Self::Drain { .. } => write!(f, "drain {service} {address}"),
            Self::Ready { .. } => write!(f, "ready {service} {address}"),
            Self::Maintenance { .. } => write!(f, "maintenance {service} {address}"),
            Self::Weight { weight, .. } => write!(f, "weight {service} {address} {weight}"),
        }
    }
}

impl Core {
    /// The layer as it is now.
    pub fn operator_layer(&self) -> &OperatorLayer {
        &self.layer
    }

    /// [`Core::apply_commands`] for one command, decided `by` a user `at` a time (RFC 3339, UTC).
    ///
    /// # Errors
    /// As there.
    pub fn apply_command(
        &self,
        layer: &OperatorLayer,
        command: &Command,
        by: &str,
        at: &str,
        force: bool,
    ) -> Result<OperatorLayer, CommandError> {
        self.apply_commands(layer, std::slice::from_ref(command), &Mark::new(by, at), force)
    }

    /// The layer with all commands in it, decided by whoever `mark` says. Without `force` they are
    /// refused when together they take the last ready backend of a service, or of the tier that
    /// serves, out of turn.
    ///
    /// # Errors
    /// A command makes no sense here, or is too dangerous; nothing has changed.
    pub fn apply_commands(
        &self,
        layer: &OperatorLayer,
        commands: &[Command],
        mark: &Mark,
        force: bool,
    ) -> Result<OperatorLayer, CommandError> {
        let mut new = layer.clone();
        for command in commands {
            let (config, _) = self.find_service(command.service())?;
            decide(config, &mut new, command, mark)?;
        }
        if !force {
            let mut seen = BTreeSet::new();
            for command in commands.iter().filter(|command| seen.insert(command.service())) {
                self.still_served(command, layer, &new)?;
            }
        }
        Ok(new)
    }

    /// Whether the command's service goes on serving in its tier.
    fn still_served(&self, command: &Command, old: &OperatorLayer, new: &OperatorLayer) -> Result<(), CommandError> {
        let (config, service) = self.find_service(command.service())?;
        let known = configured(service);
        let tiers = |layer: &OperatorLayer| -> BTreeSet<u8> {
            let wanted = wanted(config, layer.services.get(&config.name));
            wanted.iter().filter(|wanted| is_ready(&known, wanted)).map(|wanted| wanted.tier).collect()
        };
        let (before, after) = (tiers(old), tiers(new));
        let Some(&tier) = before.first() else { return Ok(()) };
        let (service, address) = (config.name.clone(), command.address());
        match after.first() {
            None => Err(CommandError::LastReady { service, address }),
            Some(&next) if next > tier => Err(CommandError::LastOfTier { service, address, tier, next }),
            Some(_) => Ok(()),
        }
    }

    /// Checks a whole layer before it becomes an input: that no service loses its last ready
    /// backend by it.
    ///
    /// # Errors
    /// The first service that would.
    pub fn check_layer(&self, layer: &OperatorLayer) -> Result<(), CommandError> {
        for (name, me) in &self.names {
            let (old, new) = (self.layer.services.get(name), layer.services.get(name));
            let Some((service, config)) =
                self.services.get(me).and_then(|service| Some((service, service.config.as_ref()?)))
            else {
                continue;
            };
            if old == new {
                continue;
            }
            let known = configured(service);
            let (before, after) = (wanted(config, old), wanted(config, new));
            let first_ready = |wanted: &[Wanted]| wanted.iter().find(|w| is_ready(&known, w)).map(|w| w.address);
            if let (Some(address), None) = (first_ready(&before), first_ready(&after)) {
                return Err(CommandError::LastReady { service: name.clone(), address });
            }
        }
        Ok(())
    }

    fn find_service(&self, name: &str) -> Result<(&config::Service, &Service), CommandError> {
        let found = self.names.get(name).and_then(|me| self.services.get(me));
        found.and_then(|service| Some((service.config.as_ref()?, service))).ok_or_else(|| {
            let known: Vec<String> = self.names.keys().cloned().collect();
            CommandError::UnknownService { name: name.to_owned(), suggestion: nearest(name, &known), known }
        })
    }
}

/// Writes the command into the layer.
fn decide(
    config: &config::Service,
    layer: &mut OperatorLayer,
    command: &Command,
    mark: &Mark,
) -> Result<(), CommandError> {
    let address = command.address();
    let current = wanted(config, layer.services.get(&config.name));
    let before = layer.services.get(&config.name).and_then(|backends| backends.get(&address)).cloned();
    let before = before.unwrap_or_default();
    let mut decided = before.clone();
    let aspect = decide_one(config, &current, command, &mut decided)?;
    decided.mark(&before, mark, aspect);
    if matches!(command, Command::Add { .. }) && decided.weight.is_some() {
        let marked = decided.clone();
        decided.mark(&marked, mark, Aspect::Weight);
    }
    let backends = layer.services.entry(config.name.clone()).or_default();
    if decided.says_something() {
        backends.insert(address, decided);
    } else {
        backends.remove(&address);
    }
    if backends.is_empty() {
        layer.services.remove(&config.name);
    }
    Ok(())
}

/// Writes the command into one backend's part of the layer; tells what it decides about.
fn decide_one(
    config: &config::Service,
    current: &[Wanted],
    command: &Command,
    decided: &mut Override,
) -> Result<Aspect, CommandError> {
    let address = command.address();
    if let Command::Add { weight, .. } | Command::Weight { weight, .. } = command
        && *weight > config::MAX_WEIGHT
    {
        return Err(CommandError::Weight { weight: *weight });
    }
    if let Command::Add { weight, tier, .. } = command {
        return add(config, current, address, *weight, *tier, decided).map(|()| Aspect::Added);
    }
    if !current.iter().any(|wanted| wanted.address == address) {
        let known: Vec<String> = current.iter().map(|wanted| wanted.address.to_string()).collect();
        let suggestion = nearest(&address.to_string(), &known);
        return Err(CommandError::UnknownBackend { service: config.name.clone(), address, suggestion, known });
    }
    let in_file = config.backends.iter().any(|backend| backend.address == address);
    match command {
        Command::Remove { .. } => *decided = Override { removed: in_file, ..Override::default() },
        Command::Drain { .. } => (decided.admin, decided.drain_over) = (Some(Admin::Drain), false),
        Command::Maintenance { .. } => decided.admin = Some(Admin::Maintenance),
        Command::Ready { .. } => decided.admin = None,
        Command::Weight { weight, .. } => decided.weight = Some(*weight),
        Command::Add { .. } => return Ok(Aspect::Added),
    }
    Ok(match command {
        Command::Remove { .. } => Aspect::Removed,
        Command::Weight { .. } => Aspect::Weight,
        _ => Aspect::Admin,
    })
}

fn add(
    config: &config::Service,
    current: &[Wanted],
    address: SocketAddr,
    weight: u16,
    tier: u8,
    decided: &mut Override,
) -> Result<(), CommandError> {
    let service = config.name.clone();
    if address.is_ipv4() != config.listen.is_ipv4() && !Mode::joins_families(config.mode as u8) {
        return Err(CommandError::Family { service, address, listen: config.listen });
    }
    if address.port() == 0 && config.listen.port() != 0 {
        return Err(CommandError::Port { service, address, listen: config.listen });
    }
    if Mode::is_one_sided(config.mode as u8) && address.port() != config.listen.port() {
        return Err(CommandError::OtherPort { service, address, listen: config.listen, mode: config.mode.name() });
    }
    if tier > config::MAX_TIER {
        return Err(CommandError::NoSuchTier { tier });
    }
    if let Some(why) = unusable(config, address) {
        return Err(CommandError::Unusable { service, address, why });
    }
    if current.iter().any(|wanted| wanted.address == address) {
        return Err(CommandError::Duplicate { service, address });
    }
    *decided = match config.backends.iter().find(|backend| backend.address == address) {
        Some(backend) if backend.tier != tier => return Err(CommandError::Tier { address, tier: backend.tier }),
        Some(backend) => Override { weight: (weight != backend.weight).then_some(weight), ..Override::default() },
        None => Override { added_tier: Some(tier), weight: Some(weight), ..Override::default() },
    };
    Ok(())
}

/// What the file may not have as a backend, an operator may not add either.
fn unusable(service: &config::Service, address: SocketAddr) -> Option<&'static str> {
    if address.ip() == service.listen.ip() {
        return Some("it is the service's own address");
    }
    if service.listen.port() == 0 && address.port() != 0 {
        return Some("a service on every port keeps the port that the client asked for: leave out the port");
    }
    config::why_unusable(address.ip())
}

/// Configured backends by address: each is asked for, and there may be thousands.
fn configured(service: &Service) -> HashMap<SocketAddr, &Member> {
    service.members.iter().filter(|member| member.configured).map(|member| (member.address, member)).collect()
}

/// Whether a backend would take new flows as wanted, with the health it has now.
fn is_ready(known: &HashMap<SocketAddr, &Member>, wanted: &Wanted) -> bool {
    known.get(&wanted.address).is_some_and(|member| {
        let reachable = member.place.is_some() && !member.no_route;
        let up = member.health.state == HealthState::Up && member.elected && member.agent.refuses().is_none();
        reachable && up && wanted.admin == Admin::Ready && wanted.weight > 0
    })
}

/// The candidate that was probably meant.
fn nearest(name: &str, known: &[String]) -> Option<String> {
    let scored = known.iter().map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate));
    let (typos, best) = scored.min_by_key(|(typos, _)| *typos)?;
    (typos <= 1 + name.len() / 6).then(|| best.clone())
}

fn family(address: &SocketAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The end of an error about something unknown: what was meant, or what there is.
struct Known<'a>(&'a [String], &'a Option<String>);

impl fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        match self {
            Self(_, Some(meant)) => write!(f, "; did you mean `{meant}`?"),
            Self([], None) => Ok(()),
            Self(known, None) => {
                write!(f, "; there are: {}", known[..known.len().min(SHOWN)].join(", "))?;
                if known.len() > SHOWN { write!(f, " and {} more", known.len() - SHOWN) } else { Ok(()) }
            }
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(word(*self))
    }
}
