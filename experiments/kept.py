"""The models behind a closed round, made from its checkpoint."""

from diastole.client.model_file import ModelFile
from diastole.experiments.result import usable
from diastole.experiments.run import Run
from diastole.models.crossing import CPU, send_all
from diastole.models.moment import Moment
from diastole.models.seeds import derive_seed, reference_plan
from diastole.server.snapshot import Snapshot


def model_file(run: Run, snapshot: Snapshot) -> bytes:
    """Return the global model and its sub-models as a run's `model.safetensors` has them."""
    experiment, method, prepared = run.experiment, run.method(), snapshot.trust["prepared"]
    moment = Moment(prepared, experiment.rounds.count, derive_seed(experiment.seed, prepared, "prepare"))
    with reference_plan():
        method.resume(snapshot.state, run.proxy, moment, snapshot.method)
        sizes = list(method.offers())
        exported = [size.spec for size in sizes if size.exported]
        parts = {spec: usable(run, method, spec) for spec in dict.fromkeys([method.whole, *exported])}
    there = {name: each.profile for name, each in snapshot.accounts.items() if each.profile is not None}
    tiers = {}
    for tier in experiment.tiers:
        fit = run.fitting(sizes, {name: profile for name, profile in there.items() if profile.tier == tier}, None)
        if fit is not None:
            tiers[tier] = fit.spec.label
    return ModelFile(
        run.model,
        experiment.method,
        experiment.options,
        len(snapshot.closed),
        send_all(snapshot.state, CPU),
        {spec.label: spec for spec in parts},
        {spec.label: state for spec, state in parts.items()},
        tiers,
        method.whole.label,
    ).to_bytes()
