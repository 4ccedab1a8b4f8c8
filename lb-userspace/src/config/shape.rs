//! What values of special forms look like, in JSON Schema: as closely as a pattern can tell. Ranges
//! and what depends on other settings are for the reader.

use serde_json::{Value, json};

use super::{form, value};

const IPV4: &str = r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
const IPV6: &str = "[0-9A-Fa-f]*:[0-9A-Fa-f:.]*";
const PORT: &str = "(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[0-9]{1,4})";
/// Addresses that name no host: 0.0.0.0/8, multicast, broadcast, unspecified, link-local.
const NO_HOST: &str =
    r"^(0\.|2(2[4-9]|3[0-9])\.|255\.255\.255\.255|\[?(::(\]|$)|[fF][fF]|[fF][eE][89abAB][0-9A-Fa-f]:|::[fF]{4}:))";

pub(super) fn interfaces() -> Value {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 15, "pattern": r"^[^/:\s]+$" });
    json!({ "type": "array", "items": name, "minItems": 1, "uniqueItems": true })
}

pub(super) fn service_name() -> Value {
    json!({ "type": "string", "maxLength": 63, "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$" })
}

pub(super) fn listen() -> Value {
    let pattern = format!(r"^({IPV4}|\[{IPV6}\]):{PORT}$");
    json!({ "type": "string", "pattern": pattern, "not": { "pattern": NO_HOST } })
}

pub(super) fn backend() -> Value {
    let pattern = format!(r"^(({IPV4}|\[{IPV6}\])(:{PORT})?|{IPV6})$");
    json!({ "type": "string", "pattern": pattern, "not": { "pattern": NO_HOST } })
}

pub(super) fn http_path() -> Value {
    json!({ "type": "string", "maxLength": 1024, "pattern": "^/[!-\"$-~]*$" })
}

pub(super) fn http_host() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-\"$-+.0->A-~-]+$" })
}

pub(super) fn source_ports() -> Value {
    ranges(1024, u16::MAX)
}

pub(super) fn statuses() -> Value {
    ranges(100, 599)
}

/// One address, or one of each family.
pub(super) fn tunnel_source() -> Value {
    one_or_two(&format!("^({IPV4}|{IPV6})$"))
}

/// One prefix, or one of each family.
pub(super) fn tunnel_prefix() -> Value {
    one_or_two(&format!("^({IPV4}|{IPV6})/[0-9]{{1,3}}$"))
}

fn one_or_two(pattern: &str) -> Value {
    let one = json!({ "type": "string", "pattern": pattern, "not": { "pattern": NO_HOST } });
    json!({ "anyOf": [one, { "type": "array", "minItems": 1, "maxItems": 2, "items": one }] })
}

pub(super) fn mss_clamp() -> Value {
    json!({ "anyOf": [
        { "enum": ["off", "auto"] },
        { "type": "integer", "minimum": value::MSS_MIN, "maximum": value::MSS_MAX },
    ] })
}

/// Bytes in hexadecimal.
pub(super) fn server_id() -> Value {
    json!({ "type": "string", "pattern": "^([0-9A-Fa-f]{2})+$" })
}

/// As many characters as the bytes that the reader allows, or fewer.
const TEXT_MAX: usize = 1024;
const LIST_MAX: usize = 64;

pub(super) fn text() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": TEXT_MAX, "pattern": r"^[^\x00]*$" })
}

pub(super) fn file() -> Value {
    json!({ "type": "string", "maxLength": TEXT_MAX, "pattern": r"^/[^\x00]*$" })
}

pub(super) fn host_name() -> Value {
    let label = "[A-Za-z0-9_-]{1,63}";
    json!({ "type": "string", "maxLength": 254, "pattern": format!(r"^(\.|{label}(\.{label})*\.?)$") })
}

/// A text, or bytes in hexadecimal.
pub(super) fn payload() -> Value {
    json!({ "type": "string", "anyOf": [
        { "pattern": "^hex:( *[0-9A-Fa-f] *[0-9A-Fa-f])+ *$" },
        { "minLength": 1, "maxLength": TEXT_MAX, "not": { "pattern": "^hex:" } },
    ] })
}

/// 32 bytes.
pub(super) fn fingerprint() -> Value {
    json!({ "type": "string", "pattern": "^([ :]*[0-9A-Fa-f]){64}[ :]*$" })
}

pub(super) fn headers() -> Value {
    let pattern = r"^\s*[0-9A-Za-z!#$%&'*+.^_`|~-]+\s*(:|$)";
    let header = json!({ "type": "string", "maxLength": TEXT_MAX, "pattern": pattern });
    json!({ "type": "array", "maxItems": LIST_MAX, "items": header })
}

pub(super) fn arguments() -> Value {
    let argument = json!({ "type": "string", "maxLength": TEXT_MAX, "pattern": r"^[^\x00]*$" });
    json!({ "type": "array", "maxItems": LIST_MAX, "items": argument })
}

/// A size or a time.
pub(super) fn max_lag() -> Value {
    json!({ "type": "string", "anyOf": [
        { "pattern": r"^[0-9]+\s*([KMG]iB|[kMG]?B)$" },
        { "pattern": form::TIME_PATTERN },
    ] })
}

/// A number, a text of ranges, or a list of either.
fn ranges(min: u16, max: u16) -> Value {
    let range = r"\s*[0-9]+\s*(-\s*[0-9]+\s*)?";
    let one = json!([
        { "type": "integer", "minimum": min, "maximum": max },
        { "type": "string", "pattern": format!("^{range}(,{range})*$") },
    ]);
    let mut any = one.clone();
    if let Value::Array(forms) = &mut any {
        forms.push(json!({ "type": "array", "minItems": 1, "items": { "anyOf": one } }));
    }
    json!({ "anyOf": any })
}
