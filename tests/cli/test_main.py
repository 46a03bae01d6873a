"""The door: cheap help, nearest names, one message per mistake, commands added by other packages."""

from __future__ import annotations

import os
import platform
import random
import string
import subprocess
import sys

import pytest

from mmjax.cli.arguments import COMMANDS, parser_of
from mmjax.cli.main import added_commands, main
from mmjax.core.errors import DataError, StorageError, UserError, nearest


def message(capsys, *words: str) -> str:
    """What a wrong command line prints; it must leave with 2, say one thing, and show no stack."""
    assert main(list(words)) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.startswith("error: ") and "Traceback" not in found.err
    return found.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(words, capsys):
    assert main(words) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert f"usage: mmjax {command}" in capsys.readouterr().out


@pytest.mark.subprocess
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"], ["trian"]])
def test_help_and_typos_import_no_jax(words):
    code = f"import sys; from mmjax.cli.main import main; main({words!r}); print({{'jax', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["trian"], "no command is called 'trian'; did you mean train?"),
        (["evaluate"], "did you mean eval?"),
        (["frobnicate"], "there are: data, describe" if "data" in added_commands() else "there are: describe"),
        (["train"], "mmjax train: the following arguments are required: FILE.py"),
        (["train", "x.py", "--fersh"], "no option is called '--fersh'; did you mean --fresh?"),
        (["train", "x.py", "--device=8"], "did you mean --devices?"),
        (["train", "x.py", "--optimizer.lr.peak=1"], "settings are written optimizer.lr.peak=1, without dashes"),
        (["train", "x.py", "--devices", "0"], "expected a whole number above zero, got '0'"),
        (["train", "x.py", "--dev", "2"], "no option is called '--dev'"),
        (["search", "run"], "the following arguments are required: query"),
        (["search", "run", "red", "apple"], "nothing takes the word 'apple'"),
        (["search", "run", "red", "--count", "many"], "expected a whole number above zero"),
        (["eval", "run", "--step", "last"], "argument --step: invalid int value: 'last'"),
    ],
)
def test_a_wrong_command_line_is_answered(words, answer, capsys):
    assert answer in message(capsys, *words)


def test_options_stand_anywhere():
    arguments = parser_of("train").read(["--fresh", "x.py", "steps=3", "--run", "here", "seed=1"])
    assert str(arguments.file) == "x.py" and arguments.settings == ["steps=3", "seed=1"]
    assert arguments.fresh and str(arguments.run) == "here"


def test_typos_of_commands_and_options_find_their_way():
    rng, hits, tried = random.Random(0), 0, 0
    for command in COMMANDS:
        options = [option for option in parser_of(command)._option_string_actions if option.startswith("--")]
        for choices in (list(COMMANDS), options):
            for name in choices:
                at = rng.randrange(2, len(name))
                typo = rng.choice(
                    [name[:at] + name[at + 1 :], name[:at] + rng.choice(string.ascii_lowercase) + name[at:]]
                )
                tried, hits = tried + 1, hits + (name in nearest(typo, choices))
    assert tried > 60 and hits >= 0.95 * tried


# ---------------------------------------------------------------------------------------------------- added commands


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package that adds `paint`, and tries to replace `train`."""
    (tmp_path / "painter.py").write_text("def main(words):\n    print('painted', *words)\n    return len(words)\n")
    info = tmp_path / "painter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: painter\nVersion: 1.0\n")
    points = "[mmjax.commands]\npaint = painter:main\ntrain = painter:main\nbroken = painter_gone:main\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_adds_a_command(plugin, capsys):
    assert main(["paint", "it", "--red"]) == 2
    assert capsys.readouterr().out == "painted it --red\n"
    main(["--help"])
    assert "paint      added by painter" in capsys.readouterr().out
    assert "did you mean paint" in message(capsys, "pain")


def test_a_package_cannot_replace_a_command(plugin):
    assert "train" not in added_commands()


def test_a_broken_package_is_named(plugin, capsys):
    assert "`mmjax broken` is added by painter_gone:main, which cannot be imported" in message(capsys, "broken")


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("error", "code"),
    [(UserError("why"), 2), (DataError("why"), 65), (StorageError("why"), 73), (OSError(28, "No space left", "f"), 73)],
)
def test_the_exit_code_is_that_of_the_error(error, code, monkeypatch, capsys):
    import mmjax.cli.doctor

    def fail(arguments):
        raise error

    monkeypatch.setattr(mmjax.cli.doctor, "run", fail)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err.startswith("error: ")


def test_a_bug_is_not_hidden(monkeypatch):
    import mmjax.cli.doctor

    monkeypatch.setattr(mmjax.cli.doctor, "run", lambda arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


@pytest.mark.subprocess
@pytest.mark.parametrize("command", ["train", "eval", "sample"])
def test_commands_that_compute_keep_what_they_compile(command, tmp_path):
    words = [command, "nowhere", *["words"] * (command == "sample")]
    code = f"from mmjax.cli.main import main; main({words!r}); import jax; print(jax.config.jax_compilation_cache_dir)"
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"MMJAX_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(str(tmp_path / "programs-")), done.stderr


@pytest.mark.subprocess
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_command_that_computes_on_a_cpu_runs_programs_where_it_calls_them():
    """So that their scratch space is kept (`mmjax.core.allocator`)."""
    code = "from mmjax.cli.main import main; main(['train', 'nowhere']); import jax; print(jax.config.values)"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "'jax_cpu_enable_async_dispatch': False" in done.stdout, done.stderr
