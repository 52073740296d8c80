"""What the consumers of this folder have in common: their arguments, and a record
as the fixtures write it.

Arguments: BOOTSTRAP ISOLATION PAUSE-AFTER TOPIC/PARTITION...
Output: one record a line, with its topic. After PAUSE-AFTER records (0: never) the
line "paused", and then nothing before a line comes on standard input."""

import json
import sys


def arguments():
    bootstrap, isolation, pause_after, *names = sys.argv[1:]
    pairs = [name.rsplit("/", 1) for name in names]
    return bootstrap, isolation, int(pause_after), [(t, int(p)) for t, p in pairs]


def hexed(data):
    return None if data is None else bytes(data).hex()


def emit(topic, partition, offset, timestamp, key, value, headers):
    record = {
        "topic": topic,
        "partition": partition,
        "offset": offset,
        "timestamp": timestamp,
        "key": hexed(key),
        "value": hexed(value),
        "headers": [[name, hexed(data)] for name, data in headers],
    }
    print(json.dumps(record), flush=True)


def pause():
    print("paused", flush=True)
    sys.stdin.readline()
