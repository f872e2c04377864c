//! That everything can be measured; how fast it is depends on the machine, and is nobody's promise.

use std::{fs, process::Command};

use serde_json::Value;

/// What every run measures; Redis comes on top where it is installed.
const METRICS: &[&str] = &[
    "ingest_ids_per_s",
    "ingest_vs_row_schema",
    "ingest_client_library_ids_per_s",
    "ingest_wal_bytes_per_id",
    "rest_ids_per_s",
    "resolve_users_per_s",
    "count_ms",
    "count_cold_ms",
    "import_users_per_s",
    "import_wal_bytes_per_user",
    "index_load_users_per_s",
    "index_bytes_per_user",
    "directory_bytes_per_user",
    "cohort_bytes_per_member",
    "delta_commit_ms_p50",
    "delta_commit_ms_p99",
    "delta_wal_bytes",
    "ingest_growth",
    "resolve_growth",
    "server_peak_memory_mib",
    "raw_copy_in_ids_per_s",
    "raw_copy_out_ids_per_s",
    "sql_join_ids_per_s",
    "row_schema_ingest_ids_per_s",
    "row_schema_read_ids_per_s",
    "row_schema_count_ms",
    "row_schema_count_cold_ms",
    "row_schema_bytes_per_member",
];

#[test]
fn every_metric_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("bench.json");
    let run = Command::new(env!("CARGO_BIN_EXE_muster-bench"))
        .args(["--users", "20000", "--ids", "4000", "--repeats", "1"])
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let (table, remarks) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{remarks}");
    let measured: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    for name in METRICS {
        let metric = &measured[name];
        let value = metric["value"].as_f64();
        assert!(
            value.is_some_and(|value| value.is_finite() && value > 0.0),
            "{name}: {metric}"
        );
        assert!(metric["unit"].is_string(), "{name}: {metric}");
        assert!(metric.get("limit").is_some(), "{name}: {metric}");
        assert!(metric.get("ratio").is_some(), "{name}: {metric}");
        assert!(table.contains(&format!("| `{name}`")), "{name}: {table}");
    }
}
