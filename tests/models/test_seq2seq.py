"""Encoder-decoder models: padding, packing, absence and decoding change nothing; only sources are seen whole."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.decoding.generate import generate
from mmjax.models.coca import CoCa
from mmjax.models.seq2seq import Seq2Seq, ShowAttendTell
from mmjax.objectives.attention import DoublyStochastic
from mmjax.objectives.language import Language
from tests.decoding.conftest import scores
from tests.models.seq2seq_toy import MODELS, VOCAB, alone, fake, first, followed, parameters

OUTPUTS = ("nll", "log_z", "attention")  # that stand at places


@pytest.fixture(scope="module", params=MODELS, ids=str)
def each(request):
    name = request.param
    return name, MODELS[name], parameters(name), jax.jit(lambda p, b: MODELS[name].apply({"params": p}, b))


def with_media(batch, **changes):
    """The batch with something changed in its media."""
    kinds = batch.modalities()[1:]
    parts = {kind: dataclasses.replace(getattr(batch, kind), **changes) for kind in kinds}
    return batch.replace(**parts)


def spoiled(batch):
    """Other content at items that are not there."""

    def noise(x, valid):
        gone = ~valid.reshape(*valid.shape, *[1] * (x.ndim - 2))
        return np.where(gone, np.nan if x.dtype == np.float32 else 77, x).astype(x.dtype)

    for kind, field in (("image", "pixels"), ("sensor", "values")):
        if (part := getattr(batch, kind)) is not None:
            changed = {field: noise(getattr(part, field), np.asarray(part.valid))}
            batch = batch.replace(**{kind: dataclasses.replace(part, **changed)})
    return batch


def test_packed_samples_are_samples_alone(each):
    name, _, params, run = each
    batch = fake(name, samples=2, seed=1)
    packed, samples = run(params, batch), ((0, 1), (0, 2), (1, 2))  # (row, number)
    ones, places = zip(*(alone(batch, *sample) for sample in samples), strict=True)
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *ones)
    out = run(params, whole)
    for i, ((row, number), mine) in enumerate(zip(samples, places, strict=True)):
        counts = whole.text.loss[i, : mine.size] > 0
        for key in set(OUTPUTS[:2]) & out.keys():
            np.testing.assert_allclose(packed[key][row, mine][counts], out[key][i, : mine.size][counts], atol=2e-5)
        for kind in out.get("embeddings", {}):
            if whole.present(kind)[i].all():
                got, expected = packed["embeddings"][kind][row, number - 1], out["embeddings"][kind][i]
                np.testing.assert_allclose(got, expected, atol=2e-5)


def test_absent_media_reach_neither_outputs_nor_gradients(each):
    name, model, params, run = each
    batch = fake(name, seed=2)
    none = {"valid": np.zeros((3, 1), bool), "segment": np.zeros((3, 1), np.int32)}
    for given in (batch, with_media(batch, **none)):
        out, other = run(params, given), run(params, spoiled(given))
        for key in ("nll", "log_z"):
            assert np.isfinite(out[key]).all()
            np.testing.assert_allclose(other[key], out[key], atol=1e-6)

    def loss(params, batch):
        return Language()(model.apply({"params": params}, batch), batch)["loss"].value

    gradient = jax.jit(jax.grad(loss))(params, spoiled(with_media(batch, **none)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_present_media_matter(each):
    name, _, params, run = each
    batch = fake(name, seed=2)
    kinds = batch.modalities()[1:]
    field = {"image": "pixels", "sensor": "values"}
    for kind in kinds:
        part = getattr(batch, kind)
        changed = dataclasses.replace(part, **{field[kind]: getattr(part, field[kind])[::-1]})
        assert not np.allclose(run(params, batch.replace(**{kind: changed}))["nll"], run(params, batch)["nll"])


def test_what_is_generated_is_the_best_of_one_pass_without_a_cache(each):
    name, model, params, _ = each
    batch = fake(name, seed=3)
    size = np.maximum((batch.text.segment > 0).sum(1) - 6, 1)
    prefix = (batch.text.block == 0) & (batch.text.segment > 0)
    size = np.maximum(np.minimum(size, 20 - 5), prefix.sum(1))
    prompts = first(batch, size)
    made = generate(model, params, prompts, steps=5)
    whole = scores(model, params, followed(prompts, size, np.asarray(made.ids)))
    for row in range(3):
        said = whole[row, size[row] - 1 : size[row] + 4]
        np.testing.assert_array_equal(made.ids[row], said.argmax(-1))
        np.testing.assert_allclose(made.log_probs[row], jax.nn.log_softmax(said).max(-1), atol=2e-5)


def test_generation_is_blind_to_padding_and_other_rows(each):
    name, model, params, _ = each
    prompts = first(fake(name, seed=3), [9, 12, 7])
    made = generate(model, params, prompts, steps=5)
    turned = jax.tree.map(lambda x: x[::-1], prompts)
    longer = turned.replace(text=jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 3))), turned.text))
    np.testing.assert_array_equal(generate(model, params, longer, steps=5).ids[::-1], made.ids)


def test_models_are_their_own_configuration(each):
    model = each[1]
    assert from_json(json.loads(json.dumps(to_json(model), allow_nan=False))) == model


@pytest.mark.parametrize("name", ["text_to_text", "unified_io"])
def test_a_source_is_seen_whole_and_a_target_is_not(name):
    params = parameters(name)
    batch = max((fake(name, seed=seed) for seed in range(6)), key=lambda batch: batch.text.loss.sum(1).max())
    run = jax.jit(lambda b: MODELS[name].apply({"params": params}, b)["nll"])
    text, before = batch.text, np.asarray(run(batch))
    row = int(text.loss.sum(1).argmax())  # the longest target
    source = np.flatnonzero((text.block[row] == 0) & (text.segment[row] > 0))
    target = np.flatnonzero(text.block[row] > 0)
    assert source.size and target.size > 3

    def changed(place):
        ids = np.array(text.ids)
        ids[row, place] = (ids[row, place] + 1) % VOCAB
        return np.asarray(run(batch.replace(text=dataclasses.replace(text, ids=ids))))[row]

    words = source[text.slot[row, source] < 0]
    assert changed(words[-1])[target[0]] != pytest.approx(before[row, target[0]])
    after = changed(target[2])
    np.testing.assert_allclose(after[target[:2]], before[row, target[:2]], atol=1e-6)
    assert not np.allclose(after[target[3:]], before[row, target[3:]])


def test_whisper_counts_the_published_parameters():
    """39M; 37 184 640 by the released weights, and here a bias on each of 4 + 8 keys."""
    batch = Batch.spec(1, text=8, sensor=(1, 40, 80, 100.0))
    assert count(Seq2Seq.whisper("tiny", 51_865), batch) == 37_184_640 + 12 * 384


@pytest.mark.parametrize("size, millions", [("small", 71), ("base", 241), ("large", 776), ("xl", 2_900)])
def test_unified_io_counts_the_published_parameters(size, millions):
    """Within 3 %: its image encoder's positions and relative biases differ."""
    batch = Batch.spec(1, text=(600, {"image": 576}), image=(1, 384, 384))
    assert count(Seq2Seq.unified_io(size), batch) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("size, millions", [("base", 383), ("large", 787)])
def test_coca_counts_the_published_parameters(size, millions):
    """Within 3 %: poolers and projections are counted here."""
    batch = Batch.spec(1, text=8, image=(1, 288, 288))
    assert count(CoCa.of(size, 64_000), batch) / 1e6 == pytest.approx(millions, rel=0.03)


def count(model, spec):
    shapes = jax.eval_shape(lambda key, batch: model.init(key, batch), jax.random.key(0), spec)
    return element_count(unbox(shapes["params"]))


def test_coca_gives_captions_and_embeddings_of_one_pass():
    params, batch = parameters("coca"), fake("coca", seed=5)
    run = jax.jit(lambda b: MODELS["coca"].apply({"params": params}, b))
    out = run(batch)
    for kind in ("image", "text"):
        np.testing.assert_allclose(np.linalg.norm(out["embeddings"][kind], axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(out["present"][kind], batch.present(kind)[:, 0])
    assert out["nll"].shape == batch.text.ids.shape and out["scale"].shape == ()

    other = run(batch.replace(image=dataclasses.replace(batch.image, pixels=255 - batch.image.pixels)))
    np.testing.assert_allclose(other["embeddings"]["text"], out["embeddings"]["text"], atol=1e-6)
    assert not np.allclose(other["embeddings"]["image"], out["embeddings"]["image"], atol=1e-3)

    ends, ids = (batch.text.segment > 0).sum(1) - 1, np.array(batch.text.ids)
    ids[np.arange(3), ends] = (ids[np.arange(3), ends] + 1) % VOCAB
    later = run(batch.replace(text=dataclasses.replace(batch.text, ids=ids)))
    assert (np.abs(later["embeddings"]["text"] - out["embeddings"]["text"]).max(-1) > 1e-5).all()
    for row, end in enumerate(ends):
        np.testing.assert_allclose(later["nll"][row, :end], out["nll"][row, :end], atol=1e-5)

    alone = run(batch.replace(image=None))
    assert set(alone["embeddings"]) == {"text"} and np.isfinite(alone["nll"]).all()


def test_show_attend_tell_says_where_it_looked_and_is_told_to_look_everywhere():
    params, batch = parameters("show_attend_tell"), fake("show_attend_tell", seed=6)
    out = jax.jit(lambda b: MODELS["show_attend_tell"].apply({"params": params}, b))(batch)
    looked, text = np.asarray(out["attention"]), batch.text
    predicts = (text.position > 0) & (text.segment > 0)
    expected = np.where(predicts & batch.image.valid, 1.0, 0.0)
    np.testing.assert_allclose(looked.sum(-1), expected, atol=1e-5)

    means = DoublyStochastic()(out, batch)
    total = np.where(((text.loss > 0) & predicts)[..., None], looked, 0).sum(1)
    missed = ((1 - total) ** 2).sum(1)[batch.image.valid[:, 0]]
    np.testing.assert_allclose(means["loss"].value, missed.mean(), rtol=1e-5)
    gone = batch.replace(image=dataclasses.replace(batch.image, valid=np.zeros_like(batch.image.valid)))
    assert float(DoublyStochastic()(out, gone)["loss"].value) == 0
    with pytest.raises(UserError, match="hold no attention; they have nll"):
        DoublyStochastic()({"nll": 0}, batch)
    with pytest.raises(UserError, match="no kind of media is called 'picture'"):
        DoublyStochastic("picture")


def test_positions_of_a_target_count_from_its_start():
    """A learned table of as many positions as the target needs serves sources of any length."""
    params, batch = parameters("text_to_text"), fake("text_to_text", seed=4)
    fused = jax.jit(lambda b: MODELS["text_to_text"].apply({"params": params}, b, method="fuse"))(batch)
    for row in range(3):
        source = ((batch.text.block[row] == 0) & (batch.text.segment[row] > 0)).sum()
        real = np.flatnonzero(fused.row.valid[row])
        assert len(real) == (batch.text.segment[row] > 0).sum() - max(source - 1, 0)
        np.testing.assert_array_equal(fused.row.places.position[row, real], np.arange(len(real)))


def test_unknown_sizes_are_answered_with_the_known():
    with pytest.raises(UserError, match="no T5 is called 'bse'"):
        Seq2Seq.text_to_text("bse", 8)
    with pytest.raises(UserError, match="no Unified-IO is called 'xxl'"):
        Seq2Seq.unified_io("xxl")
    with pytest.raises(UserError, match="no CoCa is called 'huge'"):
        CoCa.of("huge", 8)
    with pytest.raises(UserError, match="no Whisper is called 'tny'"):
        Seq2Seq.whisper("tny", 8)
    assert ShowAttendTell.of(100).longest is None and Seq2Seq.whisper("base", 8).longest == 448
