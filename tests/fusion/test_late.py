"""Late fusion and gates against their formulas; absent modalities are nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.tokens import Tokens
from mmjax.fusion.gating import Gate, GatedTokens
from mmjax.fusion.late import Attended, CompactBilinear, GatedSum, Joined, LowRankBilinear, Sum, count_sketch
from tests.fusion.fusion_toy import assert_same, items, parameters, real, run, spoiled, values_and_gradient

rng = np.random.default_rng(0)
VECTORS = {
    name: jnp.asarray(rng.normal(size=(3, 2, width)), jnp.float32) for name, width in (("text", 6), ("image", 8))
}
VECTORS["audio"] = jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32)
ALL = {name: jnp.ones((3, 2), bool) for name in VECTORS}
SOME = {name: jnp.asarray(rng.random((3, 2)) < 0.6) for name in VECTORS} | {"image": jnp.asarray([[1, 0]] * 3, bool)}
SOME = {name: there.at[2, 1].set(False) for name, there in SOME.items()}  # the last sample has nothing

FUSIONS = {
    "joined": Joined(5), "sum": Sum(5), "gated sum": GatedSum(5), "MLB": LowRankBilinear(5, 7),
    "MUTAN": LowRankBilinear(5, 7, rank=3), "MCB": CompactBilinear(5, 64), "attended": Attended(5, Gate(4)),
}  # fmt: skip


@pytest.fixture(scope="module", params=FUSIONS, ids=str)
def case(request):
    fusion = FUSIONS[request.param]
    return request.param, fusion, parameters(fusion, VECTORS, ALL)


def holed(vectors, present):
    return {name: jnp.where(present[name][..., None], x, jnp.nan) for name, x in vectors.items()}


def test_what_an_absent_modality_holds_never_matters(case):
    _, fusion, params = case
    plain = values_and_gradient(fusion, params, VECTORS, SOME)
    assert plain[0].shape == (3, 2, 5)
    assert_same(values_and_gradient(fusion, params, holed(VECTORS, SOME), SOME), plain)


def test_present_modalities_all_matter_and_samples_are_apart(case):
    _, fusion, params = case
    before = run(fusion, params, VECTORS, ALL)
    for name in VECTORS:
        after = run(fusion, params, VECTORS | {name: VECTORS[name].at[1, 0].add(1.0)}, ALL)
        moved = np.abs(after - before).max(-1) > 1e-6
        np.testing.assert_array_equal(moved, np.arange(6).reshape(3, 2) == 2)


def test_the_order_in_which_modalities_are_given_is_nothing(case):
    _, fusion, params = case
    backwards = {name: VECTORS[name] for name in reversed(VECTORS)}
    assert_same(fusion.apply(params, backwards, SOME), run(fusion, params, VECTORS, SOME))  # compiled, names are sorted


def linear(params, x):
    return np.tensordot(np.asarray(x), params["kernel"], 1) + params["bias"]


def formula(name, params, vectors):
    """All modalities are there, in the order of their names."""
    parts = {key: vectors[key] for key in sorted(vectors)}
    joined = np.concatenate(list(parts.values()), axis=-1)
    if name == "joined":
        return linear(params["out"], joined)
    if name == "sum":
        return sum(linear(params[key], x) for key, x in parts.items())
    if name == "gated sum":
        gate = 1 / (1 + np.exp(-linear(params["gate"], joined)))
        return sum(gate[..., i, :] * np.tanh(linear(params[key], x)) for i, (key, x) in enumerate(parts.items()))
    if name in ("MLB", "MUTAN"):
        factors = [np.tanh(linear(params[key], x)) for key, x in parts.items()]
        return linear(params["out"], np.prod(factors, axis=0).sum(axis=-2))
    score = [np.tanh(linear(params["gate"][key], x)) @ params["gate"]["score"]["kernel"] for key, x in parts.items()]
    weight = np.exp(score) / np.exp(score).sum(axis=0)
    return sum(w * linear(params[key], x) for w, (key, x) in zip(weight, parts.items(), strict=True))


def test_each_is_its_formula(case):
    name, fusion, params = case
    if name == "MCB":
        pytest.skip("the sketch has a test of its own")
    expected = formula(name, params["params"], VECTORS)
    np.testing.assert_allclose(run(fusion, params, VECTORS, ALL), expected, atol=2e-5)


def test_a_sum_without_a_modality_is_that_of_the_others():
    params = parameters(FUSIONS["sum"], VECTORS, ALL)
    without = ALL | {"audio": jnp.zeros((3, 2), bool)}
    two = {name: VECTORS[name] for name in ("image", "text")}
    found = run(FUSIONS["sum"], params, VECTORS, without)
    np.testing.assert_allclose(found, formula("sum", params["params"], two), atol=2e-5)


def test_compact_bilinear_keeps_products_of_inner_products():
    """<MCB(x, y), MCB(x', y')> is <x, x'> <y, y'> up to the sketch's noise: before roots and the last map."""
    x, y, x2, y2 = (jnp.asarray(rng.normal(size=(1, 1, 8)) + 0.5, jnp.float32) for _ in range(4))
    found, exact = 0.0, float(jnp.sum(x * x2) * jnp.sum(y * y2))

    def pooled(seed, x, y):
        spectra = [jnp.fft.rfft(count_sketch(v, 4096, (seed, i))) for i, v in enumerate((x, y))]
        return jnp.fft.irfft(spectra[0] * spectra[1], 4096)

    for seed in range(20):
        found += float(jnp.sum(pooled(seed, x, y) * pooled(seed, x2, y2))) / 20
    assert found == pytest.approx(exact, abs=0.05 * float(jnp.linalg.norm(x) * jnp.linalg.norm(y)) ** 2)


def test_gates_add_up_to_one_over_what_is_there_and_tell_their_statistics():
    gate = Gate(4)
    params = parameters(gate, VECTORS, ALL)
    weights, told = gate.apply(params, holed(VECTORS, SOME), SOME, mutable=["intermediates"])
    names, some = sorted(VECTORS), np.any(list(SOME.values()), axis=0)
    table = np.stack([weights[name] for name in names])
    np.testing.assert_allclose(table.sum(0), some, atol=1e-6)
    assert (table[~np.stack([SOME[name] for name in names])] == 0).all()
    told = {name: float(mean.value) for name, (mean,) in told["intermediates"].items()}
    expected = {f"weight_{name}": row[some].mean() for name, row in zip(names, table, strict=True)}
    logs = np.where(table > 0, np.log(np.where(table > 0, table, 1)), 0)
    assert told == pytest.approx(expected | {"entropy": -(table * logs).sum(0)[some].mean()}, abs=1e-6)


STREAMS = {"image": items("image", [[1, 2, 0]], 2), "text": items("text", [[1, 1, 2, 2, 0]], 1, width=6)}


def test_gated_tokens_are_scaled_by_their_sample_and_an_even_gate_changes_nothing():
    fusion = GatedTokens(Gate(4))
    params = parameters(fusion, STREAMS, 2)
    even = jax.tree.map(jnp.zeros_like, params)
    assert_same(real(run(fusion, even, STREAMS, 2)), real(STREAMS))
    out = run(fusion, params, STREAMS, 2)
    scale = {name: np.asarray(out[name].x / STREAMS[name].x)[0] for name in STREAMS}
    for table in scale.values():
        np.testing.assert_allclose(table, np.broadcast_to(table[:, :1], table.shape), atol=1e-4)
    for sample in (1, 2):
        each = [scale[name][np.asarray(STREAMS[name].places.segment[0]) == sample, 0] for name in STREAMS]
        assert all(np.ptp(values) < 1e-4 for values in each)
        assert each[0][0] + each[1][0] == pytest.approx(2, abs=1e-4) and each[0][0] != pytest.approx(1, abs=1e-3)


def test_gated_tokens_are_blind_to_absent_items():
    fusion = GatedTokens(Gate(4))
    params = parameters(fusion, STREAMS, 2)
    bad = {name: spoiled(tokens) for name, tokens in STREAMS.items()}
    assert_same(
        real(values_and_gradient(fusion, params, bad, 2)), real(values_and_gradient(fusion, params, STREAMS, 2))
    )
    silent = STREAMS["image"].places.replace(valid=jnp.zeros((1, 6), bool))
    alone = run(fusion, params, STREAMS | {"image": Tokens(STREAMS["image"].x, silent)}, 2)
    np.testing.assert_allclose(alone["text"].x, STREAMS["text"].clean().x, atol=1e-6)


@pytest.mark.parametrize(
    ("vectors", "present", "message"),
    [({}, {}, "there is no modality to fuse"), (VECTORS, {"text": ALL["text"]}, "which samples have audio, image")],
)
def test_modalities_of_unknown_presence_are_refused(vectors, present, message):
    with pytest.raises(UserError, match=message):
        Sum(4).apply({}, vectors, present)
