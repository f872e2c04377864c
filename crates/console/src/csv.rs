//! Lines of CSV that are safe to open in a spreadsheet program.

use muster_domain::spreadsheet::guarded;

/// One line. A cell that such a program would take for a formula gets a `'` in front, which shows it
/// as text.
pub(crate) fn line<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for cell in cells {
        if !line.is_empty() {
            line.push(',');
        }
        line.push('"');
        line.push_str(&guarded(cell).replace('"', "\"\""));
        line.push('"');
    }
    line.push_str("\r\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula_and_none_breaks_out() {
        assert_eq!(
            line(["a", "", "say \"hi\", twice"]),
            "\"a\",\"\",\"say \"\"hi\"\", twice\"\r\n"
        );
        for formula in ["=1+1", "@SUM(A1)", "\tx", "＝1"] {
            assert_eq!(line([formula]), format!("\"'{formula}\"\r\n"));
        }
    }
}
