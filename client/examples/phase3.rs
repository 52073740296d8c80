//! A broker's phase 3 read: the batches of one partition from an offset on.
//!
//! ```text
//! cargo run -p tierd-client --example phase3 -- http://127.0.0.1:9095 orders 0 0
//! ```

use std::process::ExitCode;

use tierd_client::{ArchiveError, Phase3, batches_in};

/// What a broker would take from its own state: everything is committed here.
const HIGH_WATERMARK: i64 = i64::MAX;
/// Kafka's default of `max.partition.fetch.bytes`.
const MAX_BYTES: i32 = 1 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, topic, partition, offset] = &args[..] else {
        eprintln!("usage: phase3 ENDPOINT TOPIC PARTITION OFFSET");
        return ExitCode::from(2);
    };
    let (Ok(partition), Ok(offset)) = (partition.parse(), offset.parse()) else {
        eprintln!("the partition and the offset are numbers");
        return ExitCode::from(2);
    };
    match read(endpoint, topic, partition, offset).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            eprintln!(
                "a broker answers its consumer with Kafka error {}",
                error.kafka_error_code()
            );
            ExitCode::from(2)
        }
    }
}

async fn read(
    endpoint: &str,
    topic: &str,
    partition: i32,
    mut offset: i64,
) -> Result<(), ArchiveError> {
    let phase3 = Phase3::connect_lazy(Some(endpoint))?;
    // One turn is one Fetch of a consumer.
    while let Some(answer) =
        phase3.fetch(topic, partition, offset, HIGH_WATERMARK, MAX_BYTES).await?
    {
        println!("fetch at offset {offset}: {} bytes", answer.len());
        for batch in batches_in(answer.into()) {
            let batch = batch?;
            println!(
                "  offsets {:>10} to {:>10}  {:>8} records  {:>9} bytes",
                batch.base_offset,
                batch.last_offset,
                batch.record_count,
                batch.bytes.len()
            );
            offset = batch.last_offset + 1;
        }
    }
    println!("from offset {offset} on: not in the archive");
    for (name, value) in phase3.counters().named() {
        println!("{name} {value}");
    }
    Ok(())
}
