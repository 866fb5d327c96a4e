"""grpcio asks the service, which it knows by reflection; README.md says what it prints."""

import json
import sys
import threading
import time

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "latchkey.v1.ApiKeyService"
LANES = 30
CALLS = 300
address, ca, key, service_token, user_token = sys.argv[1:]

if ca == "-":
    channel = grpc.insecure_channel(address)
else:
    with open(ca, "rb") as file:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()))
pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
service = pool.FindServiceByName(SERVICE)


def method(name, kind="unary_unary"):
    found = service.methods_by_name[name]
    ask = message_factory.GetMessageClass(found.input_type)
    answer = message_factory.GetMessageClass(found.output_type)
    rpc = getattr(channel, kind)(
        f"/{SERVICE}/{name}",
        request_serializer=ask.SerializeToString,
        response_deserializer=answer.FromString,
    )

    def call(request, token=service_token, timeout=60):
        return rpc(request, metadata=[("authorization", f"Bearer {token}")], timeout=timeout)

    return ask, call


def show(line):
    print(json.dumps(line), flush=True)


VerifyRequest, verify = method("Verify")
WatchRequest, watch = method("Watch", "unary_stream")
CreateRequest, create = method("Create")
VerifyStreamRequest, verify_stream = method("VerifyStream", "stream_stream")
asked = VerifyRequest(key=key)


def code_of(stream, on_message=lambda: None):
    try:
        for _ in stream:
            on_message()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def reason_of(error):
    details = dict(error.trailing_metadata())["grpc-status-details-bin"]
    # ErrorInfo's own bytes: the type's name is followed by its value, which the reason begins.
    value = details.split(b"type.googleapis.com/google.rpc.ErrorInfo\x12", 1)[1]
    start = 1 + (value[0] >= 0x80)
    assert value[start] == 0x0A
    return value[start + 2 : start + 2 + value[start + 1]].decode()


show({"verify": str(verify(asked).outcome)})
show({"deadline": code_of(watch(WatchRequest(), timeout=0.3))})
try:
    create(CreateRequest(scopes=["no scope"]), user_token)
except grpc.RpcError as error:
    show({"details": f"{error.code().name} {reason_of(error)}"})
answers = verify_stream(iter([VerifyStreamRequest(request=asked)] * 3))
show({"stream": " ".join(str(answer.result.response.outcome) for answer in answers)})
watching = watch(WatchRequest())
cancelled = code_of(watching, watching.cancel)
verify(asked)
show({"cancellation": cancelled})

lock = threading.Lock()
counts = {"answered": 0, "refused": 0, "failed": {}}
end = None
loaded = False


def count(ended):
    """Whether there is more to do."""
    global loaded
    with lock:
        if ended in ("answered", "refused"):
            counts[ended] += 1
        else:
            counts["failed"][ended] = counts["failed"].get(ended, 0) + 1
        if not loaded and counts["answered"] >= CALLS:
            loaded = True
            show({"loaded": True})
        return end is None or counts["answered"] < end


def lane():
    more = True
    while more:
        try:
            outcome = verify(asked).outcome
            more = count("answered" if outcome == 1 else f"outcome {outcome}")
        except grpc.RpcError as error:
            refused = "Connection refused" in error.details()
            more = count("refused" if refused else f"{error.code().name}: {error.details()}")
            if refused:
                time.sleep(0.02)


lanes = [threading.Thread(target=lane) for _ in range(LANES)]
for thread in lanes:
    thread.start()
sys.stdin.readline()
with lock:
    end = counts["answered"] + CALLS
for thread in lanes:
    thread.join()
show(counts)
