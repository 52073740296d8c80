//! A control group with little memory for one process, below the one this process is
//! in: of version 2 where the memory controller is there, else of version 1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a group whose last process is gone may be busy.
const BUSY_MAX: Duration = Duration::from_secs(5);

/// The names of one version.
struct Names {
    limit: &'static str,
    swap: &'static str,
    peak: &'static str,
    kills: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    swap: "memory.memsw.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    kills: "memory.oom_control",
};
const V2: Names = Names {
    limit: "memory.max",
    swap: "memory.swap.max",
    peak: "memory.peak",
    kills: "memory.events",
};

/// A group, removed when dropped.
pub struct Cgroup {
    folder: PathBuf,
    names: &'static Names,
}

impl Cgroup {
    /// A group that may have `bytes` of memory; why there is none where none can be made.
    pub fn new(bytes: u64) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (own, names) = own()?;
        if names.limit == V2.limit {
            told(fs::write(own.join("cgroup.subtree_control"), "+memory"), &own)?;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = own.join(format!("tierd-test-{}-{number}", std::process::id()));
        told(fs::create_dir(&folder), &folder)?;
        let group = Self { folder, names };
        told(fs::write(group.folder.join(names.limit), bytes.to_string()), &group.folder)?;
        // In version 2 of swap alone, in version 1 of both together; not every system has it.
        let swap = if names.swap == V2.swap { 0 } else { bytes };
        let _ = fs::write(group.folder.join(names.swap), swap.to_string());
        Ok(group)
    }

    /// A shell that is in the group and becomes what is named behind.
    pub fn inside(&self) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(self.folder.join("cgroup.procs"));
        shell
    }

    /// Most bytes it had, files in the system's memory included; `None` where the system
    /// does not say.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.names.peak)).ok()?.trim().parse().ok()
    }

    /// Processes that were killed because they wanted more.
    pub fn kills(&self) -> u64 {
        let said = fs::read_to_string(self.folder.join(self.names.kills)).unwrap();
        let kills = said.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.expect("the system counts them").parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut waited = Duration::ZERO;
        while fs::remove_dir(&self.folder).is_err() && waited < BUSY_MAX {
            std::thread::sleep(Duration::from_millis(50));
            waited += Duration::from_millis(50);
        }
    }
}

/// The folder of the group that this process is in, where it says what memory it has.
fn own() -> Result<(PathBuf, &'static Names), String> {
    let groups = told(fs::read_to_string("/proc/self/cgroup"), Path::new("/proc/self/cgroup"))?;
    let mounts = told(fs::read_to_string("/proc/self/mounts"), Path::new("/proc/self/mounts"))?;
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let [_, at, kind, options, ..] = fields[..] else { continue };
        let (names, is_own): (_, fn(&str) -> bool) = match kind {
            "cgroup" => (&V1, |controllers| controllers.split(',').any(|one| one == "memory")),
            "cgroup2" => (&V2, str::is_empty),
            _ => continue,
        };
        if kind == "cgroup" && !options.split(',').any(|option| option == "memory") {
            continue;
        }
        // `number:controllers:/path`
        let path = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            parts.next().filter(|controllers| is_own(controllers)).and(parts.next())
        });
        let folder = Path::new(at).join(path.unwrap_or("/").trim_start_matches('/'));
        let controllers = fs::read_to_string(folder.join("cgroup.controllers"));
        let has = kind == "cgroup"
            || controllers.is_ok_and(|all| all.split_whitespace().any(|one| one == "memory"));
        if has {
            return Ok((folder, names));
        }
    }
    Err("no control group here has the memory controller".to_owned())
}

fn told<T>(done: std::io::Result<T>, at: &Path) -> Result<T, String> {
    done.map_err(|error| format!("{}: {error}", at.display()))
}
