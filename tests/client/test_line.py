"""An agent's connections, seen by what is between it and a real coordinator."""

from contextlib import closing

from agents import SPEC, Agent, serve, task
from cutting import Network

from diastole.client.line import APART_BYTES
from diastole.models.networks.config import ModelConfig
from diastole.models.networks.family import initial_state
from diastole.models.state import tensor_bytes
from diastole.server.link import Update

MODEL = ModelConfig(name="cnn", input_shape=(1, 8, 8), classes=3, widths=(64, 256))
STATE = initial_state(MODEL, 0)


def test_a_large_update_comes_over_a_connection_that_is_closed_behind_it() -> None:
    assert tensor_bytes(STATE) > APART_BYTES
    with closing(serve(model=MODEL)) as link, closing(Network(link.port)) as network:
        device = Agent(network.port)
        assert link.wait(1, 60)
        for number in (1, 2):
            (update,) = link.dispatch([task(number)], {SPEC: STATE}, None)
            assert isinstance(update, Update)
            assert network.comes_to([True, *[False] * number])
        link.close()
        device.join()
    assert device.error is None


def test_an_update_whose_own_connection_breaks_goes_over_the_first() -> None:
    with closing(serve(model=MODEL)) as link, closing(Network(link.port, up=APART_BYTES)) as network:
        device = Agent(network.port)
        assert link.wait(1, 60)
        (update,) = link.dispatch([task(1)], {SPEC: STATE}, None)
        assert isinstance(update, Update)
        assert network.cuts == ["up"]
        assert network.comes_to([True, False])
        link.close()
        device.join()
    assert device.error is None
