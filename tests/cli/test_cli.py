"""What a person meets at the command line: results, and one clear line for every mistake."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import click
import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from ports import free_port
from rich.table import Table
from safetensors.torch import load_file

import diastole
from diastole.cli.main import COMMANDS
from diastole.cli.main import load as command_of
from diastole.cli.options import consoles
from diastole.cli.sizes import parse_bytes
from diastole.experiments.data.reading import Reading
from diastole.experiments.data.sets import load
from diastole.models.methods.registry import METHODS
from diastole.v1 import admin_pb2, admin_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "simulations" / "examples" / "digits.toml"
DIASTOLE = [sys.executable, "-m", "diastole.cli.main"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def experiment(tmp_path: Path) -> Callable[[str], Path]:
    """Write an experiment of the given text."""

    def write(text: str) -> Path:
        path = tmp_path / "experiment.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.npz"
    np.savez(path, x=np.zeros((4, 1, 8, 8), np.float32), y=np.arange(4))
    return path


def error_line(outcome: tuple[int, str, str], code: int) -> str:
    """Check that a command failed with one line on standard error, and return it."""
    found, _, err = outcome
    assert found == code, err
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    return err


def verbs(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    """The commands that are below a command."""
    if not isinstance(command, click.Group):
        return [path]
    return [each for name, part in command.commands.items() for each in verbs(part, *path, name)]


@pytest.mark.parametrize("command", [verb for name in COMMANDS for verb in verbs(command_of(name), name)], ids=" ".join)
def test_help_has_an_example_and_says_what_each_argument_and_option_is(
    run: Run, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One line each.
    monkeypatch.setenv("COLUMNS", "500")
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert re.search(r"Example:.*diastole", out, re.DOTALL)
    told, found = " ".join(out.replace("│", " ").split()), command_of(command[0])
    for name in command[1:]:
        assert isinstance(found, click.Group)
        found = found.commands[name]
    for parameter in found.params:
        text = getattr(parameter, "help", None)
        assert text, parameter.name
        # As it is shown, marks of code are gone.
        assert " ".join(text.replace("`", "").split()) in told, parameter.name


def test_a_list_of_commands_says_what_each_says_and_no_help_imports_torch() -> None:
    assert {name: str(command_of(name).help).partition("\n")[0] for name in COMMANDS} == COMMANDS
    code = (
        "import sys; from diastole.cli.main import COMMANDS, load; [load(name) for name in COMMANDS]; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_version_is_the_installed_one(run: Run) -> None:
    assert run("--version") == (0, f"diastole {version('diastole')}\n", "")


def test_a_shell_completes_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in run("--help")[1]
    monkeypatch.setenv("_DIASTOLE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "diastole s")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run()[1].split() == ["simulate", "serve", "shards", "support-bundle"]


def test_simulate_prints_one_json_document_and_writes_the_report(run: Run, tmp_path: Path) -> None:
    code, out, _ = run(
        "simulate", DIGITS, "--set", "rounds.count=1", "--set", "method=width", "--out", tmp_path, "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert report["experiment"]["method"] == "width"
    assert [row["devices"] for row in report["tiers"]] == [2, 3, 3]
    assert report["rounds"][0]["updates"] == 8
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    state = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if ":" not in name}
    assert sum(tensor.numel() for tensor in state.values()) == report["tiers"][0]["parameters"]


FEW = tuple(part for tier in ("large", "medium", "small") for part in ("--set", f"tiers.{tier}.devices=1"))
SHORT = ("simulate", DIGITS, "--set", "rounds.count=1", "--set", "method=width", *FEW, "--out")


def test_without_matplotlib_the_report_has_no_pictures_and_a_line_before_the_run_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run(*SHORT, tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("the report will have no pictures: matplotlib is not installed; pip install ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "report.json", "run.finished"]


def test_a_run_whose_report_cannot_be_written_is_not_lost(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "report.json").mkdir()
    code, out, err = run(*SHORT, tmp_path, "--json")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: .*report\.json.*", err.splitlines()[-1])
    model = (tmp_path / "model.safetensors").read_bytes()
    assert (tmp_path / "run.checkpoint").exists()
    (tmp_path / "report.json").rmdir()
    code, out, err = run(*SHORT, tmp_path, "--json")
    assert (code, "going on after round 1" in err) == (0, True)
    assert len(json.loads(out)["rounds"]) == 1
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert not (tmp_path / "run.checkpoint").exists()


def test_curves_are_of_one_run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for seed in (0, 0, 1):
        assert run(*SHORT, tmp_path, "--track", "csv", "--fresh", "--set", f"seed={seed}")[0] == 0
    assert [line.split(",")[0] for line in (tmp_path / "rounds.csv").read_text().splitlines()] == ["round", "1"]


def test_a_new_run_leaves_nothing_of_an_earlier_one_beside_its_report(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = ("csv", "jsonl", "tensorboard")
    assert run(*SHORT, tmp_path, *(part for name in tracked for part in ("--track", name)))[0] == 0
    mine = tmp_path / "tensorboard" / "mine.txt"
    mine.touch()
    (tmp_path / "notes.csv").touch()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(*SHORT, tmp_path, "--set", "seed=1")[0] == 0
    names = ["model.safetensors", "notes.csv", "report.json", "run.finished", "tensorboard"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert list(mine.parent.iterdir()) == [mine]


def test_a_run_that_goes_on_keeps_its_curves(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (tmp_path / "report.json").mkdir()
    assert run(*SHORT, tmp_path, "--track", "csv")[0] == 2
    curve = (tmp_path / "rounds.csv").read_text()
    (tmp_path / "report.json").rmdir()
    assert run(*SHORT, tmp_path)[0] == 0
    assert (tmp_path / "rounds.csv").read_text() == curve


def test_simulate_shows_progress_and_tables(run: Run, tmp_path: Path) -> None:
    code, out, err = run("simulate", DIGITS, "--set", "rounds.count=2", "--set", "method=width", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert re.search(r"round 2/2 +8 updates +accuracy \d+\.\d%", out)
    for word in ("peak memory", "What each device spent", "device-07", "Global model on the test set"):
        assert word in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method = 'magic'", f"method: must be one of {', '.join(METHODS)}, not 'magic'"),
        ("[rounds]\ncuont = 3", "rounds.cuont: no such key; accepted: count, cohort, "),
        ("[tiers.a]\ndevices = 2\nwidth = 1\ndepth = 2", "tiers.a.depth: no such key; accepted: devices, width"),
        ("[server]\nrate = 1", "server.rate: no such key; accepted: name, "),
        ("metod = 'conv'", "metod: no such key; accepted: name, seed, method, "),
        (
            "method = 'diastole'\n[methods.diastole]\nnest = true",
            "options of method diastole: nest: no such key; accepted: nested, distil",
        ),
        ("[tiers.large]\ndevices = 2", "tiers.large.width: is missing"),
        ("[tiers.large]\ndevices = 2\nwidth = 3", "tiers.large.width: Input should be less than or equal to 1, not 3"),
        ("[training]\nlearning_rate = -1", "training.learning_rate: Input should be greater than 0, not -1"),
        ("rounds = [", "not TOML"),
        ("method = 'conv'\n[data]\nproxy = 0", "data.proxy must be at least 2, not 0"),
        ("method = 'proxy'", "proxy.epochs and data.proxy must both be at least 1"),
        (
            "method = 'conv'\n[data]\nproxy_labels = false",
            "experiment.toml: method conv: needs labels of the proxy set",
        ),
        (
            "[proxy]\nepochs = 1\n[data]\nproxy_labels = false",
            "method width: cannot train on a proxy set without labels",
        ),
        ("[data]\nname = 'imagenet'", "unknown dataset 'imagenet'"),
        ("[data]\nproxy = 5000", "proxy size is 5000"),
        ("[model]\nwidths = [5]", "widths [5] must be multiples of group 4"),
        ("[model]\nwidths = [4, 4, 4, 4]", "use fewer widths"),
        ("[model]\nname = 'resnet'", "blocks [] must give a number of blocks"),
        ("[tiers.tiny]\ndevices = 2\nwidth = 0.01", "width 0.01 leaves less than one group"),
        ("[tiers.none]\ndevices = 0\nwidth = 1", "no tier has a device"),
    ],
)
def test_a_wrong_experiment_is_one_line_that_names_the_key(
    run: Run, experiment: Callable[[str], Path], tmp_path: Path, text: str, message: str
) -> None:
    line = error_line(run("simulate", experiment(text), "--out", tmp_path / "report"), 2)
    assert message in line
    assert not (tmp_path / "report").exists()


def test_missing_files_are_one_line(run: Run, tmp_path: Path) -> None:
    assert "no such file" in error_line(run("simulate", tmp_path / "none.toml"), 2)
    assert "no such file or folder" in error_line(run("simulate", DIGITS, "--data", tmp_path / "none.npz"), 2)
    assert "no such file" in error_line(run("join", "127.0.0.1:1", "--data", tmp_path / "none.npz"), 2)


def test_a_file_where_a_folder_belongs_is_refused_before_anything_is_run(run: Run, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    compare = ("compare", DIGITS, "--methods", "width", "--out")
    for command in (("simulate", DIGITS, "--out"), ("demo", "--out"), ("serve", DIGITS, "--state"), compare):
        assert f"{command[-1]} {taken}: is a file; a folder is accepted" in error_line(run(*command, taken), 2)


def test_wrong_overrides_are_one_line(run: Run) -> None:
    assert "an override reads table.key=value" in error_line(run("simulate", DIGITS, "--set", "method"), 2)
    assert "method is not a table" in error_line(run("simulate", DIGITS, "--set", "method.x=1"), 2)


def test_an_unknown_method_of_the_demo_is_one_line(run: Run) -> None:
    assert "not 'magic'" in error_line(run("demo", "--method", "magic"), 2)


def test_a_port_in_use_is_one_line(run: Run, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on {address}" in error_line(
            run("serve", DIGITS, "--listen", address, "--state", tmp_path), 3
        )
        outcome = run("serve", DIGITS, "--listen", "127.0.0.1:0", "--admin", address, "--state", tmp_path)
        assert f"cannot listen on {address}" in error_line(outcome, 3)


def test_a_coordinator_that_is_not_there_is_one_line(run: Run, shard: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    found, _, err = run("join", address, "--data", shard, "--patience", "0.3")
    assert found == 3
    assert err.startswith(f"error: no coordinator at {address} after 0.3 s")
    assert err.count("\n") == 1
    for command in (("runs", "list"), ("devices", "list"), ("runs", "watch"), ("runs", "stop", "--yes")):
        assert f"no coordinator's admin service at {address}" in error_line(
            run("admin", *command, "--address", address), 3
        )


def test_what_is_no_address_is_refused_wherever_one_is_given(run: Run, shard: Path, tmp_path: Path) -> None:
    serve = ("serve", DIGITS, "--state", tmp_path / "state")
    for command in (
        ("join", "host", "--data", shard),
        (*serve, "--listen", "host"),
        (*serve, "--listen", "127.0.0.1:0", "--admin", "host"),
        ("admin", "runs", "list", "--address", "host"),
    ):
        assert "'host' is not host:port" in error_line(run(*command), 2)
    assert "1 to 65535 is accepted" in error_line(run("join", "127.0.0.1:0", "--data", shard), 2)
    assert not (tmp_path / "state").exists()


def test_plain_text_for_other_machines_is_warned_of_and_opens_nothing_to_operators(run: Run, tmp_path: Path) -> None:
    serve = ("serve", DIGITS, "--state", tmp_path, "--insecure")
    code, _, err = run(*serve, "--listen", "0.0.0.0:0", "--admin", "0.0.0.0:0")
    assert (code, "error: admin 0.0.0.0:0 would let other machines stop this run" in err) == (3, True)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        address = f"0.0.0.0:{taken.getsockname()[1]}"
        code, _, err = run(*serve, "--listen", address)
    assert code == 3
    assert err.startswith(f"warning: {address} is served in plain text")


def test_text_of_users_is_no_markup(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text('method = "width"\n[tiers."[red]:bug:[b]"]\ndevices = 1\nwidth = 0.25\n')
    code, out, _ = run("shards", path, "--out", tmp_path / "[bold]")
    assert code == 0
    assert f"{tmp_path}/[bold]/[red]:bug:[b]/device-00.npz  [red]:bug:[b]  " in out
    table, shown = Table("[red]:bug:"), io.StringIO()
    table.add_row("[b]")
    console = consoles(json=False)
    console.file = shown
    console.print(table)
    assert "[red]:bug:" in shown.getvalue()
    assert "[b]" in shown.getvalue()


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".hidden", "two\\nlines", "x" * 65])
def test_the_name_of_a_tier_is_no_path(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "two.toml"
    path.write_text(f'method = "width"\n[tiers."{name}"]\ndevices = 1\nwidth = 0.25\n')
    assert "printable characters are accepted" in error_line(run("shards", path, "--out", tmp_path / "shards"), 2)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("text", "count"), [("500000", 500_000), ("1.5MB", 1_500_000), ("768MiB", 768 << 20), ("2 gb", 2 * 10**9)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


def test_a_wrong_size_is_refused(run: Run, shard: Path) -> None:
    code, _, err = run("join", "127.0.0.1:1", "--data", shard, "--memory", "lots")
    assert code == 2
    assert "'lots' is not a size" in err


def test_shards_hold_every_example_but_the_proxys_once(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("shards", DIGITS, "--out", tmp_path, "--json")
    assert code == 0
    rows = json.loads(out)
    assert [row["device"] for row in rows] == [f"device-{k:02d}" for k in range(8)]
    images = [image.tobytes() for row in rows for image in np.load(row["path"])["x"]]
    assert len(images) == sum(row["examples"] for row in rows) == len(set(images)) == 1438 - 100


def test_shards_of_an_earlier_deal_are_removed_and_nothing_else(run: Run, tmp_path: Path) -> None:
    def deal(folder: Path, large: int) -> tuple[int, str, str]:
        return run("shards", DIGITS, "--set", f"tiers.large.devices={large}", "--out", folder)

    assert deal(tmp_path / "shards", 4)[0] == deal(tmp_path / "shards", 2)[0] == deal(tmp_path / "new", 2)[0] == 0
    names = [
        sorted(path.relative_to(out) for path in out.glob("*/*")) for out in (tmp_path / "shards", tmp_path / "new")
    ]
    assert names[0] == names[1]
    assert len(names[0]) == 8
    mine = tmp_path / "shards" / "large" / "mine.npz"
    mine.touch()
    assert f"holds {mine}, which is no shard" in error_line(deal(tmp_path / "shards", 4), 2)
    assert len(list(tmp_path.glob("shards/*/*"))) == 9


def test_pack_writes_what_is_read_back_to_the_bit(run: Run, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), np.uint8)
    for number, image in enumerate(pixels):
        (tmp_path / "pets" / f"class-{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pets" / f"class-{number % 2}" / f"{number}.png")
    rows = [f"{number},{number / 7},{'ab'[number % 2]},u{number % 3}" for number in range(30)]
    (tmp_path / "table.csv").write_text("\n".join(["i,x,label,user", *rows]))
    for name, kind, shape, users, dtype in (
        ("pets", "images", [3, 6, 5], 0, np.uint8),
        ("table.csv", "table", [2], 3, np.float32),
    ):
        out = tmp_path / "packed" / f"{name}.npz"
        code, text, err = run(
            "pack", tmp_path / name, "--out", out, "--json", "--set", "data.test=0.3", "--set", "seed=4"
        )
        assert code == 0, err
        told = json.loads(text)
        assert (told["kind"], told["input_shape"], told["classes"], told["users"]) == (kind, shape, 2, users)
        before = load(kind, tmp_path / name, Reading(4, test=0.3))
        assert load("npz", out, Reading()).digest == before.digest
        with np.load(out) as archive:
            assert archive["x_train"].dtype == dtype
        # A folder of the same, from the data and from the archive.
        for number, source in enumerate((tmp_path / name, out)):
            folder = out.with_name(f"{name}-{number}")
            told = run("pack", source, "--out", folder, "--json", "--set", "data.test=0.3", "--set", "seed=4")
            assert told[0] == 0, told
            assert json.loads(told[1])["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
            found = load("npy", folder, Reading())
            for one, other in ((found.train, before.train), (found.test, before.test)):
                index = torch.randperm(len(other))
                assert torch.equal(one.subset(index).x, other.x[index])
                assert torch.equal(one.y, other.y)
            assert np.load(folder / "x_train.npy", mmap_mode="r").dtype == dtype
    assert [path.suffix for path in (tmp_path / "packed").iterdir() if path.is_file()] == [".npz"] * 2
    assert "is there already" in error_line(run("pack", tmp_path / "pets", "--out", folder), 2)
    assert not list(tmp_path.glob(".*"))
    assert "no such file or folder" in error_line(run("pack", tmp_path / "none", "--out", tmp_path / "x.npz"), 2)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """An experiment that waits for two devices."""
    text = "method='width'\n[rounds]\ncount=10000\n[tiers]\nlarge={devices=1,width=1.0}\nsmall={devices=1,width=0.25}\n"
    path = tmp_path / "two.toml"
    path.write_text(text)
    return path


def test_serve_join_and_admin_together(run: Run, two: Path, tmp_path: Path) -> None:
    run("shards", two, "--out", tmp_path / "shards")
    serve = [*DIASTOLE, "serve", str(two), "--state", str(tmp_path / "state"), "--json"]
    serve += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    with ExitStack() as stack:
        process = subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(process.communicate)
        stack.callback(process.kill)
        assert process.stderr is not None
        # For whom the run waits may be told before.
        line = next(line for line in process.stderr if "devices call" in line)
        devices, admin = re.findall(r"127\.0\.0\.1:\d+", line)
        token = tmp_path / "state" / "admin.token"
        operators = "--address", admin, "--token-file", token
        (waiting,) = json.loads(run("admin", "runs", "list", *operators, "--json")[1])
        assert (waiting["state"], waiting["round"], waiting["rounds"]) == ("STATE_WAITING", 0, 10000)
        shards = {"large": tmp_path / "shards" / "large", "small": tmp_path / "shards" / "small" / "device-01.npz"}
        pool = stack.enter_context(ThreadPoolExecutor(2))
        agents = [pool.submit(diastole.join, devices, shards[t], tier=t, plan="reference") for t in shards]
        with grpc.insecure_channel(admin) as channel:
            stub = admin_pb2_grpc.AdminServiceStub(channel)
            carried = (("authorization", f"Bearer {token.read_text().strip()}"),)
            events = stub.Watch(admin_pb2.WatchRequest(), timeout=120, metadata=carried)
            next(e for e in events if e.kind == "round_closed" and json.loads(e.json)["round"] == 3)
        (status,) = json.loads(run("admin", "runs", "list", *operators, "--json")[1])
        assert status["round"] >= 3
        assert status["state"] == "STATE_RUNNING"
        assert 0 < status["accuracy"] <= 1
        rows = json.loads(run("admin", "devices", "list", *operators, "--json")[1])
        assert [(r["name"], r["profile"]["tier"]) for r in rows] == [("device-00", "large"), ("device-01", "small")]
        assert all(r["updates_accepted"] >= 2 and r["bytes_up"] > 0 and r["profile"]["examples"] > 0 for r in rows)
        assert "device-01" in run("admin", "devices", "list", *operators)[1]
        pulled = tmp_path / "pulled.safetensors"
        assert run("admin", "checkpoints", "pull", "--out", pulled, *operators)[0] == 0
        assert sum(t.numel() for name, t in load_file(pulled).items() if ":" not in name) == 6138
        code, out, _ = run("admin", "runs", "stop", "--yes", *operators)
        assert code == 0
        assert "ends after this round" in out
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        report = json.loads(out)
        assert 3 <= len(report["rounds"]) < 10000
        assert (tmp_path / "state" / "latest" / "model.safetensors").exists()
        assert report["run"] == status["run_id"] == (tmp_path / "state" / "latest").resolve().name
        assert all(agent.result(60).delivered >= 3 for agent in agents)


def test_serve_that_is_stopped_before_it_has_learned_is_no_success(run: Run, two: Path, tmp_path: Path) -> None:
    before, polled = signal.getsignal(signal.SIGTERM), threading.Event()

    def end() -> None:
        while signal.getsignal(signal.SIGTERM) is before:
            polled.wait(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end, daemon=True).start()
    addresses = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    code, out, err = run("serve", two, *addresses, "--state", tmp_path / "state", "--json")
    assert (code, out) == (5, "")
    assert err.splitlines()[-1] == "error: the run was stopped before its first round was over; nothing was learned"
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("model.safetensors"))
