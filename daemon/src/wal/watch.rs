//! Owns being woken when the WAL directory gets or loses a file.
//!
//! Only that: what is there is learned by listing the directory, which happens now
//! and then anyway. Lost events, an overflow of the kernel's queue, a file system
//! without events or a system without watches left change latency and nothing else.

use std::path::Path;

use notify::event::{EventKind, ModifyKind};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

/// A watch on a WAL directory; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    /// `None` where the system gives no events.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Calls `wake` when a file or folder below `root` appears, vanishes or is
    /// renamed, or when events were lost. Writes do not wake: a segment is looked
    /// at when it has been quiet, and a busy broker would wake all the time.
    pub fn start(root: &Path, wake: impl Fn() + Send + 'static) -> Self {
        let handler = move |event: notify::Result<Event>| {
            if event.as_ref().map_or(true, wakes) {
                wake();
            }
        };
        let started = notify::recommended_watcher(handler).and_then(|mut watcher| {
            watcher.watch(root, RecursiveMode::Recursive)?;
            Ok(watcher)
        });
        let watcher = match started {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                let root = root.display();
                tracing::warn!(%error, "no file events for {root}: it is only listed now and then");
                None
            }
        };
        Self { _watcher: watcher }
    }
}

fn wakes(event: &Event) -> bool {
    let names = matches!(
        event.kind,
        EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    );
    names || event.need_rescan()
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, CreateKind, DataChange, Flag};

    use super::*;

    #[test]
    fn names_and_lost_events_wake_and_writes_and_reads_do_not() {
        assert!(wakes(&Event::new(EventKind::Create(CreateKind::File))));
        assert!(wakes(&Event::new(EventKind::Other).set_flag(Flag::Rescan)));
        assert!(!wakes(&Event::new(EventKind::Modify(ModifyKind::Data(DataChange::Any)))));
        assert!(!wakes(&Event::new(EventKind::Access(AccessKind::Any))));
    }

    #[test]
    fn a_new_segment_wakes_also_in_a_folder_made_after_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let watch = Watch::start(folder.path(), move || {
            let _ = tell.send(());
        });
        if watch._watcher.is_none() {
            return; // No events here: then listing has to do, and does.
        }
        std::fs::create_dir_all(folder.path().join("t/0")).unwrap();
        assert!(told.recv_timeout(std::time::Duration::from_secs(30)).is_ok());
    }

    #[test]
    fn a_directory_that_cannot_be_watched_is_no_failure() {
        let _ = Watch::start(Path::new("/nowhere/at/all"), || ());
    }
}
