"""scikit-learn's handwritten digits."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from diastole.client.errors import DataError
from diastole.experiments.data.dataset import Dataset
from diastole.experiments.data.held import with_test
from diastole.experiments.data.reading import Reading
from diastole.models.training import Examples
from diastole.proto.missing import missing


def load(path: Path | None, reading: Reading) -> Dataset:
    """Return 1,797 images `[1, 8, 8]` of ten classes, a share of each for the test. Raises `DataError`."""
    library = find_spec("sklearn")
    if library is None or library.origin is None:
        raise DataError(missing("data set 'digits'", "scikit-learn", "diastole[simulation]"))
    # Its file alone: importing scikit-learn takes twice as long as a round on these examples.
    table = torch.from_numpy(np.loadtxt(Path(library.origin).parent / "datasets/data/digits.csv.gz", delimiter=","))
    examples = Examples(table[:, :-1].float().reshape(-1, 1, 8, 8) / 16 * 2 - 1, table[:, -1].long())
    return with_test("digits", examples, 10, None, reading)
