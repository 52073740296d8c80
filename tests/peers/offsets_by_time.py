"""Finds offsets by time. Arguments: CLIENT BOOTSTRAP TOPIC PARTITION TIME...
Output: a list of one offset a time, -1 for none. librdkafka adds the offset of the
record with the greatest timestamp."""

import asyncio
import json
import sys

import aiokafka
import confluent_kafka
from confluent_kafka.admin import AdminClient, OffsetSpec

client, bootstrap, topic, partition, *times = sys.argv[1:]
partition, times = int(partition), [int(time) for time in times]


def by_librdkafka():
    name = confluent_kafka.TopicPartition
    consumer = confluent_kafka.Consumer({"bootstrap.servers": bootstrap, "group.id": "none"})
    found = []
    for time in times:
        (answer,) = consumer.offsets_for_times([name(topic, partition, time)], timeout=30)
        assert answer.error is None, answer.error
        found.append(answer.offset)
    consumer.close()
    asked = name(topic, partition)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    answers = admin.list_offsets({asked: OffsetSpec.max_timestamp()}, request_timeout=30)
    return found + [answers[asked].result().offset]


async def by_aiokafka():
    asked = aiokafka.TopicPartition(topic, partition)
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=bootstrap)
    consumer.assign([asked])
    await consumer.start()
    found = []
    for time in times:
        answer = (await consumer.offsets_for_times({asked: time}))[asked]
        found.append(-1 if answer is None else answer.offset)
    await consumer.stop()
    return found


print(json.dumps(by_librdkafka() if client == "librdkafka" else asyncio.run(by_aiokafka())))
