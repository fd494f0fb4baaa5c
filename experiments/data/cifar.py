"""CIFAR-10 and CIFAR-100 in their python-batch files, read without running anything in them.

A python batch is a program for a stack machine that can name any function and call it. Here its opcodes are
walked by a machine that knows only what a CIFAR batch is made of: texts, numbers, lists, one dictionary and
arrays of bytes. Whatever else a file asks for is refused, and no name in it is ever looked up.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from pickletools import genops
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diastole.client.errors import DataError

PIXELS = (3, 32, 32)

# Every name a batch may contain, as "module name", and what it stands for. Both spellings of numpy's core are
# in use: the published files are older than the renaming.
NAMES = {
    "_codecs encode": "encode",
    "numpy dtype": "dtype",
    "numpy ndarray": "ndarray",
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy.core.numeric _frombuffer": "frombuffer",
    "numpy._core.numeric _frombuffer": "frombuffer",
}
TEXTS = {"BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}
BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
LITERALS = TEXTS | NUMBERS | BYTES


@dataclass(frozen=True, slots=True)
class _Name:
    """An allowed name: a label that `_call` and `_build` recognise, never the thing itself."""

    meaning: str


@dataclass(slots=True)
class _Array:
    """An array of bytes. The machine makes it empty first and fills it later, hence mutable."""

    value: NDArray[np.uint8] | None = None


UINT8 = _Name("uint8")


def load(folder: Path) -> tuple[dict[str, NDArray[Any]], int]:
    """Return `x_train`, `y_train`, `x_test` and `y_test` of the batch files in `folder`, and the classes.

    Images are uint8 `[n, 32, 32, 3]`, labels int64 `[n]`. With `data_batch_1` to `data_batch_5` and
    `test_batch` it is CIFAR-10; with `train` and `test` it is CIFAR-100 and its fine labels (Krizhevsky,
    Learning Multiple Layers of Features from Tiny Images, 2009).

    Raises:
        DataError: a file is missing or is not a CIFAR batch.

    """
    if (folder / "data_batch_1").exists():
        train, test, key, classes = [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "labels", 10
    elif (folder / "train").exists():
        train, test, key, classes = ["train"], "test", "fine_labels", 100
    else:
        raise DataError(
            f"{folder}: found neither data_batch_1 nor train; a folder with the python-batch files of "
            "CIFAR-10 (data_batch_1 to data_batch_5, test_batch) or CIFAR-100 (train, test) is accepted"
        )
    parts = [_batch(folder / name, key, classes) for name in train]
    x_test, y_test = _batch(folder / test, key, classes)
    arrays = {
        "x_train": np.concatenate([x for x, _ in parts]),
        "y_train": np.concatenate([y for _, y in parts]),
        "x_test": x_test,
        "y_test": y_test,
    }
    return arrays, classes


def _batch(path: Path, key: str, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the images `[n, 32, 32, 3]` and the labels stored under `key` of one file."""
    batch = read(path)
    data, labels = batch.get("data"), batch.get(key)
    width = math.prod(PIXELS)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width:
        found = f"shape {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}: data is {found}; a uint8 array [n, {width}] is accepted")
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        labels = labels.tolist()
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: {key} is {type(labels).__name__}; a list of whole numbers is accepted")
    if len(labels) != len(data):
        raise DataError(f"{path}: {key} holds {len(labels)} for {len(data)} images; one each is accepted")
    wrong = next((label for label in labels if not 0 <= label < classes), None)
    if wrong is not None:
        raise DataError(f"{path}: {key} holds {wrong}; whole numbers from 0 to {classes - 1} are accepted")
    return data.reshape(-1, *PIXELS).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def read(path: Path) -> dict[str, object]:
    """Return the dictionary in one python-batch file, its arrays as uint8.

    Takes the published files (written by Python 2) and copies that a current Python wrote with
    protocol 2 to 5.

    Raises:
        DataError: the file is missing, broken, or contains anything a CIFAR batch does not.

    """
    try:
        return _run(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; a CIFAR python-batch file is accepted") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: not a CIFAR python-batch file: {reason}") from error


def _run(program: bytes) -> dict[str, object]:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(start: int) -> list[Any]:
        if not 0 <= start <= len(stack):
            raise ValueError("it takes more from the stack than is there")
        items = stack[start:]
        del stack[start:]
        return items

    value: Any
    for opcode, value, _ in genops(program):
        name = opcode.name
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in LITERALS:
                stack.append(value)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop(marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(pop(len(stack) - int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = pop(len(stack) - 1 if name == "APPEND" else marks.pop())
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = pop(len(stack) - 2 if name == "SETITEM" else marks.pop())
                stack[-1].update(zip(map(_text, items[::2]), items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if name == "MEMOIZE" else value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL" | "STACK_GLOBAL":
                asked = value if name == "GLOBAL" else " ".join(map(_text, pop(len(stack) - 2)))
                stack.append(_allowed(asked))
            case "REDUCE":
                stack.append(_call(*pop(len(stack) - 2)))
            case "BUILD":
                (state,) = pop(len(stack) - 1)
                _build(stack[-1], state)
            case _:
                raise ValueError(f"it uses the opcode {name}, which such a file never needs")
    if len(stack) != 1 or not isinstance(stack[0], dict):
        raise ValueError("it does not hold one dictionary")
    return {key: item.value if isinstance(item, _Array) else item for key, item in stack[0].items()}


def _text(value: object) -> str:
    """Return a text that Python 2, or a copy made from what it wrote, may have stored as bytes."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} stands where a name should")
    return value


def _raw(value: object) -> bytes | bytearray:
    """Return bytes that Python 2 stored as text: `genops` reads those as Latin-1."""
    if isinstance(value, str):
        return value.encode("latin-1")
    if not isinstance(value, bytes | bytearray):
        raise TypeError(f"a {type(value).__name__} stands where bytes should")
    return value


def _shaped(raw: object, shape: Any, order: Literal["C", "F"]) -> NDArray[np.uint8]:
    return np.frombuffer(_raw(raw), np.uint8).reshape(shape, order=order)


def _allowed(asked: str) -> _Name:
    if asked not in NAMES:
        dotted = asked.replace(" ", ".")[:80]
        raise ValueError(f"it names {dotted!r}; only bytes and numpy arrays of uint8 are accepted")
    return _Name(NAMES[asked])


def _call(function: object, arguments: object) -> object:
    """Return what the named function would have made of `arguments`."""
    match function, arguments:
        case _Name("encode"), (str(text), "latin1"):
            return text.encode("latin-1")
        case _Name("dtype"), ("u1", *_):
            return UINT8
        case _Name("reconstruct"), (_Name("ndarray"), *_):
            return _Array()
        case _Name("frombuffer"), (raw, _Name("uint8"), shape, "C" | "F" as order):
            return _Array(_shaped(raw, shape, order))
    raise ValueError("it makes a call other than for bytes or an array of uint8")


def _build(target: object, state: object) -> None:
    """Fill `target` from `state`, numpy's (version, shape, dtype, column-major, bytes)."""
    match target, state:
        case _Name("uint8"), _:
            pass  # byte order and alignment mean nothing to single bytes
        case _Array(), (_, shape, _Name("uint8"), column_major, raw):
            target.value = _shaped(raw, shape, "F" if column_major else "C")
        case _:
            raise ValueError("it fills something other than an array of uint8")
