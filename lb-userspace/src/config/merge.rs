//! Several files as one table: services from anywhere, every other key once.

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    diagnostic::{At, Finding, Findings},
    keys,
    source::Span,
};

/// Moves every span of a file's table behind the files before it.
pub(super) fn shifted(table: DeTable<'_>, base: usize) -> DeTable<'_> {
    let mut moved = DeTable::new();
    for (key, value) in table {
        moved.insert(shift(key, base, |key| key), shift(value, base, |value| shifted_value(value, base)));
    }
    moved
}

/// Adds the tables of another file. What stands in both is reported, and stays as it was first.
pub(super) fn merge<'a>(findings: &mut Findings, whole: &mut DeTable<'a>, file: DeTable<'a>) {
    for (key, value) in file {
        let services = key.get_ref() == keys::SERVICES_TABLE.name;
        let Some((first, held)) = whole.get_key_value(&key).map(|(first, held)| (at(first), held.span())) else {
            whole.insert(key, value);
            continue;
        };
        match whole.get_mut(&key).map(Spanned::get_mut) {
            Some(DeValue::Array(list)) if services && value.get_ref().is_array() => {
                list.extend_with(value);
                continue;
            }
            _ if services => {
                let finding =
                    Finding::new(&at(&key), "`service` is a list of tables: write its header with two brackets")
                        .and(&At { span: held.into(), ..first }, "also here")
                        .help("[[service]]");
                findings.error(finding);
            }
            _ => {
                let message = format!("`{}` stands in two files", key.get_ref().escape_debug());
                let help = "settings of the whole balancer stand in one file; only [[service]] may stand in any";
                findings.error(Finding::new(&at(&key), message).and(&first, "first here").help(help));
            }
        }
    }
}

trait Extend<'a> {
    fn extend_with(&mut self, value: Spanned<DeValue<'a>>);
}

impl<'a> Extend<'a> for DeArray<'a> {
    fn extend_with(&mut self, value: Spanned<DeValue<'a>>) {
        if let DeValue::Array(list) = value.into_inner() {
            list.into_iter().for_each(|element| self.push(element));
        }
    }
}

fn at(key: &Spanned<toml::de::DeString<'_>>) -> At {
    At { path: key.get_ref().escape_debug().to_string(), span: Span::from(key.span()) }
}

fn shift<T, U>(spanned: Spanned<T>, base: usize, inner: impl FnOnce(T) -> U) -> Spanned<U> {
    let span = spanned.span();
    Spanned::new(span.start + base..span.end + base, inner(spanned.into_inner()))
}

fn shifted_value(value: DeValue<'_>, base: usize) -> DeValue<'_> {
    match value {
        DeValue::Table(table) => DeValue::Table(shifted(table, base)),
        DeValue::Array(list) => {
            let moved = list.into_iter().map(|element| shift(element, base, |element| shifted_value(element, base)));
            DeValue::Array(moved.collect())
        }
        plain => plain,
    }
}
