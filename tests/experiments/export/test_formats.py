"""Every network, and a method of each kind, answers in every format as it does in torch."""

import pytest
import torch

from diastole.experiments.errors import ExportError
from diastole.experiments.export.formats import FORMATS, difference, takes_one
from diastole.models.export.plain import plain
from diastole.models.loading import fill
from diastole.models.methods.registry import make_method
from diastole.models.moment import Moment
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.training import Examples, TrainConfig

IMAGES = {"input_shape": (3, 16, 16), "classes": 5, "widths": (8, 16)}
BLOCKS = {**IMAGES, "blocks": (1, 2)}
TOKENS = {"input_shape": (12,), "classes": 5, "widths": (16,), "blocks": (2,), "vocabulary": 20}
NETWORKS = {
    "cnn": {"name": "cnn", **IMAGES},
    "series": {"name": "cnn", **IMAGES, "input_shape": (3, 32)},
    "simple-cnn": {"name": "simple-cnn", **IMAGES, "widths": (8, 8, 16)},
    "resnet": {"name": "resnet", **BLOCKS},
    "mobilenet": {"name": "mobilenet", **BLOCKS},
    "convnext": {"name": "convnext", **BLOCKS},
    "partial": {"name": "convnext", **BLOCKS, "widths": (16, 32), "mixer": "partial"},
    "inception": {"name": "convnext", **BLOCKS, "widths": (32, 64), "mixer": "inception"},
    "vit": {"name": "vit", **IMAGES, "widths": (16,), "blocks": (2,)},
    "fused": {"name": "vit", **IMAGES, "widths": (16,), "blocks": (2,), "attention": "fused"},
    "transformer": {"name": "transformer", **TOKENS},
}
METHODS = ("width", "diastole", "fiarse", "splitmix", "snnetv2", "depthfl", "scalefl", "nefl", "ofa")
DEFAULT = [("onnx", "vit", "width")]
EVERY = [
    *((form, network, "width") for form in FORMATS for network in NETWORKS),
    *(
        (form, network, method)
        for form in FORMATS
        for network in ("cnn", "resnet")
        for method in METHODS
        if form != "executorch"
    ),
    *(("executorch", "resnet", method) for method in METHODS),
]
CASES = [
    *DEFAULT,
    *(pytest.param(*case, marks=pytest.mark.slow) for case in dict.fromkeys(EVERY) if case not in DEFAULT),
]


@pytest.mark.parametrize(("form", "network", "method"), CASES)
def test_outputs_are_those_of_torch(form: str, network: str, method: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "executorch": "executorch", "torchscript": "torch"}[form])
    model = ModelConfig.of(**NETWORKS[network])
    draws = torch.Generator().manual_seed(0)
    made = make_method(method, model, [0.5, 1.0], TrainConfig(batch_size=8))
    proxy = Examples(model.drawn(10, draws), torch.arange(10) % 5)
    start = {n: t + 0.05 * torch.randn(t.shape, generator=draws) for n, t in made.initial(0).items()}
    made.prepare(start, Proxy(proxy, proxy), Moment())
    spec = made.offers()[0].spec
    module = plain(fill(made.module(spec), made.compress(spec)))
    content = FORMATS[form].pack(module, model)
    # Raises beyond 1e-4.
    assert difference(module, FORMATS[form].run(content), model) < 1e-4
    assert form != "onnx" or not takes_one(content)


def test_a_model_that_answers_otherwise_is_refused() -> None:
    model = ModelConfig.of(**NETWORKS["cnn"])
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 5)).eval()
    with pytest.raises(ExportError, match=r"differ from torch's by 0\.001"):
        difference(module, lambda x: module(x) + 1e-3, model)


@pytest.mark.slow
def test_a_model_of_one_example_is_exported_as_that() -> None:
    pytest.importorskip("onnxruntime")

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten().view(len(x), -1)[:, :5]

    model = ModelConfig.of(**NETWORKS["cnn"])
    content = FORMATS["onnx"].pack(Fixed().eval(), model)
    assert difference(Fixed().eval(), FORMATS["onnx"].run(content), model) == 0
    assert takes_one(content)
