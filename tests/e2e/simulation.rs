//! Daemons on one partition, in one thread, with clocks that are moved and a store
//! whose every answer is decided by a seed: requests wait at a gate until the scheduler
//! lets one pass, fail, take effect unheard or later. Daemons sleep through others'
//! commits, die between any two requests, and have WALs with other borders, in another
//! order, now and then with other bytes. Beside them gc deletes, without any grace, what
//! no manifest names.
//!
//! At every moment what is archived is whole and goes on from what it was; and when the
//! faults end, everything ever written is archived once, with nobody's help.

mod collector;
mod replica;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Seeds of every change.
const SIMULATIONS: u64 = 150;
/// Simulations at a time: one is a single thread.
const AT_ONCE: usize = 2;
/// Events told of a simulation that failed.
const EVENTS_TOLD: usize = 120;

const TOPIC: &str = "t";

/// What happened in one simulation, in order.
type Events = Arc<Mutex<Vec<String>>>;

/// Table: F1 F2 F3 F4 F6 F7 F8 F9 F10 F12 F13 F14 F21 I1 I2 I3 I4 I7 I8 I9 I10 I13 | every
/// request of two or three daemons and of gc, in every order that a seed gives | SIMULATIONS
/// TIERD_TEST_SIMULATIONS
#[test]
fn whatever_a_store_does_to_several_daemons_nothing_is_lost_and_nothing_twice() {
    let simulations = std::env::var("TIERD_TEST_SIMULATIONS").ok();
    let simulations = simulations.map_or(SIMULATIONS, |text| text.parse().unwrap());
    let first: u64 = std::env::var("TIERD_TEST_SEED").map_or(0, |text| text.parse().unwrap());
    let next = AtomicU64::new(first);
    let sums = Mutex::new(world::Sums::default());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + simulations {
                        break;
                    }
                    let sum = simulate(seed);
                    sums.lock().unwrap().add(&sum);
                }
            });
        }
    });
    println!("{simulations} simulations: {:?}", sums.into_inner().unwrap());
}

fn simulate(seed: u64) -> world::Sums {
    let events = Events::default();
    let told = Arc::clone(&events);
    let run = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(world::run(seed, &told))
    });
    run.join().unwrap_or_else(|_| {
        let events = events.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for event in events.iter().skip(events.len().saturating_sub(EVENTS_TOLD)) {
            println!("  {event}");
        }
        panic!(
            "seed {seed}: TIERD_TEST_SEED={seed} TIERD_TEST_SIMULATIONS=1 cargo test --workspace --test e2e simulation"
        )
    })
}
