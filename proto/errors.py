"""The root of the exception tree.

Every error that diastole raises on purpose is a `DiastoleError`. Each subclass lives in the folder that raises
it. The root stands here because `reason` is part of the wire contract.
"""

from typing import ClassVar


class DiastoleError(Exception):
    """Something the caller can understand and mend.

    The message is one line that names the thing, the value and what would be accepted.

    Attributes:
        reason: a stable upper-case word, sent over gRPC beside the message.
        exit_code: what the command line exits with (docs/cli.md lists the codes).

    """

    reason: ClassVar[str] = "ERROR"
    exit_code: ClassVar[int] = 1
