//! Tables of text.

/// A table that is as wide as its content, up to the maximum width of each column.
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

struct Column {
    header: &'static str,
    is_number: bool,
    /// True if the column is shown even if all of its cells are empty.
    is_always_shown: bool,
    /// In characters; longer cells are truncated.
    max_width: usize,
}

impl Table {
    /// An empty table, from the header and the maximum width of each column. `>` before a header
    /// aligns the column to the right, `!` after it shows the column even if it is empty.
    pub fn new(columns: &[(&'static str, usize)]) -> Self {
        let columns = columns
            .iter()
            .map(|(header, max_width)| Column {
                header: header.trim_start_matches('>').trim_end_matches('!'),
                is_always_shown: header.ends_with('!'),
                is_number: header.starts_with('>'),
                max_width: *max_width,
            })
            .collect();
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines of the table, the header first, none wider than `max_width` unless truncating text
    /// columns is not enough. Columns that contain only dashes and zeros are left out.
    pub fn lines(&self, max_width: usize) -> Vec<String> {
        let cell = |row: &[String], at: usize| row.get(at).cloned().unwrap_or_default();
        let mut shown: Vec<(usize, &Column, usize)> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(at, column)| {
                let is_empty =
                    |row: &Vec<String>| matches!(cell(row, *at).as_str(), "" | "-" | "0");
                column.is_always_shown || !self.rows.iter().all(is_empty)
            })
            .map(|(at, column)| {
                let widest = self.rows.iter().map(|row| cell(row, at).chars().count()).max();
                let width = widest.unwrap_or(0).max(column.header.len()).min(column.max_width);
                (at, column, width)
            })
            .collect();
        fit(&mut shown, max_width);
        let line = |cells: &dyn Fn(usize, &Column) -> String| {
            let mut line = String::new();
            for (at, column, width) in &shown {
                let text = truncate(&cells(*at, column), *width);
                let width = *width;
                line += &if column.is_number {
                    format!("{text:>width$}  ")
                } else {
                    format!("{text:<width$}  ")
                };
            }
            line.trim_end().to_owned()
        };
        let header = line(&|_, column| column.header.to_owned());
        let rows = self.rows.iter().map(|row| line(&|at, _| cell(row, at)));
        std::iter::once(header).chain(rows).collect()
    }
}

/// Narrows the widest text columns until the table fits.
fn fit(shown: &mut [(usize, &Column, usize)], max_width: usize) {
    const MIN: usize = 12;
    loop {
        let total: usize = shown.iter().map(|(_, _, width)| width + 2).sum();
        let texts = shown.iter_mut().filter(|(_, column, _)| !column.is_number);
        match texts.max_by_key(|(_, _, width)| *width) {
            Some((_, _, width)) if total > max_width + 2 && *width > MIN => *width -= 1,
            _ => return,
        }
    }
}

fn truncate(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

/// Breaks a text at spaces into lines of at most `width` characters.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { return lines };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_truncated_and_left_out() {
        let mut table = Table::new(&[("NAME", 6), (">N", 9), ("NONE", 9)]);
        table.row(["a".to_owned(), "1".to_owned(), "-".to_owned()]);
        table.row(["abcdefgh".to_owned(), "100".to_owned(), "-".to_owned()]);
        assert_eq!(table.lines(80), ["NAME      N", "a         1", "abcde…  100"]);
    }

    #[test]
    fn the_widest_text_column_is_narrowed_first() {
        let mut table = Table::new(&[("A", 60), (">N", 9), ("B", 60)]);
        table.row(["a".repeat(30), "1".to_owned(), "b".repeat(14)]);
        let lines = table.lines(40);
        assert_eq!(lines[1], format!("{}…  1  {}", "a".repeat(20), "b".repeat(14)));
        // Not below twelve characters.
        assert_eq!(table.lines(1)[1].chars().count(), 12 + 2 + 1 + 2 + 12);
    }

    #[test]
    fn text_is_wrapped_at_spaces() {
        assert_eq!(wrap("ab cd efg h", 5), ["ab cd", "efg h"]);
        assert_eq!(wrap("abcdefgh i", 4), ["abcdefgh", "i"]);
    }
}
