"""The root of the exception tree.

Every error that diastole raises on purpose is a `DiastoleError`. Each subclass lives in the folder that raises it.
"""

from typing import ClassVar


class DiastoleError(Exception):
    """Something the caller can understand and mend.

    The message is one line that names the thing, the value and what would be accepted.

    Attributes:
        exit_code: what the command line exits with (docs/cli.md lists the codes).

    """

    exit_code: ClassVar[int] = 1
