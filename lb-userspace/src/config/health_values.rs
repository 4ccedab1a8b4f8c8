//! Readers of values that only health checks have: bytes to send, files, patterns.

use std::path::PathBuf;

use toml::de::DeValue;

use super::{
    diagnostic::{Finding, Findings, Read},
    form::mismatch,
    probes::HeaderMatch,
    reader::Field,
    value::{refuse, string},
};

/// Most bytes of a datagram that is sent, or looked for.
const PAYLOAD_MAX: usize = 1024;
/// Longest text of any other kind.
const TEXT_MAX: usize = 1024;
/// Most elements of a list.
const LIST_MAX: usize = 64;
/// Memory that a compiled pattern may take (bytes).
pub(crate) const REGEX_SIZE: usize = 1 << 20;

pub(super) const PAYLOAD_ALLOWED: &str =
    "a text, or bytes in hexadecimal: \"ping\", \"hex:0d0a ff00\"; 1 to 1024 bytes";

pub(super) fn payload(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<u8>> {
    let written = string(findings, field, PAYLOAD_ALLOWED)?;
    let bytes = match written.strip_prefix("hex:") {
        Some(digits) => hexadecimal(digits),
        None => Some(written.as_bytes().to_vec()),
    };
    match bytes.filter(|bytes| (1..=PAYLOAD_MAX).contains(&bytes.len())) {
        Some(bytes) => Ok(bytes),
        None => Err(refuse(findings, field, written, PAYLOAD_ALLOWED)),
    }
}

pub(super) const FINGERPRINT_ALLOWED: &str =
    "SHA-256 of a certificate in hexadecimal, as `openssl x509 -noout -fingerprint -sha256` prints it";

pub(super) fn fingerprint(findings: &mut Findings, field: &Field<'_>) -> Read<[u8; 32]> {
    let written = string(findings, field, FINGERPRINT_ALLOWED)?;
    let bytes = hexadecimal(&written.replace(':', "")).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| refuse(findings, field, written, FINGERPRINT_ALLOWED))
}

pub(super) const FILE_ALLOWED: &str = "an absolute path";

pub(super) fn file(findings: &mut Findings, field: &Field<'_>) -> Read<PathBuf> {
    let written = string(findings, field, FILE_ALLOWED)?;
    let good = written.starts_with('/') && written.len() <= TEXT_MAX && !written.contains('\0');
    if good { Ok(PathBuf::from(written)) } else { Err(refuse(findings, field, written, FILE_ALLOWED)) }
}

pub(super) const TEXT_ALLOWED: &str = "a text of 1 to 1024 bytes";

pub(super) fn text(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let written = string(findings, field, TEXT_ALLOWED)?;
    let good = (1..=TEXT_MAX).contains(&written.len()) && !written.contains('\0');
    if good { Ok(written.to_owned()) } else { Err(refuse(findings, field, written, TEXT_ALLOWED)) }
}

pub(super) const REGEX_ALLOWED: &str = "a regular expression: \"\\\"ready\\\": *true\"";

pub(super) fn regex(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let written = text(findings, field)?;
    match regex::bytes::RegexBuilder::new(&written).size_limit(REGEX_SIZE).build() {
        Ok(_) => Ok(written),
        Err(error) => {
            // The last line says what is wrong; those before draw it.
            let why = error.to_string();
            let why = why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            let message = format!("`{}` is no regular expression: {why}", field.name);
            let help = "the syntax is that of https://docs.rs/regex; a literal text goes into `body`";
            Err(findings.error(Finding::new(&field.at, message).help(help)))
        }
    }
}

pub(super) const NAME_ALLOWED: &str =
    "a host name in ASCII: letters, digits, \"-\", \"_\" and \".\", labels of at most 63 bytes, at most 253 in all";

pub(super) fn name(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let written = string(findings, field, NAME_ALLOWED)?;
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(inside);
    let bare = written.strip_suffix('.').unwrap_or(written);
    let good = written == "." || (bare.len() <= 253 && bare.split('.').all(label));
    if good { Ok(written.to_owned()) } else { Err(refuse(findings, field, written, NAME_ALLOWED)) }
}

pub(super) const HEADERS_ALLOWED: &str =
    "a list of header names, each with a text for its value or without: [\"X-Ready\", \"Content-Type: json\"]";

pub(super) fn headers(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<HeaderMatch>> {
    list(findings, field, HEADERS_ALLOWED, |findings, element| {
        let written = string(findings, element, HEADERS_ALLOWED)?;
        let (name, value) = written.split_once(':').unwrap_or((written, ""));
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        let (name, value) = (name.trim(), value.trim());
        if name.is_empty() || written.len() > TEXT_MAX || !name.bytes().all(token) {
            return Err(refuse(findings, element, written, HEADERS_ALLOWED));
        }
        Ok(HeaderMatch { name: name.to_ascii_lowercase(), value: value.to_owned() })
    })
}

pub(super) const ARGUMENTS_ALLOWED: &str = "a list of at most 64 texts: [\"--quick\", \"name with blanks\"]";

pub(super) fn arguments(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<String>> {
    list(findings, field, ARGUMENTS_ALLOWED, |findings, element| {
        let written = string(findings, element, ARGUMENTS_ALLOWED)?;
        let good = written.len() <= TEXT_MAX && !written.contains('\0');
        if good { Ok(written.to_owned()) } else { Err(refuse(findings, element, written, ARGUMENTS_ALLOWED)) }
    })
}

/// A list, every wrong element of it told.
fn list<T>(
    findings: &mut Findings,
    field: &Field<'_>,
    allowed: &'static str,
    read: impl Fn(&mut Findings, &Field<'_>) -> Read<T>,
) -> Read<Vec<T>> {
    let DeValue::Array(list) = field.value else { return Err(mismatch(findings, field, allowed, None)) };
    if list.len() > LIST_MAX {
        let message = format!("`{}` has {} elements", field.name, list.len());
        return Err(findings.error(Finding::new(&field.at, message).help(format!("allowed: {allowed}"))));
    }
    let elements: Vec<_> = field.elements(list).map(|element| read(findings, &element)).collect();
    elements.into_iter().collect()
}

/// Pairs of digits, with blanks between them or without.
fn hexadecimal(written: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = written.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::hexadecimal;

    #[test]
    fn bytes_are_written_as_pairs_of_digits() {
        assert_eq!(hexadecimal("0d0A ff"), Some(vec![13, 10, 255]));
        assert_eq!(hexadecimal(""), Some(Vec::new()));
        for bad in ["0", "0x", "gg", "\u{e9}\u{e9}"] {
            assert_eq!(hexadecimal(bad), None, "{bad}");
        }
    }
}
