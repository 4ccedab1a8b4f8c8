//! The server's greeting, and the proofs that a client knows the password.

use ring::digest::{Context, Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

use super::packet::{Reader, garbage};
use crate::health::failure::{Failure, printable};

/// `caching_sha2_password`: the server knew the proof.
pub const FAST_DONE: u8 = 3;
/// `caching_sha2_password`: the server wants the password itself, over TLS.
pub const FULL_NEEDED: u8 = 4;
pub const NEEDS_TLS: &str = "L7STS: the server wants the password itself (caching_sha2_password), which is sent over \
                             TLS only: write tls = true";

/// The server's first packet, protocol 10.
#[derive(Debug)]
pub struct Greeting {
    pub version: String,
    pub capabilities: u32,
    /// 20 bytes.
    pub nonce: Vec<u8>,
    pub plugin: String,
}

impl Greeting {
    /// # Errors
    /// The server refuses the connection, or it is no MySQL.
    pub fn read(payload: &[u8]) -> Result<Self, Failure> {
        if payload[0] == 0xff {
            return Err(super::rows::refusal(payload));
        }
        Self::parse(payload).ok_or_else(garbage)
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(payload);
        if reader.byte()? != 10 {
            return None;
        }
        let version = reader.text_to_zero()?;
        // MariaDB 10 and 11 greet so, because old replicas of MySQL refuse two digits.
        let version = version.strip_prefix("5.5.5-").map(str::to_owned).unwrap_or(version);
        reader.bytes(4)?;
        let mut nonce = reader.bytes(8)?.to_vec();
        reader.byte()?;
        let low = reader.u16()?;
        reader.bytes(3)?;
        let high = reader.u16()?;
        reader.bytes(11)?;
        nonce.extend_from_slice(reader.bytes(12)?);
        reader.byte()?;
        let plugin = reader.text_to_zero().unwrap_or_default();
        Some(Self { version, capabilities: u32::from(low) | u32::from(high) << 16, nonce, plugin })
    }
}

/// A way to prove the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scramble {
    /// `mysql_native_password`
    Native,
    /// `caching_sha2_password`
    Caching,
}

impl Scramble {
    pub fn of(plugin: &str) -> Option<Self> {
        [Self::Native, Self::Caching].into_iter().find(|scramble| scramble.plugin() == plugin)
    }

    pub const fn plugin(self) -> &'static str {
        match self {
            Self::Native => "mysql_native_password",
            Self::Caching => "caching_sha2_password",
        }
    }

    /// Empty without a password.
    pub fn proof(self, password: &str, nonce: &[u8]) -> Vec<u8> {
        if password.is_empty() {
            return Vec::new();
        }
        let password = password.as_bytes();
        match self {
            Self::Native => {
                let once = digest(&SHA1_FOR_LEGACY_USE_ONLY, password);
                let twice = digest(&SHA1_FOR_LEGACY_USE_ONLY, once.as_ref());
                let mut salted = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                salted.update(nonce);
                salted.update(twice.as_ref());
                xor(&once, &salted.finish())
            }
            Self::Caching => {
                let once = digest(&SHA256, password);
                let twice = digest(&SHA256, once.as_ref());
                let mut salted = Context::new(&SHA256);
                salted.update(twice.as_ref());
                salted.update(nonce);
                xor(&once, &salted.finish())
            }
        }
    }
}

/// A plugin that is not known here.
pub fn unknown(plugin: &str) -> Failure {
    Failure::refused(format!(
        "the user logs in by {}, which is not supported: use mysql_native_password or caching_sha2_password",
        printable(plugin)
    ))
}

fn xor(one: &Digest, other: &Digest) -> Vec<u8> {
    one.as_ref().iter().zip(other.as_ref()).map(|(one, other)| one ^ other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the server checks it: the proof, with the stored double hash, gives the single hash.
    #[test]
    fn a_native_proof_opens_with_the_stored_hash() {
        let nonce = b"01234567890123456789";
        let proof = Scramble::Native.proof("secret", nonce);
        let stored = digest(&SHA1_FOR_LEGACY_USE_ONLY, digest(&SHA1_FOR_LEGACY_USE_ONLY, b"secret").as_ref());
        let salted = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[&nonce[..], stored.as_ref()].concat());
        let once: Vec<u8> = proof.iter().zip(salted.as_ref()).map(|(a, b)| a ^ b).collect();
        assert_eq!(digest(&SHA1_FOR_LEGACY_USE_ONLY, &once).as_ref(), stored.as_ref());
        assert!(Scramble::Native.proof("", nonce).is_empty());
        assert_eq!(Scramble::Caching.proof("secret", nonce).len(), 32);
    }

    #[test]
    fn a_greeting_that_is_cut_off_is_not_read() {
        let mut whole = b"\x0a8.0.36\0\x01\0\0\0".to_vec();
        whole.extend_from_slice(b"abcdefgh\0\xff\xf7\x2d\x02\0\xff\xdf\x15");
        whole.extend_from_slice(&[0; 10]);
        whole.extend_from_slice(b"ijklmnopqrst\0caching_sha2_password\0");
        let greeting = Greeting::parse(&whole).unwrap();
        assert_eq!((greeting.version.as_str(), greeting.plugin.as_str()), ("8.0.36", "caching_sha2_password"));
        assert_eq!(greeting.nonce, b"abcdefghijklmnopqrst");
        assert_eq!(greeting.capabilities, 0xdfff_f7ff);
        for len in 0..whole.len() - "caching_sha2_password\0".len() {
            assert!(Greeting::parse(&whole[..len]).is_none(), "{len} bytes");
        }
    }
}
