"""Tables of an experiment's file."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the file; a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Codecs(Section):
    """`[codecs]`: how payloads travel, by direction; codecs of `proto/codec.py`, with an option as "name:option".

    Attributes:
        up: of updates; empty: the experiment's `codec`.
        down: of sub-models, likewise; behind "delta:", of what has changed of those that a device holds.

    """

    up: str = ""
    down: str = ""
