//! Changes that the agent is asked for.

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Failure,
    args::{Global, Write},
    reads::block_on,
};
use crate::api::client;

/// Sends `body` to `path` as `options` say.
pub fn write<T: DeserializeOwned>(
    global: &Global,
    path: &str,
    options: &Write,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let Write { dry_run, revision } = options;
    let mut query: Vec<String> = Vec::new();
    query.extend(dry_run.then(|| "dry_run=true".to_owned()));
    query.extend(revision.as_ref().map(|revision| format!("revision={}", encoded(revision))));
    let path = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    block_on(client::post(&global.socket, &path, body))?.map_err(|e| Failure::of_client(e, &global.socket))
}

/// Whole seconds, begun ones counted.
pub fn seconds(span: Option<Duration>) -> Option<u64> {
    span.map(|span| span.as_secs() + u64::from(span.subsec_nanos() > 0))
}

/// For a query (RFC 3986, 2.1).
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_typed_arrives_as_it_is() {
        assert_eq!(encoded("18c2f3a1-7"), "18c2f3a1-7");
        assert_eq!(encoded("a b&c=d\u{e9}"), "a%20b%26c%3Dd%C3%A9");
    }

    #[test]
    fn a_second_that_has_begun_counts() {
        assert_eq!(seconds(Some(Duration::from_millis(1500))), Some(2));
        assert_eq!((seconds(Some(Duration::from_secs(60))), seconds(None)), (Some(60), None));
    }
}
