"""What an experiment makes of its data set's inputs and targets, and what it says where they do not fit."""

import pytest
import torch
from torch import Tensor, nn

import diastole
from diastole.client.errors import DataError
from diastole.experiments.run import make_run
from diastole.models.errors import ModelError, SpecError

X = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """A network of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x).mean(1))


def run(x: Tensor, y: Tensor, **settings: object) -> object:
    experiment = diastole.Experiment(train=(x, y), test=(x, y), devices=3, **settings)
    return make_run(experiment.settings, experiment.given)


@pytest.mark.parametrize(
    ("y", "settings", "says"),
    [
        (torch.eye(4)[torch.arange(40) % 4].long(), {}, 'of which any number hold there is loss "multi-label"'),
        (torch.zeros(40), {}, 'loss "cross-entropy" takes whole numbers; for values set it to "mse"'),
        (torch.zeros(40, 8, 8), {"loss": "mse"}, "model cnn gives [40, 8], and only a"),
        (torch.zeros(40), {"loss": "mse", "metrics": ["f1"]}, '"f1" does not judge what loss "mse" gives'),
    ],
)
def test_targets_that_do_not_fit_are_one_line(y: Tensor, settings: dict[str, object], says: str) -> None:
    with pytest.raises((ModelError, SpecError), match=r"^[^\n]*$") as caught:
        run(X, y, model="cnn", **settings)
    assert says in str(caught.value)


def test_whole_numbers_given_in_python_are_a_custom_models_tokens() -> None:
    x, y = torch.arange(160).view(40, 4) % 9, torch.arange(40) % 2
    made = run(x, y, model=Words(), method="width")
    assert (made.model.vocabulary, made.model.tokens, made.test.x.dtype) == (9, True, torch.int64)
    with pytest.raises(ModelError, match=r"set model.vocabulary if they are tokens"):
        run(x.float(), y, model=Words(), method="width")


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_token_beyond_the_vocabulary_is_found_when_data_are_read(part: str) -> None:
    x, y = torch.arange(160.0).view(40, 4) % 9, torch.arange(40) % 2
    wrong = x.index_fill(0, torch.tensor(39), 9.0)
    train, test = (wrong if part == name else x for name in ("training", "test"))
    model = {"name": "transformer", "widths": [8], "blocks": [1], "vocabulary": 9}
    experiment = diastole.Experiment(train=(train, y), test=(test, y), devices=3, model=model, method="width")
    with pytest.raises(DataError, match=rf"^data set '\w+', {part} part: a token is 9; whole numbers from 0 to 8, "):
        make_run(experiment.settings, experiment.given)
