//! MySQL's packets: three bytes of length, one of sequence, then the payload (MySQL's manual,
//! "MySQL Packets"). Nothing that is asked here has an answer of more than one packet's size.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, BufReader};

use crate::{
    config::TlsCheck,
    health::{failure::Failure, stream::Stream, tls::Tls, trace::Trace},
};

/// Longest payload that is read, and most bytes of one connection.
const PAYLOAD_MAX: usize = 256 * 1024;
const TOTAL_MAX: usize = 1024 * 1024;

const QUIT: u8 = 0x01;
const QUERY: u8 = 0x03;

pub struct Connection {
    stream: BufReader<Stream>,
    sequence: u8,
    received: usize,
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self { stream: BufReader::with_capacity(4096, stream), sequence: 0, received: 0 }
    }

    /// Goes over to TLS between two packets.
    ///
    /// # Errors
    /// The handshake fails, or the certificate is not trusted.
    pub async fn encrypt(
        self,
        target: SocketAddr,
        check: &TlsCheck,
        tls: &Tls,
        trace: &mut Trace,
    ) -> Result<Self, Failure> {
        if !self.stream.buffer().is_empty() {
            return Err(garbage());
        }
        let Self { stream, sequence, received } = self;
        let stream = stream.into_inner().encrypt(target, check, tls, trace).await?;
        Ok(Self { stream: BufReader::with_capacity(4096, stream), sequence, received })
    }

    pub fn is_encrypted(&self) -> bool {
        self.stream.get_ref().is_encrypted()
    }

    /// Sends the next packet of an exchange.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let length = u32::try_from(payload.len()).map_err(|_| garbage())?.to_le_bytes();
        let head = [length[0], length[1], length[2], self.sequence];
        self.sequence = self.sequence.wrapping_add(1);
        self.stream.get_mut().send(&[&head, payload].concat()).await
    }

    /// The payload of the next packet, at least one byte.
    ///
    /// # Errors
    /// The server hung up, or speaks something else.
    pub async fn receive(&mut self) -> Result<Vec<u8>, Failure> {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head).await.map_err(|error| Failure::exchange(&error))?;
        let len = usize::from(head[0]) | usize::from(head[1]) << 8 | usize::from(head[2]) << 16;
        self.received += len;
        if len == 0 || len > PAYLOAD_MAX || self.received > TOTAL_MAX || head[3] != self.sequence {
            return Err(garbage());
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).await.map_err(|error| Failure::exchange(&error))?;
        Ok(payload)
    }

    /// Begins an exchange with a question in SQL.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn query(&mut self, sql: &str) -> Result<(), Failure> {
        self.sequence = 0;
        self.send(&[&[QUERY], sql.as_bytes()].concat()).await
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.stream.into_inner().close(&[1, 0, 0, 0, QUIT]).await;
    }
}

/// An answer that no MySQL gives.
pub fn garbage() -> Failure {
    Failure::garbage("this is not MySQL")
}

/// Reads the parts of a payload; `None` where it ends too soon.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    /// A text up to a zero byte.
    pub fn text_to_zero(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.bytes(end)?;
        self.byte()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// A number of one, three, four or nine bytes.
    pub fn length(&mut self) -> Option<u64> {
        let width = match self.byte()? {
            small @ 0..=0xfa => return Some(small.into()),
            0xfc => 2,
            0xfd => 3,
            0xfe => 8,
            _ => return None,
        };
        let bytes = self.bytes(width)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// A text with its length before it; `Some(None)`: NULL.
    pub fn text(&mut self) -> Option<Option<String>> {
        if self.0.first() == Some(&0xfb) {
            self.byte()?;
            return Some(None);
        }
        let len = usize::try_from(self.length()?).ok()?;
        Some(Some(String::from_utf8_lossy(self.bytes(len)?).into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_four_widths() {
        for (bytes, number) in [
            (&[0xfa_u8][..], 0xfa),
            (&[0xfc, 1, 2], 0x201),
            (&[0xfd, 1, 2, 3], 0x3_0201),
            (&[0xfe, 1, 0, 0, 0, 0, 0, 0, 1], 1 << 56 | 1),
        ] {
            assert_eq!(Reader::new(bytes).length(), Some(number), "{bytes:?}");
        }
        for short in [&[][..], &[0xfc, 1], &[0xfe, 1], &[0xff], &[0xfb]] {
            assert_eq!(Reader::new(short).length(), None, "{short:?}");
        }
    }

    #[test]
    fn texts_that_are_cut_off_are_not_read() {
        assert_eq!(Reader::new(b"\x02ab").text(), Some(Some("ab".to_owned())));
        assert_eq!(Reader::new(b"\xfb").text(), Some(None));
        assert_eq!(Reader::new(b"\x03ab").text(), None);
        assert_eq!(Reader::new(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff").text(), None);
        assert_eq!(Reader::new(b"ab").text_to_zero(), None);
    }
}
