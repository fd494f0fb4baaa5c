"""The client: which examples it has, and what it is; the training is diastole's."""

from flwr.app import Context
from server_app import MODEL, TRAINING  # type: ignore[import-not-found]

from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.models.methods.widths.width import width_cost
from diastole.models.training import Examples
from diastole.proto.profile import Profile
from diastole.simulations.engines.flower.client import client_app
from diastole.simulations.engines.flower.records import Order

WIDTHS = (1.0, 0.5, 0.25)


def examples(context: Context) -> Examples:
    """Return this node's share of scikit-learn's digits."""
    number, nodes = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    digits = load("digits", None, Reading()).train
    return Examples(digits.x[number::nodes].contiguous(), digits.y[number::nodes].contiguous())


def of_order(order: Order, context: Context) -> Examples:
    """Return what to train on; it is the same for every order."""
    return examples(context)


def profile(context: Context) -> Profile:
    """Return what this node is: simulated nodes have, in turn, memory for each of the widths."""
    width = WIDTHS[int(context.node_config["partition-id"]) % len(WIDTHS)]
    memory = width_cost(MODEL, width, TRAINING).memory
    return Profile(f"width {width:g}", len(examples(context)), memory)


app = client_app(of_order, profile)
