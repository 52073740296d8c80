"""A Bytewax dataflow: how many records, how many without a value, and the sum of
"amount" in cents, by key. Run by `python -m bytewax.run aggregate_bytewax:flow`, with
BOOTSTRAP, ISOLATION, TOPIC and OUTPUT in the environment."""

import json
import os

from bytewax import operators as op
from bytewax.connectors.files import FileSink
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow

source = KafkaSource(
    [os.environ["BOOTSTRAP"]],
    [os.environ["TOPIC"]],
    tail=False,
    add_config={
        "isolation.level": os.environ["ISOLATION"],
        "check.crcs": "true",
        "auto.offset.reset": "error",
        "max.partition.fetch.bytes": "4096",
    },
)


def key_of(message):
    return "null" if message.key is None else f"key {message.key.hex()}"


def add(total, message):
    records, empty, cents = total
    if not message.value:
        return records + 1, empty + 1, cents
    amount = json.loads(message.value).get("amount", 0)
    return records + 1, empty, cents + round(amount * 100)


flow = Dataflow("aggregate")
messages = op.input("kafka", flow, source)
keyed = op.key_on("key", messages, key_of)
totals = op.fold_final("sum", keyed, lambda: (0, 0, 0), add)
lines = op.map("line", totals, lambda pair: (pair[0], json.dumps(pair)))
op.output("file", lines, FileSink(os.environ["OUTPUT"]))
