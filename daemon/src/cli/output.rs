//! Owns printing: aligned tables for people, JSON for programs.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use unicode_width::UnicodeWidthStr;

/// A table whose columns align; numbers to the right.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these column heads; a head that begins with `>` aligns right.
    pub(super) fn new(heads: &[&str]) -> Self {
        let right = heads.iter().map(|head| head.starts_with('>')).collect();
        let row = heads.iter().map(|head| head.trim_start_matches('>').to_uppercase()).collect();
        Self { rows: vec![row], right }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// The table as text, one line a row.
    pub(super) fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width()).max()
        };
        let widths: Vec<usize> = (0..self.right.len()).filter_map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), &right) in row.iter().zip(&widths).zip(&self.right) {
                let pad = " ".repeat(width - cell.width());
                let gap = if line.is_empty() { "" } else { "  " };
                line +=
                    &if right { format!("{gap}{pad}{cell}") } else { format!("{gap}{cell}{pad}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }

    pub(super) fn print(&self) -> anyhow::Result<()> {
        say(&self.render())
    }
}

/// Writes `text` to stdout as it is.
pub(super) fn say(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

/// Writes one JSON object on one line to stdout.
pub(super) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(value)?;
    line.push('\n');
    say(&line)
}

/// Whether the error is only that nobody reads on, as with `| head`.
pub(super) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
    })
}

/// Bytes for people: `1.5 MiB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1024.0;
        unit = next;
        if value < 1023.95 {
            break;
        }
    }
    format!("{value:.1} {unit}")
}

/// Milliseconds since 1970 for people, in UTC; `-` for none.
pub(super) fn time(ms: Option<i64>) -> String {
    let Some(ms) = ms.and_then(|ms| u64::try_from(ms).ok()) else { return "-".to_owned() };
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_also_with_wide_letters() {
        let mut table = Table::new(&["topic", ">bytes"]);
        table.row(vec!["日本".to_owned(), "7".to_owned()]);
        table.row(vec!["orders".to_owned(), "12345".to_owned()]);
        assert_eq!(table.render(), "TOPIC   BYTES\n日本        7\norders  12345\n");
    }

    #[test]
    fn sizes_read_well_at_every_border() {
        let shown = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 20, u64::MAX].map(bytes);
        let wanted = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "16384.0 PiB"];
        assert_eq!(shown, wanted);
    }

    #[test]
    fn times_are_utc_and_may_be_missing() {
        assert_eq!(time(Some(1_700_000_000_123)), "2023-11-14T22:13:20.123Z");
        assert_eq!(time(None), "-");
        assert_eq!(time(Some(-1)), "-");
    }
}
