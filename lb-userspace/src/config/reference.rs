//! The reference of all keys, as it stands in docs/configuration.md.

use super::{keys, reader::Section};

/// The tables of all keys, in Markdown.
pub fn reference() -> String {
    keys::sections().map(section).collect::<Vec<_>>().join("\n")
}

fn section(section: &Section) -> String {
    let mut text = match section.header {
        "" => "### Top level\n\n".to_owned(),
        header => format!("### `{header}`\n\n"),
    };
    text.push_str("| key | value | left out | meaning |\n| --- | --- | --- | --- |\n");
    for key in section.keys {
        let left_out = key.left_out().unwrap_or_else(|| "**required**".to_owned());
        let cells = [format!("`{}`", key.name()), key.allowed(), left_out, key.doc().to_owned()];
        text.push_str(&format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | ")));
    }
    text
}
