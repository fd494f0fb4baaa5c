"""A federation over gRPC whose agents are threads of this process."""

import threading
from pathlib import Path

from diastole.client import agent
from diastole.client.connection import Connection
from diastole.experiments.result import Result
from diastole.experiments.serving import Serving
from diastole.simulations.devices import Federation


def serve(made: Federation, folder: Path) -> Result:
    """Run the federation over gRPC, with agents in threads."""
    errors = list[Exception]()

    def device(name: str, port: int) -> None:
        item = made.devices[name]
        try:
            agent.run(Connection(f"127.0.0.1:{port}", name, item.profile), item.examples)
        except Exception as error:  # noqa: BLE001 (told below)
            errors.append(error)

    with Serving(made.run, "127.0.0.1:0", folder, figures=()) as serving:
        threads = [threading.Thread(target=device, args=(n, serving.port), daemon=True) for n in made.devices]
        for thread in threads:
            thread.start()
        result = serving.wait(60)
    for thread in threads:
        thread.join(10)
    assert errors == []
    return result
