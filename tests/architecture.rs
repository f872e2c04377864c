//! The architecture as tests: which crate may import which.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What each crate may import of ours. ARCHITECTURE.md says why.
const ALLOWED: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("domain", &[]),
    ("launcher", &[]),
    ("listener", &[]),
    ("storage", &["domain"]),
    ("service", &["domain", "storage", "listener"]),
    ("identity", &["domain", "storage"]),
    ("keys", &["proto", "domain", "storage", "service"]),
    ("users", &["proto", "domain", "storage", "service"]),
    (
        "ingest",
        &["proto", "domain", "storage", "service", "identity"],
    ),
    (
        "segments",
        &["proto", "domain", "storage", "service", "identity"],
    ),
    ("client", &["proto", "domain"]),
    // Clients only, never storage: a partner's side of the wire, and a person's.
    ("bridge", &["proto", "domain", "client", "listener"]),
    ("console", &["proto", "domain", "client", "listener"]),
    ("testbed", &["launcher", "storage"]),
    // Sees Muster from outside, as a process, and the Postgres below it.
    (
        "bench",
        &["proto", "domain", "launcher", "client", "testbed"],
    ),
];

/// The command composes everything, and the journeys look at everything.
const UNRESTRICTED: &[&str] = &["cli", "tests", "fuzz-targets"];

#[test]
fn crates_import_only_what_the_architecture_allows() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for package in metadata.workspace_packages() {
        let name = package.name.strip_prefix("muster-").unwrap();
        if UNRESTRICTED.contains(&name) {
            continue;
        }
        let allowed = allowed
            .get(name)
            .unwrap_or_else(|| panic!("{name} has no row in the table"));
        seen.insert(name.to_owned());
        for dependency in &package.dependencies {
            // Tests may use the testbed and real clients.
            if dependency.kind == DependencyKind::Development {
                continue;
            }
            if let Some(ours) = dependency.name.strip_prefix("muster-") {
                assert!(allowed.contains(&ours), "{name} must not import {ours}");
            }
        }
    }
    let table: BTreeSet<String> = ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, table, "every row stands for a crate");
}

#[test]
fn the_domain_does_no_io() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let domain = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| package.name.as_str() == "muster-domain")
        .unwrap();
    for banned in ["tokio", "sqlx", "tonic", "hyper", "axum"] {
        let found = domain.dependencies.iter().any(|d| d.name == banned);
        assert!(!found, "the domain must not import {banned}");
    }
}
