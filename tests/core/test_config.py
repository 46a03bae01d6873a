"""Configuration: values survive JSON, settings are read by annotation, mistakes are answered with the right name."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import string
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmjax.core import config
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import UserError, nearest
from mmjax.core.layout import Layout


def own_function(x):
    """Stands at the top of a module, so a configuration may hold it."""
    return x


@dataclasses.dataclass(frozen=True)
class Rate:
    peak: float = 1e-3
    warmup: int = 100
    floor: float | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    name: str
    rate: Rate = Rate()
    freeze: bool = False
    kind: Literal["cosine", "linear"] = "cosine"
    shape: tuple[int, ...] = (2, 3)
    pair: tuple[int, str] = (1, "a")


class Net(nn.Module):
    width: int = 8
    act: Callable = own_function
    inner: nn.Module | None = None
    dtypes: Dtypes = Dtypes()

    def __call__(self, x):
        return x


@dataclasses.dataclass(frozen=True)
class Whole:
    net: nn.Module
    rules: tuple[Rule, ...] = (Rule("a"), Rule("b"))
    weights: Mapping[str, Rate] = dataclasses.field(default_factory=lambda: {"image": Rate(), "text": Rate(2e-3)})
    layout: Layout = Layout()
    steps: int = 10
    note: str | None = None


@pytest.fixture(autouse=True)
def this_module_is_the_users_own(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "__mmjax_user__", True, raising=False)


def whole(**changes: Any) -> Whole:
    return Whole(net=Net(inner=Net(width=4)), **changes)


def through_text(value: Any) -> Any:
    return config.from_json(json.loads(json.dumps(config.to_json(value), allow_nan=False)))


# ------------------------------------------------------------------------------------------------------------- JSON


leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
tree = st.recursive(
    leaf,
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(string.ascii_letters, min_size=1), inner, max_size=3)
        | st.builds(Rule, name=st.text(), rate=st.builds(Rate, peak=st.floats(allow_nan=False), floor=inner))
    ),
    max_leaves=8,
)


@given(tree)
def test_any_value_survives_json(value):
    assert through_text(value) == value


def test_modules_functions_and_nested_values_survive_json():
    value = whole(note="ü")
    assert through_text(value) == value
    assert through_text(value).net.inner.width == 4
    assert through_text(value).net.act is own_function


def test_numbers_that_json_lacks():
    back = through_text((math.inf, -math.inf, math.nan, np.float32(0.5), np.int64(3), np.dtype(jnp.bfloat16)))
    assert back[:2] == (math.inf, -math.inf) and math.isnan(back[2])
    assert back[3:] == (0.5, 3, jnp.bfloat16)


@pytest.mark.parametrize("value", [lambda x: x, object(), {1, 2}, np.zeros(3), Rule("a", rate=lambda: 0)])
def test_values_without_a_stable_text_are_refused(value):
    with pytest.raises(UserError, match="a configuration cannot hold"):
        config.to_json(value)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"$ref": "os:system"}, "only mmjax's and your experiment's own parts"),
        ({"$ref": "subprocess:run"}, "only mmjax's and your experiment's own parts"),
        ({"$type": "some_unheard_module:Thing"}, "do not import code"),
        ({"$ref": "mmjax.core.config:importlib.import_module"}, "not a function of that module"),
        ({"$ref": "mmjax.core.pytrees:dataclasses.replace"}, "not a function of that module"),
        ({"$type": "mmjax.core.layout:Mesh"}, "which is not a dataclass"),
        ({"$type": "mmjax.core.layout:Layuot"}, "which this version does not have"),
        ({"$type": "mmjax.core.layout:Layout", "fdsp": 2}, "did you mean fsdp"),
    ],
)
def test_a_stored_configuration_cannot_reach_for_code(tree, message):
    with pytest.raises(UserError, match=message):
        config.from_json(tree)


def test_a_stored_configuration_never_imports_a_users_module(monkeypatch):
    value = config.to_json(Rate())
    monkeypatch.delattr(sys.modules[__name__], "__mmjax_user__")
    with pytest.raises(UserError, match="own parts may be named"):
        config.from_json(value)


# -------------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("steps=1e3", lambda w: w.steps == 1000 and type(w.steps) is int),
        ("steps=1_000", lambda w: w.steps == 1000),
        ("steps=1152921504606846977", lambda w: w.steps == 2**60 + 1),
        ("note=none", lambda w: w.note is None),
        ("note=5", lambda w: w.note == "5"),
        ("net.width=16", lambda w: w.net.width == 16 and w.net.inner.width == 4),
        ("net.inner.width=16", lambda w: w.net.inner.width == 16 and w.net.width == 8),
        ("net.dtypes.compute=bfloat16", lambda w: w.net.dtypes.compute == "bfloat16"),
        ("rules.1.rate.peak=3", lambda w: w.rules[1].rate.peak == 3.0 and w.rules[0].rate.peak == 1e-3),
        ("rules.0.rate.floor=1e-5", lambda w: w.rules[0].rate.floor == 1e-5),
        ("rules.0.freeze=yes", lambda w: w.rules[0].freeze is True),
        ("rules.0.kind=linear", lambda w: w.rules[0].kind == "linear"),
        ("rules.0.shape=4,5,6", lambda w: w.rules[0].shape == (4, 5, 6)),
        ("rules.0.shape=7", lambda w: w.rules[0].shape == (7,)),
        ("rules.0.pair=9,z", lambda w: w.rules[0].pair == (9, "z")),
        ("weights.text.warmup=0", lambda w: w.weights["text"].warmup == 0 and w.weights["image"].warmup == 100),
        ("layout.fsdp=-1", lambda w: w.layout.fsdp == -1),
    ],
)
def test_a_setting_is_read_by_its_annotation(setting, read):
    assert read(config.override(whole(), config.split_settings([setting])))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps=1.5", "steps=1.5: expected a whole number \\(now 10\\)"),
        ("steps=many", "expected a whole number"),
        ("steps=inf", "expected a whole number"),
        ("rules.0.freeze=perhaps", "expected true or false"),
        ("rules.0.kind=rsqrt", "expected one of cosine, linear"),
        ("rules.0.rate.floor=low", "expected a number or none|expected none or a number"),
        ("rules.0.pair=9", "expected 2 comma-separated values"),
        ("rules.7.name=x", "no setting is called 'rules.7.name'"),
        ("rules.first.name=x", "did you mean rules.0.name"),
        ("net.inner=Net", "net.inner is a Net, which has no text form; set its parts \\(net.inner.width"),
        ("net.act=gelu", "net.act=gelu: expected a .*which has no text form"),
        ("weights=1", "weights is a dict, which has no text form"),
        ("steps.more=1", "no setting is called 'steps.more'"),
    ],
)
def test_a_wrong_setting_is_explained(setting, message):
    with pytest.raises(UserError, match=message):
        config.override(whole(), config.split_settings([setting]))


def test_every_wrong_setting_is_told_at_once_and_nothing_is_changed():
    value = whole()
    with pytest.raises(UserError) as caught:
        config.override(value, {"stpes": "3", "net.width": "wide", "note": "kept"})
    assert "did you mean steps" in str(caught.value) and "net.width=wide: expected a whole number" in str(caught.value)
    assert value == whole()


@given(st.sampled_from([name for name, _ in config.leaves(whole())]), st.integers(0, 2**53))
def test_setting_a_leaf_changes_that_leaf_only(name, number):
    value, before = whole(), dict(config.leaves(whole()))
    try:
        after = dict(config.leaves(config.override(value, {name: str(number)})))
    except UserError:
        return  # not a number's place
    assert {leaf for leaf in before if after[leaf] != before[leaf]} <= {name}


@pytest.mark.parametrize("words", [["steps"], ["=3"], ["a=1", "a=2"]])
def test_settings_are_name_value_once(words):
    with pytest.raises(UserError, match="name=value|set twice"):
        config.split_settings(words)


# --------------------------------------------------------------------------------------------------------- function


def experiment(size: Literal["S", "B"] = "S", steps: int = 5, rate=1e-3, dims=(8, 8)) -> Whole:
    net = Net(width={"S": 8, "B": 16}[size])
    return Whole(net, rules=(Rule("a", Rate(rate), shape=dims),), steps=steps)


def test_arguments_come_first_then_leaves():
    value = config.call(
        experiment, {"size": "B", "rate": "2", "dims": "1,2,3", "net.inner": "none", "rules.0.name": "z"}
    )
    assert value.net.width == 16 and value.rules[0] == Rule("z", Rate(2.0), shape=(1, 2, 3))


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        ({"sise": "B"}, ["did you mean size"]),
        ({"size": "XL"}, ["size=XL: expected one of S, B"]),
        ({"size": "XL", "nett.width": "3", "layout.fdsp": "2"}, ["one of S, B", "net.width", "layout.fsdp"]),
        ({"layout": "fsdp"}, ["layout is a Layout, which has no text form", "layout.data"]),
    ],
)
def test_call_tells_every_fault(settings, messages):
    with pytest.raises(UserError) as caught:
        config.call(experiment, settings)
    assert [text for text in messages if text not in str(caught.value)] == []


def test_an_argument_without_a_default_is_asked_for():
    def needs(data: str, steps: int = 1) -> Whole:
        return whole(note=data, steps=steps)

    assert config.call(needs, {"data": "here"}).note == "here"
    with pytest.raises(UserError, match=r"data=\.\.\. must be given"):
        config.call(needs, {"steps": "x"})


NAMES = [
    "steps", "seed", "log_every", "accumulate", "model.scale.initial", "optimizer.lr.peak", "optimizer.lr.warmup",
    "optimizer.decay", "optimizer.clip", "optimizer.b1", "optimizer.b2", "layout.data", "layout.fsdp",
    "layout.tensor", "layout.fsdp_floor", "data.batch", "data.shuffle", "data.workers", "average.decay",
    "checkpoints.every", "checkpoints.keep", "guard.window", "evals.retrieval.steps", "resolution", "augment.crop",
    "model.encoders.image.depth", "model.encoders.text.depth", "model.encoders.image.heads", "model.head.dim",
    "objectives.contrastive.weight",
]  # fmt: skip
"""What a user of a real experiment mistypes."""


def mistype(name: str, edits: int, rng: random.Random) -> str:
    """`edits` random edits: a letter lost, doubled, replaced, or swapped with the next."""
    for _ in range(edits):
        at = rng.randrange(len(name))
        name = rng.choice(
            [
                name[:at] + name[at + 1 :],
                name[:at] + name[at] + name[at:],
                name[:at] + rng.choice(string.ascii_lowercase) + name[at + 1 :],
                name[:at] + name[at + 1 : at + 2] + name[at] + name[at + 2 :],
            ]
        )
    return name


@pytest.mark.parametrize("edits", [1, 2])
def test_the_right_name_is_suggested_for_thirty_typos(edits):
    rng = random.Random(edits)
    found = [name in nearest(mistype(name, edits, rng), NAMES) for name in NAMES * 10]
    assert len(found) == 300 and np.mean(found) >= 0.95


def test_the_last_part_alone_is_enough():
    for name in ("peak", "fsdp", "workers", "keep", "warmup"):
        assert nearest(name, NAMES)[0].rsplit(".", 1)[-1] == name
