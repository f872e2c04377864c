//! Every fuzz target on its seeds, and on what becomes of them, for a moment.

#![expect(clippy::unwrap_used, reason = "helpers of tests belong to tests")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use muster_fuzz_targets::TARGETS;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

/// For each target.
const MOMENT: Duration = Duration::from_secs(2);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = folder().join("seeds").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| fs::read(path).unwrap())
        .collect()
}

#[test]
fn every_target_has_seeds_and_a_program_for_the_fuzzer() {
    for (name, _) in TARGETS {
        assert!(seeds(name).len() >= 3, "{name}");
        let program = folder().join(format!("fuzz_targets/{name}.rs"));
        let program = fs::read_to_string(program).unwrap();
        assert!(program.contains(&format!("{name:?}")), "{name}");
    }
}

#[test]
fn no_bytes_break_a_target() {
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        for seed in &seeds {
            target(seed);
        }
        let damage = prop::collection::vec((any::<prop::sample::Index>(), damage()), 1..6);
        let bytes = (prop::sample::select(seeds), damage).prop_map(|(mut bytes, damage)| {
            for (place, change) in damage {
                let place = place.index(bytes.len() + 1);
                change.apply(&mut bytes, place);
            }
            bytes
        });
        // The same bytes every time: what is found is found again.
        let mut runner = TestRunner::deterministic();
        let until = Instant::now() + MOMENT;
        let mut cases = 0;
        while cases < 20_000 && Instant::now() < until {
            let bytes = bytes.new_tree(&mut runner).unwrap().current();
            let broken = std::panic::catch_unwind(|| target(&bytes));
            assert!(
                broken.is_ok(),
                "{name}, on {:?}",
                String::from_utf8_lossy(&bytes)
            );
            cases += 1;
        }
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Set(u8),
    Insert(Vec<u8>),
    Remove(usize),
    Repeat(usize),
}

impl Damage {
    fn apply(self, bytes: &mut Vec<u8>, place: usize) {
        match self {
            Self::Set(byte) => {
                if let Some(here) = bytes.get_mut(place) {
                    *here = byte;
                }
            }
            Self::Insert(more) => drop(bytes.splice(place..place, more)),
            Self::Remove(count) => drop(bytes.drain(place..bytes.len().min(place + count))),
            Self::Repeat(times) => {
                let end = bytes.len().min(place + 16);
                let piece = bytes[place..end].repeat(times);
                drop(bytes.splice(place..place, piece));
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    let piece = prop::sample::select(vec![
        "\0",
        "\"",
        "\\",
        "'",
        ",",
        ";",
        "\r\n",
        "\n",
        "(",
        ")",
        "not ",
        "\\u{0}",
        "{",
        "}",
        "[",
        "]",
        "null",
        "-1",
        "99999999999999999999",
        "é",
        "\u{feff}",
    ]);
    prop_oneof![
        4 => any::<u8>().prop_map(Damage::Set),
        4 => piece.prop_map(|piece| Damage::Insert(piece.into())),
        1 => prop::collection::vec(any::<u8>(), 1..8).prop_map(Damage::Insert),
        1 => (1..20_usize).prop_map(Damage::Remove),
        1 => (1..200_usize).prop_map(Damage::Repeat),
    ]
}
