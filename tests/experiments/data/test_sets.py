import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from diastole.client.errors import DataError
from diastole.experiments.data import digits, sets
from diastole.experiments.data.dataset import Dataset, split_proxy
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.models.training import Examples

RNG = np.random.default_rng(0)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as refused:
        call()
    text = str(refused.value)
    assert "\n" not in text
    return text


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.witness,)


# npz


def arrays(**changes: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    content: dict[str, NDArray[Any] | None] = {
        "x_train": RNG.integers(0, 256, (6, 5, 4), np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2], np.uint8),
        "x_test": RNG.integers(0, 256, (2, 5, 4), np.uint8),
        "y_test": np.array([2, 0], np.uint8),
    }
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


def npz(folder: Path, **changes: NDArray[Any] | None) -> Path:
    path = folder / "set.npz"
    np.savez(path, allow_pickle=True, **arrays(**changes))
    return path


def test_grey_images_get_a_channel_and_the_range_from_minus_one_to_one(tmp_path: Path) -> None:
    x = np.zeros((6, 5, 4), np.uint8)
    x[1, 2, 3] = 255
    x[2, 0, 1] = 51
    dataset = load("npz", npz(tmp_path, x_train=x), Reading())
    assert dataset.input_shape == (1, 5, 4)
    assert dataset.train.x.dtype == torch.float32
    assert (dataset.train.x[0] == -1.0).all()
    assert dataset.train.x[1, 0, 2, 3] == 1.0
    assert dataset.train.x[2, 0, 0, 1] == pytest.approx(-0.6)
    assert dataset.train.y.dtype == torch.int64
    assert dataset.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.test.y.tolist() == [2, 0]
    assert (dataset.name, dataset.classes, dataset.users) == ("npz", 3, None)


def test_colour_images_become_channels_first(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
    dataset = load("npz", npz(tmp_path, x_train=x, x_test=x[:2]), Reading())
    assert dataset.input_shape == (3, 5, 4)
    assert dataset.train.x.is_contiguous()
    expected = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    assert torch.equal(dataset.train.x, expected)


def test_floating_point_examples_are_kept_as_they_are(tmp_path: Path) -> None:
    x = RNG.normal(0, 3, (6, 9, 16)).astype(np.float16)
    users = np.array([4, 4, 0, 0, 2, 2], np.uint8)
    dataset = load("npz", npz(tmp_path, x_train=x, x_test=x[:2], user_train=users), Reading())
    assert dataset.train.x.dtype == torch.float32
    assert np.array_equal(dataset.train.x.numpy(), x.astype(np.float32))
    assert dataset.users is not None
    assert dataset.users.dtype == torch.int64
    assert dataset.users.tolist() == users.tolist()


def test_floats_that_may_have_their_channels_last_are_asked_about(tmp_path: Path) -> None:
    x = RNG.random((6, 5, 7, 3), np.float32)
    path = npz(tmp_path, x_train=x, x_test=x[:2])
    assert 'data.layout must say where the channels are: "channels-last"' in refusal(
        lambda: load("npz", path, Reading())
    )
    last, first = (load("npz", path, Reading(layout=each)) for each in ("channels-last", "channels-first"))
    assert torch.equal(last.train.x, torch.from_numpy(x).permute(0, 3, 1, 2))
    assert torch.equal(first.train.x, torch.from_numpy(x))


def test_a_layout_holds_for_images_of_whole_numbers_too_and_for_nothing_else(tmp_path: Path) -> None:
    x = RNG.integers(0, 256, (6, 3, 5, 4), np.uint8)
    found = load("npz", npz(tmp_path, x_train=x, x_test=x[:2]), Reading(layout="channels-first"))
    torch.testing.assert_close(found.train.x, torch.from_numpy(x) / 127.5 - 1)
    assert "images of four axes" in refusal(lambda: load("npz", npz(tmp_path), Reading(layout="channels-last")))


def test_square_arrays_of_floats_are_asked_about_too(tmp_path: Path) -> None:
    x = RNG.random((6, 5, 5), np.float32)
    path, whole = npz(tmp_path, x_train=x, x_test=x[:2]), torch.from_numpy(x)
    assert 'data.layout must say what this is: "grey" images, or series' in refusal(
        lambda: load("npz", path, Reading())
    )
    for layout, expected in (("grey", whole[:, None]), ("channels-first", whole), ("channels-last", whole.mT)):
        assert torch.equal(load("npz", path, Reading(layout=layout)).train.x, expected)  # type: ignore[arg-type]
    path = npz(tmp_path, x_train=x[:, 0], x_test=x[:2, 0])
    assert "images of three axes are accepted" in refusal(lambda: load("npz", path, Reading(layout="grey")))


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(2)}, tmp_path / "tensors.pt")
    assert (
        "tensors.pt: is a pickle, which may run anything and is not read; save its arrays with numpy.savez"
        in refusal(lambda: load("npz", tmp_path / "tensors.pt", Reading()))
    )


def test_tokens_keep_their_values_up_to_what_a_float_can_hold(tmp_path: Path) -> None:
    x = RNG.integers(0, 50_000, (6, 9), np.int64)
    found = load("npz", npz(tmp_path, x_train=x, x_test=x[:2].astype(np.int32)), Reading())
    assert torch.equal(found.train.x, torch.from_numpy(x).float())
    x[2, 3] = -(2**24) - 1
    assert "holds 16777217; whole numbers of at most 16777216" in refusal(
        lambda: load("npz", npz(tmp_path, x_train=x, x_test=x[:2]), Reading())
    )


def test_words_are_labels_and_users_and_truth_values_are_labels(tmp_path: Path) -> None:
    words = np.array(["dog", "cat", "ant", "dog", "cat", "ant"])
    found = load("npz", npz(tmp_path, y_train=words, y_test=words[:2]), Reading())
    assert (found.train.y.tolist(), found.test.y.tolist(), found.classes) == ([2, 1, 0, 2, 1, 0], [2, 1], 3)
    path = npz(tmp_path, y_train=words, y_test=np.array(["cat", "cow"]))
    assert "y_test holds 'cow', which is no label of y_train" in refusal(lambda: load("npz", path, Reading()))
    found = load("npz", npz(tmp_path, user_train=np.array(["eve", "bob", "eve", "bob", "eve", "al"])), Reading())
    assert found.users is not None
    assert found.users.tolist() == [2, 1, 2, 1, 2, 0]
    truth = np.array([True, False] * 3)
    found = load("npz", npz(tmp_path, y_train=truth, y_test=truth[:2]), Reading())
    assert (found.train.y.tolist(), found.classes) == ([1, 0] * 3, 2)


def test_classes_that_never_occur_are_told_and_too_many_are_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from_one = np.array([1, 2, 3, 1, 2, 3])
    assert load("npz", npz(tmp_path, y_train=from_one, y_test=from_one[:2]), Reading()).classes == 4
    assert "y_train: 1 of the 4 classes from 0 to 3 never occur" in caplog.text
    path = npz(tmp_path, y_train=1000 * from_one, y_test=from_one[:2])
    assert "3 different labels between 1000 and 3000; labels that are numbered from 0 to 2" in refusal(
        lambda: load("npz", path, Reading())
    )


def test_an_archive_without_a_test_part_gives_a_share_and_may_name_its_arrays_otherwise(tmp_path: Path) -> None:
    content = arrays()
    for names in (("x_train", "y_train", "user_train"), ("images", "kinds", "who")):
        path = tmp_path / f"{names[0]}.npz"
        np.savez(path, **dict(zip(names, (content["x_train"], content["y_train"], np.arange(6)), strict=True)))
        if names[0] == "images":
            line = "x_train is missing, found images, kinds, who; x_train, y_train, x_test and y_test, or names that"
            assert line in refusal(lambda path=path: load("npz", path, Reading()))  # type: ignore[misc]
            reading = Reading(test=0.5, input="images", label="kinds", user="who")
        else:
            reading = Reading(test=0.5)
        found = load("npz", path, reading)
        assert (sorted(found.train.y.tolist()), sorted(found.test.y.tolist())) == ([0, 1, 2], [0, 1, 2])
        assert found.users is not None
        expected = torch.from_numpy(content["x_train"])[found.users].unsqueeze(1) / 255 * 2 - 1
        assert torch.equal(found.train.x, expected)


def test_targets_may_have_any_shape_and_whole_numbers_may_be_values(tmp_path: Path) -> None:
    dense = RNG.integers(0, 3, (6, 5, 4))
    dense[0, 0, 0], dense[1, 0, 0] = -100, 2
    found = load("npz", npz(tmp_path, y_train=dense, y_test=dense[:2]), Reading())
    assert (found.classes, found.train.y.tolist()) == (3, dense.tolist())
    found = load("npz", npz(tmp_path, y_train=RNG.random(6), y_test=RNG.random(2)), Reading())
    assert (found.classes, found.train.y.dtype, found.labels) == (1, torch.float32, None)
    far = 1000 * np.arange(1, 7)
    found = load("npz", npz(tmp_path, y_train=far, y_test=far[:2] + 1), Reading(values=True))
    assert (found.train.y.tolist(), found.test.y.tolist()) == (far.tolist(), [1001, 2001])
    several = np.eye(3)[[0, 1, 2, 0, 1, 2]].astype(np.uint8)
    found = load("npz", npz(tmp_path, y_train=several, y_test=several[:2]), Reading(values=True))
    assert torch.equal(found.train.y, torch.from_numpy(several).float())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_test": None}, "y_test is missing, found x_train, y_train, x_test"),
        ({"y_train": np.zeros(5, np.uint8)}, "y_train is uint8 [5]; whole numbers [6]"),
        ({"y_train": np.zeros((5, 2), np.uint8)}, "y_train is uint8 [5, 2]; whole numbers or values [6, ...]"),
        ({"y_train": np.full(6, np.inf)}, "y_train holds a value that is not finite"),
        ({"y_train": np.full((6, 2), -1)}, "y_train holds -1; whole numbers from 0 to 65535, or -100"),
        ({"y_train": np.array([0, 0, 0, 0, 0, -1])}, "y_train holds -1; whole numbers from 0"),
        ({"y_train": np.full(6, 2**64 - 1, np.uint64)}, "y_train holds 18446744073709551615"),
        ({"y_test": np.array([0, 3])}, "y_test holds 3; whole numbers from 0 to 2"),
        ({"y_test": np.array([0])}, "y_test is int64 [1]"),
        ({"user_train": np.zeros(2, np.int64)}, "user_train is int64 [2]"),
        ({"user_train": np.array(list("abcde"))}, "user_train is int64 [5]"),
        ({"x_train": np.zeros((0, 5, 4), np.uint8)}, "x_train is uint8 [0, 5, 4]; at least one"),
        ({"x_train": np.zeros((6, 20), np.uint8)}, "x_train is uint8 [6, 20]; uint8 images"),
        ({"x_train": np.zeros((6, 3, 32, 32), np.uint8)}, "x_train is uint8 [6, 3, 32, 32]; uint8 images"),
        ({"x_train": np.zeros((6, 5, 4), np.int64)}, "x_test has the shape [1, 5, 4]; [5, 4]"),
        ({"x_train": np.zeros((6, 5, 4), np.complex64)}, "x_train is complex64"),
        ({"x_train": np.zeros(6)}, "x_train is float64 [6]"),
        ({"x_train": np.full((6, 5), np.nan)}, "x_train holds a value that is not finite"),
        ({"x_train": np.full((6, 5), 1e300)}, "x_train holds a value that is not finite"),
        ({"x_test": np.zeros((2, 5, 5), np.uint8)}, "x_test has the shape [1, 5, 5]; [1, 5, 4]"),
        ({"y_train": np.array([None] * 6, object)}, "y_train cannot be read"),
    ],
)
def test_arrays_that_are_not_accepted(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = npz(tmp_path, **changes)
    text = refusal(lambda: load("npz", path, Reading()))
    assert text.startswith(f"{path}: ")
    assert says in text
    assert "accepted" in text


def test_an_object_array_is_not_executed(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = npz(tmp_path, y_train=np.array([Bomb(witness)] * 6, object))
    refusal(lambda: load("npz", path, Reading()))
    assert not witness.exists()


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    whole = npz(tmp_path).read_bytes()
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name, content in {
        "text.npz": b"hello",
        "empty.npz": b"",
        "cut.npz": whole[: len(whole) // 2],
        "bent.npz": whole[:200] + bytes(64) + whole[264:],
        "single.npz": (tmp_path / "single.npy").read_bytes(),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert str(path) in refusal(lambda path=path: load("npz", path, Reading()))  # type: ignore[misc]


@pytest.mark.parametrize("name", ["npz", "idx", "cifar"])
def test_missing_paths(tmp_path: Path, name: str) -> None:
    gone = tmp_path / "gone"
    assert f"{name!r} has no path" in refusal(lambda: load(name, None, Reading()))
    assert f"{gone}: does not exist" in refusal(lambda: load(name, gone, Reading()))


def test_unknown_names_and_digits_from_a_path(tmp_path: Path) -> None:
    assert "unknown dataset 'mnist'; known: digits, npz, npy, idx, cifar" in refusal(
        lambda: load("mnist", None, Reading())
    )
    assert "digits" in refusal(lambda: load("digits", tmp_path, Reading()))


# digits


def test_digits_hold_out_a_fifth_of_each_class() -> None:
    dataset = load("digits", None, Reading(7))
    assert (dataset.input_shape, dataset.classes, dataset.users) == ((1, 8, 8), 10, None)
    assert len(dataset.train) + len(dataset.test) == 1797
    assert (dataset.train.x.min().item(), dataset.train.x.max().item()) == (-1.0, 1.0)
    train, test = dataset.train.y.bincount(), dataset.test.y.bincount()
    assert ((test - 0.2 * (train + test)).abs() <= 1).all()
    everything = torch.cat([dataset.train.x, dataset.test.x]).flatten(1)
    assert everything.sum() == pytest.approx(1797 * 64 * (4.884165 / 8 - 1), rel=1e-4)


def test_the_seed_decides_which_digits_are_held_out() -> None:
    a, b, c = load("digits", None, Reading(1)), load("digits", None, Reading(1)), load("digits", None, Reading(2))
    assert torch.equal(a.test.x, b.test.x)
    assert torch.equal(a.train.x, b.train.x)
    assert not torch.equal(a.test.x, c.test.x)


@pytest.mark.slow
def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    bundle, found = load_digits(), load("digits", None, Reading())
    pixels = torch.from_numpy(bundle.images).float() / 16 * 2 - 1
    expected = zip(pixels.flatten(1).tolist(), bundle.target.tolist(), strict=True)
    held = [
        (x.flatten().tolist(), int(y))
        for part in (found.train, found.test)
        for x, y in zip(part.x, part.y, strict=True)
    ]
    assert sorted(held) == sorted(expected)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    assert "pip install 'diastole[simulation]'" in refusal(lambda: load("digits", None, Reading()))


# idx


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_folder(
    folder: Path, joint: str = "-", packed: bool = False, before: str = "", test: str = "t10k"
) -> dict[str, NDArray[Any]]:
    content = arrays()
    for key, stem in [
        ("x_train", f"{before}train-images{joint}idx3-ubyte"),
        ("y_train", f"{before}train-labels{joint}idx1-ubyte"),
        ("x_test", f"{before}{test}-images{joint}idx3-ubyte"),
        ("y_test", f"{before}{test}-labels{joint}idx1-ubyte"),
    ]:
        data = idx(content[key])
        (folder / (stem + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    return content


@pytest.mark.parametrize("joint", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_plain_gzipped_and_dotted(tmp_path: Path, joint: str, packed: bool) -> None:
    content = idx_folder(tmp_path, joint, packed)
    dataset = load("idx", tmp_path, Reading())
    assert torch.equal(dataset.train.x, torch.from_numpy(content["x_train"]).unsqueeze(1) / 255 * 2 - 1)
    assert dataset.train.y.tolist() == content["y_train"].tolist()
    assert torch.equal(dataset.test.x, torch.from_numpy(content["x_test"]).unsqueeze(1) / 255 * 2 - 1)
    assert dataset.test.y.tolist() == content["y_test"].tolist()


def test_idx_files_with_the_names_of_emnist(tmp_path: Path) -> None:
    content = idx_folder(tmp_path, packed=True, before="emnist-letters-", test="test")
    dataset = load("idx", tmp_path, Reading())
    assert dataset.train.y.tolist() == content["y_train"].tolist()
    assert dataset.test.y.tolist() == content["y_test"].tolist()
    idx_folder(tmp_path, before="emnist-digits-", test="test")
    assert "holds emnist-digits-train-images-idx3-ubyte, emnist-letters-train-images-idx3-ubyte.gz; one of" in refusal(
        lambda: load("idx", tmp_path, Reading())
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "the t10k-labels file is missing; one of t10k-labels-idx1-ubyte,"),
        (b"", "begins with nothing"),
        (b"\0\0\x08\x01\0", "begins with 00000801"),
        (idx(np.zeros((2, 5, 4), np.uint8)), "begins with 00000803; 00000801"),
        (idx(np.zeros(2, np.uint8))[:-1], "holds 1 values; 2, for the shape [2]"),
        (idx(np.zeros(2, np.uint8)) + b"\0", "holds 3 values; 2"),
        (idx(np.zeros(0, np.uint8)), "y_test is uint8 [0]"),
    ],
)
def test_broken_idx_files(tmp_path: Path, content: bytes | None, says: str) -> None:
    idx_folder(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte"
    path.unlink() if content is None else path.write_bytes(content)
    text = refusal(lambda: load("idx", tmp_path, Reading()))
    assert says in text
    assert str(tmp_path) in text


@pytest.mark.parametrize("damage", [lambda packed: packed[:-12], lambda packed: b"not gzip" + packed])
def test_broken_gzip_files(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    idx_folder(tmp_path, packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path}: cannot be read" in refusal(lambda: load("idx", tmp_path, Reading()))


# cifar


def cifar10(folder: Path) -> NDArray[np.uint8]:
    rows = RNG.integers(0, 256, (17, 3073), np.uint8)
    rows[:, 0] = np.arange(17) % 10
    for number in range(5):
        rows[3 * number : 3 * number + 3].tofile(folder / f"data_batch_{number + 1}.bin")
    rows[15:].tofile(folder / "test_batch.bin")
    return rows


def test_cifar10_is_read_from_its_bytes(tmp_path: Path) -> None:
    rows = cifar10(tmp_path)
    dataset = load("cifar", tmp_path, Reading())
    assert (dataset.input_shape, dataset.classes) == ((3, 32, 32), 10)
    assert dataset.train.y.tolist() == [k % 10 for k in range(15)]
    assert dataset.test.y.tolist() == [5, 6]
    everything = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32)) / 255 * 2 - 1
    assert torch.equal(torch.cat([dataset.train.x, dataset.test.x]), everything)
    assert sets.kind_of(tmp_path) == "cifar"


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    for name, labels in {"train": [99, 0, 50], "test": [7]}.items():
        rows = np.zeros((len(labels), 3074), np.uint8)
        rows[:, 0], rows[:, 1] = 19, labels
        rows.tofile(tmp_path / f"{name}.bin")
    dataset = load("cifar", tmp_path, Reading())
    assert (dataset.classes, dataset.train.y.tolist(), dataset.test.y.tolist()) == (100, [99, 0, 50], [7])


def test_the_python_version_of_cifar_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": Bomb(witness)}))
    assert "holds the python version, which are pickles; the binary version of CIFAR-10" in refusal(
        lambda: load("cifar", tmp_path, Reading())
    )
    assert not witness.exists()


def test_cifar_folders_that_lack_a_file_or_a_byte(tmp_path: Path) -> None:
    assert f"{tmp_path}: holds neither data_batch_1.bin nor train.bin" in refusal(
        lambda: load("cifar", tmp_path, Reading())
    )
    rows = cifar10(tmp_path)
    (tmp_path / "data_batch_4.bin").write_bytes(rows[:2].tobytes()[:-1])
    assert "data_batch_4.bin: is 6145 bytes; a multiple of 3073" in refusal(lambda: load("cifar", tmp_path, Reading()))
    (tmp_path / "data_batch_4.bin").unlink()
    assert "data_batch_4.bin: No such file" in refusal(lambda: load("cifar", tmp_path, Reading()))
    rows[0, 0] = 10
    rows[:3].tofile(tmp_path / "data_batch_4.bin")
    assert "y_train holds 10; whole numbers from 0 to 9" in refusal(lambda: load("cifar", tmp_path, Reading()))


def test_the_kind_of_data_is_told_by_names(tmp_path: Path) -> None:
    for kind, name in {
        "npz": "a.npz",
        "table": "b.csv.gz",
        "hf": "hf/state.json",
        "npy": "npy/x_train.npy",
        "idx": "idx/train-images-idx3-ubyte.gz",
        "images": "images/train/cat/a.JPG",
        "sounds": "sounds/yes/a.wav",
        "cifar": "cifar/data_batch_1",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        assert sets.kind_of(tmp_path / name.split("/")[0]) == kind
    (tmp_path / "images" / "README.md").touch()
    assert sets.kind_of(tmp_path / "images") == "images"
    assert "gone: does not exist" in refusal(
        lambda: load(sets.kind_of(tmp_path / "gone"), tmp_path / "gone", Reading())
    )


# the proxy set


def toy(labels: list[int]) -> Dataset:
    y = torch.tensor(labels)
    examples = Examples(torch.zeros(len(y), 1), y)
    return Dataset("toy", examples, examples, int(y.max()) + 1, None)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.integers(0, 30),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
@settings(deadline=None)
def test_the_three_parts_are_disjoint_and_cover_all(labels: list[int], size: int, validation: float, seed: int) -> None:
    size = min(size, len(labels) // 2)
    parts = split_proxy(toy(labels), size, seed, validation)
    train, selection, _ = parts
    assert all(part.dtype == torch.int64 and torch.equal(part, part.sort().values) for part in parts)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    assert len(train) + len(selection) == size
    if size >= 2:
        assert len(selection) >= 1
        assert len(train) >= 1
    again = split_proxy(toy(labels), size, seed, validation)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def test_the_proxy_set_is_balanced_whatever_the_classes_weigh() -> None:
    dataset = toy([0] * 500 + [1] * 60 + [2] * 20)
    train, selection, _ = split_proxy(dataset, 60, 0)
    proxy = torch.cat([train, selection])
    assert dataset.train.y[proxy].bincount().tolist() == [20, 20, 20]
    assert dataset.train.y[selection].bincount().tolist() == [5, 5, 5]
    train, selection, _ = split_proxy(dataset, 100, 0)
    assert dataset.train.y[torch.cat([train, selection])].bincount().tolist() == [40, 40, 20]
    assert dataset.train.y[selection].bincount().tolist() == [10, 10, 5]


def test_the_proxy_set_depends_on_the_seed() -> None:
    dataset = toy(list(range(5)) * 40)
    assert not torch.equal(split_proxy(dataset, 20, 0)[2], split_proxy(dataset, 20, 1)[2])


def test_no_proxy_set() -> None:
    train, selection, pool = split_proxy(toy([0, 1, 2]), 0, 0)
    assert (len(train), len(selection), pool.tolist()) == (0, 0, [0, 1, 2])
    assert train.dtype == selection.dtype == torch.int64


@pytest.mark.parametrize("size", [-1, 6])
def test_proxy_sizes_that_are_not_accepted(size: int) -> None:
    assert f"proxy size is {size}; 0 to 5" in refusal(lambda: split_proxy(toy([0, 1] * 5), size, 0))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_validation_shares_that_are_not_accepted(share: float) -> None:
    assert f"validation share is {share}" in refusal(lambda: split_proxy(toy([0, 1] * 5), 4, 0, share))


# What --data names


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["train-images-idx3-ubyte.gz"], "idx"),
        (["data_batch_1", "test_batch"], "cifar"),
        (["train.csv", "test.csv"], "table"),
        (["train.parquet", "notes/readme"], "table"),
        (["cat/a.png", "dog/b.png"], "images"),
        (["train/cat/a.png", "LICENSE"], "images"),
        ([], "cifar"),
    ],
)
def test_a_folder_tells_its_kind(files: list[str], kind: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sets.kind_of(tmp_path) == kind


@pytest.mark.parametrize(("name", "kind"), [("a.npz", "npz"), ("a.csv", "table"), ("a.csv.gz", "table"), ("a", "npz")])
def test_a_file_tells_its_kind(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert sets.kind_of(tmp_path / name) == kind
