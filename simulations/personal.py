"""A last pass over simulated devices: each scores its sub-model on the examples it keeps, before and after training."""

from contextlib import closing

from diastole.experiments.personal import Personal
from diastole.models.crossing import device_of, send, send_all
from diastole.models.seeds import derive_seed, reference_plan
from diastole.models.task import Task, Update
from diastole.server.coordinator import Coordinator
from diastole.server.link import Link
from diastole.server.outgoing import Outgoing
from diastole.simulations.devices import Federation


def score_devices(federation: Federation, coordinator: Coordinator, link: Link) -> dict[str, Personal]:
    """Return the scores of every device that keeps examples, by name; a device that no size fits is left out.

    A device gets the largest exported size that fits it, made of the final global model, and trains it as in a round.
    Nothing of this reaches the global model, the accounts or the virtual clock.

    Args:
        federation: whose devices.
        coordinator: of a run that is over.
        link: the engine that trains.

    """
    run, method, number = federation.run, coordinator.method, len(coordinator.closed) + 1
    home = device_of(coordinator.state)
    planner = run.planner(coordinator.sizes, federation.virtual_rounds().deadline if federation.field else None)
    own, tasks = run.experiment.model.statistics == "device", []
    training = run.experiment.training.told
    for name, device in federation.devices.items():
        size = planner.fit(name, device.profile) if device.kept is not None else None
        if size is not None:
            seed = derive_seed(run.experiment.seed, name, "personal")
            levers = planner.levers(name, device.profile, size)
            tasks.append(Task(f"personal-{name}", number, name, size.spec, training, seed, 1.0, levers))
    if not tasks:
        return {}
    found = dict[str, Personal]()
    with reference_plan():
        outgoing = Outgoing(run.model, run.experiment.coding, run.experiment.seed)
        specs = {task.spec for task in tasks}
        sent = {spec: outgoing.send(spec, method.compress(spec), number).received for spec in specs}
        states = {spec: send_all(state, home) for spec, state in sent.items()}
        with closing(link.dispatch(tasks, states, None)) as outcomes:
            for outcome in outcomes:
                if isinstance(outcome, Update):
                    spec, device = outcome.spec, federation.devices[outcome.device]
                    # One example has no variance.
                    inputs = send(device.examples.x, home) if own and len(device.examples) > 1 else None
                    # What a device does not train it does not send back.
                    kept, both = device.kept_examples.on(home), (states[spec], {**states[spec], **outcome.state})
                    before, after = (coordinator.evaluation.on(spec, s, kept, inputs=inputs) for s in both)
                    found[outcome.device] = Personal(spec.label, len(kept), before, after)
    return dict(sorted(found.items()))
