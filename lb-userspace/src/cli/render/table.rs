//! A table and the small things its cells are made of.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, presets};

/// A table without borders. Headings that begin with `>` are columns of numbers, set to the right.
pub fn table(headings: &[&str], rows: Vec<Vec<Cell>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // One row is one line, however narrow the terminal: rows are read by grep and awk too.
    table.set_content_arrangement(ContentArrangement::Disabled);
    // Whether colours reach the terminal is decided where it is printed.
    table.enforce_styling().style_text_only();
    table.set_header(headings.iter().map(|heading| Cell::new(heading.trim_start_matches('>'))).collect::<Vec<_>>());
    table.add_rows(rows);
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        column.set_constraint(ColumnConstraint::ContentWidth);
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// `name:  value` lines, values in one column.
pub fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let lines: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{:<width$}  {value}", format!("{name}:"))).collect();
    lines.join("\n")
}

pub fn text(content: impl ToString) -> Cell {
    Cell::new(content)
}

/// An optional value; `-` where there is none.
pub fn or_dash<T: ToString>(content: Option<T>) -> Cell {
    Cell::new(content.map_or_else(|| "-".to_owned(), |content| content.to_string()))
}

pub fn good(content: impl ToString) -> Cell {
    Cell::new(content).fg(Color::Green)
}

pub fn bad(content: impl ToString) -> Cell {
    Cell::new(content).fg(Color::Red).add_attribute(Attribute::Bold)
}

pub fn warned(content: impl ToString) -> Cell {
    Cell::new(content).fg(Color::Yellow)
}

/// `850ms`, `12s`, `3m05s`, `2h07m`, `4d03h`: two units at most.
pub fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Bytes with a binary unit, three digits of them.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// `1 flow`, `2 flows`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let shown: Vec<String> = [0, 850, 12_999, 185_000, 7_620_000, 356_400_000].map(duration).into();
        assert_eq!(shown, ["0ms", "850ms", "12s", "3m05s", "2h07m", "4d03h"]);
    }

    #[test]
    fn bytes_have_three_digits() {
        let shown: Vec<String> = [0, 1023, 1536, 104_857_600, 1_048_575_999, u64::MAX].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.50 KiB", "100 MiB", "1000 MiB", "16.0 EiB"]);
    }

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows = vec![vec![text("web"), text(7)], vec![text("dns-internal"), text(1234)]];
        assert_eq!(table(&["NAME", ">FLOWS"], rows), "NAME          FLOWS\nweb               7\ndns-internal   1234");
    }
}
