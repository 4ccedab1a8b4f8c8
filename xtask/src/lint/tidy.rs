//! What no compiler looks at: leftovers, files that grew too long or too large, dead links.

use std::{fs, path::Path};

use anyhow::Result;

use crate::shell;

/// Longer files get a warning: a reader should hold one in the head.
const LINES: usize = 500;
const BYTES: u64 = 512 * 1024;
/// Spelled in two parts: this file is looked at too.
const LEFTOVERS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("dbg", "!(")];

pub(super) fn check() -> Result<()> {
    let root = shell::root();
    let list = shell::output(shell::tool("git").current_dir(&root).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut findings = Vec::new();
    let mut count = 0;
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        // A deleted file that is not committed yet is still listed.
        let Ok(about) = fs::symlink_metadata(root.join(name)) else { continue };
        count += 1;
        if about.len() > BYTES {
            findings.push(format!("{name}: {} KiB, allowed are {}", about.len() / 1024, BYTES / 1024));
        }
        if let Ok(text) = fs::read_to_string(root.join(name)) {
            findings.extend(leftovers(name, &text));
            findings.extend(dead_links(&root, name, &text));
            let lines = text.lines().count();
            if name.ends_with(".rs") && lines > LINES {
                println!("warning: {name}: {lines} lines, better are at most {LINES}");
            }
        }
    }
    if findings.is_empty() {
        println!("{count} files");
    }
    super::none_found(&findings)
}

fn leftovers(name: &str, text: &str) -> Vec<String> {
    if !["rs", "toml", "sh", "md"].iter().any(|ending| name.ends_with(&format!(".{ending}"))) {
        return Vec::new();
    }
    let found = |line: &str| LEFTOVERS.iter().find(|leftover| line.contains(**leftover));
    let numbered = (1..).zip(text.lines());
    numbered.filter_map(|(number, line)| Some(format!("{name}:{number}: {}", found(line)?))).collect()
}

/// Relative links of Markdown files that lead nowhere.
fn dead_links(root: &Path, name: &str, text: &str) -> Vec<String> {
    if !name.ends_with(".md") {
        return Vec::new();
    }
    let folder = root.join(name).parent().map(Path::to_path_buf).unwrap_or_default();
    let dead = links(text).filter(|link| !folder.join(link).exists());
    dead.map(|link| format!("{name}: the link to {link} leads nowhere")).collect()
}

/// Targets of `[text](target)` that are files: without scheme, without fragment.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with(['#', '<']) && !target.starts_with("mailto:"))
        .map(|target| target.split('#').next().unwrap_or(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_with_their_line() {
        let text = format!("fn a() {{}}\n// {} later\n", LEFTOVERS[0]);
        assert_eq!(leftovers("a.rs", &text), [format!("a.rs:2: {}", LEFTOVERS[0])]);
        assert_eq!(leftovers("a.bin", &text), Vec::<String>::new());
    }

    #[test]
    fn only_links_to_files_are_looked_up() {
        let text = "[a](docs/a.md#part) [b](https://example.com/x) [c](#here) [d](LICENSE \"title\")";
        assert_eq!(links(text).collect::<Vec<_>>(), ["docs/a.md", "LICENSE"]);
    }

    #[test]
    fn a_link_to_nowhere_is_found() {
        let found = dead_links(&shell::root(), "README.md", "[here](Cargo.toml) [gone](docs/surely-not-there.md)");
        assert_eq!(found, ["README.md: the link to docs/surely-not-there.md leads nowhere"]);
    }
}
