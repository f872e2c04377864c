//! Tables are for people.

use crate::harness::{PARTNER, file, text, workspace};

#[test]
fn tables_group_numbers_align_columns_and_tell_times_to_the_second() {
    let muster = workspace("tour-tables");
    muster.import_users(1_234);
    let rows: String = (0..1_234).map(|n| format!("u{n}\n")).collect();
    let (_directory, a) = file(
        "a rather long name.csv",
        format!("external_id\n{rows}nobody\n"),
    );
    let (_directory, b) = file("b.csv", "external_id\nu0\n");
    let table = muster.table(&["export", "--partner", PARTNER, &a, &b]);
    assert!(
        table.contains("1,234") && table.contains("1,235"),
        "{table}"
    );
    aligned(&table);
    let number = |line: &str, word: &str| line.find(word).unwrap() + word.len();
    let lines: Vec<_> = table.lines().collect();
    let end = number(lines[0], "ROWS");
    assert_eq!(
        number(lines[1], "1,235"),
        end,
        "numbers are flush right:\n{table}"
    );
    muster.table(&["key", "create", "--partner", PARTNER]);
    for words in [
        vec!["cohort", "list"],
        vec!["cohort", "show", "b"],
        vec!["import", "list"],
        vec!["key", "list"],
        vec!["workspace", "list"],
        vec!["audit", "list"],
        vec!["users", "find", "u0"],
        vec!["segment", "check", "--filter", "acme:\"b\"", "u0"],
    ] {
        let table = muster.table(&words);
        let times = times(&table);
        assert!(!times.is_empty(), "{table}");
        assert!(times.iter().all(|time| time.len() == 20), "{times:?}");
        if words[1] == "list" {
            aligned(&table);
        }
    }
    let json = muster.json(&["cohort", "show", "b"]);
    assert!(
        text(&json, "create_time").contains('.'),
        "JSON keeps fractions: {json}"
    );
    assert!(
        muster
            .table(&[
                "segment",
                "count",
                "--filter",
                "acme:\"a rather long name\""
            ])
            .contains("1,234")
    );
}

/// The times of a text, in RFC 3339.
fn times(text: &str) -> Vec<&str> {
    let words = text.split([' ', '\n', '(', ')']);
    words
        .filter(|word| word.len() > 10 && word.as_bytes()[10] == b'T' && word.ends_with('Z'))
        .collect()
}

/// That the first column has the same width in every line.
fn aligned(table: &str) {
    let lines: Vec<&str> = table.lines().collect();
    let header = lines[0];
    let second = header
        .find("  ")
        .map(|gap| gap + 2 + header[gap + 2..].len() - header[gap + 2..].trim_start().len())
        .unwrap();
    for line in &lines[1..] {
        let gap: String = line.chars().skip(second - 2).take(2).collect();
        assert_eq!(gap, "  ", "the columns of {table}");
    }
    assert!(
        lines.iter().all(|line| line.trim_end() == *line),
        "no blanks at the ends"
    );
}
