//! tierd: a tiering daemon beside a WAL-writing, Kafka-compatible broker.
//!
//! It archives the closed segments of the broker's write-ahead log to an object
//! store and serves them back as Kafka record batches, bit for bit, so that the
//! broker can answer a fetch for an old offset after its disk has forgotten it.
//!
//! This page is the code map: the words, the way of the data, and who may know
//! whom. Modules stand below in the order of the data path.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | segment | one WAL file of the broker |
//! | frame | one entry of a segment: a batch with the WAL's own checksum |
//! | batch | one Kafka record batch, as bytes on the wire (magic 2) |
//! | entry | one record inside a batch |
//! | [`record::CanonicalRecord`] | a batch in canonical form; every batch on every path passes through it |
//! | archive | one immutable `.tar.gz` object: one topic-partition, one offset range |
//! | manifest | the numbered, immutable root that says which archives a partition has |
//! | snapshot | one manifest in memory, searchable by offset and time |
//! | `archived_through` | end of the prefix of offsets that committed archives and declared gaps tile |
//! | `releasable_through` | how far the broker may delete its WAL: closed, read whole, every batch proven committed |
//! | ledger | what a writer remembers of a partition beyond its disk |
//! | incarnation | which life of a topic: deleted and made anew, it gets the next number |
//!
//! # The way of the data
//!
//! ```text
//!  broker's WAL dir                                                      broker / consumer
//!      |                                                                             ^
//!    wal --> record --> archive --> store --> catalog --> read --> fetch, search --> grpc
//!  read-only  canonical  tantivy+    bytes    manifests   ranges,  batches  hits
//!      |                 tar.gz        |                  caches
//!      '---------- indexer drives -----'        upkeep checks, compact rewrites and collects
//! ```
//!
//! # The commit order, obeyed everywhere
//!
//! 1. Build the archive in scratch, read it back with other decoders, upload it
//!    under a name that carries the number of the next manifest.
//! 2. Create that manifest, create-only: **the commit point**. An object that no
//!    manifest references does not exist.
//! 3. Only then tell anyone. Whatever releases or deletes takes a
//!    [`catalog::Committed`], which only the catalog can make.
//!
//! # Who may know whom
//!
//! | layer | rooms | must not know |
//! |---|---|---|
//! | vocabulary | `error` `clock` `health` `metrics` `task` `record` `reports` | files, network, anything below |
//! | edges | `wal` · `archive` · `store` · `listen` | each other |
//! | truth | `catalog` | who commits or reads |
//! | access | `read` | what is asked for |
//! | work | `indexer` · `compact` · `fetch` · `search` · `upkeep` | each other, gRPC, settings |
//! | surface | `grpc` · `http` | WALs, the object store, the index |
//! | assembly | `config` `cli` `daemon` | nothing imports these |
//!
//! Imports go from a lower row to a higher one, never between rooms parted by a
//! dot. Invariants about what is absent: only `wal` knows a broker's files, only
//! `archive` knows tar and gzip, only `archive` and `search` know the index, only
//! `store` knows object storage, only `grpc` knows gRPC, only `http` knows HTTP, only
//! `metrics` knows Prometheus, only `clock` asks for the time. The test `tidy` of the
//! tests crate keeps this page true.

pub mod clock;
pub mod error;
pub mod health;
pub mod metrics;
pub mod record;
pub mod reports;
pub mod task;

pub mod wal;

pub mod archive;

pub mod store;

pub mod listen;

pub mod catalog;

pub mod read;

pub mod indexer;

pub mod compact;

pub mod fetch;

pub mod search;

pub mod upkeep;

pub mod grpc;

pub mod http;

pub mod config;

pub mod cli;

pub mod daemon;
