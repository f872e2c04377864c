//! What it ran on.

use std::fs;

use serde_json::{Value, json};

/// The machine and its Postgres.
#[derive(Debug)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    memory_mib: u64,
    kernel: String,
    postgres: String,
}

impl Machine {
    /// This one, with a Postgres of that version.
    pub(crate) fn here(postgres: String) -> Self {
        let value = |file: &str, name: &str| -> Option<String> {
            let text = fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = value("/proc/meminfo", "MemTotal").unwrap_or_default();
        let memory_kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".to_owned()),
            memory_mib: memory_kib / 1024,
            kernel: kernel.trim().to_owned(),
            postgres,
        }
    }

    /// For people.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{} cores of {}, {} MiB of memory, Linux {}, PostgreSQL {}",
            self.cores, self.cpu, self.memory_mib, self.kernel, self.postgres
        )
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "cpu": self.cpu,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "postgres": self.postgres,
        })
    }
}
