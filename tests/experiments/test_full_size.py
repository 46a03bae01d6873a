"""The published models: as large as published by their shapes, and each learns from a user's data when made small."""

from __future__ import annotations

import dataclasses
import importlib
import re

import numpy as np
import pytest

from mmjax.core import config
from mmjax.core.errors import UserError
from mmjax.core.parameters import is_declared
from mmjax.core.pytrees import element_count, flatten_names, matches
from mmjax.training.state import build_update
from tests.experiments.toys import FEW, TOY, first_step


@dataclasses.dataclass(frozen=True)
class Published:
    """A published number of parameters, how near ours must be, where it is from, and what it counts of ours."""

    count: float
    near: float
    source: str
    counts: str = ".*"


PUBLISHED = {
    "llava_7b": Published(7_063_427_072, 0.002, "safetensors of llava-hf/llava-1.5-7b-hf; ours lacks an unused block"),
    "paligemma_3b": Published(2_923_466_480, 1e-9, "safetensors of google/paligemma-3b-pt-224"),
    "flamingo_3b": Published(3.2e9, 0.07, "arXiv 2204.14198, table of sizes; encoder and positions differ"),
    "blip2": Published(3_744_679_936, 0.003, "safetensors of Salesforce/blip2-opt-2.7b"),
    "coca": Published(2.1e9, 0.08, "arXiv 2205.01917, table 1"),
    "vilt": Published(
        87.4e6, 0.001, "arXiv 2102.03334, table of parameters, words left out", "(image/encoder/stem|stack|norm)/.*"
    ),
    "uniter": Published(86e6, 0.01, "arXiv 1909.11740, section 4, words left out", "(image/connector|stack|norm)/.*"),
}

PARTS = {
    "flamingo_3b": {
        r"media_image/connector/.*": (194e6, 0.02),
        r"stack/block/blocks_0/.*": (1.2e9, 0.05),
        r"media_image/encoder/.*": (435e6, 0.06),
    },
    "blip2": {r"media_image/connector/.*": (107e6, 0.06), r"media_image/encoder/.*": (985_952_256, 0.001)},
}
"""Numbers of parts that the same sources tell."""

OBJECTIVES = {
    "coca": {"contrastive", "captions"},
    "vilt": {"words", "belonging"},
    "uniter": {"words", "belonging", "regions"},
}

MOVES = {
    "llava_7b": ("media_image/connector/.*", "stack/.*", "embedding/.*"),
    "paligemma_3b": ("media_image/encoder/.*", "media_image/connector/.*", "stack/.*", "embedding/.*"),
    "flamingo_3b": ("stack/block/blocks_0/attention_gate", "stack/block/blocks_0/feedforward_gate", "fusion/empty/.*"),
    "blip2": ("media_image/connector/parts_0/queries", "media_image/connector/parts_1/.*"),
    "coca": ("image/.*", "decoder/.*", "contrastive/.*", "generative/.*", "head/.*"),
    "vilt": ("image/.*", "stack/.*", "tasks_0/.*", "tasks_1/.*", "embedding/.*"),
    "uniter": ("image/connector/.*", "stack/.*", "tasks_0/.*", "tasks_1/.*", "tasks_2/.*"),
}
"""Paths of which something must move in the first step."""

pytestmark = pytest.mark.usefixtures("at_home")


def made(name, **settings):
    return config.call(importlib.import_module(f"experiments.{name}").experiment, settings)


def counted(declared, pattern):
    named = flatten_names(declared, is_leaf=is_declared)
    return sum(element_count(leaf.value) for name, leaf in named.items() if matches(pattern, name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_size_is_the_published_size(name):
    known, declared = PUBLISHED[name], made(name, **FEW).declared
    assert counted(declared, known.counts) == pytest.approx(known.count, rel=known.near), known.source
    for pattern, (count, near) in PARTS.get(name, {}).items():
        assert counted(declared, pattern) == pytest.approx(count, rel=near), pattern


def test_what_the_docstrings_say_of_sizes():
    """Exact numbers that stand there."""
    module = importlib.import_module("experiments.llava_7b")
    told = int(re.search(r"here ([\d,]+)\.", module.__doc__)[1].replace(",", ""))
    assert counted(made("llava_7b", **FEW).declared, ".*") == told
    assert "here as many" in importlib.import_module("experiments.paligemma_3b").__doc__


@pytest.mark.parametrize("name", TOY)
def test_a_small_one_learns_from_real_batches(name):
    """A batch of the user's records goes through the real step: finite losses of all objectives, what is frozen stays,
    and something of each part that trains moves."""
    experiment = made(name, **TOY[name])
    batch = next(iter(experiment.data.batches()))
    assert (batch.fault == 0).all() and batch.image.valid.all()
    before, after, metrics = first_step(experiment, batch)
    assert set(experiment.objectives) == OBJECTIVES.get(name, {"language"})
    losses = {part: metrics[f"{part}/loss"] for part in experiment.objectives}
    assert all(loss > 0 for loss in losses.values()) and all(map(np.isfinite, metrics.values())), metrics
    trains = flatten_names(build_update(experiment).trains)
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert [path for path in moved if not trains[path]] == []
    assert [pattern for pattern in MOVES[name] if not any(matches(pattern, path) for path in moved)] == []


def test_only_what_the_papers_train_is_trained():
    """Shares of the published tables, at full size."""
    for name, count, near in (("blip2", 107e6, 0.06), ("flamingo_3b", 1.4e9, 0.05)):
        experiment = made(name, **FEW)
        sizes = flatten_names(experiment.declared, is_leaf=is_declared)
        trains = flatten_names(build_update(experiment).trains)
        assert sum(element_count(sizes[path].value) for path in sizes if trains[path]) == pytest.approx(count, rel=near)


def test_the_first_stage_of_llava_trains_its_connector_alone():
    still = "(embedding|stack|norm|head|media_image/encoder)/.*"
    trains = flatten_names(build_update(made("llava_7b", still=still, **TOY["llava_7b"])).trains)
    assert {"/".join(path.split("/")[:2]) for path, moves in trains.items() if moves} == {"media_image/connector"}


def test_looks_that_do_not_come_out_even_are_refused():
    with pytest.raises(UserError, match="every=5 does not divide the 24 blocks"):
        made("flamingo_3b", every="5", **FEW)
