"""Reads partitions from offset 0 to their ends with librdkafka, checksums checked.
See kafka_records.py."""

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, TopicPartition

from kafka_records import arguments, emit, pause

bootstrap, isolation, pause_after, partitions = arguments()
consumer = Consumer({
    "bootstrap.servers": bootstrap,
    "group.id": "none",
    "enable.auto.commit": False,
    "isolation.level": isolation,
    "check.crcs": True,
    "enable.partition.eof": True,
    # An offset out of range is a failure, not a new beginning.
    "auto.offset.reset": "error",
    # Small answers and a short queue: the records come in many fetches, and few
    # are ahead of a pause.
    "max.partition.fetch.bytes": 4096,
    "queued.min.messages": 1,
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 100,
})
consumer.assign([TopicPartition(t, p, 0) for t, p in partitions])
left, seen = set(partitions), 0
while left:
    message = consumer.poll(30)
    if message is None:
        raise SystemExit(f"nothing came for 30 s; not at the end: {left}")
    if error := message.error():
        if error.code() != confluent_kafka.KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        left.discard((message.topic(), message.partition()))
        continue
    emit(
        message.topic(),
        message.partition(),
        message.offset(),
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or [],
    )
    seen += 1
    if seen == pause_after:
        pause()
consumer.close()
