"""How tensors travel in a run: a codec for each direction, and the arithmetic of what is encoded.

Down goes the state of a sub-model or, with "delta", its change since a version that the device may hold
(`versions.py`).
Up goes, if the codec loses anything, the change that training made: it is smaller than the state, and so is what is
lost. Devices train what they received. The coordinator adds their change to what it had sent, so that what the way down
lost, which all devices of a sub-model lost alike, never gets into the global model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from diastole.proto.codec import CODECS, EXACT, Codec, Exact, find
from diastole.proto.codecs.packing import Shapes
from diastole.proto.payload import Bytes, PayloadError
from diastole.proto.words import plain

DELTA = "delta"
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Coding:
    """How a run's tensors travel; what devices do not train always travels exactly.

    Attributes:
        up: of updates.
        down: of sub-models or, with `delta`, of their changes.
        delta: whether a device that holds an earlier version of its sub-model is sent what has changed.

    """

    up: Codec = EXACT
    down: Codec = EXACT
    delta: bool = False

    @staticmethod
    def of(up: str, down: str) -> "Coding":
        """Return the coding of two names. Raises `PayloadError` for a name that is unknown or is not for down."""
        first, _, rest = down.partition(":")
        delta = first == DELTA
        codec = find((rest or EXACT.name) if delta else down)
        if codec.feedback and not delta:
            raise PayloadError(f"codec {codec.name}: encodes changes only; on the way down use delta:{codec.name}")
        return Coding(find(up), codec, delta)

    @property
    def plain(self) -> bool:
        """Whether everything travels exactly, and whole."""
        return self.up == EXACT and self.down == EXACT and not self.delta

    @property
    def needs(self) -> frozenset[str]:
        """The names that a device must know."""
        return frozenset({_base(self.up), _base(self.down), *([DELTA] if self.delta else [])})

    @property
    def words(self) -> str:
        """The coding in words."""
        return f"{DELTA + ':' if self.delta else ''}{self.down.name} down, {self.up.name} up"

    def bytes_down(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of a download of what is trained; with `delta`, of a device that holds the last version.

        `shapes` are those of the tensors, `plain` are the bytes of their safetensors.
        """
        return self.down.payload_bytes(shapes, plain)

    def held(self, plain: int) -> int:
        """Return the bytes of memory that a device keeps from task to task, if `plain` are those of what it trains.

        The version of the sub-model that it received last, and what its last update left out.
        """
        return plain * (self.delta + self.up.feedback)

    def bytes_up(self, shapes: Shapes, plain: int) -> int:
        """Return the bytes of an upload."""
        return self.up.payload_bytes(shapes, plain)


PLAIN = Coding()


def known() -> tuple[str, ...]:
    """Return the names that this installation knows."""
    return (*CODECS, DELTA)


def encode_update(
    codec: Codec, trained: Tensors, received: Tensors, seed: int, residual: Tensors | None = None
) -> tuple[bytes, dict[str, Tensor]]:
    """Return an update as it travels, and what it leaves out: the residual of a codec with feedback.

    Args:
        codec: of the way up.
        trained: the tensors that the device trained.
        received: these and perhaps others, as the device received them.
        seed: of what the codec draws.
        residual: what the last update of this sub-model left out.

    """
    if codec.exact:
        return codec.encode(trained, seed), {}
    change = {name: tensor - received[name] for name, tensor in trained.items()}
    if not codec.feedback:
        return codec.encode(change, seed), {}
    change = {name: tensor + residual[name] if residual else tensor for name, tensor in change.items()}
    data = codec.encode(change, seed)
    sent = codec.decode(data, change)
    return data, {name: tensor - sent[name] for name, tensor in change.items()}


def decode_update(codec: Codec, data: bytes, sent: Tensors, received: Tensors) -> dict[str, Tensor]:
    """Return the state that an update makes of what was sent.

    Args:
        codec: of the way up.
        data: the update.
        sent: the tensors that are trained, as the coordinator has them.
        received: the same as the device received them; the same mapping if it received every bit.

    Raises `PayloadError`.

    """
    if codec == EXACT and received is sent:
        # Bytes that are as long as their tensors; whoever takes the update compares it with what was sent.
        return codec.decode(data, sent)
    found = decoded(codec, data, sent)
    if codec.exact and received is sent:
        return found
    change = {name: tensor - received[name] for name, tensor in found.items()} if codec.exact else found
    return {name: sent[name] + tensor for name, tensor in change.items()}


def decoded(codec: Codec, data: Bytes, like: Tensors, *, some: bool = False) -> dict[str, Tensor]:
    """Return what a codec makes of bytes from outside; that of another package may make anything of them.

    Args:
        codec: of the bytes.
        data: the bytes.
        like: tensors with the names, shapes and types that there have to be.
        some: whether some of them are enough.

    Raises `PayloadError`.

    """
    try:
        # Others expect what their interface says.
        found = codec.decode(data, like) if isinstance(codec, Exact) else codec.decode(bytes(data), like)
        check_like({**like, **found} if some else found, like)
    except PayloadError:
        raise
    except Exception as error:
        raise PayloadError(f"codec {codec.name}: {type(error).__name__}: {plain(str(error))}") from error
    return found


def check_like(found: Tensors, like: Tensors) -> None:
    """Raise `PayloadError` if tensors have not the names, shapes and types of others."""
    for name, tensor in found.items():
        wanted = like.get(name)
        if wanted is None:
            raise PayloadError(f"tensor {name[:200]!r} is unknown")
        if tensor.shape != wanted.shape or tensor.dtype != wanted.dtype:
            kind = f"{tensor.dtype} {list(tensor.shape)}"
            raise PayloadError(f"tensor {name!r} is {kind}; expected {wanted.dtype} {list(wanted.shape)}")
    for name in like:
        if name not in found:
            raise PayloadError(f"tensor {name!r} is missing")


def _base(codec: Codec) -> str:
    return codec.name.partition(":")[0]
