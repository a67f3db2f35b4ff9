//! The table of layers in docs/ARCHITECTURE.md.

use std::collections::BTreeSet;

/// Rows from the ground floor up.
pub struct Table(pub Vec<Row>);

pub struct Row {
    pub module: String,
    pub may_use: Allowed,
}

pub enum Allowed {
    Everything,
    These(BTreeSet<String>),
}

impl Allowed {
    pub fn includes(&self, module: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::These(modules) => modules.contains(module),
        }
    }
}

impl Table {
    /// Finds the table whose header begins with `| module | may use |`. The second cell is
    /// `everything`, `all above` or a list of modules; further cells are for the reader.
    pub fn parse(markdown: &str) -> Self {
        let rows = markdown.lines().map(cells).skip_while(|cells| !is_header(cells));
        let mut parsed: Vec<Row> = Vec::new();
        for cells in rows.skip(2).take_while(|cells| !cells.is_empty()) {
            let module = cells[0].trim_end_matches('/').to_owned();
            let may_use = match cells.get(1).expect("a row has two cells").as_str() {
                "everything" => Allowed::Everything,
                "all above" => {
                    Allowed::These(parsed.iter().map(|row| row.module.clone()).collect())
                }
                list => Allowed::These(
                    list.split(',').map(plain).filter(|name| !name.is_empty()).collect(),
                ),
            };
            parsed.push(Row { module, may_use });
        }
        assert!(!parsed.is_empty(), "there is no table `| module | may use |`");
        Self(parsed)
    }

    pub fn row(&self, module: &str) -> Option<&Row> {
        self.0.iter().find(|row| row.module == module)
    }
}

fn is_header(cells: &[String]) -> bool {
    cells.starts_with(&["module".to_owned(), "may use".to_owned()])
}

/// The cells of a table's row; none if the line is not one.
fn cells(line: &str) -> Vec<String> {
    let inside = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|'));
    inside.map(|inside| inside.split('|').map(plain).collect()).unwrap_or_default()
}

/// Without blanks around it and the backquotes of code.
fn plain(text: &str) -> String {
    text.trim().trim_matches('`').trim().to_owned()
}
