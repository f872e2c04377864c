//! Tables: columns that pick from JSON by path, without borders.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde_json::Value;

use crate::when;

/// One column of a table, or one line of the details of a thing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// Where the value is in the JSON; dots lead into objects.
    pub(crate) path: &'static str,
    header: Option<&'static str>,
    only_in_details: bool,
    is_name: bool,
    render: Option<fn(&Value) -> String>,
}

/// A column for the field at `path`, headed by the last part of the path.
pub(crate) const fn col(path: &'static str) -> Column {
    Column {
        path,
        header: None,
        only_in_details: false,
        is_name: false,
        render: None,
    }
}

impl Column {
    /// With another heading.
    pub(crate) const fn titled(mut self, header: &'static str) -> Self {
        self.header = Some(header);
        self
    }

    /// Left out of lists.
    pub(crate) const fn detail(mut self) -> Self {
        self.only_in_details = true;
        self
    }

    /// A number that names something, such as a `user_no`: no separators, so that it can be copied
    /// into the next command.
    pub(crate) const fn name(mut self) -> Self {
        self.is_name = true;
        self
    }

    /// Rendered in its own way.
    pub(crate) const fn shown_by(mut self, render: fn(&Value) -> String) -> Self {
        self.render = Some(render);
        self
    }

    fn heading(&self) -> String {
        match self.header {
            Some(header) => header.to_owned(),
            None => {
                let last = self.path.rsplit('.').next().unwrap_or(self.path);
                last.trim_end_matches("_time").replace('_', " ")
            }
        }
    }

    fn value<'a>(&self, json: &'a Value) -> &'a Value {
        self.path
            .split('.')
            .fold(json, |value, key| value.get(key).unwrap_or(&Value::Null))
    }

    fn text(&self, json: &Value) -> String {
        let value = self.value(json);
        let text = match (self.render, value) {
            (_, Value::Null) => String::new(),
            (Some(render), value) => render(value),
            (None, Value::Number(number)) if !self.is_name => grouped(number),
            (None, Value::String(time)) if self.is_time() => when::to_the_second(time),
            (None, value) => render_value(value),
        };
        show_control_characters(&text)
    }

    /// Whether the contract says that a time is here; it calls times so, and nothing else.
    fn is_time(&self) -> bool {
        self.path.ends_with("_time")
    }

    fn is_number(&self, json: &Value) -> bool {
        self.value(json).is_number()
    }
}

/// A value as people read it.
pub(crate) fn render_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(render_value).collect();
            items.join(", ")
        }
        other => other.to_string(),
    }
}

/// Digits in groups of three.
pub(crate) fn grouped(number: &(impl ToString + ?Sized)) -> String {
    let text = number.to_string();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.as_str()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return text;
    }
    let mut groups: Vec<&str> = Vec::new();
    let mut rest = digits;
    while rest.len() > 3 {
        let (front, group) = rest.split_at(rest.len() - 3);
        groups.push(group);
        rest = front;
    }
    groups.push(rest);
    groups.reverse();
    format!("{sign}{}", groups.join(","))
}

/// Text with control characters spelled out: what partners send must not steer a terminal.
pub(crate) fn show_control_characters(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| match c {
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        })
        .collect()
}

/// A table with a row for each value.
pub(crate) fn rows(columns: &[Column], rows: &[Value]) -> String {
    let shown: Vec<_> = columns.iter().filter(|c| !c.only_in_details).collect();
    let header = shown.iter().map(|column| column.heading()).collect();
    let right: Vec<bool> = shown
        .iter()
        .map(|column| rows.iter().any(|row| column.is_number(row)))
        .collect();
    let body = rows
        .iter()
        .map(|row| shown.iter().map(|column| column.text(row)).collect());
    render(header, &right, body)
}

/// The columns of one value, a line each; empty ones are left out.
pub(crate) fn details(columns: &[Column], json: &Value) -> String {
    let lines: Vec<(String, String)> = columns
        .iter()
        .map(|column| (column.heading(), column.text(json)))
        .filter(|(_, text)| !text.is_empty())
        .collect();
    let width = lines.iter().map(|(heading, _)| heading.len()).max();
    let width = width.unwrap_or(0) + 1;
    lines
        .into_iter()
        .map(|(heading, text)| format!("{:width$}  {text}\n", format!("{heading}:")))
        .collect()
}

/// Cells in aligned columns under an upper-case header; `right` says which columns are flush right.
/// An empty header is left out.
pub(crate) fn render(
    header: Vec<String>,
    right: &[bool],
    body: impl Iterator<Item = Vec<String>>,
) -> String {
    let aligned = |cells: Vec<String>| -> Vec<Cell> {
        let cells = cells.into_iter().enumerate();
        cells
            .map(|(column, text)| match right.get(column) {
                Some(true) => Cell::new_owned(text).set_alignment(CellAlignment::Right),
                _ => Cell::new_owned(text),
            })
            .collect()
    };
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        // Never wraps or cuts: the output has to be the same in a pipe and on any terminal.
        .set_content_arrangement(ContentArrangement::Disabled);
    if !header.is_empty() {
        table.set_header(aligned(header.iter().map(|h| h.to_uppercase()).collect()));
    }
    for cells in body {
        table.add_row(aligned(cells));
    }
    table.discover_columns();
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const COLUMNS: &[Column] = &[
        col("name"),
        col("user_no").name(),
        col("count.total").titled("members"),
        col("create_time").detail(),
    ];

    #[test]
    fn numbers_are_grouped_and_flush_right_and_details_stay_out_of_lists() {
        let values = [
            json!({ "name": "a", "user_no": 12345, "count": { "total": 1_234_567 } }),
            json!({ "name": "long name", "user_no": 7, "count": null, "create_time": "t" }),
        ];
        let expected = "\
NAME       USER NO    MEMBERS
a            12345  1,234,567
long name        7
";
        assert_eq!(rows(COLUMNS, &values), expected);
    }

    #[test]
    fn details_leave_out_what_is_empty_and_fractions_of_seconds() {
        let time = "2026-03-01T12:00:00.123456Z";
        let value = json!({ "name": time, "user_no": null, "create_time": time });
        let expected = format!("name:    {time}\ncreate:  2026-03-01T12:00:00Z\n");
        assert_eq!(details(COLUMNS, &value), expected);
    }

    #[test]
    fn digits_are_grouped_from_the_right() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (-12_345, "-12,345"),
        ] {
            assert_eq!(grouped(&number), text);
        }
        assert_eq!(grouped(&1.5), "1.5");
        assert_eq!(grouped(&u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let value = [json!({ "name": "a\u{1b}[2Jb\n" })];
        let table = rows(&[col("name")], &value);
        assert_eq!(table, "NAME\na\\u{1b}[2Jb\\n\n");
    }
}
