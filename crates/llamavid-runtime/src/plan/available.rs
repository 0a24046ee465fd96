//! Memory that this process may still take: the machine's, or less where a control group limits it.
//!
//! Linux says so in files. Elsewhere nothing is known, and nothing is guessed.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Memory {
    /// All that there is.
    pub(super) total: u64,
    /// What can be taken without pushing out what others use.
    pub(super) available: u64,
    /// Whose numbers these are.
    pub(super) limit: Limit,
}

/// What ends first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Limit {
    /// The machine's memory.
    Machine,
    /// The control group of a container or service.
    Cgroup,
    /// A graphics processor's own memory.
    Gpu,
}

impl Memory {
    /// That of a graphics processor.
    pub(super) fn of_gpu(total: u64, available: u64) -> Self {
        Self { total, available, limit: Limit::Gpu }
    }

    /// This and another one.
    pub(super) fn with(self, other: Self) -> Self {
        Self { total: self.total + other.total, available: self.available + other.available, ..self }
    }
}

/// What this process may take now; none where the system does not say.
pub(super) fn memory() -> Option<Memory> {
    memory_below(Path::new("/"))
}

/// The same, with the system's files below `root`.
fn memory_below(root: &Path) -> Option<Memory> {
    let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let kilobytes = |name: &str| field(&meminfo, name).map(|value| value << 10);
    let machine = Memory {
        total: kilobytes("MemTotal:")?,
        available: kilobytes("MemAvailable:")?,
        limit: Limit::Machine,
    };
    let groups = control_groups(root).into_iter().filter_map(|group| group_memory(&group));
    Some(groups.fold(machine, |least, group| if group.available < least.available { group } else { least }))
}

/// Folders of the process's control group and of those around it, each of which may set a limit.
fn control_groups(root: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut groups = Vec::new();
    for line in listed.lines() {
        // `0::/path` in the second version of control groups, `4:memory:/path` in the first.
        let Some((controllers, path)) = line.split_once(':').and_then(|(_, rest)| rest.split_once(':'))
        else {
            continue;
        };
        let mount = match controllers {
            "" => root.join("sys/fs/cgroup"),
            list if list.split(',').any(|name| name == "memory") => root.join("sys/fs/cgroup/memory"),
            _ => continue,
        };
        let group = mount.join(path.trim_start_matches('/'));
        groups
            .extend(group.ancestors().take_while(|folder| folder.starts_with(&mount)).map(Path::to_path_buf));
    }
    groups
}

/// A group's memory, if it has a limit.
fn group_memory(group: &Path) -> Option<Memory> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // No limit is `max`, or in the first version a number above all memory.
    let total = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let part = |version_1: &str, version_2: &str| field(&stat, version_1).or_else(|| field(&stat, version_2));
    // Read files that nobody has mapped count as used, and go when memory is needed.
    let cached = ["inactive_file", "active_file"]
        .into_iter()
        .filter_map(|name| part(&format!("total_{name}"), name))
        .sum();
    let available = total.saturating_sub(used.saturating_sub(cached));
    Some(Memory { total, available, limit: Limit::Cgroup })
}

/// The number behind `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn machine(files: &[(&str, &str)]) -> Option<Memory> {
        let root = tempfile::tempdir().unwrap();
        let meminfo = "MemTotal:       16777216 kB\nMemFree:  1048576 kB\nMemAvailable:   8388608 kB\n";
        for (name, text) in [("proc/meminfo", meminfo)].iter().chain(files) {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        memory_below(root.path())
    }

    #[test]
    fn without_groups_the_machine_counts() {
        let memory = machine(&[]).unwrap();
        assert_eq!(memory, Memory { total: 16 * GIB, available: 8 * GIB, limit: Limit::Machine });
    }

    #[test]
    fn a_container_has_less_and_its_file_cache_is_not_used() {
        let memory = machine(&[
            ("proc/self/cgroup", "0::/work/job\n"),
            ("sys/fs/cgroup/work/job/memory.max", "max\n"),
            ("sys/fs/cgroup/work/job/memory.current", "1\n"),
            ("sys/fs/cgroup/work/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/work/memory.current", "4294967296\n"),
            (
                "sys/fs/cgroup/work/memory.stat",
                "anon 1073741824\ninactive_file 2147483648\nactive_file 1073741824\n",
            ),
        ]);
        assert_eq!(memory.unwrap(), Memory { total: 4 * GIB, available: 3 * GIB, limit: Limit::Cgroup });
    }

    #[test]
    fn the_first_version_of_groups_is_read_too() {
        let unlimited = "9223372036854771712";
        for (limit, expected) in [("2147483648", GIB), (unlimited, 8 * GIB)] {
            let memory = machine(&[
                ("proc/self/cgroup", "5:cpu,cpuacct:/other\n4:memory:/job\n"),
                ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1610612736"),
                ("sys/fs/cgroup/memory/job/memory.stat", "inactive_file 1\ntotal_inactive_file 536870912\n"),
            ]);
            assert_eq!(memory.unwrap().available, expected);
        }
    }

    #[test]
    fn a_system_that_does_not_say_has_no_numbers() {
        assert_eq!(memory_below(tempfile::tempdir().unwrap().path()), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        let memory = memory().unwrap();
        assert!(memory.available > 0 && memory.available <= memory.total);
    }
}
