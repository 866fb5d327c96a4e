"""Python's own gRPC asks a service that it knows by reflection alone, and prints what it saw as one JSON object.

usage: python_client.py host:port token service-token
"""

import json
import sys

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "latchkey.v1.ApiKeyService"
address, token, service_token = sys.argv[1:]

with grpc.insecure_channel(address) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)

    def call(name, request, bearer=token):
        method = service.methods_by_name[name]
        ask = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)
        rpc = channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=ask.SerializeToString,
            response_deserializer=answer.FromString,
        )
        metadata = [("authorization", f"Bearer {bearer}")]
        got = rpc(json_format.ParseDict(request, ask()), metadata=metadata, timeout=30)
        return json_format.MessageToDict(got, preserving_proto_field_name=True)

    created = call("Create", {"scopes": ["read"]})
    got = call("Get", {})
    refreshed = call("Refresh", {"grace_period": "60s"})
    verified = call("Verify", {"key": refreshed["key"]}, service_token)
    revoked = call("Revoke", {"reason": "done"})
    refused = call("Verify", {"key": created["key"]}, service_token)
    try:
        call("Get", {})
        error = None
    except grpc.RpcError as raised:
        details = dict(raised.trailing_metadata()).get("grpc-status-details-bin", b"")
        error = [raised.code().name, b"NO_KEY" in details]
    health = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=SERVICE), timeout=30
    )
    print(
        json.dumps(
            {
                "services": sorted(database.get_services()),
                "same_key": got["api_key"]["id"] == created["api_key"]["id"],
                "previous": refreshed["previous"]["state"],
                "verified": verified["outcome"],
                "revoked": [one["id"] == created["api_key"]["id"] for one in revoked["also_revoked"]],
                "refused": refused["outcome"],
                "error": error,
                "health": health_pb2.HealthCheckResponse.ServingStatus.Name(health.status),
            }
        )
    )
