"""What tools that know nothing of diastole ask a coordinator."""

from contextlib import closing

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from diastole.server.security.operators import Operators, by_token
from diastole.server.wire.admin_service import AdminServer
from diastole.v1 import admin_pb2_grpc

ADMIN, DEVICES = "diastole.v1.AdminService", "diastole.v1.DeviceService"


def code(call: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def check(stub: health_pb2_grpc.HealthStub, service: str) -> int:
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status


def test_both_ports_say_that_they_serve_and_nobody_can_hold_the_question_open(link: object) -> None:
    lines: list[object] = []
    operators = Operators(by_token("secret"), lambda *line, stranger=False: lines.append(line))
    with closing(AdminServer("127.0.0.1:0", admin_pb2_grpc.AdminServiceServicer(), None, operators)) as server:
        for port, name in ((link.port, DEVICES), (server.port, ADMIN)):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                assert {check(stub, service) for service in ("", name)} == {health_pb2.HealthCheckResponse.SERVING}
                assert code(lambda stub=stub: check(stub, "x")) == grpc.StatusCode.NOT_FOUND
                watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=10)
                assert code(lambda watching=watching: next(watching)) == grpc.StatusCode.UNIMPLEMENTED
        assert lines == []


@pytest.mark.parametrize("told", [False, True])
def test_a_service_describes_itself_only_if_it_is_told_to_and_to_operators_only(told: bool) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    operators = Operators(by_token("secret"), lambda *line, stranger=False: None)
    server = AdminServer("127.0.0.1:0", admin_pb2_grpc.AdminServiceServicer(), None, operators, reflection=told)
    with closing(server), grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        operator = (("authorization", "Bearer secret"),)
        if not told:
            assert code(lambda: next(ask(iter([request]), metadata=operator))) == grpc.StatusCode.UNIMPLEMENTED
            return
        assert code(lambda: next(ask(iter([request]), timeout=10))) == grpc.StatusCode.UNAUTHENTICATED
        (reply,) = ask(iter([request]), metadata=operator, timeout=10)
        assert {ADMIN, DEVICES} < {each.name for each in reply.list_services_response.service}
