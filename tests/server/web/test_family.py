"""What the dashboard says of a run's sub-models is what they are."""

import pytest

from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.training import TrainConfig
from diastole.server.web.family import family_of

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=10, widths=(8, 16))


# A device of diastole holds parts of weights.
@pytest.mark.parametrize("name", ["width", "diastole"])
def test_a_sub_model_holds_its_share_of_each_layer(name: str) -> None:
    method = make_method(name, MODEL, [1.0, 0.5], TrainConfig())
    family = family_of(MODEL, method.whole, method.offers())
    assert family is not None
    assert [layer.outputs for layer in family.layers] == [8, 16, 10]
    half, whole = family.sizes
    assert (half.outputs, whole.outputs) == ((4, 8, 10), (8, 16, 10))
    # Normalisation counts too, in the one as in the other.
    assert family.parameters == whole.parameters > sum(whole.held)
    assert half.own == whole.own == 0
