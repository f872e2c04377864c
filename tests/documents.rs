//! What `docs/security.md` promises is tested: every test that it names exists.

#![expect(clippy::unwrap_used, reason = "helpers of tests belong to tests")]

use std::{collections::BTreeSet, fs, path::Path};

/// A name of so many words stands for a test.
const WORDS: usize = 4;

#[test]
fn every_test_that_stands_for_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for folder in ["crates", "tests"] {
        collect(&root.join(folder), &mut tests);
    }
    let document = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let quoted = document.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = quoted.filter(|text| is_name(text)).collect();
    assert!(named.len() > 50, "it names {} tests", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !tests.contains(**name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn is_name(text: &str) -> bool {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.chars().all(is_of_name) && text.split('_').count() >= WORDS
}

/// The names of the tests in a folder.
fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let mut is_test = false;
            for line in fs::read_to_string(&path).unwrap().lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let Some((_, after)) = line.split_once("fn ") else {
                    continue;
                };
                // Those of the console have a browser in common, and no attribute.
                if is_test || after.contains("(stage: &Stage") {
                    let end = after.find(['(', '<']).unwrap_or(after.len());
                    names.insert(after[..end].to_owned());
                }
                is_test = false;
            }
        }
    }
}
