"""Tables, real files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from diastole.client.errors import DataError
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.experiments.experiment import Experiment

if TYPE_CHECKING:
    import pandas


def frame(rows: int = 40, seed: int = 0) -> "pandas.DataFrame":
    import pandas

    draws = np.random.default_rng(seed)
    return pandas.DataFrame(
        {
            "age": draws.integers(0, 99, rows),
            "label": np.where(draws.random(rows) < 0.5, "no", "yes"),
            "height": draws.random(rows),
            "user": [f"u{number % 5}" for number in range(rows)],
        }
    )


def refusal(path: Path, **reading: object) -> str:
    with pytest.raises(DataError, match=r"^[^\n]*$") as refused:
        load("table", path, Reading(**reading))  # type: ignore[arg-type]
    return str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_each_row_of_two_tables_is_an_example(kind: str, tmp_path: Path) -> None:
    train, test = frame(40), frame(10, 1)[["height", "label", "age"]]
    for name, table in (("train", train), ("test", test)):
        path = tmp_path / f"{name}.{kind}"
        table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False)
    found = load("table", tmp_path, Reading())
    for part, table in ((found.train, train), (found.test, test)):
        expected = torch.from_numpy(table[["age", "height"]].to_numpy(np.float32))
        torch.testing.assert_close(part.x, expected)
        assert part.y.tolist() == [["no", "yes"].index(name) for name in table["label"]]
    assert found.users is not None
    assert found.users.tolist() == [number % 5 for number in range(40)]
    assert found.classes == 2


def test_a_single_table_gives_a_share_of_its_rows_to_the_test(tmp_path: Path) -> None:
    table = frame(100)
    table.to_csv(tmp_path / "people.csv", index=False)
    found = load("table", tmp_path / "people.csv", Reading(test=0.3))
    assert (len(found.test), len(found.train)) == (30, 70)
    rows = sorted([*found.train.x.tolist(), *found.test.x.tolist()])
    assert rows == sorted(torch.from_numpy(table[["age", "height"]].to_numpy(np.float32)).tolist())
    # Each row keeps its user.
    ages = {user: set(part["height"].astype(np.float32)) for user, part in table.groupby("user")}
    assert found.users is not None
    for x, user in zip(found.train.x.numpy(), found.users.tolist(), strict=True):
        assert x[1] in ages[f"u{user}"]


def test_columns_have_the_names_that_the_experiment_says_and_labels_far_apart_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("kind,label,who\n1000,1,a\n9000,2,b\n1000,3,a\n9000,4,b\n1000,5,a\n9000,6,b\n")
    found = load("table", path, Reading(label="kind", user="who", test=0.34))
    assert (found.classes, found.train.x.shape[1], sorted(found.train.y.tolist())) == (2, 1, [0, 0, 1, 1])


def test_targets_may_be_values_and_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,price,rooms,label\n" + "".join(f"{k},{k / 2},{1000 * k},{k % 2}\n" for k in range(10)))
    one = load("table", path, Reading(label="price"))
    assert (one.train.y.dtype, one.input_shape) == (torch.float32, (3,))
    assert torch.equal(one.train.y, one.train.x[:, 0] / 2)
    two = load("table", path, Reading(label="price, rooms", values=True))
    assert (two.input_shape, two.train.y.shape[1]) == ((2,), 2)
    assert torch.equal(two.train.y, two.train.x[:, :1] * torch.tensor([0.5, 1000.0]))
    assert Experiment.parse({"data": {"label": ["price", "rooms"]}}, "test").reading().label == "price,rooms"
    assert Experiment.parse({"training": {"loss": "mse"}}, "test").reading().values
    # Whole numbers are classes, unless the loss takes values.
    assert load("table", path, Reading(label="rooms")).classes == 10
    values = load("table", path, Reading(label="rooms", values=True))
    assert torch.equal(values.train.y, values.train.x[:, 0] * 1000)
    path.write_text("a,label\n1,x\n2,y\n")
    assert "column 'label' is <U1 [2]; the loss takes numbers" in refusal(path, values=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has no column 'label'; there are a, b"),
        ("a,label\n1,\n2,x\n", "column 'label' has no value in row 0"),
        ("a,label\n,x\n2,x\n", "column 'a' has no value in row 0"),
        ("a,label\nred,x\n", "column 'a' holds 'red'; numbers are accepted"),
        ("label\n1\n", "has 1 rows and 0 columns of inputs"),
        ("a,label\n", "has 0 rows and 1 columns of inputs"),
        ("", "cannot be read"),
        ("a,label\ninf,1\n1,1\n", "holds a value that is not finite"),
    ],
)
def test_what_is_no_table_of_examples_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    assert message in refusal(path)


def test_files_that_are_no_tables_are_one_line(tmp_path: Path) -> None:
    assert "holds 0 tables named train; one, of .csv" in refusal(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert "notes.txt: is no table" in refusal(tmp_path / "notes.txt")
    (tmp_path / "t.parquet").write_bytes(b"nonsense")
    assert "t.parquet: cannot be read" in refusal(tmp_path / "t.parquet")
    frame(8).to_csv(tmp_path / "train.csv")
    frame(8).assign(label="maybe").to_csv(tmp_path / "test.csv")
    assert "column 'label' holds 'maybe', which is no label of train.csv" in refusal(tmp_path)
    frame(8).drop(columns="age").to_csv(tmp_path / "test.csv")
    assert "test.csv: has no column 'age'" in refusal(tmp_path)
