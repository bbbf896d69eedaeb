//! JSON records as text for people: a table of many, the fields of one.
//!
//! Called by `control`. What could move the cursor is left out: names are the admin's, but notes are free text.

use serde_json::Value;

/// A table: a heading, then a line for each record; `-` where a field is absent.
#[must_use]
pub fn rows(columns: &[&str], records: &[Value]) -> String {
    let mut lines = vec![columns.iter().map(|column| column.to_uppercase().replace('_', " ")).collect::<Vec<_>>()];
    lines.extend(records.iter().map(|record| columns.iter().map(|column| cell(&record[*column])).collect()));
    aligned(&lines)
}

/// A record's fields, one a line.
#[must_use]
pub fn fields(record: &Value) -> String {
    let fields = record.as_object().into_iter().flatten();
    let lines: Vec<_> = fields.map(|(name, value)| vec![name.replace('_', " "), cell(value)]).collect();
    aligned(&lines)
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}:{}", cell(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    if text.is_empty() { "-".to_owned() } else { text }
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_moves_the_cursor() {
        let records = [
            json!({"name": "a", "home_group": null, "volumes": {"v": "rw"}}),
            json!({"name": "long-name", "home_group": "x\u{1b}[2J", "volumes": {}}),
        ];
        let table = rows(&["name", "home_group", "volumes"], &records);
        assert_eq!(table, "NAME       HOME GROUP  VOLUMES\na          -           v:rw\nlong-name  x[2J        -\n");
        assert_eq!(fields(&json!({"name": "a", "weight": 100})), "name    a\nweight  100\n");
        assert_eq!(rows(&["name"], &[]), "NAME\n");
    }
}
