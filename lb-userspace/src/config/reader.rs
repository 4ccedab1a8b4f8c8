//! Reading tables by the definition of their keys: absent, unknown and wrong ones are reported
//! where they stand, and reading goes on.

use std::borrow::Cow;

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    diagnostic::{At, Finding, Findings, Located, Read, Reported},
    form::{Form, mismatch},
    keys, schema,
    suggest::closest,
};

/// One setting of the file.
pub(super) struct Key<T: 'static> {
    pub(super) name: &'static str,
    pub(super) form: &'static dyn Form<T>,
    pub(super) left_out: LeftOut<T>,
    /// What it does, for the reference.
    pub(super) doc: &'static str,
}

/// What it means that a key is not there.
pub(super) enum LeftOut<T> {
    /// It must be there.
    Required,
    /// The same as this value.
    Value(T),
    /// The same as this text, written in TOML.
    Text(&'static str),
    /// Something that depends on other settings, in words.
    Depends(&'static str),
}

/// A table of its own below a table.
pub(super) struct Nested {
    pub(super) name: &'static str,
    /// `[[name]]`, any number of times, and not `[name]`.
    pub(super) repeated: bool,
    pub(super) section: &'static Section,
    pub(super) doc: &'static str,
}

/// A kind of table.
pub(super) struct Section {
    /// As it is written in the file; empty for the top of the file.
    pub(super) header: &'static str,
    pub(super) keys: &'static [&'static dyn Describe],
}

/// What can be said of a key whatever its type.
pub(super) trait Describe: Sync {
    fn name(&self) -> &'static str;
    fn allowed(&self) -> String;
    /// What is used when it is left out; `None`: it must not be.
    fn left_out(&self) -> Option<String>;
    /// The same, written in TOML, where it is a value.
    fn default_text(&self) -> Option<String>;
    /// What may be written, in JSON Schema.
    fn schema(&self) -> Value;
    /// Whether it is a table of its own.
    fn is_table(&self) -> bool {
        false
    }
    fn doc(&self) -> &'static str;
}

impl<T: Sync> Describe for Key<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn allowed(&self) -> String {
        self.form.allowed()
    }

    fn left_out(&self) -> Option<String> {
        match &self.left_out {
            LeftOut::Required => None,
            LeftOut::Value(value) => Some(format!("`{}`", self.form.literal(value))),
            LeftOut::Text(text) => Some(format!("`{text}`")),
            LeftOut::Depends(words) => Some((*words).to_owned()),
        }
    }

    fn default_text(&self) -> Option<String> {
        match &self.left_out {
            LeftOut::Value(value) => Some(self.form.literal(value)),
            LeftOut::Text(text) => Some((*text).to_owned()),
            LeftOut::Required | LeftOut::Depends(_) => None,
        }
    }

    fn schema(&self) -> Value {
        self.form.schema()
    }

    fn doc(&self) -> &'static str {
        self.doc
    }
}

impl Describe for Nested {
    fn name(&self) -> &'static str {
        self.name
    }

    fn allowed(&self) -> String {
        let times = if self.repeated { ", any number of times" } else { "" };
        format!("a table `{}`{times}", self.section.header)
    }

    fn left_out(&self) -> Option<String> {
        Some(if self.repeated { "none".to_owned() } else { "its defaults".to_owned() })
    }

    fn default_text(&self) -> Option<String> {
        None
    }

    fn schema(&self) -> Value {
        schema::nested(self)
    }

    fn is_table(&self) -> bool {
        true
    }

    fn doc(&self) -> &'static str {
        self.doc
    }
}

impl Section {
    /// Where the keys stand, for messages.
    fn place(&self) -> String {
        if self.header.is_empty() { "at the top level".to_owned() } else { format!("in {}", self.header) }
    }

    fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.keys.iter().map(|key| key.name())
    }
}

/// One value of the file, on its way to be read.
pub(super) struct Field<'a> {
    /// As messages name it.
    pub(super) name: String,
    pub(super) value: &'a DeValue<'a>,
    pub(super) at: At,
}

impl<'a> Field<'a> {
    /// The elements of a list.
    pub(super) fn elements(&self, list: &'a DeArray<'a>) -> impl Iterator<Item = Field<'a>> {
        list.iter().enumerate().map(|(i, element)| Field {
            name: format!("{}[{i}]", self.name),
            value: element.get_ref(),
            at: At { path: format!("{}[{i}]", self.at.path), span: element.span().into() },
        })
    }
}

/// One table of the file, its unknown keys already reported.
pub(super) struct Table<'a> {
    entries: &'a DeTable<'a>,
    section: &'static Section,
    /// Its path, and its header in the file.
    pub(super) at: At,
    /// Keys that were probably meant by unknown ones.
    misspelt: Vec<(&'static str, Reported)>,
}

impl<'a> Table<'a> {
    pub(super) fn open(findings: &mut Findings, entries: &'a DeTable<'a>, section: &'static Section, at: At) -> Self {
        let mut table = Self { entries, section, at, misspelt: Vec::new() };
        for (key, _) in entries.iter() {
            if !section.names().any(|name| name == key.get_ref()) {
                table.unknown(findings, key);
            }
        }
        table
    }

    /// The report of an unknown key that was probably meant to be this one.
    pub(super) fn misspelt(&self, name: &str) -> Option<Reported> {
        self.misspelt.iter().find(|(meant, _)| *meant == name).map(|(_, reported)| *reported)
    }

    /// Whether anything is set at all.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key, if it is there; whatever it is used for.
    pub(super) fn field(&self, name: &str) -> Option<Field<'a>> {
        let value = self.entries.get(name)?;
        Some(Field {
            name: name.to_owned(),
            value: value.get_ref(),
            at: At { path: self.path(name), span: value.span().into() },
        })
    }

    /// Reads a key that may be absent.
    pub(super) fn find<T>(&self, findings: &mut Findings, key: &Key<T>) -> Read<Option<Located<T>>> {
        match self.field(key.name) {
            Some(field) => {
                let value = key.form.read(findings, &field)?;
                Ok(Some(Located { value, at: field.at }))
            }
            None => Ok(None),
        }
    }

    /// Reads a key that must be there.
    pub(super) fn require<T>(&self, findings: &mut Findings, key: &Key<T>) -> Read<Located<T>> {
        match self.find(findings, key)? {
            Some(found) => Ok(found),
            None => Err(self.missing(findings, key)),
        }
    }

    /// Reads a key, or takes its default; the default stands at the table's header.
    pub(super) fn value<T: Clone>(&self, findings: &mut Findings, key: &Key<T>) -> Read<Located<T>> {
        if let Some(found) = self.find(findings, key)? {
            return Ok(found);
        }
        let at = At { path: self.path(key.name), span: self.at.span };
        let value = match &key.left_out {
            LeftOut::Value(value) => value.clone(),
            LeftOut::Text(text) => match DeValue::parse(text) {
                Ok(parsed) => {
                    let field = Field { name: key.name.to_owned(), value: parsed.get_ref(), at: at.clone() };
                    key.form.read(findings, &field)?
                }
                Err(_) => return Err(self.missing(findings, key)),
            },
            LeftOut::Required | LeftOut::Depends(_) => return Err(self.missing(findings, key)),
        };
        Ok(Located { value, at })
    }

    /// Opens a table below this one.
    pub(super) fn table(&self, findings: &mut Findings, nested: &Nested) -> Read<Option<Table<'a>>> {
        let Some(field) = self.field(nested.name) else { return Ok(None) };
        match field.value.as_table() {
            Some(entries) => Ok(Some(Table::open(findings, entries, nested.section, field.at))),
            None => Err(mismatch(findings, &field, &nested.allowed(), None)),
        }
    }

    /// Opens the tables `[[name]]` below this one, in the order of the file.
    pub(super) fn tables(&self, findings: &mut Findings, nested: &Nested) -> Vec<Read<Table<'a>>> {
        let Some(field) = self.field(nested.name) else { return Vec::new() };
        let Some(list) = field.value.as_array() else {
            let header = nested.section.header;
            let brackets = field.value.is_table().then(|| format!("write its header with two brackets: {header}"));
            return vec![Err(mismatch(findings, &field, &nested.allowed(), brackets))];
        };
        field
            .elements(list)
            .map(|element| match element.value.as_table() {
                Some(entries) => Ok(Table::open(findings, entries, nested.section, element.at)),
                None => Err(mismatch(findings, &element, &nested.allowed(), None)),
            })
            .collect()
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.at.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.at.path) }
    }

    fn missing<T>(&self, findings: &mut Findings, key: &Key<T>) -> Reported {
        if let Some(reported) = self.misspelt(key.name) {
            return reported;
        }
        let at = At { path: self.path(key.name), span: self.at.span };
        let message = format!("`{}` is missing {}", key.name, self.section.place());
        findings.error(Finding::new(&at, message).help(format!("needed: {}", key.form.allowed())))
    }

    fn unknown(&mut self, findings: &mut Findings, key: &Spanned<Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        let at = At { path: self.path(&bare(name)), span: key.span().into() };
        let meant = closest(name, self.section.names());
        let elsewhere: Vec<_> =
            keys::sections().filter(|section| section.names().any(|known| known == name)).map(Section::place).collect();
        let belongs =
            (meant.is_none() && !elsewhere.is_empty()).then(|| format!("`{name}` belongs {}", elsewhere.join(" or ")));
        let known = self.section.names().collect::<Vec<_>>().join(", ");
        let finding = Finding::new(&at, format!("unknown key `{}` {}", bare(name), self.section.place()))
            .maybe_help(meant.map(|meant| format!("did you mean `{meant}`?")))
            .maybe_help(belongs)
            .help(format!("allowed here: {known}"));
        let reported = findings.error(finding);
        self.misspelt.extend(meant.map(|meant| (meant, reported)));
    }
}

/// A key in a message, on one line.
fn bare(name: &str) -> String {
    name.escape_debug().to_string()
}
