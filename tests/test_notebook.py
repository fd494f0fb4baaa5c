"""The notebook in docs/ runs."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebook.ipynb"


def cells(kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == kind]


@pytest.mark.slow
def test_its_cells_run_as_one_script(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(cell.source for cell in cells("code"))
    # The same calls, of as little as can be.
    small, count = re.subn(r"\b(rounds|trials|seeds|training__epochs)=\d+", r"\1=1", text)
    assert count == 6
    small = small.replace("[:1400]", "[:200]").replace("[1400:]", "[1700:]")
    names: dict[str, Any] = {}
    exec(compile(small, str(NOTEBOOK), "exec"), names)
    assert "366 of 1922 parameters" in capsys.readouterr().out
    assert names["found"].best("width") == names["found"].result.values["width"]
    assert list(names["table"].comparison.runs) == ["width", "fjord", "exclusive"]
    assert names["trained"].finished


def test_it_is_stored_with_what_it_shows_and_links_to_pages_that_exist() -> None:
    outputs = [output for cell in cells("code") for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert NOTEBOOK.stat().st_size < 1 << 19
    for cell in cells("markdown"):
        for target in re.findall(r"\]\(([^)#]+)", cell.source):
            assert (NOTEBOOK.parent / target).exists(), target


@pytest.mark.slow
def test_it_runs_in_a_kernel_to_what_is_stored(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    stored = cells("code")
    notebook = nbformat.read(NOTEBOOK, 4)
    notebook.metadata["kernelspec"]["name"] = "python3"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for mine, theirs in zip(found, stored, strict=True):
        kinds = [[sorted(output.get("data", {"text": ""})) for output in cell.outputs] for cell in (mine, theirs)]
        assert kinds[0] == kinds[1], mine.source
    assert not list(tmp_path.iterdir())
