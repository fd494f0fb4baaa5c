"""Every engine gives the results of the loop."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from federations import federation, tasks
from waiting import until

from diastole.experiments.result import Result, result_of
from diastole.models.errors import ModelError
from diastole.models.state import State
from diastole.models.task import Update
from diastole.models.training import TrainConfig
from diastole.server.link import Failure
from diastole.simulations.compare import compare
from diastole.simulations.devices import Federation, make_federation
from diastole.simulations.engines.children import Child, ChildError
from diastole.simulations.engines.processes import ProcessLink
from diastole.simulations.engines.shared import SHARED_MEMORY, shared_folder
from diastole.simulations.simulate import simulate
from diastole.simulations.simulation import Simulation

HELPERS = Path(__file__).parents[2] / "helpers"
LINK = """
import os
from federations import federation, tasks
from diastole.simulations.engines.children import Child, ChildError
from diastole.simulations.engines.processes import ProcessLink
made = federation()
link = ProcessLink(made.model, made.devices, made.run.method().offers(), made.simulation.training, workers=1)
print(link._folder, flush=True)
"""


def script(code: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a script, which may import the tests' helpers, by the command `before`, if any."""
    path = os.pathsep.join([str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    command = [*before, sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def maps(parent: int) -> list[str]:
    """Return what each of a process's workers maps."""
    workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [Path(f"/proc/{worker}/maps").read_text() for worker in workers]


def training(parent: int) -> bool:
    """Return whether a process has workers that are in a round: what they map has no name any more."""
    found = maps(parent)
    return bool(found) and all("diastole-shared-" in text and "(deleted)" in text for text in found)


def shared_by(parent: int) -> set[Path]:
    """Return the folders of what the workers map."""
    return {Path(line) for text in maps(parent) for line in re.findall(r"/\S*/diastole-shared-[^/\s]*", text)}


def assert_same(found: Result, expected: Result) -> None:
    assert all(torch.equal(found.state[name], expected.state[name]) for name in expected.state)
    for one, other in zip(found.rounds, expected.rounds, strict=True):
        assert (one.updates, one.scores, one.tier_scores) == (other.updates, other.scores, other.tier_scores)
        assert (one.bytes_down, one.bytes_up) == (other.bytes_down, other.bytes_up)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["conv", "fiarse", "fedavg", "exclusive"])
def test_processes_give_the_bits_of_the_loop_for_every_method(method: str) -> None:
    assert_same(simulate(federation(method=method, engine="processes", workers=2)), simulate(federation(method=method)))


@pytest.mark.slow
def test_processes_mask_classes_and_drop_activations_as_the_loop_does() -> None:
    def run(masked: bool = True, **changes: object) -> State:
        changes |= {"partition": {"kind": "dirichlet", "alpha": 0.1}, "methods": {"width": {"masked": masked}}}
        return simulate(federation(model={"name": "simple-cnn", "widths": [8, 8, 16]}, **changes)).state

    expected = run()
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in run(masked=False).items())
    found = run(engine="processes", workers=1)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
def test_the_fast_plan_agrees_within_float_tolerance() -> None:
    expected = simulate(federation(rounds={"count": 1}))
    found = simulate(federation(rounds={"count": 1}, engine="processes", workers=1, plan="fast"))
    for name, tensor in expected.state.items():
        torch.testing.assert_close(found.state[name], tensor, rtol=1e-4, atol=1e-5)


def test_the_batched_engine_trains_a_model_that_drops_activations_as_the_loop_does() -> None:
    model = {"name": "simple-cnn", "widths": [8, 8, 16]}
    expected = simulate(federation(model=model, rounds={"count": 1}))
    found = simulate(federation(model=model, engine="batched", rounds={"count": 1}))
    assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
    assert simulate(federation(model=model, engine="auto", rounds={"count": 1})).rounds[0].updates == 6


CHANGED = {
    "diastole": ("processes", {"augment": ["flip", "crop", "cutout", "mixup:0.4", "cutmix"]}),
    "splitmix": ("batched", {"augment": ["cutmix", "mixup"]}),
    "width": ("batched", {"fit": "own_fits:noisy"}),
    "fjord": ("batched", {"augment": ["mixup"]}),
    "depthfl": ("processes", {"fit": "own_fits:noisy"}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name != "diastole")) for name in CHANGED]
)
def test_devices_change_examples_and_train_by_a_loop_of_ones_own_alike_on_every_engine(method: str) -> None:
    def run(**changes: object) -> State:
        return simulate(federation(method=method, rounds={"count": 1}, **changes)).state

    engine, training = CHANGED[method]
    expected = run(training=training)
    if engine == "processes":
        assert any(not torch.equal(tensor, expected[name]) for name, tensor in run().items())
    found = run(training=training, engine=engine, workers=2 if engine == "batched" else 1)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_what_a_loop_of_ones_own_lets_diverge_is_quarantined() -> None:
    result = simulate(federation(training={"fit": "own_fits:diverge"}, rounds={"count": 1}))
    assert result.rounds[0].updates == 5


def test_a_loop_of_ones_own_that_cannot_be_imported_is_one_line_before_any_round() -> None:
    made = federation(training={"fit": "own_fits:nowhere"}, engine="processes", workers=1)
    with pytest.raises(ModelError, match=r"^fit own_fits:nowhere cannot be imported: AttributeError"):
        simulate(made)


def test_an_augmentation_that_examples_cannot_have_is_refused_at_the_start() -> None:
    with pytest.raises(
        ModelError, match=r'^training: augment "shift" takes windows \[channels, length\]; examples are'
    ):
        federation(training={"augment": ["mixup", "shift"]})


@contextmanager
def linked(workers: int) -> Iterator[tuple[Federation, ProcessLink]]:
    made = federation()
    link = ProcessLink(made.model, made.devices, made.run.method().offers(), made.simulation.training, workers=workers)
    with closing(link):
        yield made, link


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Federation, ProcessLink]]:
    with linked(2) as found:
        yield found


@pytest.mark.slow
def test_processes_give_the_bits_of_the_loop(parts: tuple[Federation, ProcessLink]) -> None:
    run = federation().run
    coordinator = run.coordinator(parts[1])
    coordinator.run()
    assert_same(result_of(run, coordinator), simulate(federation()))


@pytest.mark.slow
def test_closing_a_dispatch_early_leaves_the_workers_free(parts: tuple[Federation, ProcessLink]) -> None:
    made, link = parts
    first = link.dispatch(*tasks(made), None)
    assert isinstance(next(first), Update)
    first.close()
    assert {o.device for o in link.dispatch(*tasks(made), None) if isinstance(o, Update)} == set(made.devices)


def test_an_impossible_task_is_a_failure_of_its_device_alone(parts: tuple[Federation, ProcessLink]) -> None:
    made, link = parts
    work, states = tasks(made)
    poisoned = {
        spec: {name: torch.full_like(t, torch.nan) for name, t in state.items()} for spec, state in states.items()
    }
    outcomes = list(link.dispatch(work[:1], poisoned, None))
    assert [(o.device, o.faulty) for o in outcomes if isinstance(o, Failure)] == [("device-00", True)]
    assert len(list(link.dispatch(work, states, None))) == len(work)


@pytest.mark.slow
def test_workers_of_thousands_of_devices_are_set_up_without_waiting_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = []
    monkeypatch.setattr(Child, "tell", lambda child, message: lines.append(json.dumps(message)))
    made = federation()
    devices = {f"device-{k}": made.devices["device-00"] for k in range(8_000)}
    with closing(ProcessLink(made.model, devices, made.run.method().offers(), TrainConfig(), workers=1)):
        # What a pipe holds on every Linux; a longer line would wait until the worker has imported torch and reads it.
        assert max(map(len, lines)) < 65_536


def test_a_killed_worker_is_one_line_and_nothing_is_left_behind(parts: tuple[Federation, ProcessLink]) -> None:
    """The last one that takes these workers."""
    made, link = parts
    folder: Path = link._folder
    assert folder.is_relative_to(SHARED_MEMORY) or not SHARED_MEMORY.is_dir()
    running = link.dispatch(*tasks(made), None)
    next(running)
    os.kill(link._workers[0].child.pid, signal.SIGKILL)
    with pytest.raises(ChildError, match="ended with code -9"):
        list(running)
    link.close()
    assert not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_killed_in_a_round(number: int) -> None:
    rounds = "list(link.dispatch(*tasks(made), None)); next(link.dispatch(*tasks(made), None))"
    killed = script(f"{LINK}{rounds}; os.kill(os.getpid(), {int(number)})")
    assert killed.returncode == -number, killed.stderr
    assert not Path(killed.stdout.strip()).exists()


@pytest.mark.slow
def test_what_is_left_of_a_run_that_is_killed_before_is_removed_by_the_next() -> None:
    with linked(1) as (made, link):
        killed = script(LINK + "os.kill(os.getpid(), 9)")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        left = Path(killed.stdout.strip())
        assert (left / "x").exists()
        with closing(shared_folder([0])):
            assert not left.exists()
        # The folder of a living run stays until its workers have mapped all of it.
        assert len(list(link.dispatch(*tasks(made), None))) == len(made.devices)


LONG = """
seed = 4
engine = "processes"
workers = 1
[training]
epochs = {epochs}
[rounds]
count = 1000
[tiers]
large = {{ devices = 4, width = 1.0 }}
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
@pytest.mark.slow
def test_whoever_ends_a_run_in_a_round_ends_its_workers(number: int, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal's group; SIGKILL, the one it is meant for."""
    path = tmp_path / "long.toml"
    # Without the one who asked, a worker ends behind the task that it is training.
    path.write_text(LONG.format(epochs=100_000 if number == signal.SIGINT else 20))
    process = subprocess.Popen(
        [sys.executable, "-m", "diastole.cli.main", "simulate", str(path), "--out", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The background jobs of a script ignore the signal; if these tests are one, what they start would too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: training(process.pid), process, 300)
        left = shared_by(process.pid)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.kill()
        # Standard error is the workers' too, and ends with the last of them.
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (130 if number == signal.SIGINT else -number, "")
    assert left
    assert not any(folder.exists() for folder in left)


NETWORK = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "loop"])
def test_other_processes_import_what_this_one_can(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder, text in ((beside, NETWORK), (elsewhere, "raise ImportError('another network of that name')")):
        folder.mkdir()
        (folder / "beside_it.py").write_text(text)
    monkeypatch.syspath_prepend(beside)
    monkeypatch.chdir(elsewhere)
    changes = {"method": "fedavg", "rounds": {"count": 1}, "tiers": {"all": {"devices": 2, "width": 1.0}}}
    changes |= {"model": {"name": "custom", "factory": "beside_it:make"}, "engine": engine, "workers": 1}
    experiment = Simulation.parse(changes, "test")
    if engine == "processes":
        expected = simulate(make_federation(experiment.changed(engine="loop")))
        found = simulate(make_federation(experiment))
        assert found.rounds[0].updates == 2
        assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
    else:
        assert len(compare(experiment, ["fedavg"], [1, 2], tmp_path / "runs", jobs=2).runs["fedavg"]) == 2


# As in a container whose shared memory nobody has thought of.
SMALL = "mount -t tmpfs -o size=64k small /dev/shm"
APART = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]


def needs_mounts() -> None:
    try:
        allowed = subprocess.run([*APART, SMALL], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this machine allows no mounts of one's own")


@pytest.mark.slow
def test_where_shared_memory_is_too_small_temporary_files_do() -> None:
    needs_mounts()
    done = script(LINK + "print(len(list(link.dispatch(*tasks(made), None))))", *APART, f'{SMALL}; exec "$@"', "-")
    folder, updates = done.stdout.split()
    assert (done.returncode, updates) == (0, "6"), done.stderr
    assert not Path(folder).is_relative_to(SHARED_MEMORY)
    assert done.stderr.startswith("/dev/shm has 0.1 MB free, ")
    assert done.stderr.count("\n") == 1


NO_ROOM = """
from pathlib import Path
import torch
from diastole.simulations.engines.slabs import Slab
try:
    Slab.create(Path("/dev/shm/x"), torch.zeros(1 << 20))
except OSError as error:
    print(error)
Path("/dev/shm/x").unlink()
"""


@pytest.mark.slow
def test_room_nowhere_is_an_error_that_says_what_to_do_and_never_a_signal(tmp_path: Path) -> None:
    needs_mounts()
    mounts = f"{SMALL}; mount -t tmpfs -o size=64k small {tmp_path}; export TMPDIR={tmp_path}"
    done = script(NO_ROOM + LINK, *APART, f'{mounts}; exec "$@"', "-")
    assert (done.returncode, done.stdout) == (1, "[Errno 28] No space left on device: '/dev/shm/x'\n")
    line = done.stderr.splitlines()[-1]
    assert f"SpaceError: /dev/shm has 0.1 MB free, {tmp_path} has 0.1 MB free, and processes would share " in line
    assert "shm_size" in line
