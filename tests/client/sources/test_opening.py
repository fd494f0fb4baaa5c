"""A device's data of every kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from distributions import install

from diastole.client.errors import DataError
from diastole.client.sources.opening import SOURCES, opened
from diastole.client.sources.settings import settings_of
from diastole.client.training import train
from diastole.models import allowed
from diastole.models.errors import ModelError
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.task import Task
from diastole.models.training import Examples, TrainConfig

DRAWS = np.random.default_rng(0)
TABLE = "time,ax,ay,activity\n0,1.5,-1,walk\n1,2.5,-2,sit\n2,3.5,-3,walk\n3,4.5,-4,walk\n4,5.5,-5,walk\n"
COLUMNS = ("data.input=ax,ay", "data.label=activity", 'data.classes=["lie", "sit", "walk"]')


def read(where: Path | str, *texts: str, window: int = 0, hop: int = 0) -> Examples:
    with opened(str(where), settings_of(texts, window, hop)) as (_, source):
        examples = source.examples()
        assert (len(source), source.input_shape) == (len(examples), tuple(examples.x.shape[1:]))
        return examples


def image(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    image = pytest.importorskip("PIL.Image")
    pixels = DRAWS.integers(0, 256, shape, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)
    return pixels


def test_images_are_of_the_classes_that_the_model_has_and_not_of_those_on_the_device(tmp_path: Path) -> None:
    cat, cow = image(tmp_path / "cat" / "a.png", (4, 6, 3)), image(tmp_path / "cow" / "b.png", (4, 6, 3))
    found = read(tmp_path, 'data.classes=["ant", "cow", "dog", "cat"]')
    assert found.y.tolist() == [3, 1]
    expected = torch.from_numpy(np.stack([cat, cow])).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(found.x, expected)
    assert read(tmp_path, 'data.classes=["cat", "cow"]', "data.size=2").x.shape == (2, 3, 2, 2)
    with pytest.raises(DataError, match=r"folder 'cat' is no number of a class from 0 on; --set 'data\.classes="):
        read(tmp_path)
    with pytest.raises(DataError, match="folder 'cow' is no class; cat, dog are accepted"):
        read(tmp_path, 'data.classes=["cat", "dog"]')
    (tmp_path / "cat").rename(tmp_path / "7")
    (tmp_path / "cow").rename(tmp_path / "2")
    assert read(tmp_path).y.tolist() == [2, 7]


def test_a_table_has_an_example_in_each_row_or_each_window(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "sensor.csv"
    path.write_text(TABLE)
    found = read(path, *COLUMNS)
    assert found.x.tolist() == [[k + 1.5, -k - 1.0] for k in range(5)]
    assert found.y.tolist() == [2, 1, 2, 2, 2]
    pandas.read_csv(path).to_parquet(tmp_path / "sensor.parquet")
    for each in (path, tmp_path / "sensor.parquet"):
        windows = read(each, *COLUMNS, window=2, hop=1)
        assert windows.x.tolist() == [[[3.5, 4.5], [-3.0, -4.0]], [[4.5, 5.5], [-4.0, -5.0]]]
        assert windows.y.tolist() == [2, 2]
        values = read(each, "data.input=ax", "data.label=ay", "data.values=true", window=3, hop=2)
        assert values.y.tolist() == [-3.0, -5.0]
    assert read(path, "data.input=ax", "data.label=ay", "data.values=true").y.dtype == torch.float32


def test_inputs_of_a_folder_stay_in_their_files_and_train_as_if_they_were_in_memory(tmp_path: Path) -> None:
    pixels, labels = DRAWS.integers(0, 256, (9, 8, 8), np.uint8), np.arange(9) % 3
    np.save(tmp_path / "x.npy", pixels)
    np.save(tmp_path / "y.npy", labels)
    found = read(tmp_path)
    assert found.x.dtype == torch.uint8
    np.savez(tmp_path / "same.npz", x=pixels, y=labels)
    same = read(tmp_path / "same.npz")
    model = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(4, 8))
    task = Task("r1-one", 1, "one", spec_of(1.0), TrainConfig(batch_size=4), 1)
    mapped, held = (train(model, task, initial_state(model, 0), each).state for each in (found, same))
    assert all(torch.equal(mapped[name], held[name]) for name in held)


def test_a_function_is_called_only_if_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sensors_of_mine.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n\n"
        "def load(path=None):\n    return TensorDataset(torch.ones(3, 2), torch.arange(3) + (path is not None))\n\n"
        "def broken():\n    raise OSError('no sensor')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(allowed, "_ALLOWED", set())
    name = "sensors_of_mine:load"
    with pytest.raises(ModelError, match=r"data source sensors_of_mine:load would be imported.*--allow-factory"):
        read(name)
    allowed.allow(name)
    assert read(name).y.tolist() == [0, 1, 2]
    assert read(name, "data.path=there").y.tolist() == [1, 2, 3]
    allowed.allow("sensors_of_mine:broken")
    with pytest.raises(DataError, match="data source sensors_of_mine:broken: OSError: no sensor"):
        read("sensors_of_mine:broken")
    install(tmp_path, "sensors_package", "diastole.sources", {"mine": name})
    SOURCES.__dict__.pop("_others", None)
    assert read("mine").x.tolist() == [[1.0, 1.0]] * 3
    SOURCES.__dict__.pop("_others", None)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["size=3", "data.seed=1"], "--set 'data.seed=1': data.KEY=VALUE is accepted, with KEY one of size, layout"),
        (["data.size=x"], "data: size: "),
        (["data.layout=up"], "data: layout: "),
        (["data.size"], "--set 'data.size'"),
    ],
)
def test_settings_that_are_none_are_one_line(texts: list[str], message: str) -> None:
    with pytest.raises(DataError) as caught:
        settings_of(texts)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_says_nothing_of_such_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((4, 8, 8), np.uint8), y=np.arange(4))
    with pytest.raises(DataError, match=r"mine.npz: an archive: window 4 says nothing of it; nothing does"):
        read(tmp_path / "mine.npz", window=4)
    (tmp_path / "rows.csv").write_text(TABLE)
    with pytest.raises(DataError, match=r"a table: size 3 says nothing of it; label, input, .* does"):
        read(tmp_path / "rows.csv", *COLUMNS, "data.size=3")


def test_windows_touch() -> None:
    with pytest.raises(DataError, match="hop 5 is more than the window, 4"):
        settings_of([], 4, 5)
    assert settings_of([], 128).hop == 64
