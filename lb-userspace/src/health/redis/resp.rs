//! RESP, as far as short answers go (redis.io, "Redis serialization protocol").

use tokio::io::{AsyncReadExt, BufReader};

use crate::health::{failure::Failure, stream::Stream};

/// Longest line or text, most elements of an array, deepest nesting.
const TEXT_MAX: usize = 64 * 1024;
const ARRAY_MAX: usize = 1024;
const DEPTH_MAX: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Error(String),
    Number(i64),
    Nothing,
    Array(Vec<Reply>),
}

impl Reply {
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }
}

/// A connection, one command at a time.
pub struct Connection {
    stream: BufReader<Stream>,
}

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self { stream: BufReader::with_capacity(4096, stream) }
    }

    /// Sends a command and reads its reply.
    ///
    /// # Errors
    /// The server hung up, or speaks something else.
    pub async fn command(&mut self, words: &[&str]) -> Result<Reply, Failure> {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        self.stream.get_mut().send(&bytes).await?;
        self.reply().await
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.stream.into_inner().close(b"*1\r\n$4\r\nQUIT\r\n").await;
    }

    /// Reads one reply, nested ones with a stack of what is still missing.
    async fn reply(&mut self) -> Result<Reply, Failure> {
        let mut open: Vec<(usize, Vec<Reply>)> = Vec::new();
        let mut elements = 0;
        loop {
            let line = self.line().await?;
            let (kind, rest) = line.split_at_checked(1).ok_or_else(|| not_redis(&line))?;
            let mut reply = match kind {
                "+" => Reply::Text(rest.to_owned()),
                "-" => Reply::Error(rest.to_owned()),
                ":" => Reply::Number(rest.parse().map_err(|_| not_redis(&line))?),
                "$" => self.text(rest).await?,
                "*" if rest == "-1" => Reply::Nothing,
                "*" => {
                    let len =
                        rest.parse::<usize>().ok().filter(|len| *len <= ARRAY_MAX).ok_or_else(|| not_redis(&line))?;
                    elements += len;
                    if open.len() == DEPTH_MAX || elements > ARRAY_MAX {
                        return Err(Failure::garbage("the answer is too large"));
                    }
                    if len > 0 {
                        open.push((len, Vec::new()));
                        continue;
                    }
                    Reply::Array(Vec::new())
                }
                _ => return Err(not_redis(&line)),
            };
            // What is complete goes into what it belongs to, which may be complete by that.
            loop {
                let Some((len, mut parts)) = open.pop() else { return Ok(reply) };
                parts.push(reply);
                if parts.len() < len {
                    open.push((len, parts));
                    break;
                }
                reply = Reply::Array(parts);
            }
        }
    }

    async fn text(&mut self, length: &str) -> Result<Reply, Failure> {
        if length == "-1" {
            return Ok(Reply::Nothing);
        }
        let len = length.parse::<usize>().ok().filter(|len| *len <= TEXT_MAX);
        let len = len.ok_or_else(|| not_redis(length))?;
        let mut bytes = vec![0; len + 2];
        self.stream.read_exact(&mut bytes).await.map_err(|error| Failure::exchange(&error))?;
        bytes.truncate(len);
        Ok(Reply::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    async fn line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        loop {
            let byte = self.stream.read_u8().await.map_err(|error| Failure::exchange(&error))?;
            if byte == b'\n' && line.last() == Some(&b'\r') {
                line.pop();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte);
            if line.len() > TEXT_MAX {
                return Err(Failure::garbage("the answer is too large"));
            }
        }
    }
}

fn not_redis(line: &str) -> Failure {
    Failure::garbage(format!("this is not Redis: {:?}", crate::health::failure::printable(line)))
}
