"""How a call of a device is refused."""

from typing import Any, NoReturn, TypeAlias

import grpc

from diastole.proto.words import REASON_KEY, Reason, plain

LONGEST_MESSAGE = 1000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def refuse(context: Context, code: grpc.StatusCode, reason: Reason, message: str) -> NoReturn:
    """End the call with a status code, a stable reason word and one line for a person."""
    # What is quoted of the caller may be of any length.
    await context.abort(code, plain(message, LONGEST_MESSAGE), trailing_metadata=((REASON_KEY, reason),))
    raise AssertionError("abort returned")
