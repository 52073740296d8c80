"""Reads partitions from offset 0 to their ends with aiokafka, which checks
checksums by itself. See kafka_records.py."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from kafka_records import arguments, emit, pause


async def main():
    bootstrap, isolation, pause_after, names = arguments()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        enable_auto_commit=False,
        isolation_level=isolation,
        # An offset out of range is a failure, not a new beginning.
        auto_offset_reset="none",
        # Small answers: the records come in many fetches, few ahead of a pause.
        max_partition_fetch_bytes=4096,
    )
    partitions = [TopicPartition(t, p) for t, p in names]
    consumer.assign(partitions)
    await consumer.start()
    ends = await consumer.end_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    seen, idle = 0, 0
    while [p for p in partitions if await consumer.position(p) < ends[p]]:
        batches = await consumer.getmany(timeout_ms=500, max_records=50)
        idle = 0 if batches else idle + 1
        assert idle < 60, f"nothing came for 30 s; the ends are {ends}"
        for partition, messages in batches.items():
            for m in messages:
                topic, number = partition.topic, partition.partition
                emit(topic, number, m.offset, m.timestamp, m.key, m.value, m.headers)
                seen += 1
                if seen == pause_after:
                    await asyncio.to_thread(pause)
    await consumer.stop()


asyncio.run(main())
