"""The server: a stock `ServerApp`; the strategy is the one line that makes it one of tiers."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from diastole.models.methods.registry import make_method
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.training import TrainConfig
from diastole.simulations.engines.flower.records import arrays_of
from diastole.simulations.engines.flower.strategy import TierStrategy

MODEL = ModelConfig("cnn", (1, 8, 8), 10, (16, 32))
TRAINING = TrainConfig(epochs=2, batch_size=16)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; every node trains the full model, half or a quarter of it."""
    method = make_method("width", MODEL, (1.0, 0.5, 0.25), TRAINING)
    strategy = TierStrategy(MODEL, method, TRAINING, evaluate=True)
    rounds = int(context.run_config["num-server-rounds"])
    strategy.start(grid, arrays_of(initial_state(MODEL, 0)), num_rounds=rounds)
