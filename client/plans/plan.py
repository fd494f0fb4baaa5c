"""What an execution plan is: how a device runs the arithmetic of its training.

`reference` is the plain one: its bits are the same on every machine of a kind. A `fast` plan gives the same results
within float tolerance, sooner: it was chosen by measurement on the device (`client/plans/search.py`).
"""

from typing import Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from diastole.client.errors import PlanError
from diastole.models.spec import STRICT, one_line

Precision = Literal["fp32", "bf16"]


@validated(frozen=True, slots=True, config=STRICT)
class Layer:
    """How one convolution is computed: the names of convolvers (`client/plans/convolvers.py`).

    Attributes:
        path: of the layer in its module.
        forward: computes the output.
        grad_input: computes the gradient of the input.
        grad_weight: computes the gradient of the weight.

    """

    path: str
    forward: str = "stock"
    grad_input: str = "stock"
    grad_weight: str = "stock"


@validated(frozen=True, slots=True, config=STRICT)
class Plan:
    """How one module is trained on one device; the default is the reference.

    Attributes:
        channels_last: whether images lie in memory as `[n, height, width, channels]`.
        precision: "bf16" runs matrix products and convolutions in it, by autocast; weights stay float32.
        threads: of one training.
        pages: whether the allocator keeps its pages (`models/allocator.py`).
        pools: whether 2x2 max-pooling, and a ReLU before it, run through one of our own kernels.
        norms: whether GroupNorm runs through a kernel of our own.
        dense: whether large dense layers of few examples run through a kernel of our own.
        layers: convolutions that are computed in another way than PyTorch would.

    """

    channels_last: bool = False
    precision: Precision = "fp32"
    threads: int = 1
    pages: bool = False
    pools: bool = False
    norms: bool = False
    dense: bool = False
    layers: tuple[Layer, ...] = ()

    def to_json(self) -> str:
        """Return the plan as compact JSON."""
        return _ADAPTER.dump_json(self, exclude_defaults=True).decode()

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Parse what `to_json` wrote. Raises `PlanError`."""
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise PlanError(f"plan {text[:100]!r}: {one_line(error)}") from None

    def __str__(self) -> str:
        """Return the plan in words."""
        if self == REFERENCE:
            return "reference"
        parts = ["channels last" if self.channels_last else "channels first", self.precision]
        parts += [f"{self.threads} thread{'s' * (self.threads > 1)}"]
        parts += [word for name, word in _OWN.items() if getattr(self, name)]
        return ", ".join(parts)


_OWN = {"pools": "own pooling", "norms": "own GroupNorm", "dense": "own dense layers"}
_ADAPTER = TypeAdapter(Plan)
REFERENCE = Plan()
"""Nothing at all is changed."""
