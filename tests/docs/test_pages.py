"""Every block of shell and of Python in the documentation is run, or says why it is not.

A comment `<!-- not run: why -->` before a block says so; nothing else spares it. The blocks of a page are one script,
in their order, in a folder that has what a clone has. What a page takes for granted is made first.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, Reader, blocks

import diastole
from diastole.experiments.experiment import Experiment
from diastole.experiments.run import make_run
from diastole.experiments.serving import Serving

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the pages are written for a POSIX shell")

ELSEWHERE = {
    "docs/containers.md": "tests/simulations/fleet/test_local_fleet.py",
    "docs/export.md": "tests/system/test_export_docs.py",
    "docs/security.md": "tests/cli/test_operations.py",
}
"""Pages whose blocks of shell another test runs, which looks at more of what comes of them."""
TUTORIAL = [f"docs/tutorial/{name}.md" for name in ("simulate", "deploy", "operate", "export")]
NAMED = {str(page.relative_to(ROOT)): page for page in PAGES}


def run_here(*languages: str) -> list[str]:
    apart = {*ELSEWHERE, *TUTORIAL}
    return [
        name
        for name, page in NAMED.items()
        if name not in apart and any(not block.reason and not block.file for block in blocks(page, *languages))
    ]


ONE_DEVICE = """
cat > one.toml <<'END'
[data]
name = "digits"
proxy = 40
[tiers]
small = { devices = 1, width = 0.25 }
[training]
epochs = 1
[rounds]
count = 2
END
diastole shards one.toml --out shards
"""
SERVED = f"""{ONE_DEVICE}
diastole serve one.toml --set rounds.count=5000 --keep-checkpoints 5000 --state state --log-file serve.log &
diastole join 127.0.0.1:7700 --data shards/small --name pi-7 --state device &
until_round 4
"""
BEFORE = {
    "docs/coordinator.md": SERVED,
    "docs/operations.md": SERVED,
    "docs/data.md": """
python - <<'END'
import pathlib, numpy, PIL.Image
for kind in ("cat", "dog"):
    for number in range(12):
        path = pathlib.Path("scans", kind, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(numpy.random.default_rng(number).integers(0, 255, (224, 224, 3), "uint8")).save(path)
END
cat > scans.toml <<'END'
[data]
proxy = 4
[model]
widths = [4, 8]
group = 2
[tiers]
small = { devices = 2, width = 0.5 }
[rounds]
count = 1
END
""",
    "docs/inference.md": f"""{ONE_DEVICE}
cp shards/small/device-00.npz shard.npz
diastole simulate simulations/examples/digits.toml --set rounds.count=1 --out report --figures ''
diastole serve one.toml --state state &
diastole join 127.0.0.1:7700 --data shards/small --name phone-1
""",
}
"""What a page takes for granted."""
AWAITED = {"docs/quickstart.md": "diastole admin runs list"}
"""The first command before which the reader has waited until the second round has begun."""
GIVEN = {
    "docs/quickstart.md": "import numpy; images, labels = numpy.zeros((4, 8, 8), numpy.uint8), numpy.arange(4)\n",
    "docs/simulations.md": """import diastole
experiment = diastole.Experiment.load("simulations/examples/digits.toml", rounds__count=1)
""",
}
"""Names that Python on a page takes for granted."""
LEFT = {
    "docs/data.md": ("scans-packed/x_train.npy", "report/model.safetensors", "mine/model.safetensors"),
    "docs/methods/snnet.md": ("stitched/report.json", "random/report.json", "scratch/report.json"),
    "docs/operations.md": ("diastole-support.zip",),
    "docs/quickstart.md": ("report/report.json", "comparison/comparison.json", "state/latest/model.safetensors"),
}
"""What is there in the end, beside what the commands themselves look at."""


def clone(folder: Path) -> None:
    """Put into a folder what a clone has, as far as the pages use it, and the files that a page shows."""
    for name in ("docs", "packaging", "simulations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))


def write_files(page: Path, folder: Path) -> None:
    for block in blocks(page, "python", "toml"):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def test_pages_that_are_run_elsewhere_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(), test
    assert len(run_here("sh")) > 6


def test_no_block_is_hidden_by_its_language() -> None:
    known = {"", "html", "ini", "json", "protobuf", "python", "sh", "text", "toml", "yaml"}
    for name, page in NAMED.items():
        assert {block.language for block in blocks(page, *known, "bash", "shell", "console")} <= known, name
        assert page.read_text().count("```") % 2 == 0, name
        for block in blocks(page, ""):
            assert not block.text.startswith(("diastole ", "$ ")), name


@pytest.mark.slow
@pytest.mark.parametrize("name", run_here("sh"))
def test_the_shell_of_a_page_does_what_it_says(name: str, tmp_path: Path) -> None:
    clone(tmp_path)
    write_files(NAMED[name], tmp_path)
    lines = [block.text for block in blocks(NAMED[name], "sh") if not block.reason]
    script = "\n".join([BEFORE.get(name, ""), *lines])
    if name in AWAITED:
        script = script.replace(AWAITED[name], f"until_round 2\n{AWAITED[name]}", 1) + "\nwait\n"
    Reader(tmp_path, tmp_path / "state").types(script)
    for left in LEFT.get(name, ()):
        assert list(tmp_path.glob(left)), left


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in run_here("python") if name not in ("README.md",)])
def test_the_python_of_a_page_runs(name: str, tmp_path: Path) -> None:
    clone(tmp_path)
    write_files(NAMED[name], tmp_path)
    texts = [block.text for block in blocks(NAMED[name], "python") if not block.reason and not block.file]
    (tmp_path / "page.py").write_text("\n".join([GIVEN.get(name, ""), *texts]))
    Reader(tmp_path, tmp_path / "state").types("python page.py")


@pytest.mark.slow
def test_a_device_trains_on_the_source_of_the_page_on_data(tmp_path: Path) -> None:
    (code,) = (block.text for block in blocks(NAMED["docs/data.md"], "python") if not block.file)
    names: dict[str, Any] = {}
    exec(code, names)
    source = names["Newest"]((1, 8, 8))
    document = {"data": {"proxy": 40}, "rounds": {"count": 2}, "tiers": {"small": {"devices": 1, "width": 0.25}}}
    made = make_run(Experiment.parse(document, "test"))
    for x, y in zip(made.test.x[:30], made.test.y[:30].tolist(), strict=True):
        source.add(x, y)
    with Serving(made, "127.0.0.1:0", tmp_path, figures=()) as serving:
        summary = diastole.join(f"127.0.0.1:{serving.port}", source, "kitchen", plan="reference")
        (row,) = serving.wait(60).devices
    assert summary.delivered == 2
    assert row.examples == 30


@pytest.mark.slow
def test_the_tutorial_from_its_first_command_to_its_last(tmp_path: Path) -> None:
    lines = [block.text for name in TUTORIAL for block in blocks(NAMED[name], "sh") if not block.reason]
    script = "\n".join(lines).replace("diastole admin runs list", "until_round 1\ndiastole admin runs list", 1)
    said = Reader(tmp_path, tmp_path / "heart" / "state").types(script)
    project = tmp_path / "heart"
    for name in (
        "report",
        "comparison",
        "bundle.zip",
        "small.onnx",
        "small.onnx.md",
        "fits.safetensors",
        "state/latest",
    ):
        assert (project / name).exists(), name
    assert "room=kitchen" in said
