//! The fault suite: Muster's processes, its database and its network are broken on purpose, and
//! what was promised is checked.
//!
//! `make faults ROUNDS=200 SEED=7 CASE=commit` runs it; `cargo test` runs the short version. Every
//! case draws its faults from a seed, which its line in the output names, and is a story of its
//! own: start at [`cases`]. What all of them check is in [`oracle`], how they run real processes in
//! [`node`].

#![expect(clippy::unwrap_used, reason = "a panic is how a violation is told")]

mod calls;
mod cases;
mod dawdle;
mod exporter;
mod node;
mod oracle;
mod postgres;
mod suite;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    suite::run(cases::ALL)
}
