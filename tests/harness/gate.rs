//! Owns the gate of a simulation: every request of every actor waits there until the
//! scheduler lets it pass, or says what goes wrong with it.
//!
//! An actor is a daemon or a reader with a store of its own, a [`FaultStore`] judged by
//! its door. An actor sends one request at a time as long as nothing in it works in
//! parallel: then one seed gives one order of events.
//!
//! [`FaultStore`]: crate::faults::FaultStore

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{Notify, oneshot};

use crate::counting::Op;
use crate::faults::{Fault, Judge};

/// A request that waits.
#[derive(Debug)]
pub struct Parked {
    /// Who sent it.
    pub actor: usize,
    /// What it does.
    pub op: Op,
    /// To which object or folder.
    pub path: String,
    answer: oneshot::Sender<Option<Fault>>,
}

impl Parked {
    /// Lets it go on, with what goes wrong.
    pub fn release(self, fault: Option<Fault>) {
        // Who sent it may be gone.
        let _ = self.answer.send(fault);
    }
}

/// Where requests wait.
#[derive(Debug, Default)]
pub struct Gate {
    parked: Mutex<Vec<Parked>>,
    changed: Notify,
}

impl Gate {
    /// The judge of `actor`'s requests.
    #[must_use]
    pub fn door(self: &Arc<Self>, actor: usize) -> Arc<dyn Judge> {
        Arc::new(Door { gate: Arc::clone(self), actor })
    }

    /// Takes the request of `actor` that has waited longest.
    #[must_use]
    pub fn take(&self, actor: usize) -> Option<Parked> {
        let mut parked = self.parked();
        parked.retain(|parked| !parked.answer.is_closed());
        let at = parked.iter().position(|parked| parked.actor == actor)?;
        Some(parked.remove(at))
    }

    /// Whether a request of `actor` waits.
    #[must_use]
    pub fn has(&self, actor: usize) -> bool {
        self.parked().iter().any(|parked| parked.actor == actor && !parked.answer.is_closed())
    }

    /// Says that something changed for who waits in [`Self::changed`].
    pub fn tell(&self) {
        self.changed.notify_one();
    }

    /// Waits for the next request, or until told.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn parked(&self) -> MutexGuard<'_, Vec<Parked>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Door {
    gate: Arc<Gate>,
    actor: usize,
}

#[async_trait]
impl Judge for Door {
    async fn judge(&self, op: Op, path: &str) -> Option<Fault> {
        let (answer, verdict) = oneshot::channel();
        let parked = Parked { actor: self.actor, op, path: path.to_owned(), answer };
        self.gate.parked().push(parked);
        self.gate.tell();
        match verdict.await {
            Ok(fault) => fault,
            // The simulation is over.
            Err(_) => futures::future::pending().await,
        }
    }
}
