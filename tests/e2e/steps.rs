//! Killed right before and right after every durable step: every request of a piece of
//! work that changes the store is once the last that is sent, and once the first that
//! is not. Then the work is done again, and an independent reader finds everything
//! archived once.
//!
//! Which steps there are is read from the sources: a call that writes to the store and
//! that no piece of work here comes to fails the test.

pub(crate) mod calls;
mod works;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use object_store::ObjectStore;
use tierd::store::{ObjectKey, Store};
use tierd_tests::counting::Op;
use tierd_tests::faults::{Fault, FaultStore, Judge};
use tokio::sync::Notify;

use works::{Site, Work};

/// A step that changes what is stored: what is done to which sort of object.
type Step = String;

/// Lets requests pass up to the one at which the process dies.
struct Killer {
    /// Steps until then.
    left: AtomicUsize,
    /// Whether the last one takes effect.
    after: bool,
    steps: Mutex<Vec<Step>>,
    dead: Notify,
}

impl Killer {
    fn new(left: usize, after: bool) -> Arc<Self> {
        let (left, steps) = (AtomicUsize::new(left), Mutex::default());
        Arc::new(Self { left, after, steps, dead: Notify::new() })
    }

    fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }
}

fn changes(op: Op) -> bool {
    !matches!(op, Op::Get | Op::GetRange | Op::Head | Op::List)
}

fn step(op: Op, path: &str) -> Step {
    // The sort of an object is the variant of its name.
    let key = ObjectKey::decode(path).unwrap_or_else(|error| panic!("{error}"));
    let sort: String = format!("{key:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
    format!("{op:?} {sort}")
}

#[async_trait]
impl Judge for Killer {
    async fn judge(&self, op: Op, path: &str) -> Option<Fault> {
        if !changes(op) {
            return None;
        }
        self.steps.lock().unwrap().push(step(op, path));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            Some(left.saturating_sub(1))
        });
        if before != Ok(1) {
            return None;
        }
        self.dead.notify_one();
        Some(if self.after { Fault::SilentAfterLanding } else { Fault::Silent })
    }
}

/// Works on `objects` until killed; says whether it came to the end instead.
async fn work(
    work: Work,
    site: &Arc<Site>,
    objects: &Arc<dyn ObjectStore>,
    with: &Arc<Killer>,
) -> bool {
    let judge: Arc<dyn Judge> = Arc::<Killer>::clone(with);
    let store = Store::new(FaultStore::judged(Arc::clone(objects), judge), "");
    let (site, killer) = (Arc::clone(site), Arc::clone(with));
    let mut task = tokio::spawn(async move { work.run(&site, store).await });
    tokio::select! {
        ended = &mut task => {
            ended.unwrap();
            return true;
        }
        () = killer.dead.notified() => {}
    }
    if killer.after {
        // Stores in memory need no more than their turn: the request takes effect.
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }
    task.abort();
    // It was cancelled, or ended by itself.
    let _ = task.await;
    false
}

async fn kill_everywhere(of: Work) -> BTreeSet<Step> {
    let site = Arc::new(Site::prepare(of).await);
    let through = Killer::new(usize::MAX, false);
    assert!(work(of, &site, &site.fork(), &through).await, "{of:?} without a kill");
    let all = through.steps();
    assert!(!all.is_empty(), "{of:?} changes nothing");
    for after in [false, true] {
        for at in 1..=all.len() {
            let objects = site.fork();
            let killer = Killer::new(at, after);
            let killed =
                format!("{of:?} killed {} {}", if after { "after" } else { "before" }, all[at - 1]);
            assert!(!work(of, &site, &objects, &killer).await, "{killed}: it came to an end");
            // Parts of one upload are under way at the same time.
            let taken = killer.steps();
            assert_eq!(taken[..at], all[..at], "{killed}: it takes another way each time");
            assert!(taken[at..].iter().all(|step| step == "Part Archive"), "{killed}: {taken:?}");
            site.check_whole(&objects, &killed).await;
            assert!(work(of, &site, &objects, &Killer::new(usize::MAX, false)).await);
            site.check_done(of, &objects, &killed).await;
        }
    }
    println!("{of:?}: {} steps, {} kills", all.len(), 2 * all.len());
    all.into_iter().collect()
}

/// Table: F1 F21 I3 I5 I7 I10 | before and after every request that changes the store; which
/// there are is read from the sources
#[tokio::test]
async fn killed_before_and_after_every_durable_step_the_work_is_done_by_doing_it_again() {
    let mut visited: BTreeMap<Step, Vec<Work>> = BTreeMap::new();
    for of in Work::ALL {
        for step in kill_everywhere(of).await {
            visited.entry(step).or_default().push(of);
        }
    }
    for (step, by) in &visited {
        println!("{step}: {by:?}");
    }
    let mut expected = BTreeSet::new();
    for call in calls::in_the_sources() {
        if calls::is_elsewhere(&call) {
            continue;
        }
        let Some(steps) = calls::steps_of(&call) else {
            panic!("{call} writes to the store; add a piece of work that comes to it here");
        };
        expected.extend(steps.iter().map(|step| (*step).to_owned()));
    }
    let visited: BTreeSet<Step> = visited.into_keys().collect();
    assert_eq!(visited, expected, "left: killed at, right: what the sources do");
}
