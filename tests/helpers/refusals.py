"""How a coordinator refuses a call."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from diastole.proto.words import REASON_KEY


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Return the status and the reason word that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), dict(error.trailing_metadata()).get(REASON_KEY, "")
