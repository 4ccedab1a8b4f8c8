//! Forms that a value may have: each knows how to read one and how to tell what is allowed.

use std::{fmt::Display, time::Duration};

use serde_json::{Value, json};
use toml::de::DeValue;

use super::{
    diagnostic::{Finding, Findings, Read, Reported},
    reader::Field,
    suggest::did_you_mean,
};

/// How values of type `T` are written.
pub(super) trait Form<T>: Sync {
    /// What may be written, as a phrase: `true or false`, `a whole number from 1 to 100`.
    fn allowed(&self) -> String;

    /// How this value is written.
    fn literal(&self, value: &T) -> String;

    /// What may be written, in JSON Schema.
    fn schema(&self) -> Value;

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<T>;
}

/// `true` or `false`.
pub(super) struct Flag;

impl Form<bool> for Flag {
    fn allowed(&self) -> String {
        "true or false".to_owned()
    }

    fn literal(&self, value: &bool) -> String {
        value.to_string()
    }

    fn schema(&self) -> Value {
        json!({ "type": "boolean" })
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<bool> {
        field.value.as_bool().ok_or_else(|| mismatch(findings, field, &self.allowed(), None))
    }
}

/// A whole number, first and last allowed one included.
pub(super) struct Whole<T> {
    pub(super) min: T,
    pub(super) max: T,
    /// What it counts, where that is not plain; otherwise empty.
    pub(super) unit: &'static str,
}

impl<T: Copy + Display + Into<u64> + PartialOrd + TryFrom<i64> + Sync> Form<T> for Whole<T> {
    fn allowed(&self) -> String {
        let unit = if self.unit.is_empty() { String::new() } else { format!(" ({})", self.unit) };
        format!("a whole number from {} to {}{unit}", self.min, self.max)
    }

    fn literal(&self, value: &T) -> String {
        value.to_string()
    }

    fn schema(&self) -> Value {
        let (min, max): (u64, u64) = (self.min.into(), self.max.into());
        json!({ "type": "integer", "minimum": min, "maximum": max })
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<T> {
        let Some(number) = integer(field.value) else {
            let unquoted = text(field.value)
                .filter(|text| text.parse::<i64>().is_ok())
                .map(|text| format!("write it without quotes: {text}"));
            return Err(mismatch(findings, field, &self.allowed(), unquoted));
        };
        match T::try_from(number) {
            Ok(number) if self.min <= number && number <= self.max => Ok(number),
            _ => {
                let message = format!("`{}` cannot be {}", field.name, shown(field.value));
                Err(findings.error(Finding::new(&field.at, message).help(format!("allowed: {}", self.allowed()))))
            }
        }
    }
}

/// What a time looks like, as a regular expression.
pub(super) const TIME_PATTERN: &str = "^\\s*([0-9]+\\s*[A-Za-z\u{b5}]+\\s*)+$";

/// A time span with its unit, shortest and longest allowed one included.
pub(super) struct Time {
    pub(super) min: Duration,
    pub(super) max: Duration,
}

impl Form<Duration> for Time {
    fn allowed(&self) -> String {
        let show = humantime::format_duration;
        format!("a time with its unit, from {} to {}: \"500ms\", \"5s\", \"1m30s\"", show(self.min), show(self.max))
    }

    fn literal(&self, value: &Duration) -> String {
        format!("\"{}\"", humantime::format_duration(*value))
    }

    fn schema(&self) -> Value {
        json!({ "type": "string", "pattern": TIME_PATTERN })
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<Duration> {
        let Some(written) = text(field.value) else {
            let unit = integer(field.value)
                .filter(|number| *number >= 0)
                .map(|number| format!("a number alone has no unit: write \"{number}s\" or \"{number}ms\""));
            return Err(mismatch(findings, field, &self.allowed(), unit));
        };
        let refuse = |message: String| Finding::new(&field.at, message).help(format!("allowed: {}", self.allowed()));
        match humantime::parse_duration(written) {
            Ok(span) if (self.min..=self.max).contains(&span) => Ok(span),
            Ok(_) => Err(findings.error(refuse(format!("`{}` cannot be {written:?}", field.name)))),
            Err(_) => {
                let unit = written.trim().parse::<u64>().ok();
                let finding = Finding::new(&field.at, format!("`{}` is no time: {written:?}", field.name))
                    .maybe_help(unit.map(|n| format!("a number alone has no unit: write \"{n}s\" or \"{n}ms\"")))
                    .help(format!("allowed: {}", self.allowed()));
                Err(findings.error(finding))
            }
        }
    }
}

/// One word of several.
pub(super) struct OneOf<T: 'static> {
    pub(super) all: &'static [T],
    pub(super) name: fn(T) -> &'static str,
}

impl<T: Copy + Sync> OneOf<T> {
    fn words(&self) -> impl Iterator<Item = &'static str> + Clone + '_ {
        self.all.iter().map(|value| (self.name)(*value))
    }
}

impl<T: Copy + Sync> Form<T> for OneOf<T> {
    fn allowed(&self) -> String {
        self.words().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
    }

    fn literal(&self, value: &T) -> String {
        format!("\"{}\"", (self.name)(*value))
    }

    fn schema(&self) -> Value {
        json!({ "enum": self.words().collect::<Vec<_>>() })
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<T> {
        let Some(written) = text(field.value) else {
            return Err(mismatch(findings, field, &format!("one of {}", self.allowed()), None));
        };
        if let Some(value) = self.all.iter().find(|value| (self.name)(**value) == written) {
            return Ok(*value);
        }
        let allowed = format!("allowed: {}", self.allowed());
        let finding = Finding::new(&field.at, format!("`{}` cannot be {written:?}", field.name))
            .maybe_help(did_you_mean(written, self.words()));
        Err(findings.error(finding.help(allowed)))
    }
}

/// Any other form, with a reader of its own.
pub(super) struct Special<T> {
    pub(super) allowed: &'static str,
    pub(super) read: fn(&mut Findings, &Field<'_>) -> Read<T>,
}

impl<T> Form<T> for Special<T> {
    fn allowed(&self) -> String {
        self.allowed.to_owned()
    }

    /// Special values have no general way to be written; keys that use this form give their
    /// defaults as text.
    fn literal(&self, _: &T) -> String {
        String::new()
    }

    /// Anything: only the reader knows.
    fn schema(&self) -> Value {
        json!({})
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<T> {
        (self.read)(findings, field)
    }
}

/// A special form that a schema can describe too.
pub(super) struct Shaped<T> {
    pub(super) special: Special<T>,
    pub(super) shape: fn() -> Value,
}

impl<T> Shaped<T> {
    pub(super) const fn new(
        allowed: &'static str,
        read: fn(&mut Findings, &Field<'_>) -> Read<T>,
        shape: fn() -> Value,
    ) -> Self {
        Self { special: Special { allowed, read }, shape }
    }
}

impl<T> Form<T> for Shaped<T> {
    fn allowed(&self) -> String {
        self.special.allowed()
    }

    fn literal(&self, value: &T) -> String {
        self.special.literal(value)
    }

    fn schema(&self) -> Value {
        (self.shape)()
    }

    fn read(&self, findings: &mut Findings, field: &Field<'_>) -> Read<T> {
        self.special.read(findings, field)
    }
}

/// A value of the wrong type.
pub(super) fn mismatch(findings: &mut Findings, field: &Field<'_>, allowed: &str, instead: Option<String>) -> Reported {
    let message = format!("`{}` cannot be {}", field.name, shown(field.value));
    let finding = Finding::new(&field.at, message).maybe_help(instead).help(format!("allowed: {allowed}"));
    findings.error(finding)
}

pub(super) fn text<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    value.as_str()
}

/// `None` also for integers beyond 64 bits, which no setting takes.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A value in a message: its type, and itself where it is short.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) if text.chars().count() <= 60 => format!("the string {:?}", text.as_ref()),
        DeValue::String(_) => "a string that long".to_owned(),
        DeValue::Integer(number) if number.as_str().len() <= 40 => format!("the number {number}"),
        DeValue::Integer(_) => "a number that large".to_owned(),
        DeValue::Float(number) if number.as_str().len() <= 40 => format!("the fraction {number}"),
        DeValue::Float(_) => "a fraction".to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time of day".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
