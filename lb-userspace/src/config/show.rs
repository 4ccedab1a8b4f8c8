//! What runs, as a file: every setting as it was written, defaults as comments, and what operators
//! decided over it marked with who, when, why and until when. What is printed can be read again, and
//! means what runs, except that a file cannot say that a backend drains.

use std::{collections::BTreeMap, net::SocketAddr};

use toml::de::{DeTable, DeValue};

use super::{
    diagnostic::Findings,
    files::FileText,
    health_check,
    health_keys::HEALTH,
    keys,
    load::{self, parse_files},
    model::Service,
    passive::PASSIVE_TABLE,
    reader::Describe,
    report::ConfigError,
    source::Source,
    timeouts::TIMEOUTS_TABLE,
};

/// What operators decided, in words, by service name.
pub type Notes = BTreeMap<String, ServiceNotes>;

#[derive(Clone, Debug, Default)]
pub struct ServiceNotes {
    /// Above the service.
    pub comments: Vec<String>,
    /// It is in the files, but does not run.
    pub removed: bool,
    /// Of backends in the files.
    pub backends: BTreeMap<SocketAddr, BackendNotes>,
    /// Backends that are in no file.
    pub added: Vec<AddedBackend>,
}

#[derive(Clone, Debug, Default)]
pub struct BackendNotes {
    pub comments: Vec<String>,
    pub removed: bool,
    /// Instead of the file's.
    pub weight: Option<u16>,
}

#[derive(Clone, Debug)]
pub struct AddedBackend {
    pub address: SocketAddr,
    pub weight: u16,
    pub tier: u8,
    pub comments: Vec<String>,
}

/// The effective configuration as TOML.
///
/// # Errors
/// The files are no valid configuration.
pub fn show(files: &[FileText], notes: &Notes) -> Result<String, ConfigError> {
    let loaded = parse_files("the running configuration", files)?;
    let mut findings = Findings::new(Source::new(files));
    let bases = findings.bases();
    let whole = load::tables(&mut findings, files);
    let writer = Writer { files, bases };
    let mut text = String::new();
    writer.settings(&mut text, keys::TOP.keys, &whole, None);
    if let Some(limits) = whole.get(keys::LIMITS_TABLE.name).and_then(|limits| limits.get_ref().as_table()) {
        text.push_str(&format!("\n{}\n", keys::LIMITS.header));
        writer.settings(&mut text, keys::LIMITS.keys, limits, None);
    }
    let nothing = ServiceNotes::default();
    for (table, service) in tables_of(&whole, keys::SERVICES_TABLE.name).zip(&loaded.config.services) {
        let notes = notes.get(&service.name).unwrap_or(&nothing);
        let shown = writer.service(table, service, notes);
        text.push('\n');
        text.push_str(&if notes.removed { commented(&shown) } else { shown });
    }
    Ok(text)
}

/// Prints values as they stand in their file.
struct Writer<'a> {
    files: &'a [FileText],
    bases: Vec<usize>,
}

impl Writer<'_> {
    fn service(&self, table: &DeTable<'_>, service: &Service, notes: &ServiceNotes) -> String {
        let mut text = remarks(&notes.comments);
        text.push_str(&format!("{}\n", keys::SERVICE.header));
        self.settings(&mut text, keys::SERVICE.keys, table, None);
        match table.get(keys::HEALTH_TABLE.name).and_then(|health| health.get_ref().as_table()) {
            Some(health) => {
                text.push_str(&format!("\n{}\n", HEALTH.header));
                let check = service.health.check.name();
                let keys: Vec<&dyn Describe> =
                    HEALTH.keys.iter().copied().filter(|key| health_check::goes_with(key.name(), check)).collect();
                self.settings(&mut text, &keys, health, None);
            }
            None => text.push_str(&format!("# {} is left out: its defaults\n", HEALTH.header)),
        }
        for nested in [&TIMEOUTS_TABLE, &PASSIVE_TABLE] {
            if let Some(own) = table.get(nested.name).and_then(|own| own.get_ref().as_table()) {
                text.push_str(&format!("\n{}\n", nested.section.header));
                self.settings(&mut text, nested.section.keys, own, None);
            }
        }
        for (table, backend) in tables_of(table, keys::BACKENDS_TABLE.name).zip(&service.backends) {
            let nothing = BackendNotes::default();
            let notes = notes.backends.get(&backend.address).unwrap_or(&nothing);
            let mut shown = format!("{}\n", keys::BACKEND.header);
            let weight = notes.weight.map(|weight| (keys::WEIGHT.name, weight.to_string()));
            self.settings(&mut shown, keys::BACKEND.keys, table, weight);
            text.push('\n');
            text.push_str(&remarks(&notes.comments));
            text.push_str(&if notes.removed { commented(&shown) } else { shown });
        }
        let in_file = |added: &&AddedBackend| service.backends.iter().any(|backend| backend.address == added.address);
        for added in notes.added.iter().filter(|added| !in_file(added)) {
            let AddedBackend { address, weight, tier, comments } = added;
            let address = if address.port() == 0 { address.ip().to_string() } else { address.to_string() };
            text.push_str(&format!("\n{}{}\n", remarks(comments), keys::BACKEND.header));
            text.push_str(&format!("{} = \"{address}\"\n", keys::BACKEND_ADDRESS.name));
            text.push_str(&format!("{} = {weight}\n{} = {tier}\n", keys::WEIGHT.name, keys::TIER.name));
        }
        text
    }

    /// The plain settings of one table, in the order of the reference; `instead` of one of them another
    /// value.
    fn settings(
        &self,
        text: &mut String,
        keys: &[&dyn Describe],
        table: &DeTable<'_>,
        instead: Option<(&'static str, String)>,
    ) {
        for key in keys.iter().filter(|key| !key.is_table()) {
            let name = key.name();
            let line = match (&instead, table.get(name)) {
                (Some((changed, value)), _) if *changed == name => format!("{name} = {value}"),
                (_, Some(value)) => format!("{name} = {}", self.written(&value.span())),
                (_, None) => left_out(*key),
            };
            text.push_str(&line);
            text.push('\n');
        }
    }

    fn written(&self, span: &std::ops::Range<usize>) -> &str {
        let file = self.bases.partition_point(|base| *base <= span.start).max(1) - 1;
        let base = self.bases[file];
        self.files[file].text.get(span.start - base..span.end - base).unwrap_or_default()
    }
}

fn left_out(key: &dyn Describe) -> String {
    match (key.default_text(), key.left_out()) {
        (Some(default), _) => format!("# {} = {default}", key.name()),
        (None, words) => format!("# {}: {}", key.name(), words.unwrap_or_default()),
    }
}

fn tables_of<'a>(table: &'a DeTable<'a>, name: &str) -> impl Iterator<Item = &'a DeTable<'a>> {
    let list = table.get(name).and_then(|list| match list.get_ref() {
        DeValue::Array(list) => Some(list),
        _ => None,
    });
    list.into_iter().flat_map(|list| list.iter()).filter_map(|element| element.get_ref().as_table())
}

fn remarks(comments: &[String]) -> String {
    comments.iter().map(|comment| format!("# {}\n", one_line(comment))).collect()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect()
}
