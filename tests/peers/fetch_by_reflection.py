"""Reads a partition through gRPC, knowing only the address: the messages come
from server reflection. Arguments: ADDRESS TOPIC PARTITION OUTPUT-FILE."""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

address, topic, partition, output = sys.argv[1:]
channel = grpc.insecure_channel(address)
reflection = ProtoReflectionDescriptorDatabase(channel)
print(list(reflection.get_services()))
pool = descriptor_pool.DescriptorPool(reflection)
method = pool.FindServiceByName("tierd.v1.Archive").FindMethodByName("FetchArchived")
Request = message_factory.GetMessageClass(method.input_type)
Response = message_factory.GetMessageClass(method.output_type)
fetch = channel.unary_stream(
    "/tierd.v1.Archive/FetchArchived",
    request_serializer=Request.SerializeToString,
    response_deserializer=Response.FromString,
)
END = Response.DESCRIPTOR.file.enum_types_by_name["EndReason"].values_by_name
with open(output, "wb") as file:
    offset, reason = 0, None
    for _ in range(10):
        request = Request()
        request.partitions.add(topic=topic, partition=int(partition), fetch_offset=offset)
        for frame in fetch(request, timeout=30):
            if frame.WhichOneof("frame") == "data":
                file.write(frame.data.batches)
            elif frame.WhichOneof("frame") == "trailer":
                offset, reason = frame.trailer.next_offset, frame.trailer.end_reason
        if reason != END["END_REASON_OFFSETS_GO_BACK"].number:
            break
assert reason == END["END_REASON_END_OF_ARCHIVE"].number, reason
