"""Runs that start from other runs: what is loaded, what is initialised, what is frozen, and what is refused."""

from __future__ import annotations

import json
import pathlib
import re
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
from checkpoint_toy import flip
from hypothesis import given, settings
from hypothesis import strategies as st
from training_toy import Net, experiment

from mmjax.cli.describe import facts, show
from mmjax.cli.loading import Loaded
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import CheckpointError, UserError
from mmjax.core.layout import Layout
from mmjax.core.parameters import declare
from mmjax.core.pytrees import flatten_names
from mmjax.ops.patches import resample_table
from mmjax.report.page import write_report
from mmjax.training import recovery
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints, CheckpointStore
from mmjax.training.loop import train
from mmjax.training.manifest import Manifest
from mmjax.training.optim import adamw, frozen
from mmjax.training.origin import Source
from mmjax.training.stages import Averaged, From, FromRuns, Resampled, Scratch, Trained
from mmjax.training.state import abstract_state, build_update, inference_params, new_state
from mmjax.training.writers import Jsonl, Writers, read_metrics


class Placed(nn.Module):
    """The toy with a table of positions."""

    cells: int = 4
    net: nn.Module = Net()

    @nn.compact
    def __call__(self, batch, *, train=False):
        table = declare(self, "positions", nn.initializers.normal(1.0), position=self.cells, width=4)
        outputs = self.net(batch, train=train)
        return outputs | {"value": outputs["value"] + table.mean(0)}


class Adapted(nn.Module):
    """The same behind an adapter, at other paths."""

    inner: nn.Module = Placed()

    @nn.compact
    def __call__(self, batch, *, train=False):
        outputs = self.inner(batch, train=train)
        kernel = declare(self, "adapter", nn.initializers.lecun_normal(), width=4, embed=4)
        return outputs | {"value": outputs["value"] @ kernel}


def fit(trained, folder, devices=1, **options):
    """The last state, on the host."""
    writers = Writers((Jsonl(folder / "metrics.jsonl"),))
    return jax.device_get(train(trained, folder, writers=writers, devices=jax.devices()[:devices], **options))


def begin(trained, folder, devices=1):
    """Where a run of it in `folder` begins."""
    mesh, update = trained.layout.mesh(jax.devices()[:devices]), build_update(trained)
    with trained.layout.use(mesh):
        abstract = abstract_state(trained, update, mesh)
        store = CheckpointStore(folder / "checkpoints")
        return recovery.begin(trained, update, abstract, store), abstract


def fresh(trained):
    """The parameters that its seed gives, by path."""
    mesh, update = trained.layout.mesh(jax.devices()[:1]), build_update(trained)
    return flatten_names(new_state(trained, update, abstract_state(trained, update, mesh)).params)


def same(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """(folder, last state, experiment) of a finished run with an average and checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("runs") / "source"
    trained = experiment(model=Placed(), average=Ema(0.9), steps=3, checkpoints=Checkpoints(every=1))
    return folder, fit(trained, folder), trained


def adapted(source, paths=None, **changes):
    """An experiment of another seed that starts from the source; by default all but the adapter does."""
    init = FromRuns((From(str(source[0]), paths or {"(.*)": r"inner/\1"}),))
    return experiment(**{"model": Adapted(), "seed": 5, "init": init, "steps": 2, **changes})


# ------------------------------------------------------------------------------------------------------ what is loaded


NET = {"net/head", "net/scale", "net/stack/bias", "net/stack/down", "net/stack/up", "net/table"}


@pytest.mark.parametrize(
    ("paths", "taken", "weights"),
    [
        ({"net/(.*)": r"inner/net/\1"}, NET, Trained()),
        ({"net/stack/(up|down)": r"inner/net/stack/\1"}, {"net/stack/up", "net/stack/down"}, Averaged()),
    ],
    ids=["a module", "averages of single parameters"],
)
def test_what_is_lent_is_the_source_to_the_bit_and_the_rest_is_the_seeds_own(source, tmp_path, paths, taken, weights):
    folder, state, was = source
    trained = adapted(source, average=Ema(0.5), init=FromRuns((From(str(folder), paths, weights),)))
    start, _ = begin(trained, tmp_path)
    averaged, last = flatten_names(inference_params(was, state)), flatten_names(state.params)
    there = last if weights == Trained() else averaged
    own, found = fresh(trained.replace(init=Scratch())), flatten_names(start.state.params)
    for name, value in found.items():
        inner = name.removeprefix("inner/")
        assert same(value, there[inner] if inner in taken else own[name]), name
        if inner in taken and inner != "net/stack/bias":  # which starts as 0 under every seed
            assert not same(value, own[name]) and not same(last[inner], averaged[inner]), name
    for name, value in flatten_names(start.state.average).items():  # it begins where the parameters do
        assert same(value, found[name]), name
    assert (int(start.state.step), start.step, start.examples) == (0, 0, 0)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(start.state.opt_state))


NAMES = ["a/x", "a/y", "a/b/x", "b/x", "b/y/z", "c"]
RULES = st.dictionaries(
    st.sampled_from(["a/.*", "(.)/x", "b/(.*)", ".*y.*", "c", "(.*)", "a/b/x"]), st.just(""), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(RULES, st.randoms())
def test_the_first_rule_that_matches_says_where_a_parameter_goes(rules, random):
    patterns = random.sample(list(rules), len(rules))
    table = {pattern: f"rule{i}/" + r"\g<0>" for i, pattern in enumerate(patterns)}
    shapes = {name: ((i + 1, 2), "float32") for i, name in enumerate(NAMES)}
    held = Source(
        "run", Manifest(3, {}, {"state": {f"params/{n}": leaf for n, leaf in shapes.items()}}, {}, ""), Trained()
    )
    first = {n: next((i for i, p in enumerate(patterns) if re.fullmatch(p, n)), None) for n in NAMES}
    wanted = {f"rule{i}/{n}": (shapes[n][0], (None, None)) for n, i in first.items() if i is not None}
    faults = []
    loans = list(From("run", table).loans(held, wanted, faults))
    assert {loan.path: loan.here for loan in loans} == {n: f"rule{i}/{n}" for n, i in first.items() if i is not None}
    idle = [p for i, p in enumerate(patterns) if i not in first.values()]
    assert len(faults) == len(idle) and all(any(repr(p) in fault for fault in faults) for p in idle)


def test_two_runs_lend_parts_of_one_model_and_a_step_may_be_asked_for(source, tmp_path):
    folder, state, _ = source
    two = (
        From(str(folder), {"net/(.*)": r"inner/net/\1"}),
        From(str(folder), {"positions": "inner/positions"}, step=1),
    )
    start, _ = begin(adapted(source, init=FromRuns(two, fresh=("adapter",))), tmp_path)
    found, last = flatten_names(start.state.params), flatten_names(state.params)
    assert same(found["inner/net/head"], last["net/head"]) and not same(found["inner/positions"], last["positions"])
    assert [part.source.contents.step for part in start.origin.lent] == [3, 1]


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(source, tmp_path):
    run = shutil.copytree(source[0], tmp_path / "copy")
    flip(run / "checkpoints" / "3")
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    start, _ = begin(adapted((run, *source[1:])), tmp_path / "new")
    assert start.origin.lent[0].source.contents.step == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before


# ---------------------------------------------------------------------------------------------------------- positions


def test_positions_of_another_grid_are_resampled_where_the_rule_says_so(source, tmp_path):
    paths = {"positions": Resampled("inner/positions"), "(.*)": r"inner/\1"}
    start, _ = begin(adapted(source, paths, model=Adapted(Placed(9))), tmp_path)
    table = source[1].params["positions"]
    expected = resample_table(table.reshape(2, 2, 4), (3, 3)).reshape(9, 4)
    np.testing.assert_allclose(start.state.params["inner"]["positions"], expected, rtol=1e-6)
    np.testing.assert_allclose(expected.mean(0), table.mean(0), atol=0.2)  # a grid of the same thing
    flat = {"positions": Resampled("inner/positions", was=(1, 4), becomes=(1, 8)), "(.*)": r"inner/\1"}
    start, _ = begin(adapted(source, flat, model=Adapted(Placed(8))), tmp_path)
    assert start.state.params["inner"]["positions"].shape == (8, 4)
    as_it_was, _ = begin(adapted(source, paths), tmp_path)
    assert same(as_it_was.state.params["inner"]["positions"], table)


@pytest.mark.parametrize(
    ("rule", "cells", "told"),
    [
        (
            "inner/positions",
            9,
            r"positions [4 4] does not fit inner/positions [9 4]: these are positions: `Resampled(path)`",
        ),
        (Resampled("inner/positions"), 8, "becomes=None (a square) has not 8 cells; say its rows and columns"),
        (Resampled("inner/positions", was=(2, 3)), 9, "was=(2, 3) has not 4 cells"),
        (Resampled("adapter"), 4, "only tables of positions, of the same width, can be resampled"),
    ],
    ids=["not asked for", "no square", "wrong grid", "no positions"],
)
def test_positions_that_cannot_be_resampled_are_refused(source, tmp_path, rule, cells, told):
    with pytest.raises(CheckpointError, match=re.escape(told)):
        begin(adapted(source, {"positions": rule}, model=Adapted(Placed(cells))), tmp_path)


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(init, tmp_path, model=Adapted()):
    with pytest.raises(CheckpointError) as error:
        begin(experiment(model=model, init=init), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    return str(error.value)


def test_all_faults_are_told_at_once(source, tmp_path):
    run, beside = str(source[0]), str(source[0].parent / "sorce")
    wrong = {
        "nett/(.*)": r"inner/net/\1",
        "net/(head|scale)": r"inner/net/\1",
        "net/head": "adapter",
        "net/table": "adapter",
        "net/stack/up": "inner/stack/up",
        "positions": "inner/net/head",
        "net/(stack": "x",
    }
    told = refusal(
        FromRuns((From(run, wrong), From(run, {"net/scale": "inner/net/scale"}), From(beside, {}))), tmp_path
    )
    for part in (
        "'nett/(.*)' matches no parameter of step 3 (it must match the whole path)",
        "'net/head' matches nothing that the rules before it have left; put it before them",
        "net/table [32 8] does not fit adapter [4 4]: build the two models alike there, or leave it out of the table",
        "(of its shape: inner/net/table)",
        "net/stack/up goes to inner/stack/up: no parameter of this model is called 'inner/stack/up'; did you mean",
        "positions [4 4] does not fit inner/net/head [8 4]",
        "inner/net/scale is filled by net/scale ('net/(head|scale)' of " + run,
        "and by net/scale ('net/scale' of " + run,
        "'net/(stack' -> 'x' is not a regular expression and what replaces it",
        f"{beside}: there is no checkpoint in it; did you mean {run}?",
    ):
        assert part in told, (part, told)


def test_a_parameter_that_nobody_fills_is_told_unless_it_may_start_fresh(source, tmp_path):
    rules = (From(str(source[0]), {"net/(.*)": r"inner/net/\1"}),)
    told = refusal(FromRuns(rules, fresh=("adapter", "adaptor")), tmp_path)
    assert "nobody fills inner/positions; add a rule, or let them start anew by `fresh`" in told
    assert "fresh: 'adaptor' matches no parameter; " in told and "did you mean adapter" in told
    assert begin(adapted(source, init=FromRuns(rules, fresh=("adapter", "inner/positions"))), tmp_path)


def test_runs_without_a_checkpoint_an_average_or_that_step_are_refused(source, tmp_path):
    plain = tmp_path / "plain"
    CheckpointStore(plain / "checkpoints").save_now(1, {"state": {"params": {"adapter": np.zeros((4, 4))}}}, {})
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    every = {"(.*)": r"\1"}
    runs = (From(str(plain), every, Averaged()), From(str(tmp_path / "empty"), every), From(str(plain), every, step=7))
    told = refusal(FromRuns((*runs, From(str(tmp_path / "x" / "y"), every))), tmp_path / "new")
    assert f"{plain}: this run keeps no average of its weights; take weights=Trained()" in told
    assert f"there is no intact checkpoint in {tmp_path / 'empty' / 'checkpoints'}; there are: none" in told
    assert f"there is no intact checkpoint 7 in {plain / 'checkpoints'}; there are: 1" in told
    assert "y: there is no checkpoint in it; train it first: `mmjax train ... --run" in told


# --------------------------------------------------------------------------------------------- frozen, resumed, spread


def test_frozen_parameters_stay_to_the_bit_and_have_no_optimizer_state(source, tmp_path):
    groups = (frozen("inner/.*"),)
    after = fit(adapted(source, optimizer=adamw(1e-2, decay=0.1, groups=groups), steps=3), tmp_path)
    there, found = flatten_names(source[1].params), flatten_names(after.params)
    assert all(same(found[f"inner/{name}"], value) for name, value in there.items())
    assert not same(found["adapter"], fresh(adapted(source, init=Scratch()))["adapter"])
    statistics = [name.rpartition("/")[2] for name in flatten_names(after.opt_state) if "/mu/" in name]
    assert statistics == ["adapter"]


def test_a_run_that_goes_on_never_reads_its_start_again(source, tmp_path):
    trained = adapted(source, steps=4)
    whole = fit(trained, tmp_path / "whole")
    lender = shutil.copytree(source[0], tmp_path / "lender")
    parted = adapted((lender, *source[1:]), steps=4)
    fit(parted.replace(steps=2), tmp_path / "parts")
    shutil.rmtree(lender)
    recorded = (tmp_path / "parts" / "start.json").read_text()
    assert CheckpointStore(tmp_path / "parts" / "checkpoints").steps() == [0, 2]
    shutil.copytree(tmp_path / "parts", tmp_path / "killed early")
    shutil.rmtree(tmp_path / "killed early" / "checkpoints" / "2")
    for folder in ("parts", "killed early"):
        again = fit(parted, tmp_path / folder)
        jax.tree.map(np.testing.assert_array_equal, whole, again)
        assert (tmp_path / folder / "start.json").read_text() == recorded


def test_a_run_that_goes_on_with_another_start_is_told_so(source, tmp_path):
    fit(adapted(source, steps=1), tmp_path)
    other = adapted(source, {"net/(.*)": r"inner/net/\1"})
    with pytest.raises(UserError, match="another init(.|\n)*--allow init"):
        fit(other, tmp_path)
    assert int(fit(other, tmp_path, allow=("init",)).step) == 2


def test_eight_devices_start_where_one_does(source, tmp_path):
    paths = {"positions": Resampled("inner/positions"), "(.*)": r"inner/\1"}
    trained = adapted(source, paths, model=Adapted(Placed(16)), average=Ema(0.5))
    alone, _ = begin(trained, tmp_path)
    start, abstract = begin(trained.replace(layout=Layout(data=1, fsdp=8, fsdp_floor=8)), tmp_path, devices=8)
    wanted, one = flatten_names(abstract), flatten_names(alone.state)
    for name, value in flatten_names(start.state).items():
        assert same(value, one[name]), name
        assert value.sharding.is_equivalent_to(wanted[name].sharding, value.ndim), name
    split = [name for name, value in flatten_names(start.state.params).items() if not value.is_fully_replicated]
    assert {"inner/net/stack/up", "inner/net/table", "inner/positions"} <= set(split)


# ---------------------------------------------------------------------------------------------------------- the report


def test_the_report_says_what_was_loaded_initialised_and_frozen(source, tmp_path, capsys):
    run = str(source[0])
    paths = {"positions": Resampled("inner/positions"), "net/(stack/.*|scale)": r"inner/net/\1"}
    init = FromRuns((From(run, paths, Averaged()),))
    groups = (frozen("inner/net/stack/.*"),)
    trained = adapted(source, model=Adapted(Placed(9)), init=init, optimizer=adamw(1e-2, groups=groups))
    fit(trained, tmp_path)
    averaged = f"{run}, step 3, averaged"
    expected = [
        ("adapter", 16, "initialised", True),
        ("inner/net/head", 32, "initialised", True),
        ("inner/net/scale", 1, averaged, True),
        ("inner/net/stack", 544, averaged, False),
        ("inner/net/table", 256, "initialised", True),
        ("inner/positions", 36, f"{averaged}, resampled", True),
    ]
    record = json.loads((tmp_path / "start.json").read_text())
    assert [tuple(part.values()) for part in record["parts"]] == expected
    digest = json.loads((source[0] / "checkpoints" / "3" / "manifest.json").read_text())["xxh3_128"]
    assert record["sources"] == [{"run": run, "step": 3, "xxh3_128": digest}]
    (event,) = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "event"]
    (line,) = [line for line in event["text"].splitlines() if "inner/net/stack" in line]
    assert re.fullmatch(rf"  inner/net/stack +544  {re.escape(averaged)} +frozen", line)
    loaded = Loaded(trained, pathlib.Path("toy.py"), {})
    assert facts(loaded)["start"] == record == facts(Loaded(trained, loaded.file, {}, tmp_path))["start"]
    show(loaded)
    assert re.search(r"inner/net/stack +544 +.*step 3, averaged +frozen", capsys.readouterr().out)
    page = write_report(tmp_path, experiment=trained).read_text()
    assert "Where it began" in page and averaged in page and digest in page


def test_a_run_of_its_own_has_nothing_to_tell(tmp_path):
    fit(experiment(steps=1), tmp_path)
    assert not [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "event"]
    assert {part["start"] for part in json.loads((tmp_path / "start.json").read_text())["parts"]} == {"initialised"}
    assert CheckpointStore(tmp_path / "checkpoints").steps() == [1]
    assert "Where it began" not in write_report(tmp_path, experiment=experiment()).read_text()


def test_a_start_is_a_value():
    init = FromRuns((From("runs/a", {"(.*)": r"x/\1", "p": Resampled("q", was=(1, 2))}, Averaged(), 7),), fresh=("z",))
    assert from_json(json.loads(json.dumps(to_json(init)))) == init
