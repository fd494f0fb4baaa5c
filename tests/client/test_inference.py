"""A device that uses what it trains: models in a file, and a socket at which other programs ask."""

import json
import re
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diastole.client import answering as answers
from diastole.client.answering import Answering, answering
from diastole.client.errors import DataError, ModelFileError
from diastole.client.inference import CURRENT, Predictor, as_file
from diastole.models.errors import ModelError
from diastole.models.methods.registry import build
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.seeds import generator
from diastole.models.state import state_of

IMAGES = ModelConfig("cnn", (1, 8, 8), 3, (4, 8), group=2)
SIGNALS = ModelConfig("cnn", (2, 32), 3, (4, 8), group=2)
HALF = spec_of(0.5)
Run = Callable[..., tuple[int, str, str]]


def kept(model: ModelConfig, folder: Path, seed: int = 0, round_number: int = 7) -> tuple[Path, nn.Module]:
    """Keep a sub-model as an agent does, and return the file and the module that it should hold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build(model, HALF)
    path = folder / CURRENT
    part = folder / "new"
    part.write_bytes(as_file(model, HALF, round_number, state_of(module), torch.empty(0)))
    part.replace(path)
    return path, module.eval()


def drawn(model: ModelConfig, count: int) -> Tensor:
    return model.drawn(count, generator("inference"))


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Callable[[Any], dict[str, Any]]]:
    """Connect to the socket of the test, once, and return a call that asks."""
    client = socket.socket(socket.AF_UNIX)
    file = client.makefile("rwb")

    def call(request: Any) -> dict[str, Any]:
        if not connected:
            client.settimeout(20)
            client.connect(str(tmp_path / "socket"))
            connected.append(True)
        file.write(request if isinstance(request, bytes) else json.dumps(request).encode() + b"\n")
        file.flush()
        found: dict[str, Any] = json.loads(file.readline())
        return found

    connected: list[bool] = []
    yield call
    file.close()
    client.close()


def test_a_kept_model_answers_as_it_was_trained_and_a_newer_one_is_taken_up(tmp_path: Path) -> None:
    path, module = kept(IMAGES, tmp_path)
    predictor, x = Predictor(path), drawn(IMAGES, 70)
    torch.testing.assert_close(predictor.outputs(x), module(x))
    assert (predictor.label, predictor.round, predictor.refresh()) == ("width 0.5", 7, False)
    _, newer = kept(IMAGES, tmp_path, seed=1, round_number=8)
    assert predictor.refresh()
    torch.testing.assert_close(predictor.outputs(x), newer(x))
    path.unlink()
    assert not predictor.refresh()
    with pytest.raises(ModelFileError, match="no such file"):
        Predictor(path)


def test_programs_ask_at_a_socket_that_this_user_alone_may_open(tmp_path: Path, ask: Callable[[Any], Any]) -> None:
    path, module = kept(IMAGES, tmp_path)
    x, at = drawn(IMAGES, 3), tmp_path / "socket"
    with answering(Answering(at, Predictor(path))):
        assert stat.S_IMODE(at.stat().st_mode) == 0o600
        found = ask({"x": x.tolist()})
        torch.testing.assert_close(torch.tensor(found["outputs"]), module(x))
        assert found["labels"] == module(x).argmax(1).tolist()
        assert (found["model"], found["round"]) == ("width 0.5", 7)
        _, newer = kept(IMAGES, tmp_path, seed=1, round_number=8)
        again = ask({"x": x[0].tolist()})
        torch.testing.assert_close(torch.tensor(again["outputs"]), newer(x[:1]))
        with pytest.raises(DataError, match="another program answers here"):
            Answering(at, Predictor(path))
    assert not at.exists()


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"{\n", "no JSON"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        ([1], 'no object with the one key "x"'),
        ({"y": 1}, 'no object with the one key "x"'),
        ({"x": [[1, 2], [3]]}, r"no array of numbers; numbers \[n, 1, 8, 8\]"),
        ({"x": "picture"}, "no array of numbers"),
        ({"x": [[1.0] * 8] * 8}, r"inputs of the shape \[8, 8\]"),
        ({"x": [[[1e39] * 8] * 8]}, "not finite"),
        ({"x": []}, r"inputs of the shape \[0\]"),
    ],
)
def test_a_wrong_request_is_one_line_and_the_next_is_answered(
    tmp_path: Path, ask: Callable[[Any], Any], request_: Any, error: str
) -> None:
    path, _ = kept(IMAGES, tmp_path)
    with answering(Answering(tmp_path / "socket", Predictor(path))):
        told = ask(request_)
        assert list(told) == ["error"]
        assert re.search(error, told["error"])
        assert "\n" not in told["error"]
        assert "outputs" in ask({"x": drawn(IMAGES, 1).tolist()})


def test_a_token_beyond_the_vocabulary_is_one_line_at_a_socket_and_for_a_file(
    tmp_path: Path, ask: Callable[[Any], Any], run: Run
) -> None:
    words = ModelConfig("transformer", (4,), 3, (8,), blocks=(1,), vocabulary=50)
    path, _ = kept(words, tmp_path)
    with answering(Answering(tmp_path / "socket", Predictor(path))):
        for wrong in (50, -1, 0.5):
            assert ask({"x": [1, 2, wrong, 3]})["error"].startswith(f"inputs: a token is {wrong:g}; whole numbers")
        assert "outputs" in ask({"x": [1, 2, 49, 3]})
    np.savez(tmp_path / "shard.npz", x=np.array([[1, 2, 50, 3]]))
    code, _, error = run("infer", "--model", path, "--data", tmp_path / "shard.npz")
    assert (code, error[:31]) == (2, "error: inputs: a token is 50; w")


def test_a_line_without_end_and_a_client_too_many_are_turned_away(
    tmp_path: Path, ask: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "LONGEST_LINE", 1000)
    path, _ = kept(IMAGES, tmp_path)
    server = Answering(tmp_path / "socket", Predictor(path))
    with answering(server):
        assert "more than 1000 bytes" in ask(b"x" * 1001)["error"]
        server.free = threading.Semaphore(0)
        with socket.socket(socket.AF_UNIX) as other:
            other.settimeout(20)
            other.connect(str(tmp_path / "socket"))
            assert b"try again later" in other.makefile("rb").readline()


def test_every_connection_is_a_stream_of_its_own(tmp_path: Path, ask: Callable[[Any], Any]) -> None:
    path, module = kept(SIGNALS, tmp_path)
    signal = drawn(SIGNALS, 1)[0].repeat(1, 2)[:, :48]
    with answering(Answering(tmp_path / "socket", Predictor(path), hop=8)):
        assert ask({"samples": signal[:, :30].tolist()})["outputs"] == []
        found = ask({"samples": signal[:, 30:].tolist()})
        expected = module(torch.stack([signal[:, at : at + 32] for at in (0, 8, 16)]))
        torch.testing.assert_close(torch.tensor(found["outputs"]), expected, rtol=1e-4, atol=1e-5)
        assert found["labels"] == expected.argmax(1).tolist()
        assert "any" in ask({"samples": [[1.0]]})["error"]
    with pytest.raises(ModelError, match="hop 3"):
        Answering(tmp_path / "socket", Predictor(path), hop=3)


def test_a_path_that_is_no_socket_is_left_alone_and_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    path, _ = kept(IMAGES, tmp_path)
    with pytest.raises(DataError, match="is there already"):
        Answering(path, Predictor(path))
    assert path.exists()
    at = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(at))
    Answering(at, Predictor(path)).server_close()


def test_the_command_answers_for_a_file(tmp_path: Path, run: Run) -> None:
    path, module = kept(IMAGES, tmp_path)
    x = drawn(IMAGES, 5)
    expected = module(x)
    y = expected.argmax(1)
    np.savez(tmp_path / "shard.npz", x=x.numpy(), y=y.numpy())
    np.savez(tmp_path / "bare.npz", x=x.numpy())
    code, out, _ = run("infer", "--state", tmp_path, "--data", tmp_path / "shard.npz", "--json")
    assert (code, json.loads(out)["labels"], json.loads(out)["scores"]) == (0, y.tolist(), {"accuracy": 1.0})
    code, out, _ = run("infer", "--model", path, "--data", tmp_path / "bare.npz", "--out", tmp_path / "answers.npz")
    assert code == 0
    assert "width 0.5 of round 7: 5 examples" in out
    np.testing.assert_allclose(np.load(tmp_path / "answers.npz")["outputs"], expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--data", "bare.npz"], "give --model, a file, or --state"),
        (["--model", "model.safetensors"], "give --data, for the examples of a file, or --serve"),
        (["--model", "other.safetensors", "--data", "bare.npz"], "other.safetensors: no such file"),
        (["--model", "model.safetensors", "--tier", "small", "--data", "bare.npz"], "tier 'small' has no model"),
        (["--model", "model.safetensors", "--data", "narrow.npz"], "inputs of the shape"),
    ],
)
def test_a_wrong_command_is_one_line(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    kept(IMAGES, tmp_path)
    np.savez(tmp_path / "bare.npz", x=np.zeros((2, 1, 8, 8), np.float32))
    np.savez(tmp_path / "narrow.npz", x=np.zeros((2, 1, 4, 4), np.float32))
    monkeypatch.chdir(tmp_path)
    code, _, told = run("infer", *arguments)
    assert code == 2
    assert error in " ".join(told.replace("│", " ").split())
