//! Answers to questions in SQL, as texts (MySQL's manual, "Text Resultset").

use std::collections::BTreeMap;

use super::packet::{Connection, Reader, garbage};
use crate::health::failure::Failure;

const COLUMNS_MAX: u64 = 256;
const ROWS_MAX: usize = 256;

/// Columns of a row by their names in lower case; NULL is `None`.
pub type Row = BTreeMap<String, Option<String>>;

/// An error of the server.
#[derive(Debug)]
pub struct Refused {
    pub code: u16,
    words: String,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::refused(format!("{} ({})", refused.words, refused.code))
    }
}

/// Asks, and reads all rows.
///
/// # Errors
/// The inner one: the server says no. The outer one: it hung up, or is no MySQL.
pub async fn rows(connection: &mut Connection, sql: &str) -> Result<Result<Vec<Row>, Refused>, Failure> {
    connection.query(sql).await?;
    let first = connection.receive().await?;
    match first[0] {
        0x00 => return Ok(Ok(Vec::new())),
        0xff => return Ok(Err(refused(&first))),
        _ => {}
    }
    let columns = Reader::new(&first).length().filter(|columns| *columns <= COLUMNS_MAX).ok_or_else(garbage)?;
    let mut names = Vec::new();
    for _ in 0..columns {
        let definition = connection.receive().await?;
        names.push(column_name(&definition).ok_or_else(garbage)?);
    }
    if !is_end(&connection.receive().await?) {
        return Err(garbage());
    }
    let mut rows = Vec::new();
    loop {
        let packet = connection.receive().await?;
        if is_end(&packet) {
            return Ok(Ok(rows));
        }
        if packet[0] == 0xff {
            return Ok(Err(refused(&packet)));
        }
        if rows.len() == ROWS_MAX {
            return Err(garbage());
        }
        rows.push(row(&names, &packet).ok_or_else(garbage)?);
    }
}

/// What an error packet says.
pub fn refusal(packet: &[u8]) -> Failure {
    refused(packet).into()
}

fn refused(packet: &[u8]) -> Refused {
    let mut reader = Reader::new(packet);
    reader.byte();
    let code = reader.u16().unwrap_or(0);
    let words = reader.rest();
    // The state of SQL stands before the words, but not before the login.
    let words = if words.first() == Some(&b'#') { words.get(6..).unwrap_or_default() } else { words };
    Refused { code, words: String::from_utf8_lossy(words).into_owned() }
}

fn is_end(packet: &[u8]) -> bool {
    packet[0] == 0xfe && packet.len() < 9
}

/// After catalog, schema, table and the table's own name.
fn column_name(definition: &[u8]) -> Option<String> {
    let mut reader = Reader::new(definition);
    for _ in 0..4 {
        reader.text()?;
    }
    Some(reader.text()??.to_ascii_lowercase())
}

fn row(names: &[String], packet: &[u8]) -> Option<Row> {
    let mut reader = Reader::new(packet);
    names.iter().map(|name| Some((name.clone(), reader.text()?))).collect()
}
