//! What end-to-end tests share. Not every test uses all of it.
#![allow(dead_code, reason = "each test file compiles this on its own")]

use std::fs;

/// The program that stands in where there is no nginx.
pub const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

/// Names of the entries of a folder; none if there is no such folder.
pub fn read_names(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
