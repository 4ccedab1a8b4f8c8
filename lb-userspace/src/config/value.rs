//! Readers of values that have a form of their own: names, paths, ranges of numbers.

use toml::de::DeValue;

use super::{
    diagnostic::{Finding, Findings, Read, Reported},
    form::{integer, mismatch, text},
    model::{MssClamp, PortRange},
    probes::StatusRange,
    reader::Field,
};

/// Longest name of a service, in bytes.
const NAME_MAX: usize = 63;
/// Longest name of an interface: IFNAMSIZ of the kernel, less the closing zero.
const INTERFACE_MAX: usize = 15;
/// Longest path and host of an HTTP check.
const PATH_MAX: usize = 1024;
const HOST_MAX: usize = 255;

pub(super) const NAME_ALLOWED: &str =
    "letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit, at most 63 of them";

pub(super) fn service_name(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let name = string(findings, field, NAME_ALLOWED)?;
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good = (1..=NAME_MAX).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inside);
    if good { Ok(name.to_owned()) } else { Err(refuse(findings, field, name, NAME_ALLOWED)) }
}

pub(super) const INTERFACES_ALLOWED: &str = "a list of interface names, at least one: [\"eth0\"]";

pub(super) fn interfaces(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<String>> {
    let DeValue::Array(list) = field.value else {
        let listed = text(field.value).map(|name| format!("write it as a list: [{name:?}]"));
        return Err(mismatch(findings, field, INTERFACES_ALLOWED, listed));
    };
    if list.is_empty() {
        let finding = Finding::new(&field.at, "`interfaces` is empty: there is nothing to attach to")
            .help(format!("needed: {INTERFACES_ALLOWED}"))
            .help("`ip -brief link` shows the interfaces of this host");
        return Err(findings.error(finding));
    }
    let mut names: Vec<String> = Vec::new();
    let mut bad = None;
    for element in field.elements(list) {
        match interface(findings, &element) {
            Ok(name) if names.contains(&name) => {
                let finding = Finding::new(&element.at, format!("interface {name:?} is listed twice"));
                bad = Some(findings.error(finding.help("remove one of the two")));
            }
            Ok(name) => names.push(name),
            Err(reported) => bad = Some(reported),
        }
    }
    bad.map_or(Ok(names), Err)
}

/// As the kernel allows it (`dev_valid_name` in net/core/dev.c).
fn interface(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    const ALLOWED: &str = "an interface name: 1 to 15 bytes, without \"/\", \":\" and white space";
    let name = string(findings, field, ALLOWED)?;
    let good = (1..=INTERFACE_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if good { Ok(name.to_owned()) } else { Err(refuse(findings, field, name, ALLOWED)) }
}

pub(super) const PATH_ALLOWED: &str =
    "a path and query that begin with \"/\", in visible ASCII without \"#\", at most 1024 bytes";

pub(super) fn http_path(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let path = string(findings, field, PATH_ALLOWED)?;
    let good = path.starts_with('/')
        && path.len() <= PATH_MAX
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if good { Ok(path.to_owned()) } else { Err(refuse(findings, field, path, PATH_ALLOWED)) }
}

pub(super) const HOST_ALLOWED: &str =
    "a host name or address, with a port if the server wants one, in visible ASCII, at most 255 bytes";

pub(super) fn http_host(findings: &mut Findings, field: &Field<'_>) -> Read<String> {
    let host = string(findings, field, HOST_ALLOWED)?;
    let visible = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'?' | b'#' | b'@' | b',');
    let good = (1..=HOST_MAX).contains(&host.len()) && host.bytes().all(visible);
    if good { Ok(host.to_owned()) } else { Err(refuse(findings, field, host, HOST_ALLOWED)) }
}

pub(super) const PORTS_ALLOWED: &str =
    "ports and ranges of ports from 1024 to 65535: \"1024-61439\", \"2000-2999, 4000-4999\" or a list of those";

pub(super) fn source_ports(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<PortRange>> {
    let ranges = ranges(findings, field, 1024, u16::MAX, PORTS_ALLOWED)?;
    Ok(ranges.into_iter().map(|(first, last)| PortRange { first, last }).collect())
}

/// From what every host takes over IPv4 (RFC 9293, 3.7.1) to the longest packet less its headers.
pub(super) const MSS_MIN: u16 = 536;
pub(super) const MSS_MAX: u16 = 65_495;

pub(super) const MSS_ALLOWED: &str = "\"off\", \"auto\" or a whole number of bytes from 536 to 65495";

pub(super) fn mss_clamp(findings: &mut Findings, field: &Field<'_>) -> Read<MssClamp> {
    if let Some(number) = integer(field.value) {
        return match u16::try_from(number) {
            Ok(bytes) if (MSS_MIN..=MSS_MAX).contains(&bytes) => Ok(MssClamp::Bytes(bytes)),
            _ => Err(mismatch(findings, field, MSS_ALLOWED, None)),
        };
    }
    match text(field.value) {
        Some("off") => Ok(MssClamp::Off),
        Some("auto") => Ok(MssClamp::Auto),
        written => {
            let unquoted = written
                .filter(|written| written.parse::<i64>().is_ok())
                .map(|written| format!("write it without quotes: {written}"));
            Err(mismatch(findings, field, MSS_ALLOWED, unquoted))
        }
    }
}

pub(super) const EXPECT_ALLOWED: &str =
    "HTTP statuses and ranges of them from 100 to 599: 200, \"200-399\", \"200, 204\" or a list of those";

pub(super) fn statuses(findings: &mut Findings, field: &Field<'_>) -> Read<Vec<StatusRange>> {
    let ranges = ranges(findings, field, 100, 599, EXPECT_ALLOWED)?;
    Ok(ranges.into_iter().map(|(first, last)| StatusRange { first, last }).collect())
}

/// Ranges of numbers: one number, a string of several with commas, or a list of either. Sorted,
/// and joined where they touch.
fn ranges(
    findings: &mut Findings,
    field: &Field<'_>,
    min: u16,
    max: u16,
    allowed: &'static str,
) -> Read<Vec<(u16, u16)>> {
    let mut found = Vec::new();
    match field.value {
        DeValue::Array(list) => {
            let mut bad = None;
            for element in field.elements(list) {
                match some_ranges(findings, &element, min, max, allowed) {
                    Ok(ranges) => found.extend(ranges),
                    Err(reported) => bad = Some(reported),
                }
            }
            if let Some(reported) = bad {
                return Err(reported);
            }
        }
        _ => found = some_ranges(findings, field, min, max, allowed)?,
    }
    if found.is_empty() {
        let finding = Finding::new(&field.at, format!("`{}` is empty", field.name));
        return Err(findings.error(finding.help(format!("allowed: {allowed}"))));
    }
    Ok(joined(found))
}

fn some_ranges(
    findings: &mut Findings,
    field: &Field<'_>,
    min: u16,
    max: u16,
    allowed: &'static str,
) -> Read<Vec<(u16, u16)>> {
    let complain = |what: String| Finding::new(&field.at, what).help(format!("allowed: {allowed}"));
    let in_range = |number: &u16| (min..=max).contains(number);
    if let Some(number) = integer(field.value) {
        return match u16::try_from(number).ok().filter(in_range) {
            Some(number) => Ok(vec![(number, number)]),
            None => Err(findings.error(complain(format!("`{}` cannot be {number}", field.name)))),
        };
    }
    let Some(written) = text(field.value) else { return Err(mismatch(findings, field, allowed, None)) };
    let mut found = Vec::new();
    for part in written.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let problem = match (number(first), number(last)) {
            (Some(first), Some(last)) if !in_range(&first) || !in_range(&last) => {
                format!("`{}` has {:?}, which goes beyond {min} to {max}", field.name, part.trim())
            }
            (Some(first), Some(last)) if first > last => {
                format!("`{}` has {:?}, which runs backwards", field.name, part.trim())
            }
            (Some(first), Some(last)) => {
                found.push((first, last));
                continue;
            }
            _ => format!("`{}` has {:?}, which is no number and no range", field.name, part.trim()),
        };
        return Err(findings.error(complain(problem)));
    }
    Ok(found)
}

/// Digits only: no sign, no spaces inside. Numbers beyond 16 bits become the largest there is, so
/// that they are refused for their size.
fn number(written: &str) -> Option<u16> {
    let digits = written.trim();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse::<u32>().ok().and_then(|n| u16::try_from(n).ok()))?.or(Some(0))
}

fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The text of a field that must be a string.
pub(super) fn string<'a>(findings: &mut Findings, field: &Field<'a>, allowed: &str) -> Read<&'a str> {
    match field.value.as_str() {
        Some(text) => Ok(text),
        None => Err(mismatch(findings, field, allowed, None)),
    }
}

pub(super) fn refuse(findings: &mut Findings, field: &Field<'_>, given: &str, allowed: &str) -> Reported {
    let message = if given.chars().count() <= 80 {
        format!("`{}` cannot be {given:?}", field.name)
    } else {
        format!("`{}` cannot be that long text", field.name)
    };
    findings.error(Finding::new(&field.at, message).help(format!("allowed: {allowed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_overlap_or_touch_become_one() {
        assert_eq!(joined(vec![(30, 40), (10, 20), (21, 25), (35, 50)]), [(10, 25), (30, 50)]);
        assert_eq!(joined(vec![(1, 65_535), (65_535, 65_535), (5, 6)]), [(1, 65_535)]);
    }

    #[test]
    fn numbers_are_digits_only_and_too_large_ones_are_out_of_every_range() {
        assert_eq!(number(" 200 "), Some(200));
        assert_eq!(number("99999999999999"), Some(0));
        for bad in ["", "+1", "1 2", "0x10", "a"] {
            assert_eq!(number(bad), None, "{bad:?}");
        }
    }
}
