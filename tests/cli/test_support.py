"""What somebody gets who is to help, and that nothing in it lets anybody in."""

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from onedevice import HERE, serve

from diastole.cli import support
from diastole.cli.redact import GONE, Redactor
from diastole.client.enrolling import enroll
from diastole.proto.invitation import Token

Run = Callable[..., tuple[int, str, str]]


def test_a_bundle_has_what_helps_and_no_secret(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, mine, log, out = (tmp_path / name for name in ("state", "mine", "serve.log", "help.zip"))
    mine.mkdir()
    monkeypatch.setenv("https_proxy", "http://me:hunter22@proxy.example:3128")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=letmein")
    experiment = tmp_path / "run.toml"
    experiment.write_text('method = "width"\ndb_password = "hunter23"\n')
    with serve(state, admin=HERE, enroll=HERE) as serving:
        invited, unused = serving.invite("pi-7"), serving.invite("pi-8")
        address = f"127.0.0.1:{serving.port}"
        identity = enroll(mine, address, Token.parse(invited))
        secrets = [
            (state / "admin.token").read_text().strip(),
            (state / "ca" / "ca.key").read_text().strip(),
            identity.key.strip(),
            unused,
            Token.parse(unused).secret,
            "hunter22",
            "hunter23",
            "letmein",
        ]
        # Whatever a log should never have.
        log.write_text("\n".join([*secrets[:4], f"Authorization: Bearer {secrets[0]}", "round 1/1  5 updates"]))
        log.with_name("serve.log.1").write_text(f"before\n{secrets[3]}\n")
        calls = "--listen", address, "--admin", f"127.0.0.1:{serving.admin_port}"
        own = "--state", state, "--log-file", log, "--experiment", experiment, "--out", out
        code, told, err = run("support-bundle", *own, *calls, "--json")
    assert code == 0, err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    bundle = zipfile.ZipFile(out)
    texts = {name: bundle.read(name).decode() for name in bundle.namelist()}
    assert sorted(texts) == json.loads(told)["files"]
    for name, text in texts.items():
        assert "PRIVATE KEY" not in text, name
        for secret in secrets[3:]:
            assert secret not in text, name
        for line in "\n".join(secrets[:3]).splitlines():
            assert len(line) < 30 or line not in text, name
    assert "round 1/1  5 updates" in texts["logs/serve.log"]
    assert "before" in texts["logs/serve.log.1"]
    assert texts["experiments/run.toml"] == f'method = "width"\ndb_password = {GONE}\n'
    assert json.loads(texts["versions.json"])["packages"]["torch"]
    assert [each for each in json.loads(texts["doctor.json"]) if each["level"] == "fault"] == []
    runs = json.loads(texts["runs.json"])
    assert runs["runs"][0]["run_id"] == runs["database"][0]["run"] == serving.run_id
    assert {"path": "admin.token", "mode": "0o100600"}.items() <= next(
        each for each in json.loads(texts["files.json"]) if each["path"] == "admin.token"
    ).items()


@pytest.mark.slow
def test_a_bundle_of_nothing_is_one_too_and_long_logs_are_cut(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support, "LOG_BYTES", 50)
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(1000)))
    own = "--state", tmp_path / "none", "--log-file", log, "--admin", "127.0.0.1:1", "--listen", HERE
    code, out, err = run("support-bundle", *own, "--out", tmp_path / "help.zip")
    assert code == 0, err
    assert "look at it before" in out
    bundle = zipfile.ZipFile(tmp_path / "help.zip")
    lines = bundle.read("logs/log").decode().splitlines()
    assert (lines[-1], len(lines)) == ("line 999", 5)
    assert "no coordinator" in json.loads(bundle.read("runs.json"))["coordinator"]
    code, _, err = run("support-bundle", *own, "--out", tmp_path / "none" / "help.zip")
    assert (code, err.count("\n")) == (2, 1)


def test_secrets_are_known_by_their_form() -> None:
    redactor = Redactor()
    for text, found in (
        ("postgresql://me:pw123@db/diastole", f"postgresql://me:{GONE}@db/diastole"),
        ("authorization: Bearer abcdefgh12345678", f"authorization: {GONE}"),
        ("-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nx", f"{GONE}\nx"),
        ("api_key = 'x'", f"api_key = {GONE}"),
        ("the token of pi-7 was used", "the token of pi-7 was used"),
        ("round 3/10  5 updates", "round 3/10  5 updates"),
    ):
        assert redactor.text(text) == found
    assert redactor.document({"a": [{"password": "x", "count": 3}]}) == {"a": [{"password": GONE, "count": 3}]}
