"""A device reads the levers of a task, and judges by them whether it can do it."""

import pytest
import torch

from diastole.client.errors import BudgetError
from diastole.client.offer import read_offer
from diastole.models.levers import NO_LEVERS, Levers
from diastole.models.methods.widths.width import spec_of
from diastole.models.networks.config import ModelConfig
from diastole.models.training import Examples, TrainConfig
from diastole.models.ways import cost_by
from diastole.v1 import common_pb2
from diastole.v1 import device_pb2 as pb

MODEL, TRAINING = ModelConfig("cnn", (1, 8, 8), 4, (8, 16)), TrainConfig(batch_size=16)
EXAMPLES = Examples(torch.zeros(16, 1, 8, 8), torch.zeros(16, dtype=torch.int64))


def offer(levers: Levers) -> pb.TrainTask:
    ref = common_pb2.ObjectRef(sha256="0" * 64, size=10_000)
    return pb.TrainTask(
        task_id="r1-d",
        round=1,
        spec_json=spec_of(1.0).to_json(),
        model=ref,
        training_json=TRAINING.to_json(),
        levers_json=levers.to_json(),
        seed=3,
    )


@pytest.mark.parametrize("levers", [Levers(recompute=True, micro_batch=4), Levers(half_state=True)])
def test_a_device_takes_by_levers_what_is_too_large_plainly(levers: Levers) -> None:
    needed = cost_by(MODEL, spec_of(1.0), TRAINING, levers).memory
    task, _ = read_offer(offer(levers), "d", MODEL, EXAMPLES, needed)
    assert task.levers == levers
    with pytest.raises(BudgetError, match=f"this device offers {needed}"):
        read_offer(offer(Levers()), "d", MODEL, EXAMPLES, needed)
    with pytest.raises(BudgetError, match=f"takes {needed} bytes"):
        read_offer(offer(levers), "d", MODEL, EXAMPLES, needed - 1)


def test_before_a_wall_all_that_training_takes_counts() -> None:
    cost, wanted = cost_by(MODEL, spec_of(1.0), TRAINING, NO_LEVERS), offer(NO_LEVERS)
    read_offer(wanted, "d", MODEL, EXAMPLES, cost.memory, cost.memory + cost.passing)
    with pytest.raises(BudgetError, match=rf"takes {cost.memory} bytes to train and up to {cost.passing} more"):
        read_offer(wanted, "d", MODEL, EXAMPLES, None, cost.memory + cost.passing - 1)
    # A device that is sent changes keeps what it received.
    wanted.coding.version = "a" * 64
    with pytest.raises(BudgetError, match="more for moments"):
        read_offer(wanted, "d", MODEL, EXAMPLES, None, cost.memory + cost.passing)
