"""Whose fault it is if the server's work on a user's own network fails."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import TRAINING, ScriptedLink, examples

from diastole.models import allowed
from diastole.models.errors import ModelError
from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.proxy import Proxy
from diastole.models.training import Examples
from diastole.server.coordinator import Coordinator
from diastole.server.proxy import ProxyConfig
from diastole.server.settings import RoundConfig, Settings

MODULE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x):
        if len(x) == 5:
            raise ZeroDivisionError("five\\nof them")
        return self.classifier(self.conv(x).relu().mean((2, 3)))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelConfig]:
    """A network that cannot take five examples."""
    (tmp_path / "blamed_net.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed, "_ALLOWED", {"blamed_net:Net"})
    yield ModelConfig("custom", (1, 8, 8), classes=3, factory="blamed_net:Net")
    sys.modules.pop("blamed_net", None)


def coordinator(model: ModelConfig, test: Examples, proxy: int = 8, **more: Any) -> Coordinator:
    settings = Settings(
        model, TRAINING, RoundConfig(count=1), seed=3, proxy_training=ProxyConfig(epochs=1, batch_size=8)
    )
    method = make_method("width", model, [1.0], TRAINING)
    proxies = Proxy(examples(proxy, 1), examples(4, 2))
    return Coordinator(
        settings, method, ScriptedLink(["a"], model=model), method.initial(0), test=test, proxy=proxies, **more
    )


def test_a_users_network_that_fails_in_evaluation_is_named(model: ModelConfig) -> None:
    line = r"^model custom: blamed_net:Net in evaluation: ZeroDivisionError: five$"
    with pytest.raises(ModelError, match=line):
        coordinator(model, examples(5)).run()


def test_a_users_network_that_fails_in_the_servers_training_is_named(model: ModelConfig) -> None:
    line = r"^model custom: blamed_net:Net in the server's own training: ZeroDivisionError: five$"
    with pytest.raises(ModelError, match=line):
        coordinator(model, examples(8), proxy=5).run()


def test_what_else_fails_is_not_its_fault(model: ModelConfig) -> None:
    def full(snapshot: object) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match=r"^no space left on device$"):
        coordinator(model, examples(8), keep=full).run()
