//! How much memory Postgres keeps tables and indices in.

use std::{fs, ops::RangeInclusive};

const MIB: u64 = 1 << 20;

/// Bounds of what it gets, in MiB.
const BOUNDS: RangeInclusive<u64> = 128..=2048;

/// An eighth of the memory there is, as a setting: enough for the indices of millions of users, which
/// are written to in no order, and little enough for all else that runs here.
pub(crate) fn shared_buffers() -> String {
    let whole = [machine(), container()].into_iter().flatten().min();
    let share = whole.map_or(*BOUNDS.start(), |bytes| bytes / 8 / MIB);
    format!("{}MB", share.clamp(*BOUNDS.start(), *BOUNDS.end()))
}

/// Of the machine, in bytes; `None` where that is not told.
fn machine() -> Option<u64> {
    let told = fs::read_to_string("/proc/meminfo").ok()?;
    let total = told
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// Of the container, in bytes; `None` if it has no limit.
fn container() -> Option<u64> {
    let told = fs::read_to_string("/sys/fs/cgroup/memory.max").ok()?;
    told.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_gets_a_part_of_the_memory_within_bounds() {
        let setting = shared_buffers();
        let mib: u64 = setting.strip_suffix("MB").unwrap().parse().unwrap();
        assert!(BOUNDS.contains(&mib), "{setting}");
    }
}
