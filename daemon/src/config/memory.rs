//! Owns how much memory this process may have, as the system says: the machine, the
//! control groups around the process and its own limits. Linux; elsewhere nobody says.

use std::path::{Path, PathBuf};

/// Limits of a process that count what it allocates.
const LIMITS: [&str; 2] = ["Max data size", "Max address space"];

/// Bytes of memory that this process may have at most; `None` where nobody says.
#[must_use]
pub fn memory_limit() -> Option<u64> {
    smallest_below(Path::new("/"))
}

/// The smallest limit that the system below `root` tells of.
fn smallest_below(root: &Path) -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    let machine = read("proc/meminfo").lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.parse::<u64>().ok()?.checked_mul(1024)
    });
    let limits = read("proc/self/limits");
    let own = limits.lines().filter_map(|line| {
        let rest = LIMITS.iter().find_map(|limit| line.strip_prefix(limit))?;
        rest.split_whitespace().next()?.parse().ok()
    });
    let groups = read("proc/self/cgroup");
    let groups = groups.lines().flat_map(|line| group(&root.join("sys/fs/cgroup"), line));
    machine.into_iter().chain(own).chain(groups).min()
}

/// The limits of a control group, `number:controllers:/path`, and of those around it.
/// A container may see its own group as the root, under the path that the host knows.
fn group(mounted: &Path, line: &str) -> Vec<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (mounted, file): (PathBuf, _) = match controllers {
        // Version 2: one hierarchy for all controllers.
        "" => (mounted.to_owned(), "memory.max"),
        one if one.split(',').any(|one| one == "memory") => {
            (mounted.join("memory"), "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let own = mounted.join(path.trim_start_matches('/'));
    let around = own.ancestors().take_while(|folder| folder.starts_with(&mounted));
    let limit =
        |folder: &Path| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
    // `max` is no number and no limit.
    around.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_of_machine_groups_and_process_counts() {
        let machine = ("proc/meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n");
        let v2 = ("proc/self/cgroup", "0::/a/b\n");
        let limits = "Limit  Soft Limit\nMax data size    524288    unlimited   bytes\n\
            Max open files 20 20 files\nMax address space  unlimited  unlimited  bytes\n";
        let cases: [(&[_], Option<u64>); 9] = [
            (&[], None),
            (&[machine], Some(2 << 20)),
            (&[machine, ("proc/self/limits", limits)], Some(512 << 10)),
            (&[machine, v2, ("sys/fs/cgroup/a/b/memory.max", "max\n")], Some(2 << 20)),
            (&[machine, v2, ("sys/fs/cgroup/a/b/memory.max", "1048576\n")], Some(1 << 20)),
            (&[machine, v2, ("sys/fs/cgroup/a/memory.max", "4096\n")], Some(4096)),
            // In a container: its own group is the root, or is known by the host's path.
            (&[v2, ("sys/fs/cgroup/memory.max", "4096\n")], Some(4096)),
            (
                &[
                    machine,
                    ("proc/self/cgroup", "5:cpu:/c\n4:hugetlb,memory:/c\n0::/\n"),
                    ("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "8192\n"),
                    ("sys/fs/cgroup/cpu/c/memory.limit_in_bytes", "1\n"),
                ],
                Some(8192),
            ),
            // What version 1 says where there is none.
            (
                &[
                    machine,
                    ("proc/self/cgroup", "4:memory:/\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(2 << 20),
            ),
        ];
        for (files, limit) in cases {
            assert_eq!(smallest_below(system(files).path()), limit, "{files:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_says() {
        assert!(memory_limit().is_some_and(|limit| limit > 1 << 20));
    }
}
