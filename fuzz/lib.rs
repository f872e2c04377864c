//! Runs a target of `muster-fuzz-targets` by name, for the programs of the fuzzer.

/// Runs it.
///
/// # Panics
/// If there is none of that name, or a promise breaks.
pub fn run(name: &str, bytes: &[u8]) {
    let target = muster_fuzz_targets::TARGETS.iter().find(|(it, _)| *it == name);
    target.expect("a program is named after its target").1(bytes);
}
