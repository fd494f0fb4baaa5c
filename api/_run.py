"""Runs from Python: simulated, and over real devices."""

from collections.abc import Sequence
from pathlib import Path

from diastole._bar import Bar
from diastole._experiment import Experiment
from diastole.experiments.errors import ExperimentError
from diastole.experiments.result import Result
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving
from diastole.models.allowed import is_given
from diastole.server.events import Observer
from diastole.server.web.config import WebConfig
from diastole.server.wire.tls import protection
from diastole.simulations import simulate as simulating
from diastole.simulations.devices import make_federation


def simulate(
    experiment: Experiment | Path | str,
    *,
    folder: Path | str | None = None,
    track: Sequence[str] = (),
    observers: Sequence[Observer] = (),
    progress: bool | None = None,
) -> Result:
    """Run an experiment with simulated devices, in this process, and return what it came to.

    Args:
        experiment: what to run, or the path of its file.
        folder: keeps the run and its result. The same call goes on after it was stopped; so does one for more rounds.
        track: names of trackers, which write curves into `folder`: "csv", "jsonl", "tensorboard", "mlflow", "wandb".
        observers: are called with every event of the run (`diastole.server.events`).
        progress: show a bar; by default in a terminal or notebook.

    Raises `DiastoleError` in one line.

    """
    experiment = loaded(experiment)
    if track and folder is None:
        raise ExperimentError(f"track: {', '.join(track)} need a folder to write to; folder= is not given")
    federation = make_federation(experiment.settings, experiment.given)
    with Bar(experiment.settings.method, progress) as bar:
        everyone = (bar.event, *observers)
        if folder is None:
            return simulating.simulate(federation, everyone)
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        return simulating.simulate_in(place, federation, everyone, track)[0]


def serve(
    experiment: Experiment | Path | str | Sequence[Experiment | Path | str],
    listen: str = "127.0.0.1:7700",
    state: Path | str = "state",
    *,
    admin: str | None = None,
    observers: Sequence[Observer] = (),
    track: Sequence[str] = (),
    lease: float = 30.0,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    tls_client_ca: Path | None = None,
    enroll: str = "",
    insecure: bool = False,
    fresh: bool = False,
    database: str = "",
    side_by_side: int = 1,
    keep: bool = False,
    keep_checkpoints: int = 5,
    web: str = "",
    web_names: Sequence[str] = (),
) -> Serving:
    """Coordinate real devices, in a thread of its own, until the run, or each run of a queue, is over.

    `with diastole.serve(experiment) as run: result = run.wait()`. What is unfinished can go on under `diastole serve`,
    and the other way round.

    Args:
        experiment: what to run, or the path of its file; its simulated devices are not used. Of several, which are run
            in their order, `run.results` has what each came to.
        listen: where devices call, `host:port`; port 0 for any free one.
        state: the coordinator's folder, from which the same call goes on; `run.folder` in it has the result.
        admin: where `diastole admin` calls, likewise; None for nowhere.
        observers: are called with every event.
        track: names of trackers, which write curves into the run's folder: "csv", "jsonl", "tensorboard", "mlflow",
            "wandb".
        lease: seconds of silence after which a device is lost.
        tls_cert: the coordinator's certificate, PEM.
        tls_key: its key, PEM.
        tls_client_ca: take only devices that it has certified, PEM.
        enroll: where devices enroll, `host:port`; by default two ports on from `listen` if that is off loopback and
            neither a certificate is given nor `insecure`. The coordinator is then its own authority, and takes only
            devices that it has certified; `run.invite(name)` returns the token that one joins with for the first
            time (docs/security.md).
        insecure: serve other machines in plain text.
        fresh: forget an unfinished run in `state`.
        database: URL of the database, as SQLAlchemy takes it; by default SQLite in `state`.
        side_by_side: runs that are under way at a time; a device does one task at a time all the same.
        keep: wait for more experiments (`diastole admin runs submit`) when all are over, until `run.stop()`.
        keep_checkpoints: of so many rounds of each run, the last ones, a checkpoint is kept.
        web: where browsers find the dashboard, `host:port`; "" for nowhere. `run.web_port` is its port, and what is in
            `run.web.token` logs in (docs/dashboard.md).
        web_names: further names under which browsers may call it.

    Raises `DiastoleError` in one line.

    """
    given = [experiment] if isinstance(experiment, Experiment | Path | str) else experiment
    asked = [loaded(each) for each in given]
    if not asked:
        raise ExperimentError("there is no experiment to serve; one or more are accepted")
    for each in asked:
        if any(map(is_given, (each.settings.model.factory, *each.settings.training.functions))):
            raise ExperimentError(
                "devices cannot import a module or a function that was given in Python; name it in the experiment, as "
                "[model] factory is"
            )
    shield = protection(
        listen, certificate=tls_cert, key=tls_key, client_ca=tls_client_ca, enroll=enroll, insecure=insecure
    )
    return Serving(
        [make_run(each.settings.served, each.given) for each in asked],
        listen,
        Path(state),
        admin=admin,
        observers=observers,
        track=track,
        lease=lease,
        credentials=shield.credentials,
        enroll=shield.enroll,
        fresh=fresh,
        database=database,
        side_by_side=side_by_side,
        keep=keep,
        kept=keep_checkpoints,
        web=WebConfig(web, tuple(web_names), shield.pair) if web else None,
    )


def loaded(given: Experiment | Path | str) -> Experiment:
    """Return an experiment, read from its file if it is a path."""
    return given if isinstance(given, Experiment) else Experiment.load(given)
