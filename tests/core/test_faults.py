"""Fault points: off by default, exact when armed, refused outside of tests, each one reached and exercised."""

import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core import faults
from mmjax.core.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setenv("MMJAX_TESTING", "1")


def test_nothing_happens_when_nothing_is_armed():
    for name in faults.POINTS:
        faults.point(name, 3)
    tree = {"a": jnp.ones(2)}
    assert faults.traced("grad", 3, tree) is tree


def test_a_fault_strikes_at_its_index_only():
    with faults.injected("step:3=oserror:ENOSPC"):
        faults.point("step", 2)
        faults.point("eval", 3)
        with pytest.raises(OSError, match="No space left on device"):
            faults.point("step", 3)


def test_a_fault_strikes_at_its_hit_only():
    with faults.injected("data.read#2=raise"):
        faults.point("data.read", 0)
        with pytest.raises(RuntimeError, match="injected fault at data.read"):
            faults.point("data.read", 16)
        faults.point("data.read", 32)


def test_several_faults_and_any_index():
    with faults.injected("step:*=sleep:0, eval=raise"):
        faults.point("step", 9)
        with pytest.raises(RuntimeError):
            faults.point("eval")


def test_gradients_are_poisoned_at_one_step_inside_one_compiled_function():
    with faults.injected("grad:5=nan, grad:7=scale:1000"):
        function = jax.jit(lambda step, tree: faults.traced("grad", step, tree))
        tree = {"w": jnp.ones(3), "count": jnp.int32(2)}
        assert np.array_equal(function(4, tree)["w"], np.ones(3))
        assert np.isnan(function(5, tree)["w"]).all() and function(5, tree)["count"] == 2
        assert np.array_equal(function(7, tree)["w"], np.full(3, 1000.0))
        assert function._cache_size() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepp:3=kill", "did you mean step"),
        ("step:3=kil", "did you mean kill"),
        ("step:3", "is not name"),
        ("step:x=kill", "is not name"),
    ],
)
def test_a_wrong_specification_is_refused(text, message):
    with pytest.raises(UserError, match=message), faults.injected(text):
        pass


def test_faults_are_refused_outside_of_tests(monkeypatch):
    monkeypatch.delenv("MMJAX_TESTING")
    with pytest.raises(UserError, match="for tests only"), faults.injected("step:3=kill"):
        pass


def test_the_environment_arms_a_process_and_kills_it_there():
    code = "from mmjax.core import faults\nfor i in range(9): print(i, flush=True); faults.point('step', i)"
    environment = os.environ | {"MMJAX_FAULTS": "step:4=kill", "MMJAX_TESTING": "1"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == -9 and child.stdout.split() == list("01234")


def test_every_point_is_reached_by_the_code_and_exercised_by_the_tests():
    sources = [path for package in ("mmjax", "data_pipelines") for path in (ROOT / package).rglob("*.py")]
    called = re.compile(r"faults\.(?:point|traced)\(\s*\"([a-z_.]+)\"")
    reached = {name for path in sources if path.name != "faults.py" for name in called.findall(path.read_text())}
    assert reached == set(faults.POINTS)
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != pathlib.Path(__file__))
    armed = {name for name in faults.POINTS if re.search(rf'["\s]{name}(:[^=\s]+)?(#\d+)?=[a-z]', tests)}
    swept = {name for name in faults.POINTS if name.startswith("checkpoint.") and f'"{name}' in tests}
    assert armed | swept == set(faults.POINTS)
