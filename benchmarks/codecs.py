"""How fast codecs encode and decode."""

import time
from functools import partial

from diastole.benchmarks.models import WIDE_CNN
from diastole.benchmarks.row import Row, compare
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.seeds import reference_plan
from diastole.models.state import tensor_bytes
from diastole.proto.codec import EXACT, Codec, find

NAMES = ("bf16", "int8", "int4", "top-k:0.1")


def rows(model: ModelConfig = WIDE_CNN, repeats: int = 5) -> list[Row]:
    """Measure `codecs.NAME`: MB (10^6 bytes of float32) a second that a codec encodes and decodes again, on one thread.

    The baseline does the same with plain safetensors, which is hardly more than copying.
    """
    state = initial_state(model, 0)
    size = tensor_bytes(state) / 1e6

    def both(codec: Codec) -> None:
        codec.decode(codec.encode(state, 0), state)

    found = []
    with reference_plan():
        for name in NAMES:
            codec = find(name)
            value, baseline = compare(partial(both, codec), partial(both, EXACT), repeats, time.process_time)
            found.append(Row.of(f"codecs.{name.partition(':')[0]}", size / value, size / baseline, "MB/s", "higher"))
    return found
