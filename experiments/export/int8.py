"""Post-training quantisation of an ONNX model: int8 weights by channel, activations calibrated on examples.

The scheme is that of Krishnamoorthi's white paper (2018): weights symmetric, one scale for each output channel;
activations with one scale and zero point each, from the least and largest value that calibration shows. Convolutions
and matrix products are quantised, which are nearly all of the work. Normalisations stay float32: they are cheap, and
they are what int8 hurts. Activations are signed: processors without VNNI add products with unsigned ones in 16 bits,
which overflow.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diastole.experiments.errors import ExportError
from diastole.experiments.export.formats import need, quiet
from diastole.models.errors import brief

LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
BATCH, MOST = 32, 512
"""Examples of a batch, and in all, that calibrate."""


def quantised(content: bytes, inputs: Tensor, single: bool) -> bytes:
    """Return an ONNX model with int8 convolutions and matrix products.

    Args:
        content: the float32 model.
        inputs: calibrate the activations, `[n, *input_shape]`; up to `MOST` of them.
        single: whether the model takes one example at a time.

    Raises `ExportError` without examples, or if the model cannot be quantised.

    """
    if not len(inputs):
        raise ExportError("int8 needs examples to calibrate by; --data FILE.npz names some")
    onnx, tools = need("onnx", "export"), need("onnxruntime.quantization", "export")
    shapes = need("onnxruntime.quantization.shape_inference", "export")
    with tempfile.TemporaryDirectory() as folder:
        before, ready, after = (Path(folder) / name for name in ("a.onnx", "b.onnx", "c.onnx"))
        before.write_bytes(content)
        try:
            with quiet():
                shapes.quant_pre_process(before, ready, skip_symbolic_shape=True)
                tools.quantize_static(
                    ready,
                    after,
                    _Reader(inputs[:MOST], 1 if single else BATCH),
                    quant_format=tools.QuantFormat.QDQ,
                    op_types_to_quantize=LAYERS,
                    per_channel=True,
                    weight_type=tools.QuantType.QInt8,
                    activation_type=tools.QuantType.QInt8,
                )
        except Exception as error:  # noqa: BLE001 (the quantiser raises anything)
            raise ExportError(f"this model cannot be quantised: {brief(error)}") from None
        proto = onnx.load(after)
    made: bytes = proto.SerializeToString()
    return made


class _Reader:
    """Hands inputs to the quantiser batch by batch."""

    def __init__(self, inputs: Tensor, size: int) -> None:
        self._batches: Iterator[Tensor] = iter(torch.split(inputs, size))

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the name of the input, None behind the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"x": batch.numpy()}
