"""Versions of a sub-model: with "delta", a device that holds one downloads only what has changed since.

All devices of a sub-model receive the same version in a round, whatever they held. Each version is the last one and a
change, encoded with a loss; so what one change leaves out is in the next, and nothing is lost for good. The coordinator
need not know who holds what: a task names the versions from which a device can go on, and the device chooses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diastole.proto.codec import EXACT, Codec
from diastole.proto.coding import Coding, decoded
from diastole.proto.kept import keep
from diastole.proto.payload import Bytes, Payload, encode

MOST_STEPS = 4
"""Changes that are offered, one behind another."""

MOST_SPECS = 64
"""Sub-models of which the coordinator keeps the last version, those that were sent last."""

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """The change from one version, known by its digest, to the next."""

    base: str
    change: Payload


@dataclass(frozen=True, slots=True)
class Offer:
    """What devices may download of what they train of a sub-model in a round.

    Attributes:
        received: what every device has then.
        whole: all of it.
        codec: of `whole`.
        version: its digest, as safetensors; empty without "delta".
        steps: changes that lead to it, the oldest first.

    """

    received: State
    whole: Payload
    codec: Codec
    version: str = ""
    steps: tuple[Step, ...] = ()

    def bytes_down(self, held: str) -> int:
        """Return the bytes of a download by a device that holds a version; empty for none."""
        bases, sizes = [step.base for step in self.steps], [len(step.change.data) for step in self.steps]
        first = way(held, self.version, bases, sizes, len(self.whole.data))
        return len(self.whole.data) if first is None else sum(sizes[first:])


def way(held: str, version: str, bases: Sequence[str], sizes: Sequence[int], whole: int) -> int | None:
    """Return the first change to download on top of what is held, all later ones being needed too.

    Args:
        held: digest of the version that is held; empty for none.
        version: of the one that is wanted.
        bases: of the changes that lead to it, the oldest first: what each is on top of.
        sizes: of these changes, bytes.
        whole: bytes of the version itself.

    None if there is no way, or if the whole is shorter.

    """
    if held and held == version:
        return len(bases)
    if held not in bases:
        return None
    first = len(bases) - 1 - list(reversed(bases)).index(held)
    return first if sum(sizes[first:]) < whole else None


def advance(codec: Codec, data: Bytes, base: State) -> State:
    """Return the version that a change makes of another. Raises `PayloadError`."""
    # Of an exact codec, only tensors that changed travel.
    found = decoded(codec, data, base, some=codec.exact)
    if codec.exact:
        return {**base, **found}
    return {name: tensor + found[name] for name, tensor in base.items()}


class Versions:
    """Makes the downloads of a run, and keeps the last version of each sub-model if there are changes to send."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._last: dict[str, Offer] = {}

    def offer(self, spec: str, state: State, seed: int) -> Offer:
        """Return what devices may download of a sub-model this round.

        Args:
            spec: its name, the same in every round.
            state: what devices train of it.
            seed: of what the codec draws.

        """
        codec, last = self._coding.down, self._last.get(spec)
        if not self._coding.delta:
            data = codec.encode(state, seed)
            return Offer(state if codec.exact else codec.decode(data, state), Payload.of(data), codec)
        if last is None:
            # A codec that leaves numbers out is for changes only.
            first = EXACT if codec.feedback else codec
            data = first.encode(state, seed)
            received = state if first.exact else first.decode(data, state)
            found = Offer(received, Payload.of(data), first, Payload.of(encode(received)).sha256)
        else:
            data = codec.encode(self._change(last.received, state), seed)
            received = advance(codec, data, last.received)
            whole = Payload.of(encode(received))
            steps = (*last.steps, Step(last.version, Payload.of(data)))[-MOST_STEPS:]
            found = Offer(received, whole, EXACT, whole.sha256, steps)
        keep(self._last, spec, found, MOST_SPECS)
        return found

    def memory(self) -> tuple[dict[str, Any], State]:
        """Return what must not be lost: the last versions, as JSON and tensors."""
        specs, tensors = [], State()
        for number, (spec, last) in enumerate(self._last.items()):
            specs.append({"spec": spec, "steps": [[step.base, step.change.data.hex()] for step in last.steps]})
            tensors |= {f"version {number}:{name}": tensor.clone() for name, tensor in last.received.items()}
        return ({"versions": specs} if specs else {}), tensors

    def resume(self, memory: Mapping[str, Any], tensors: State) -> None:
        """Go on with another's `memory()`."""
        for number, entry in enumerate(memory.get("versions", ())):
            received = under(f"version {number}:", tensors)
            whole = Payload.of(encode(received))
            steps = tuple(Step(base, Payload.of(bytes.fromhex(change))) for base, change in entry["steps"])
            self._last[entry["spec"]] = Offer(received, whole, EXACT, whole.sha256, steps)

    def _change(self, base: State, state: State) -> State:
        if self._coding.down.exact:
            return {name: tensor for name, tensor in state.items() if not tensor.equal(base[name])}
        return {name: tensor - base[name] for name, tensor in state.items()}


def under(prefix: str, tensors: State) -> State:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
