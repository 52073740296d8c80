//! What the whole-system tests stand on: a broker's WAL writer, generators of
//! batches, the daemon as a process, stores that count and fail.

pub mod audit;
pub mod batches;
pub mod beside;
pub mod broker;
pub mod bucket;
pub mod chronik;
pub mod compacting;
pub mod counting;
pub mod faults;
pub mod fixture;
pub mod gate;
pub mod hostile;
pub mod mortal;
pub mod process;
pub mod reads;
pub mod three_phase;
pub mod world;
