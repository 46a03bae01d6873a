"""The designs of the fusion study are equally large, all train, and the results say what was found."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import jax
import numpy as np
import pytest

from experiments.designs.fusion import DESIGNS, REFERENCE, fused_parameters, fused_part, hidden, model
from experiments.fusion_study import COLUMNS, Study, compared, experiment, main, publish
from mmjax.core.batch import Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.evals.absent import without
from mmjax.objectives.classification import Softmax
from tests.experiments.toys import first_step

ANSWERS = 3
QUICK = {"xla_backend_optimization_level": 0}
"""These programs run a few times: it is their compilation that takes long."""


def batch_for(design: str) -> Batch:
    """Eight questions of random words about random pictures, all of them there."""
    places = DESIGNS[design].places
    text = (places + 4, {"image": places} if places else {})
    spec = Batch.spec(8, text=text, image=(1, 16, 16), labels={"answer": ((), np.int32)})
    batch = Batch.fake(spec, seed=1, vocabulary=8)
    item = dataclasses.replace(batch.image, valid=np.ones((8, 1), bool), segment=np.ones((8, 1), np.int32))
    slot = np.broadcast_to(np.r_[np.arange(places), [-1] * 4], (8, places + 4)).astype(np.int32)
    zeros = np.zeros_like(slot)
    position = zeros + np.arange(places + 4, dtype=np.int32)
    text = dataclasses.replace(batch.text, slot=slot, segment=zeros + 1, block=zeros, position=position)
    labels = {"answer": np.arange(8, dtype=np.int32)[:, None] % ANSWERS}
    return batch.replace(image=item, text=text, labels=labels, fault=np.zeros((8, 1), np.uint8))


# --------------------------------------------------------------------------------------------------------- the designs


@pytest.mark.parametrize("design", DESIGNS)
def test_designs_are_as_large_as_the_reference(design):
    size = fused_parameters(design, hidden(design))
    assert abs(size / fused_parameters(*REFERENCE) - 1) < 0.05
    assert hidden(design) >= 32  # and none of them is starved for it


@pytest.mark.parametrize("design", DESIGNS)
def test_a_design_learns_from_the_picture(design):
    """Three steps of plain descent lower the loss and move the fused part; the picture is seen, and may be absent."""
    batch, its = batch_for(design), model(design, 16, 16, 12, ANSWERS)
    shapes = unbox(jax.eval_shape(its.init, jax.random.key(0), batch)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.0, 0.1, leaf.shape).astype(np.float32), shapes)

    def loss(params: Any, batch: Batch) -> jax.Array:
        outputs = its.apply({"params": params}, batch)
        parts = [Softmax("answer"), *(part.objective for part in DESIGNS[design].objectives.values())]
        return sum(part(outputs, batch)["loss"].value for part in parts)

    step = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)
    values, start = [], params
    for _ in range(4):
        value, slope = step(params, batch)
        values.append(float(value))
        params = jax.tree.map(lambda x, d: x - 0.02 * d, params, slope)
    assert np.isfinite(values).all() and values[-1] < values[0]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), fused_part(start), fused_part(params))
    assert any(jax.tree.leaves(moved))
    blind = float(step(params, without(batch, "image"))[0])
    assert np.isfinite(blind) and abs(blind - float(step(params, batch)[0])) > 1e-5


@pytest.mark.slow
def test_the_real_step_keeps_experts_busy():
    value = experiment("routed", resolution=16, batch=8, steps=4)
    batch = Batch.fake(value.data.spec(), vocabulary=8)
    batch = batch.replace(labels={name: np.zeros_like(label) for name, label in batch.labels.items()})
    before, now, metrics = first_step(value, batch)
    assert np.isfinite(list(metrics.values())).all() and metrics["experts/balance"] > 0.5
    assert any((before[name] != now[name]).any() for name in before if "router" in name)


def test_an_unknown_design_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean flamingo"):
        experiment("flamigno")
    with pytest.raises(UserError, match="did you mean flamingo"):
        Study(designs=("cross", "flamigno"))
    with pytest.raises(UserError, match="seeds=0: expected how many trainings"):
        Study(seeds=0)


# --------------------------------------------------------------------------------------------------------- its results


def found(score: float, absent: float) -> dict[str, Any]:
    """A training as `trained` tells it."""
    number = {"value": score, "low": score - 0.04, "high": score + 0.04, "image_absent": absent}
    sizes = {"fused": 221_184, "parameters": 300_000, "flops": 12.34e6, "temporary_bytes": 3 * 2**20}
    return sizes | {"score": number, "step_s": 0.125}


def test_a_row_is_of_one_seed_or_of_the_range_over_seeds():
    one = compared("cross", [found(0.7, 0.3)], chance=0.25)
    assert (one.score, one.low, one.high, one.absent) == pytest.approx((0.7, 0.66, 0.74, 0.3))
    assert one.cells[2:] == ("221,184", "300,000", "12.3", "3", "125", "0.700 [0.660, 0.740]", "0.300", "0.250")
    both = compared("cross", [found(0.7, 0.3), found(0.8, 0.2)], chance=0.25)
    assert (both.score, both.low, both.high, both.absent) == pytest.approx((0.75, 0.7, 0.8, 0.25))


def test_what_is_published_can_be_read(tmp_path):
    designs = ("cross", "late_sum")
    runs = {name: [found(0.7, 0.3)] for name in designs}
    publish(Study(designs, folder=str(tmp_path)), runs)
    lines = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert tuple(cells[0]) == COLUMNS and {len(row) for row in cells} == {len(COLUMNS)}
    assert [row[0] for row in cells[2:]] == list(designs)
    assert json.loads((tmp_path / "results.json").read_text())["designs"] == runs
    drawing = ElementTree.parse(tmp_path / "plot.svg").getroot()
    dots = [float(dot.get("cx")) for dot in drawing.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == 2 and dots[0] == dots[1]
    page = (tmp_path / "index.html").read_text()
    assert all(DESIGNS[name].paper in page for name in designs) and "http" not in page.replace("http-equiv", "")


@pytest.mark.slow
def test_a_study_that_is_done_trains_nothing_again(tmp_path, capsys):
    words = ["designs=late_sum", "steps=2", "batch=8", "resolution=16", f"folder={tmp_path}"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    record = json.loads((tmp_path / "results.json").read_text())
    (run,) = record["designs"]["late_sum"]
    assert told["late_sum"] == run["score"]["value"] and 0.3 < record["chance"] < 0.34
    metrics = tmp_path / "late_sum" / "seed0" / "metrics.jsonl"
    before = metrics.read_bytes()
    assert main(words) == 0 and metrics.read_bytes() == before
    assert main(["designs=late_smu"]) == 2 and "did you mean late_sum" in capsys.readouterr().err
