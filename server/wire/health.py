"""The health service of gRPC's ecosystem (grpc.health.v1), and reflection, for tools that know nothing of diastole."""

from collections.abc import Sequence
from typing import Any

import grpc

from diastole.proto.missing import needed
from diastole.server.errors import AddressError
from diastole.v1 import admin_pb2, device_pb2, enroll_pb2

SERVICES = tuple(
    service.full_name
    for module in (admin_pb2, device_pb2, enroll_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)


def add_health(server: grpc.Server | grpc.aio.Server, *services: str) -> None:
    """Let a server say that it serves, as a whole and each of `services`; it does so for as long as it is there.

    Only `Check` is answered: a `Watch` would be one more call that strangers could hold open. Without the library
    `grpcio-health-checking` nothing is answered.
    """
    try:
        from grpc_health.v1 import health_pb2 as pb
        from grpc_health.v1 import health_pb2_grpc
    except ImportError:
        return
    known = ("", *services)

    def check(request: Any, context: Any) -> Any:
        if request.service in known:
            return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return pb.HealthCheckResponse()

    async def check_soon(request: Any, context: Any) -> Any:
        return check(request, context)

    servicer = health_pb2_grpc.HealthServicer()
    servicer.Check = check_soon if isinstance(server, grpc.aio.Server) else check
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)


def add_reflection(server: grpc.Server, services: Sequence[str] = SERVICES) -> None:
    """Let a server describe `services` to whoever may call it. Raises `AddressError` without `grpcio-reflection`."""
    with needed(AddressError, "reflection", "grpcio-reflection", "diastole[coordinator]"):
        from grpc_reflection.v1alpha import reflection
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)
