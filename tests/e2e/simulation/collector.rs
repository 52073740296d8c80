//! Who collects garbage in a simulation: gc with no grace at all, over the same faults
//! as the daemons, so that only the commit protocol keeps what is needed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tierd::catalog::Catalog;
use tierd::clock::ManualClock;
use tierd::compact::gc::{Grace, Swept};
use tierd::compact::{CompactError, Compactor};
use tierd::store::Store;
use tierd_tests::gate::Gate;
use tokio::task::JoinHandle;

use super::Events;
use super::world::tp;

/// Later than anything was written: everything has had its grace.
const NOW_MS: i64 = i64::MAX / 2;

type Ended = Arc<Mutex<Option<Result<Swept, CompactError>>>>;

/// One process that collects.
pub(super) struct Collector {
    compactor: Arc<Compactor>,
    pass: Option<(JoinHandle<()>, Ended)>,
}

impl Collector {
    pub(super) fn new(catalog: Catalog, store: Store) -> Self {
        let nonce = Box::new(|| [3; 16]);
        let compactor = Compactor::new(Arc::new(catalog), store, ManualClock::at(0), nonce);
        Self { compactor: Arc::new(compactor), pass: None }
    }

    /// Begins to look and to delete, unless it is at it.
    pub(super) fn begin(&mut self, gate: &Arc<Gate>) {
        if self.pass.is_some() {
            return;
        }
        let (compactor, ended, gate) =
            (Arc::clone(&self.compactor), Ended::default(), Arc::clone(gate));
        let slot = Arc::clone(&ended);
        let pass = tokio::spawn(async move {
            let swept = collect(&compactor).await;
            *slot.lock().unwrap() = Some(swept);
            gate.tell();
        });
        self.pass = Some((pass, ended));
    }

    pub(super) fn is_at_work(&self) -> bool {
        self.pass.as_ref().is_some_and(|(_, ended)| ended.lock().unwrap().is_none())
    }

    /// Objects that a pass deleted, where one came to its end since it was last asked.
    pub(super) fn reap(&mut self, events: &Events) -> Option<u64> {
        let (_, ended) = self.pass.as_ref()?;
        let ended = ended.lock().unwrap().take()?;
        self.pass = None;
        events.lock().unwrap().push(format!("gc ended with {ended:?}"));
        match ended {
            Ok(swept) => Some(swept.objects),
            // It would have deleted what a manifest names.
            Err(error @ CompactError::Referenced { .. }) => panic!("{error}"),
            Err(_) => None,
        }
    }

    /// Kills it where it stands.
    pub(super) async fn die(&mut self) {
        if let Some((pass, _)) = self.pass.take() {
            pass.abort();
            // It was cancelled, which is what is awaited.
            let _ = pass.await;
        }
    }
}

/// Everything that may go, goes.
pub(super) async fn collect(compactor: &Compactor) -> Result<Swept, CompactError> {
    let grace = Grace { now_ms: NOW_MS, grace: Duration::ZERO };
    let survey = compactor.survey(&tp(), 0, grace).await?;
    compactor.sweep(survey, grace).await
}
