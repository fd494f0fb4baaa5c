"""What the guide for operators says is what there is."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from diastole.cli.doctor import certificates
from diastole.cli.main import COMMANDS, load
from diastole.proto.errors import DiastoleError
from diastole.server.observe import table

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "operations.md").read_text()


def section(title: str, text: str = GUIDE) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def test_the_table_of_metrics_is_made_from_the_code() -> None:
    assert table.renewed(GUIDE) == GUIDE, "make docs renews it"


def test_every_alert_says_what_to_do() -> None:
    alerts = YAML(typ="safe", pure=True).load(ROOT / "packaging" / "prometheus" / "alerts.yml")
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    told = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", section("Alerts"), re.MULTILINE)
    assert told == names


def exit_codes(kind: type[DiastoleError]) -> set[int]:
    return {kind.exit_code}.union(*map(exit_codes, kind.__subclasses__()))


def test_every_exit_code_is_explained() -> None:
    for name in COMMANDS:
        load(name)
    rows = set(map(int, re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)))
    short = set(map(int, re.findall(r"^\| (\d+) \|", section("Exit codes", (ROOT / "docs/cli.md").read_text()), re.M)))
    assert rows == short
    assert exit_codes(DiastoleError) | {0, 130} == rows


def test_what_the_guide_leads_to_is_there() -> None:
    for path, anchor in re.findall(r"\]\(([\w/.-]*)#?([\w-]*)\)", GUIDE):
        text = (ROOT / "docs" / path).read_text() if path else GUIDE
        titles = [re.sub(r"[^\w -]", "", title).strip().lower() for title in re.findall(r"^#+ (.*)$", text, re.M)]
        assert not anchor or anchor.replace("-", " ") in titles, (path, anchor)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
def test_certificates_that_are_made_as_the_documentation_says_go_together(tmp_path: Path) -> None:
    own = section("Certificates of your own", (ROOT / "docs" / "security.md").read_text())
    recipe, _ = re.findall(r"```sh\n(.*?)```", own, re.DOTALL)
    subprocess.run(["sh", "-e", "-c", recipe], cwd=tmp_path, check=True, capture_output=True)
    texts = {name: (tmp_path / f"{name}.pem").read_text() for name in ("ca", "server", "pi-7")}
    for name in ("server", "pi-7"):
        assert certificates.pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.key").level == "ok"
        assert certificates.signed(texts[name], texts["ca"])
        assert certificates.life(name, texts[name], "").level == "ok"
    assert certificates.names(texts["pi-7"]) == [certificates.owner(texts["pi-7"])] == ["pi-7"]
    assert {"coordinator.example", "localhost", "127.0.0.1"} == {*certificates.names(texts["server"])}
