"""The doctor finds what is wrong, says what to do, and breaks on nothing."""

from __future__ import annotations

import json

import pytest

from mmjax.cli import doctor
from mmjax.cli.main import main


def findings(folder) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(folder)}


def test_a_machine_that_runs_these_tests_can_train(tmp_path, capsys):
    assert main(["doctor", "--run", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line for line in found if line["state"] == "fail"] == []
    wanted = {"python", "jax", "flax", "optax", "orbax-checkpoint", "grain", "devices", "disk space", "run folder"}
    assert wanted | {"cache folder", "open files", "clock"} <= {line["what"] for line in found}


def test_the_page_shows_every_finding(tmp_path, capsys):
    main(["doctor", "--run", str(tmp_path)])
    text = capsys.readouterr().out
    assert all(finding.what in text for finding in findings(tmp_path).values())


@pytest.mark.parametrize("version", [None, "0.4.30"])
def test_a_missing_or_old_package_fails(version, monkeypatch, tmp_path, capsys):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: version if name == "jax" else real(name))
    assert findings(tmp_path)["jax"].state == "fail"
    assert "pip install 'jax>=0.10.1'" in findings(tmp_path)["jax"].advice
    assert main(["doctor", "--run", str(tmp_path)]) == 2


def test_a_folder_that_cannot_be_written_fails():
    found = doctor.examine(doctor.pathlib.Path("/proc/runs"))
    line = next(finding for finding in found if finding.what == "run folder")
    assert line.state == "fail" and "cannot be written" in line.found and "--run" in line.advice


def test_little_space_is_a_warning_and_none_a_failure(monkeypatch, tmp_path):
    for free, state in ((10 * doctor.GIB, "ok"), (2 * doctor.GIB, "warn"), (doctor.GIB // 8, "fail")):
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path, usage=usage: usage)
        assert findings(tmp_path)["disk space"].state == state


def test_the_probe_leaves_nothing_behind(tmp_path):
    findings(tmp_path / "not" / "yet" / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_is_a_finding(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda kind: 1 / 0)
    assert findings(tmp_path)["limits"].state == "warn"
