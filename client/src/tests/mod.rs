//! Tests over a real connection to a server that plays a script of frames. It
//! knows nothing of archives: what is tested is the client's part of the wire.

mod fetch;
mod rest;
mod server;
mod stream;
mod watch;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tierd_proto::v1;
use tierd_proto::v1::fetch_archived_response::Frame;

use crate::client::ClientOptions;

/// A batch whose header is true; its records are `filler` zeros.
pub(crate) fn batch_bytes(base: i64, count: i32, filler: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i64(base);
    bytes.put_i32(i32::try_from(61 - 12 + filler).unwrap());
    bytes.put_i32(-1);
    bytes.put_i8(2);
    bytes.put_u32(0);
    bytes.put_i16(0);
    bytes.put_i32(count - 1);
    bytes.put_i64(1_000);
    bytes.put_i64(1_000);
    bytes.put_i64(-1);
    bytes.put_i16(-1);
    bytes.put_i32(-1);
    bytes.put_i32(count);
    bytes.put_bytes(0, filler);
    bytes.freeze()
}

pub(crate) fn header(topic: &str, partition: i32) -> Frame {
    let bounds = v1::Bounds {
        incarnation: 0,
        generation: 7,
        log_start: 0,
        archived_through: 1_000,
        last_stable_offset: 900,
    };
    Frame::Header(v1::PartitionHeader { topic: topic.into(), partition, bounds: Some(bounds) })
}

pub(crate) fn data(batches: Bytes) -> Frame {
    Frame::Data(v1::Data { batches, continued: false })
}

pub(crate) fn piece(batches: Bytes) -> Frame {
    Frame::Data(v1::Data { batches, continued: true })
}

pub(crate) fn trailer(next_offset: i64, bytes: u64, batches: u32) -> Frame {
    Frame::Trailer(v1::PartitionTrailer {
        status: v1::Status::Ok.into(),
        next_offset,
        bytes,
        batches,
        end_reason: v1::EndReason::EndOfArchive.into(),
        ..v1::PartitionTrailer::default()
    })
}

/// Retries without waiting, and a deadline that no test reaches by accident.
pub(crate) fn hasty() -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_secs(60),
        backoff: Duration::ZERO,
        backoff_max: Duration::ZERO,
        ..ClientOptions::default()
    }
}
