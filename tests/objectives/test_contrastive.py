"""Contrastive objectives: published formulas, labels that make positives, absent modalities, null samples."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.layout import Layout
from mmjax.objectives.contrastive import EveryNegative, Hardest, InfoNCE, Sigmoid, Triplet
from mmjax.ops.pairwise import Chunked, Ring

ROWS, WIDTH = 16, 8
MODALITIES = ("image", "text", "audio")


def outputs(seed=0, present=None):
    rng = np.random.default_rng(seed)
    embeddings = {}
    for name in MODALITIES:
        x = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
        embeddings[name] = jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))
    here = {name: np.ones(ROWS, bool) for name in MODALITIES} | (present or {})
    return {"embeddings": embeddings, "present": here, "scale": jnp.float32(5.0), "bias": jnp.float32(-1.0)}


def batch(null=(), **labels):
    made = Batch.fake(Batch.spec(ROWS, text=4))
    fault = np.zeros((ROWS, 1), np.uint8)
    fault[list(null)] = 1
    return made.replace(fault=fault, labels={name: np.asarray(x)[:, None] for name, x in labels.items()})


def cosines(out, left="image", right="text"):
    return np.asarray(out["embeddings"][left], np.float64) @ np.asarray(out["embeddings"][right], np.float64).T


def infonce(logit, positive, counted):
    """Mean over rows and columns with a positive of -mean_p log softmax(p)."""
    losses = []
    for z, yes, real in ((logit, positive, counted), (logit.T, positive.T, counted.T)):
        for i in range(len(z)):
            if yes[i].any():
                losses.append(-np.mean(z[i][yes[i]] - np.log(np.exp(z[i][real[i]]).sum())))
    return np.mean(losses)


def test_infonce_is_the_formula_of_clip():
    out = outputs()
    everyone = np.ones((ROWS, ROWS), bool)
    expected = infonce(5.0 * cosines(out), np.eye(ROWS, dtype=bool), everyone)
    found = InfoNCE()(out, batch())
    np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-5)
    assert float(found["loss"].count) == 2 * ROWS
    np.testing.assert_allclose(found["cosine"].value, np.diag(cosines(out)).mean(), rtol=1e-5)
    best = cosines(out).argmax(1) == np.arange(ROWS), cosines(out).argmax(0) == np.arange(ROWS)
    np.testing.assert_allclose(found["image_to_text"].value, best[0].mean(), rtol=1e-6)
    np.testing.assert_allclose(found["text_to_image"].value, best[1].mean(), rtol=1e-6)


def test_the_same_picture_or_caption_in_another_row_is_not_a_negative():
    out, picture, caption = outputs(), np.arange(ROWS) // 2, np.arange(ROWS) % 11
    own = np.eye(ROWS, dtype=bool)
    shared = (picture[:, None] == picture) | (caption[:, None] == caption)
    expected = infonce(5.0 * cosines(out), own, own | ~shared)
    found = InfoNCE(alike=("picture", "caption"))(out, batch(picture=picture, caption=caption))
    np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-5)


def test_all_captions_of_a_concept_are_positives():
    out, concept = outputs(), np.arange(ROWS) % 5
    positive = concept[:, None] == concept
    expected = infonce(5.0 * cosines(out), positive, np.ones_like(positive))
    found = InfoNCE(same="concept")(out, batch(concept=concept))
    np.testing.assert_allclose(found["loss"].value, expected, rtol=1e-5)


def test_sigmoid_is_the_formula_of_siglip():
    out, sign = outputs(), 2 * np.eye(ROWS) - 1
    expected = np.log1p(np.exp(-sign * (5.0 * cosines(out) - 1.0))).sum() / ROWS
    np.testing.assert_allclose(Sigmoid()(out, batch())["loss"].value, expected, rtol=1e-5)


@pytest.mark.parametrize(("mining", "fold"), [(Hardest(), np.max), (EveryNegative(), np.sum)])
def test_triplet_is_the_formula_of_vse(mining, fold):
    out = outputs()
    losses = []
    for cosine in (cosines(out), cosines(out).T):
        for i in range(ROWS):
            losses.append(fold([max(0.0, 0.2 + cosine[i, j] - cosine[i, i]) for j in range(ROWS) if j != i]))
    np.testing.assert_allclose(Triplet(mining=mining)(out, batch())["loss"].value, np.mean(losses), rtol=1e-5)


@pytest.mark.parametrize("objective", [InfoNCE(), Sigmoid(), Triplet(), Triplet(mining=EveryNegative())])
def test_null_samples_change_nothing(objective):
    """The loss over 16 rows of which 4 are null is that of the 12 real ones."""
    out, null = outputs(), (0, 3, 7, 15)
    real = np.setdiff1d(np.arange(ROWS), null)
    less = jax.tree.map(lambda x: x[real] if x.ndim else x, out)
    small = jax.tree.map(lambda x: x[real], batch())
    for got, expected in zip(objective(out, batch(null)).values(), objective(less, small).values(), strict=True):
        np.testing.assert_allclose(got.value, expected.value, rtol=1e-5)
        assert float(got.count) == float(expected.count)


def total(objectives, out, data):
    return sum(objective(out, data)["loss"].value for objective in objectives)


@pytest.mark.parametrize("kind", [InfoNCE, Sigmoid, Triplet])
def test_every_mix_of_three_modalities_is_finite_and_leaves_the_absent_alone(kind):
    """The batch holds all eight subsets of {image, text, audio}, twice each."""
    subsets = np.array(list(itertools.product([False, True], repeat=3)) * 2)
    present = dict(zip(MODALITIES, subsets.T, strict=True))
    out = outputs(present=present)
    for name in MODALITIES:  # what an absent slot holds must not matter
        out["embeddings"][name] = jnp.where(present[name][:, None], out["embeddings"][name], jnp.nan)
    objectives = [kind(left, right) for left, right in itertools.combinations(MODALITIES, 2)]
    value, slopes = jax.value_and_grad(lambda x: total(objectives, out | {"embeddings": x}, batch()))(out["embeddings"])
    assert np.isfinite(value) and value > 0
    for name in MODALITIES:
        slope = np.asarray(slopes[name])
        assert np.all(np.isfinite(slope))
        assert not np.any(slope[~present[name]])
        assert np.any(slope[present[name]])
    alone = subsets.sum(1) <= 1
    counts = objectives[0](out, batch())["loss"].count
    assert float(counts) == 2 * np.sum(present["image"] & present["text"])
    assert not np.any(np.isin(np.flatnonzero(alone), np.flatnonzero(present["image"] & present["text"])))


@pytest.mark.parametrize("kind", [InfoNCE, Sigmoid, Triplet])
def test_a_modality_that_no_sample_has_counts_nothing(kind):
    out = outputs(present={"text": np.zeros(ROWS, bool)})
    value, slopes = jax.value_and_grad(lambda x: total([kind()], out | {"embeddings": x}, batch()))(out["embeddings"])
    assert float(value) == 0.0
    assert all(not np.any(np.asarray(slope)) for slope in slopes.values())


@pytest.mark.parametrize("kind", [InfoNCE, Sigmoid, Triplet])
def test_on_a_mesh_objectives_give_what_they_give_on_one_device(kind):
    out, data = outputs(), batch(null=(2,), concept=np.arange(ROWS) % 6, caption=np.arange(ROWS) % 7)
    objective = kind(same="concept", alike=("caption",))
    step = jax.jit(jax.value_and_grad(lambda x: objective(out | {"embeddings": x}, data)["loss"].value))
    expected = step(out["embeddings"])
    layout = Layout(data=2, fsdp=2, tensor=2)
    with layout.use(layout.mesh()):
        got = jax.jit(jax.value_and_grad(lambda x: objective(out | {"embeddings": x}, data)["loss"].value))(
            out["embeddings"]
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


def test_objectives_are_configuration():
    for objective in (
        InfoNCE(alike=("picture",), execution=Chunked(64)),
        Sigmoid("audio", "text", same="concept", execution=Ring()),
        Triplet(margin=0.5, mining=EveryNegative()),
    ):
        assert from_json(to_json(objective)) == objective


def test_wrong_names_are_answered_with_the_right_ones():
    with pytest.raises(UserError, match="InfoNCE: no embedding is called 'images'; did you mean image"):
        InfoNCE(left="images")(outputs(), batch())
    with pytest.raises(UserError, match="Sigmoid: no label is called 'concpt'; did you mean concept"):
        Sigmoid(same="concpt")(outputs(), batch(concept=np.arange(ROWS)))
    with pytest.raises(UserError, match=r"label box is \(16, 1, 4\); pairs need one number per sample"):
        InfoNCE(same="box")(outputs(), batch(box=np.zeros((ROWS, 4))))
