"""`diastole support-bundle`: what somebody needs who is to help, in one file, without secrets."""

import json as jsonlib
import os
import platform
import time
import zipfile
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from diastole.cli.admin.verb import plain as as_document
from diastole.cli.calling import TOKEN_FILE, calling
from diastole.cli.doctor import home, machine
from diastole.cli.options import Json, consoles, print_json
from diastole.cli.redact import Redactor
from diastole.client.errors import FolderError
from diastole.proto.errors import DiastoleError
from diastole.v1 import admin_pb2 as pb

LOG_BYTES = 2 << 20
"""Of the end of each file of a log."""
LOGS, REPORTS, LISTED = 6, 5, 2000
"""Files of each log, reports, and files of the state folder that are told of."""
VARIABLES = ("DIASTOLE_", "OMP_", "GRPC_", "OTEL_", "MKL_", "TORCH_", "CUDA_", "http_proxy", "https_proxy", "no_proxy")
SECONDS = 5.0
ABOUT = """What `diastole support-bundle` has gathered, for somebody who is to help.

versions.json     what is installed, and the system
doctor.json       what `diastole doctor` finds
environment.json  settings in the environment
runs.json         the runs of the coordinator, if it answers, and those in its database
reports/          what the latest runs came to, and their experiments
logs/             the end of the logs
files.json        names, sizes and rights of the files in the state folder

Tokens, keys and passwords have been removed. Names of devices, tiers, files and addresses are in it: look at it before
you give it away.
"""

app = typer.Typer(rich_markup_mode="markdown", add_completion=False)


@app.command("support-bundle")
def support(
    out: Annotated[Path, typer.Option(help="The file that is written, a .zip.")] = Path("diastole-support.zip"),
    state: Annotated[Path, typer.Option(help="The coordinator's state folder.")] = Path("state"),
    log_file: Annotated[list[Path] | None, typer.Option(help="A log, as --log-file of serve or join.")] = None,
    experiment: Annotated[list[Path] | None, typer.Option(help="An experiment's TOML file.")] = None,
    listen: Annotated[str, typer.Option(help="Where devices call the coordinator.")] = "127.0.0.1:7700",
    admin: Annotated[str, typer.Option(help="Where operators call it.")] = "127.0.0.1:7701",
    database: Annotated[str, typer.Option(help="The coordinator's database, a URL.")] = "",
    token_file: Annotated[Path, typer.Option(help="The file that shows the coordinator who asks.")] = TOKEN_FILE,
    json: Json = False,
) -> None:
    """Gather what somebody needs who is to help: versions, findings, logs and runs, without secrets.

    Example: `diastole support-bundle --state state --log-file serve.log`
    """
    redactor = Redactor.of(state)
    coordinator = home.Coordinator(state, listen, admin, database=database, token_file=token_file)
    findings = [asdict(each) for each in (*machine.check(), *home.check(coordinator))]
    documents = {
        "versions.json": _versions(),
        "doctor.json": findings,
        "environment.json": {name: text for name, text in sorted(os.environ.items()) if name.startswith(VARIABLES)},
        "runs.json": _runs(coordinator),
        "files.json": _files(state),
    }
    texts = {"README.txt": ABOUT}
    texts |= {name: jsonlib.dumps(redactor.document(each), indent=1) for name, each in documents.items()}
    for path in sorted(state.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime)[-REPORTS:]:
        texts[f"reports/{path.parent.name}.json"] = _report(path, redactor)
    for log in log_file or ():
        for path in [log, *(log.with_name(f"{log.name}.{number}") for number in range(1, LOGS))]:
            if path.exists():
                texts[f"logs/{path.name}"] = _end(path, redactor)
    for path in experiment or ():
        texts[f"experiments/{path.name}"] = redactor.text(path.read_text(encoding="utf-8", errors="replace"))
    _write(out, texts)
    if json:
        print_json({"path": str(out.resolve()), "files": sorted(texts)})
    else:
        consoles(json).print(f"{out}: {len(texts)} files; look at it before you give it away", soft_wrap=True)


def _write(out: Path, texts: dict[str, str]) -> None:
    """Write the bundle, for this user alone. Raises `FolderError`."""
    try:
        with (
            open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as bundle,
        ):
            for name, text in texts.items():
                bundle.writestr(name, text)
    except OSError as error:
        raise FolderError(f"{out}: {error.strerror}; --out takes a file that can be written") from None


def _versions() -> dict[str, Any]:
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.machine(),
        "grpc": getattr(grpc, "__version__", ""),
        "packages": dict(sorted((each.metadata["Name"], each.version) for each in distributions())),
    }


def _runs(coordinator: home.Coordinator) -> dict[str, Any]:
    """Return what is known of the runs: by the coordinator if it answers, and by its database."""
    found: dict[str, Any] = {"database": home.runs_of(coordinator)}
    own = coordinator.state / TOKEN_FILE.name
    try:
        with calling(coordinator.admin, own if own.is_file() else coordinator.token_file) as stub:
            runs = stub.ListRuns(pb.ListRunsRequest(), timeout=SECONDS).runs
            found["runs"] = [as_document(run) for run in runs]
            listed = stub.ListDevices(pb.ListDevicesRequest(), timeout=SECONDS).devices if runs else []
            found["devices"] = [as_document(device) for device in listed]
    except DiastoleError as error:
        found["coordinator"] = str(error)
    return found


def _files(state: Path) -> list[dict[str, Any]]:
    rows = list[dict[str, Any]]()
    for path in sorted(state.rglob("*"))[:LISTED]:
        try:
            found = path.lstat()
        except OSError:
            continue
        rows.append({"path": str(path.relative_to(state)), "bytes": found.st_size, "mode": oct(found.st_mode)})
    return rows


def _report(path: Path, redactor: Redactor) -> str:
    try:
        return jsonlib.dumps(redactor.document(jsonlib.loads(path.read_text())), indent=1)
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}\n"


def _end(path: Path, redactor: Redactor) -> str:
    """Return the end of a log, from the beginning of a line on."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_BYTES))
            data = file.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"
    text = data.decode("utf-8", errors="replace")
    return redactor.text(text if size <= LOG_BYTES else text.partition("\n")[2])
