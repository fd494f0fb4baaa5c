"""How a device that has proved who it is gets its next certificate."""

import asyncio

import grpc

from diastole.proto.errors import DiastoleError
from diastole.proto.words import Reason
from diastole.server.wire.identity import Gate, digest
from diastole.server.wire.refusal import Context, refuse
from diastole.v1 import device_pb2 as pb


async def renewal(gate: Gate, request: pb.RenewRequest, context: Context) -> pb.RenewReply:
    """Return a further certificate for the device that the request names, or refuse."""
    if gate.renew is None:
        text = "this coordinator certifies nobody"
        await refuse(context, grpc.StatusCode.FAILED_PRECONDITION, Reason.NO_ENROLLMENT, text)
    shown = digest(next(iter(context.auth_context()["x509_pem_cert"])))
    try:
        certificate = await asyncio.to_thread(gate.renew, request.name, request.signing_request, shown)
    except DiastoleError as error:
        await refuse(context, grpc.StatusCode.INVALID_ARGUMENT, Reason.SIGNING_REQUEST, str(error))
    except OSError as error:
        text = f"no certificate can be noted now: {error.strerror}"
        await refuse(context, grpc.StatusCode.UNAVAILABLE, Reason.STORAGE, text)
    return pb.RenewReply(certificate=certificate)
