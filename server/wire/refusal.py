"""How a call of a device, or of an operator, is refused."""

import math
from typing import Any, NoReturn, TypeAlias

import grpc

from diastole.proto.words import REASON_KEY, RETRY_KEY, Reason, plain

LONGEST_MESSAGE = 1000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


async def refuse(
    context: Context, code: grpc.StatusCode, reason: Reason, message: str, seconds: float = 0.0
) -> NoReturn:
    """End the call with a status code, a stable reason word and one line for a person.

    It may be made again after so many `seconds`, if it may at all.
    """
    metadata = ((REASON_KEY, str(reason)), *([(RETRY_KEY, str(math.ceil(1000 * seconds)))] if seconds else []))
    # What is quoted of the caller may be of any length.
    await context.abort(code, plain(message, LONGEST_MESSAGE), trailing_metadata=metadata)
    raise AssertionError("abort returned")


def refuse_operator(context: grpc.ServicerContext, code: grpc.StatusCode, reason: Reason, message: str) -> NoReturn:
    """End an operator's call with a status code, a stable reason word and one line for a person."""
    context.set_trailing_metadata(((REASON_KEY, reason),))
    context.abort(code, message)
    raise AssertionError("abort returned")
