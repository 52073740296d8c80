//! The scheduler: who may do what next, what goes wrong with it, and what must hold
//! whatever was chosen.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tierd::archive::{ArchiveOptions, IndexLevel};
use tierd::catalog::{Catalog, ClusterName, WriterId};
use tierd::clock::{Clock, ManualClock};
use tierd::compact::Compactor;
use tierd::indexer::{Indexer, LiveIndexer, LiveOptions, PartitionReport, Progress};
use tierd::metrics::Metrics;
use tierd::read::{ArchiveReader, ReadOptions};
use tierd::record::{Codec, TopicName, TopicPartition};
use tierd::store::{ObjectKey, Store};
use tierd::wal::classify::Rules;
use tierd::wal::{BrokerStart, WalDir, WalFormat};
use tierd_tests::audit::{Audit, audit, range_of};
use tierd_tests::chronik::sample_batch;
use tierd_tests::counting::Op;
use tierd_tests::faults::{Fault, FaultStore, Later, passing};
use tierd_tests::gate::Gate;
use tokio::task::JoinHandle;

use super::collector::{Collector, collect};
use super::replica::Replica;
use super::{Events, TOPIC};

/// When the brokers started, milliseconds since 1970.
const STARTED: i64 = 1_700_000_000_000;
/// Bytes after which an archive is full: small, so that there are several.
const ARCHIVE_BYTES: u64 = 1_500;
/// Rounds in which the backlog must be gone once nothing fails any more. In each the
/// clocks move on by [`ROUND`].
const DRAIN_ROUNDS_MAX: u32 = 40;
/// Longer than a failure is left alone, and than a segment has to be idle.
const ROUND: Duration = Duration::from_secs(700);
/// Rounds without anything to do after which there is nothing: more than a hole is
/// waited for.
const QUIET_ROUNDS: u32 = 6;
/// Who collects, at the gate.
const COLLECTOR: usize = usize::MAX;
/// Choices in which everything fails, and in which a daemon sleeps.
const STORM_MAX: u32 = 60;
const SLEEP_MAX: u32 = 150;

/// What the simulations did, in sum: one that never reaches a case proves nothing.
#[derive(Debug, Default)]
pub(super) struct Sums {
    requests: u64,
    faults: u64,
    crashes: u64,
    manifests: u64,
    audits: u64,
    late: u64,
    declared_gaps: u64,
    beneath: u64,
    deleted: u64,
    collections: u64,
    collected: u64,
}

impl Sums {
    pub(super) fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.faults += more.faults;
        self.crashes += more.crashes;
        self.manifests += more.manifests;
        self.audits += more.audits;
        self.late += more.late;
        self.declared_gaps += more.declared_gaps;
        self.beneath += more.beneath;
        self.deleted += more.deleted;
        self.collections += more.collections;
        self.collected += more.collected;
    }
}

type Ended = Arc<Mutex<Option<(PartitionReport, Progress)>>>;

struct Daemon {
    wal: Replica,
    clock: Arc<ManualClock>,
    live: Arc<LiveIndexer>,
    step: Option<(JoinHandle<()>, Ended)>,
    /// Choices for which it does nothing, as a process that is stopped.
    asleep: u32,
    /// The most it has told to be archived.
    told: i64,
    /// Whether the store told it in this step that something is not there which is.
    lied_to: bool,
}

struct World {
    random: StdRng,
    seed: u64,
    folder: tempfile::TempDir,
    /// What is stored, with no faults before it.
    objects: Arc<dyn ObjectStore>,
    gate: Arc<Gate>,
    later: Later,
    daemons: Vec<Daemon>,
    collector: Collector,
    /// How often a request fails.
    chance: f64,
    storm: u32,
    /// Whether it is one because credentials have expired.
    denied: bool,
    wall_ms: i64,
    end: i64,
    all: BTreeSet<Bytes>,
    /// End of the archived log when it was last looked at.
    through: i64,
    lives: u64,
    sums: Sums,
    events: Events,
}

/// Runs the simulation of `seed`; panics where something does not hold.
pub(super) async fn run(seed: u64, events: &Events) -> Sums {
    let mut world = World::new(seed, events);
    for _ in 0..world.random.random_range(50..600) {
        world.settle().await;
        world.choose().await;
    }
    world.settle().await;
    world.audit().await;
    world.drain().await;
    world.sums
}

pub(super) fn tp() -> TopicPartition {
    TopicPartition::new(TopicName::new(TOPIC).unwrap(), 0).unwrap()
}

fn catalog(store: &Store, writer: &str, clock: Arc<dyn Clock>, life: u64) -> Catalog {
    let (next, name) = (AtomicU64::new(0), writer.to_owned());
    let nonce = move || {
        let seed = format!("{name} {life} {}", next.fetch_add(1, Ordering::Relaxed));
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&blake3::hash(seed.as_bytes()).as_bytes()[..16]);
        nonce
    };
    let (cluster, writer) = (ClusterName::new("c").unwrap(), WriterId::new(writer).unwrap());
    Catalog::new(store.clone(), cluster, writer, clock, Box::new(nonce))
}

/// The log of the leader, and what the replica `who` has of it: the same, but for some
/// batches where `diverges`.
fn log(batches: usize, who: usize, diverges: bool, random: &mut StdRng) -> Vec<Bytes> {
    let mut base = 0;
    let mut log = Vec::new();
    // Offsets come from a generator that is the same for every replica.
    let mut shared = StdRng::seed_from_u64(batches as u64);
    for _ in 0..batches {
        let count = shared.random_range(1..6);
        let other = diverges && who > 0 && random.random_bool(0.2);
        let len = if other { 30 + who } else { 20 };
        log.push(sample_batch(base, count, len, Codec::None).unwrap());
        base += i64::from(count);
    }
    log
}

impl World {
    fn new(seed: u64, events: &Events) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let (batches, count) = (random.random_range(4..40), random.random_range(2..4));
        let diverges = random.random_bool(0.3);
        let chance = [0.0, 0.03, 0.1, 0.3][random.random_range(0..4)];
        let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let gate = Arc::<Gate>::default();
        let faulty = FaultStore::judged(Arc::clone(&objects), gate.door(COLLECTOR));
        let store = Store::new(faulty, "").with_backoff(Duration::ZERO);
        let collecting = catalog(&store, "gc", ManualClock::at(0), 0);
        let mut world = Self {
            seed,
            folder,
            objects,
            gate,
            collector: Collector::new(collecting, store),
            later: Later::default(),
            daemons: Vec::new(),
            chance,
            storm: 0,
            denied: false,
            wall_ms: STARTED + 1_000_000,
            end: 0,
            all: BTreeSet::new(),
            through: 0,
            lives: 0,
            sums: Sums::default(),
            events: Arc::clone(events),
            random,
        };
        for who in 0..count {
            let log = log(batches, who, diverges, &mut world.random);
            world.end = log.last().map_or(0, |last| range_of(last).1 + 1);
            world.all.extend(log.iter().cloned());
            let root = world.folder.path().join(format!("wal-{who}"));
            let wal = Replica::new(&root, &log, &mut world.random);
            // Wall clocks differ by hours.
            let skew = world.random.random_range(-7_200_000..7_200_000);
            let clock = ManualClock::at(world.wall_ms + skew);
            let live = world.live(who, &clock, STARTED);
            world.daemons.push(Daemon {
                wal,
                clock,
                live,
                step: None,
                asleep: 0,
                told: 0,
                lied_to: false,
            });
        }
        world
    }

    /// A daemon that has just started beside a broker that started at `started`.
    fn live(&mut self, who: usize, clock: &Arc<ManualClock>, started: i64) -> Arc<LiveIndexer> {
        self.lives += 1;
        let faulty = FaultStore::judged(Arc::clone(&self.objects), self.gate.door(who));
        let store = Store::new(faulty, "").with_backoff(Duration::ZERO);
        let time: Arc<dyn Clock> = Arc::<ManualClock>::clone(clock);
        let catalog = catalog(&store, &format!("writer-{who}"), Arc::clone(&time), self.lives);
        let options = ArchiveOptions {
            target_log_bytes: ARCHIVE_BYTES,
            index_level: if self.seed.is_multiple_of(16) {
                IndexLevel::Keys
            } else {
                IndexLevel::None
            },
            ..ArchiveOptions::default()
        };
        let reader = ArchiveReader::new(store.clone(), ReadOptions::default());
        let scratch = self.folder.path().join(format!("scratch-{who}"));
        let format = WalFormat::Chronik;
        let (catalog, metrics) = (Arc::new(catalog), Metrics::new(Arc::clone(&time)).unwrap());
        let indexer = Indexer::new(format, catalog, store, reader, scratch, options, metrics);
        let wal = WalDir::open(&self.folder.path().join(format!("wal-{who}")), format).unwrap();
        // Every segment that has a later one passes for rotated when it has settled.
        let rules = Rules { rotated_bytes_min: 0, ..Rules::default() };
        let gap_timeout = Duration::from_secs(3600);
        let broker = BrokerStart::At(started);
        let standby_wait = Duration::from_secs(60);
        let options = LiveOptions { broker, rules, gap_timeout, standby_wait, reclaim: false };
        Arc::new(LiveIndexer::new(indexer, wal, options, time, Arc::new(|| 1.0)))
    }

    fn note(&self, event: String) {
        self.events.lock().unwrap().push(event);
    }

    /// Waits until every daemon at work has a request at the gate or has ended its step.
    async fn settle(&mut self) {
        loop {
            let busy = (0..self.daemons.len()).any(|who| {
                let step = self.daemons[who].step.as_ref();
                step.is_some_and(|(_, ended)| ended.lock().unwrap().is_none())
                    && !self.gate.has(who)
            });
            let collects = self.collector.is_at_work() && !self.gate.has(COLLECTOR);
            if !busy && !collects {
                break;
            }
            self.gate.changed().await;
        }
        for who in 0..self.daemons.len() {
            self.reap(who).await;
        }
        if let Some(collected) = self.collector.reap(&self.events) {
            self.sums.collections += 1;
            self.sums.collected += collected;
        }
    }

    /// Takes in how a step ended: what it told is true.
    async fn reap(&mut self, who: usize) {
        let Some((_, ended)) = &self.daemons[who].step else { return };
        let Some((report, progress)) = ended.lock().unwrap().take() else { return };
        self.daemons[who].step = None;
        let error = report.error.map(|error| error.to_string());
        self.note(format!("daemon {who} ended with {progress:?} {error:?}"));
        self.look_at_the_log().await;
        let told = report.archived_through;
        if matches!(progress, Progress::Done | Progress::Waiting(_)) {
            assert!(told <= self.through, "told {told}, archived through {}", self.through);
            // A partition that is said not to be there may as well be new.
            let daemon = &mut self.daemons[who];
            assert!(told >= daemon.told || daemon.lied_to, "{told} after {}", daemon.told);
            daemon.told = daemon.told.max(told);
            // The broker takes the word for it.
            let releasable = report.releasable_through;
            assert!(releasable <= self.through, "{releasable} may go, {} is there", self.through);
            if self.random.random_bool(0.5) {
                let deleted = self.daemons[who].wal.delete_below(releasable);
                self.note(format!("broker {who} deletes {deleted} segments below {releasable}"));
                self.sums.deleted += deleted as u64;
            }
        }
    }

    /// The end of what is archived never goes back.
    async fn look_at_the_log(&mut self) {
        let (store, catalog) = self.auditor();
        let newest = catalog.load(&tp(), None).await.unwrap();
        let through = newest.map_or(0, |newest| newest.archived_through());
        drop(store);
        assert!(through >= self.through, "{through} after {}", self.through);
        self.through = through;
    }

    fn auditor(&self) -> (Store, Catalog) {
        let store = Store::new(Arc::clone(&self.objects), "");
        let clock: Arc<dyn Clock> = ManualClock::at(0);
        let catalog = catalog(&store, "auditor", clock, 0);
        (store, catalog)
    }

    async fn choose(&mut self) {
        self.storm = self.storm.saturating_sub(1);
        let who = self.random.random_range(0..self.daemons.len());
        if self.daemons[who].asleep > 0 {
            self.daemons[who].asleep -= 1;
            return;
        }
        self.wall_ms += 10;
        match self.random.random_range(0..1000) {
            0..580 => self.advance(who).await,
            580..700 => self.advance_gc(),
            700..800 => {
                let count = self.random.random_range(1..4);
                let wall_ms = self.wall_ms;
                self.daemons[who].wal.append(count, wall_ms, &mut self.random);
            }
            800..930 => {
                let seconds = [1, 31, 300, 601, 3601][self.random.random_range(0..5)];
                self.daemons[who].clock.advance(Duration::from_secs(seconds));
                self.wall_ms += 1000 * seconds as i64;
            }
            930..945 => {
                // The wall clock is set, back or forth.
                let to = self.wall_ms + self.random.random_range(-3_600_000..3_600_000);
                self.daemons[who].clock.set_wall_ms(to);
            }
            945..960 => self.crash(who).await,
            960..975 => self.daemons[who].asleep = self.random.random_range(1..SLEEP_MAX),
            975..980 => {
                self.storm = self.random.random_range(1..STORM_MAX);
                self.denied = self.random.random_bool(0.3);
            }
            980..990 => self.land_one().await,
            990..998 => drop(self.audit().await),
            _ => self.collector.die().await,
        }
    }

    /// Lets a daemon do one more thing: its next request, or its next step.
    async fn advance(&mut self, who: usize) {
        if let Some(request) = self.gate.take(who) {
            self.sums.requests += 1;
            let fault = self.fault(request.op);
            self.sums.faults += u64::from(fault.is_some());
            self.daemons[who].lied_to |= matches!(fault, Some(Fault::Vanished));
            self.note(format!("daemon {who}: {:?} {} {fault:?}", request.op, request.path));
            request.release(fault);
            // Whoever was let go is at work until he shows otherwise.
            tokio::task::yield_now().await;
        } else {
            self.begin(who);
        }
    }

    /// Lets gc do one more thing: its next request, or its next pass.
    fn advance_gc(&mut self) {
        let Some(request) = self.gate.take(COLLECTOR) else {
            return self.collector.begin(&self.gate);
        };
        self.sums.requests += 1;
        let fault = self.fault(request.op);
        self.sums.faults += u64::from(fault.is_some());
        self.note(format!("gc: {:?} {} {fault:?}", request.op, request.path));
        request.release(fault);
    }

    fn begin(&mut self, who: usize) -> bool {
        let daemon = &mut self.daemons[who];
        if daemon.step.is_some() || daemon.live.look().unwrap().due.is_empty() {
            return false;
        }
        let (live, gate) = (Arc::clone(&daemon.live), Arc::clone(&self.gate));
        let ended = Ended::default();
        let slot = Arc::clone(&ended);
        let step = tokio::spawn(async move {
            let how = live.step(&tp()).await;
            *slot.lock().unwrap() = Some(how);
            gate.tell();
        });
        (daemon.step, daemon.lied_to) = (Some((step, ended)), false);
        self.note(format!("daemon {who} begins a step"));
        true
    }

    /// What goes wrong with the next request, if anything.
    fn fault(&mut self, op: Op) -> Option<Fault> {
        if self.storm > 0 {
            if self.denied {
                return Some(Fault::Denied);
            }
            let busy = [Fault::Unavailable, Fault::Throttled];
            return Some(busy[self.random.random_range(0..2)].clone());
        }
        if !self.random.random_bool(self.chance) {
            return None;
        }
        let worse: Vec<Fault> = match op {
            Op::Get | Op::GetRange => {
                vec![Fault::Flip(self.random.random_range(0..u64::MAX)), Fault::Vanished]
            }
            Op::Head => vec![Fault::Vanished],
            Op::List => vec![Fault::Stale(self.random.random_range(0..u64::MAX))],
            _ => vec![Fault::Late(self.later.clone())],
        };
        let which = self.random.random_range(0..passing(op).len() + worse.len());
        Some(passing(op).get(which).unwrap_or_else(|| &worse[which - passing(op).len()]).clone())
    }

    async fn land_one(&mut self) {
        if !self.later.is_empty() {
            let which = self.random.random_range(0..self.later.len());
            self.note(format!("request {which} of those under way takes effect"));
            self.later.land(which).await;
            self.sums.late += 1;
            self.look_at_the_log().await;
        }
    }

    /// Kills a daemon where it stands, and starts it again.
    async fn crash(&mut self, who: usize) {
        self.sums.crashes += 1;
        if let Some(request) = self.gate.take(who) {
            let landing = self.random.random_bool(0.5);
            self.note(format!("daemon {who} dies: {:?} {} {landing}", request.op, request.path));
            let fault = if landing { Fault::SilentAfterLanding } else { Fault::Silent };
            request.release(Some(fault));
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        }
        if let Some((step, _)) = self.daemons[who].step.take() {
            step.abort();
            // It was cancelled, which is what is awaited.
            let _ = step.await;
        }
        let clock = Arc::clone(&self.daemons[who].clock);
        // Sometimes the broker was started again too: its segments are closed.
        let started = if self.random.random_bool(0.5) {
            self.daemons[who].wal.roll();
            self.wall_ms
        } else {
            STARTED
        };
        self.daemons[who].live = self.live(who, &clock, started);
        self.daemons[who].told = 0;
    }

    /// Reads everything that is archived with another reader.
    async fn audit(&mut self) -> Option<Audit> {
        self.sums.audits += 1;
        let (store, catalog) = self.auditor();
        let found = audit(&store, &catalog, &tp()).await.unwrap()?;
        self.sums.declared_gaps += found.gaps.len() as u64;
        let archived: Vec<&Bytes> = found.served.iter().chain(&found.beneath).collect();
        let once: BTreeSet<&Bytes> = archived.iter().copied().collect();
        assert_eq!(once.len(), archived.len(), "a batch is archived twice");
        assert!(once.iter().all(|wire| self.all.contains(*wire)), "nobody wrote this");
        Some(found)
    }

    /// No faults any more: everything is archived soon, and then nothing happens.
    async fn drain(&mut self) {
        (self.chance, self.storm) = (0.0, 0);
        self.collector.die().await;
        self.note("nothing fails any more".to_owned());
        for daemon in &mut self.daemons {
            daemon.asleep = 0;
            while !daemon.wal.is_whole() {
                self.wall_ms += 10;
                daemon.wal.append(3, self.wall_ms, &mut self.random);
            }
        }
        let (mut rounds, mut quiet) = (0, 0);
        while quiet < QUIET_ROUNDS {
            quiet = if self.round().await && self.later.is_empty() { quiet + 1 } else { 0 };
            rounds += 1;
            assert!(rounds < DRAIN_ROUNDS_MAX, "the backlog does not drain");
        }
        let found = self.audit().await.expect("something was written");
        assert_eq!(found.snapshot.archived_through(), self.end);
        assert_eq!(found.gaps, [], "everything was there");
        let archived: BTreeSet<Bytes> =
            found.served.iter().chain(&found.beneath).cloned().collect();
        assert_eq!(archived, self.all, "in neither tier");
        self.assert_no_garbage().await;
        let found = self.audit().await.expect("it was there");
        let number = found.snapshot.number();
        self.sums.manifests += number;
        self.sums.beneath += found.beneath.len() as u64;
    }

    /// What gc leaves is what the newest manifest names, and manifests.
    async fn assert_no_garbage(&self) {
        let (store, catalog) = self.auditor();
        let catalog = Arc::new(catalog);
        let nonce = Box::new(|| [4; 16]);
        let clock = ManualClock::at(0);
        let compactor = Compactor::new(Arc::clone(&catalog), store.clone(), clock, nonce);
        collect(&compactor).await.unwrap();
        let newest = catalog.load(&tp(), None).await.unwrap().unwrap();
        let needed = newest.references().await.unwrap();
        let listed: Vec<_> = store.list("c").try_collect().await.unwrap();
        for object in listed {
            let key = ObjectKey::decode(&object.name).unwrap();
            let made = matches!(
                key,
                ObjectKey::Archive { .. } | ObjectKey::Page { .. } | ObjectKey::Side { .. }
            );
            assert!(!made || needed.contains(&key), "{key} is left");
        }
    }

    /// Everyone does what there is to do; says whether there was nothing.
    async fn round(&mut self) -> bool {
        let mut quiet = true;
        self.land_one().await;
        for who in 0..self.daemons.len() {
            self.daemons[who].clock.advance(ROUND);
            quiet &= !self.begin(who) && self.daemons[who].step.is_none();
        }
        while self.daemons.iter().any(|daemon| daemon.step.is_some()) {
            self.settle().await;
            let who = self.random.random_range(0..self.daemons.len());
            if self.gate.has(who) {
                self.advance(who).await;
            }
        }
        quiet
    }
}
