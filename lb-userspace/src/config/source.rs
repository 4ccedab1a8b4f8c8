//! The text of a configuration file, ready to be shown: positions in lines and columns, and
//! nothing in it that a terminal would obey.

use std::fmt;

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use super::files::FileText;

/// A range of bytes in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Span {
    /// The same span of a file that begins at `base`.
    pub(super) fn behind(self, base: usize) -> Self {
        Self { start: self.start + base, end: self.end + base }
    }
}

impl From<std::ops::Range<usize>> for Span {
    fn from(range: std::ops::Range<usize>) -> Self {
        Self { start: range.start, end: range.end.max(range.start) }
    }
}

/// The files of a configuration as they are shown in reports. Offsets run through all of them: each
/// file begins one behind the end of the one before.
pub(super) struct Source {
    files: Vec<Shown>,
}

/// One file.
struct Shown {
    name: String,
    /// Offset of its first byte.
    base: usize,
    /// Same length and same line breaks as the file, control characters replaced.
    text: String,
    /// Offset in the file of the first byte of each line.
    lines: Vec<usize>,
}

impl Source {
    /// At least one file.
    pub(super) fn new(files: &[FileText]) -> Self {
        let mut base = 0;
        let shown = files.iter().map(|FileText { name, text }| {
            let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            let file = Shown { name: printable(name), base, text: harmless(text), lines };
            base += text.len() + 1;
            file
        });
        Self { files: shown.collect() }
    }

    /// Offset of the first byte of each file.
    pub(super) fn bases(&self) -> impl Iterator<Item = usize> {
        self.files.iter().map(|file| file.base)
    }

    /// Line and column of an offset within its file, both from 1; the column counts characters.
    pub(super) fn position(&self, offset: usize) -> (u32, u32) {
        let file = self.file(offset);
        file.position(offset - file.base)
    }

    /// The name of the file that an offset lies in; `None` where there is only one.
    pub(super) fn name_of(&self, offset: usize) -> Option<&str> {
        (self.files.len() > 1).then(|| self.file(offset).name.as_str())
    }

    /// The part of a span that lies in its first line, as a caret can point at it. At the very end
    /// of a file, where there is nothing to point at, it is the last character.
    pub(super) fn first_line(&self, span: Span) -> Span {
        let file = self.file(span.start);
        let inner = Span { start: span.start - file.base, end: span.end.max(span.start) - file.base };
        let line = file.first_line(inner);
        Span { start: line.start + file.base, end: line.end + file.base }
    }

    fn file(&self, offset: usize) -> &Shown {
        let after = self.files.partition_point(|file| file.base <= offset);
        &self.files[after.max(1) - 1]
    }
}

impl Shown {
    fn position(&self, offset: usize) -> (u32, u32) {
        let offset = self.boundary(offset);
        let line = self.line_of(offset);
        let column = self.text[self.lines[line]..offset].chars().filter(|c| *c != BYTE_ORDER_MARK).count();
        (number(line), number(column))
    }

    fn first_line(&self, span: Span) -> Span {
        let mut start = self.boundary(span.start);
        let line = self.line_of(start);
        let end = self.boundary(span.end).min(self.line_end(line)).max(start);
        if start == self.text.len() && start > self.lines[line] {
            start = self.boundary(start - 1);
        }
        Span { start, end }
    }

    fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset) - 1
    }

    /// Offset behind the last character of a line, its line break left out.
    fn line_end(&self, line: usize) -> usize {
        let end = self.lines.get(line + 1).map_or(self.text.len(), |next| next - 1);
        if end > self.lines[line] && self.text.as_bytes()[end - 1] == b'\r' { end - 1 } else { end }
    }

    /// The nearest offset at or before this one that lies inside the text and between characters.
    fn boundary(&self, offset: usize) -> usize {
        self.text.floor_char_boundary(offset)
    }
}

const BYTE_ORDER_MARK: char = '\u{feff}';

fn number(from_zero: usize) -> u32 {
    u32::try_from(from_zero + 1).unwrap_or(u32::MAX)
}

/// A file name on one line.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Replaces what would move the cursor, colour the terminal or turn the writing direction, byte for
/// byte, so that offsets stay true.
fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let keep = match c {
            '\n' | '\t' => true,
            '\r' => characters.peek() == Some(&'\n'),
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
            c => !c.is_control(),
        };
        match (keep, c.len_utf8()) {
            (true, _) => shown.push(c),
            (false, 1) => shown.push('?'),
            (false, 2) => shown.push('\u{b7}'),
            (false, _) => shown.push(char::REPLACEMENT_CHARACTER),
        }
    }
    shown
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.files.iter().map(|file| &file.name)).finish()
    }
}

/// Looks lines up instead of walking the text from its beginning, so that a report of many errors
/// in a large file stays cheap.
impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        lines_before: usize,
        lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let file = self.file(span.offset());
        let (start, end) = (span.offset() - file.base, span.offset() - file.base + span.len());
        if end > file.text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let first = file.line_of(start).saturating_sub(lines_before);
        let last = (file.line_of(end) + lines_after).min(file.lines.len() - 1);
        let from = file.lines[first];
        // With its line break: an empty line would not be drawn, nor a caret behind the last character.
        let to = file.lines.get(last + 1).copied().unwrap_or(file.text.len());
        let column = file.position(start).1 as usize - 1;
        Ok(Box::new(MietteSpanContents::new_named(
            file.name.clone(),
            &file.text.as_bytes()[from..to],
            (file.base + from, to - from).into(),
            first,
            column,
            last - first + 1,
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source::new(&[FileText { name: name.to_owned(), text: text.to_owned() }])
    }

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = source("f", "\u{feff}ab\nc\u{e9}d\r\n\u{1f600}x");
        assert_eq!(source.position(3), (1, 1));
        assert_eq!(source.position(4), (1, 2));
        assert_eq!(source.position(9), (2, 3));
        assert_eq!(source.position(12 + 4), (3, 2));
        assert_eq!(source.position(10_000), (3, 3));
    }

    #[test]
    fn an_offset_inside_a_character_counts_as_its_beginning() {
        let source = source("f", "a\u{e9}b");
        assert_eq!(source.position(2), source.position(1));
    }

    #[test]
    fn control_characters_are_replaced_byte_for_byte() {
        let text = "a\x1b[31m\u{9b}\u{202e}\rb\r\n\tc\x07";
        let source = source("na\nme\x1b", text);
        assert_eq!(source.files[0].text, "a?[31m\u{b7}\u{fffd}?b\r\n\tc?");
        assert_eq!(source.files[0].text.len(), text.len());
        assert_eq!(source.files[0].name, "na?me?");
    }

    #[test]
    fn a_span_over_several_lines_is_cut_at_the_end_of_the_first() {
        let source = source("f", "a = [\r\n1,\n]");
        assert_eq!(source.first_line(Span { start: 4, end: 12 }), Span { start: 4, end: 5 });
        assert_eq!(source.first_line(Span { start: 10, end: 40 }), Span { start: 10, end: 11 });
        assert_eq!(source.first_line(Span { start: 11, end: 40 }), Span { start: 10, end: 11 });
    }

    #[test]
    fn offsets_run_through_all_files() {
        let file = |name: &str, text: &str| FileText { name: name.to_owned(), text: text.to_owned() };
        let source = Source::new(&[file("a", "x\ny"), file("b", "\nzz"), file("c", "")]);
        assert_eq!(source.bases().collect::<Vec<_>>(), [0, 4, 8]);
        assert_eq!((source.position(2), source.name_of(2)), ((2, 1), Some("a")));
        assert_eq!((source.position(3), source.name_of(3)), ((2, 2), Some("a")), "the end of a file is its own");
        assert_eq!((source.position(6), source.name_of(6)), ((2, 2), Some("b")));
        assert_eq!((source.position(8), source.name_of(8)), ((1, 1), Some("c")));
        assert_eq!(source.first_line(Span { start: 0, end: 7 }), Span { start: 0, end: 1 });
    }
}
