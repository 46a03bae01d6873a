"""Towers: invariances of embeddings, absent modalities, published parameter counts, a user's own encoder."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.core.tokens import Places, Tokens
from mmjax.encoders.image import ClassToken, ConvStem, PatchStem, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import NoPositions
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import AttentionPool, First, Last, Mean
from mmjax.nn.stack import Stack
from mmjax.ops.masks import causal
from tests.drawn import applied, drawn

SPEC = Batch.spec(4, text=12, image=(1, 32, 32))


def tiny(text_pool=None, order=None, **head) -> Towers:
    slots = {} if order is None else {"order": order}
    return Towers(
        image=Tower(ViT.of("mu/16", 32), AttentionPool(2)),
        text=Tower(TextEncoder.of("mu", 300, 24, **slots), text_pool or Mean()),
        head=Contrastive(8, **head),
    )


@pytest.fixture(scope="module")
def model():
    towers, batch = tiny(), Batch.fake(SPEC, 0)
    params = unbox(jax.jit(lambda key: towers.init({"params": key}, batch))(jax.random.key(0)))
    return jax.jit(towers.apply), params, batch


def test_embeddings_have_unit_length_and_outputs_name_what_is_present(model):
    apply, params, batch = model
    out = apply(params, batch)
    for x in out["embeddings"].values():
        assert x.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert out["scale"] == pytest.approx(1 / 0.07) and out["bias"] == 0
    np.testing.assert_array_equal(out["present"]["image"], batch.present("image")[:, 0])


def test_rows_do_not_see_each_other(model):
    apply, params, batch = model
    order = np.array([2, 0, 3, 1])
    shuffled = apply(params, jax.tree.map(lambda x: x[order], batch))["embeddings"]
    for name, x in apply(params, batch)["embeddings"].items():
        np.testing.assert_allclose(shuffled[name], x[order], atol=1e-5)


@pytest.mark.parametrize("order, pool", [(None, Mean()), (causal, Last())], ids=["bidirectional", "causal"])
def test_text_is_blind_to_padding(order, pool):
    towers, short = tiny(pool, order), Batch.fake(Batch.spec(4, text=12), 0)
    long = short.replace(text=jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 8))), short.text))
    long = long.replace(text=dataclasses.replace(long.text, ids=np.where(long.text.segment > 0, long.text.ids, 77)))
    params = drawn(towers, short)
    a, b = (applied(towers)(params, batch)["embeddings"]["text"] for batch in (short, long))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_causal_text_does_not_see_what_follows():
    encoder, batch = TextEncoder.of("mu", 300, 24, order=causal), Batch.fake(Batch.spec(2, text=12), 0)
    full = dataclasses.replace(batch.text, segment=np.ones((2, 12), np.int32), position=np.tile(np.arange(12), (2, 1)))
    params = drawn(encoder, full)
    changed = dataclasses.replace(full, ids=np.concatenate([full.ids[:, :6], full.ids[:, 6:] + 1], axis=1))
    a, b = (applied(encoder)(params, text).x for text in (full, changed))
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=1e-6)
    assert not np.allclose(a[:, 6:], b[:, 6:], atol=1e-3)


def test_hidden_words_change_training_only_and_never_hide_a_whole_text():
    encoder, text = TextEncoder.of("mu", 300, 24, hide=0.9), Batch.fake(Batch.spec(64, text=12), 0).text
    params = drawn(encoder, text)
    still = applied(encoder)(params, text).valid
    np.testing.assert_array_equal(still, text.valid)
    seen = jax.jit(lambda p, rngs: encoder.apply(p, text, train=True, rngs=rngs).valid)(
        params, {"dropout": jax.random.key(0)}
    )
    assert 0.1 < seen.sum() / still.sum() < 0.4
    np.testing.assert_array_equal(seen.any(1), still.any(1))


def test_an_absent_picture_changes_nothing_for_others_and_is_said_so(model):
    apply, params, batch = model
    valid = np.array([[True], [False], [True], [True]])
    without = batch.replace(image=dataclasses.replace(batch.image, valid=valid))
    out, full = apply(params, without), apply(params, batch)
    assert out["present"]["image"].tolist() == [True, False, True, True]
    np.testing.assert_array_equal(out["embeddings"]["text"], full["embeddings"]["text"])
    np.testing.assert_array_equal(out["embeddings"]["image"][::2], full["embeddings"]["image"][::2])


def test_several_pictures_of_a_row_share_one_vector():
    towers = Towers(image=Tower(ViT.of("mu/16", 32)), head=Contrastive(8))
    batch = Batch.fake(Batch.spec(3, image=(2, 32, 32)), 1)
    both = batch.replace(
        image=dataclasses.replace(batch.image, valid=np.ones((3, 2), bool), segment=np.ones((3, 2), np.int32))
    )
    params = drawn(towers, both)
    one_by_one = [both.replace(image=jax.tree.map(lambda x, i=i: x[:, i : i + 1], both.image)) for i in (0, 1)]
    pooled, *single = (applied(towers)(params, given)["pooled"]["image"] for given in (both, *one_by_one))
    np.testing.assert_allclose(pooled, (single[0] + single[1]) / 2, atol=1e-5)


def test_a_batch_without_a_known_modality_is_refused(model):
    _, params, _ = model
    with pytest.raises(UserError, match="the towers know text, image; the batch has audio"):
        tiny().apply(params, Batch.fake(Batch.spec(2, audio=(1, 50, 16000)), 0))


def test_packed_samples_get_the_vectors_they_have_alone(model):
    apply, params, _ = model
    packed = Batch.fake(Batch.spec(3, samples=2, text=12, image=(2, 32, 32)), 0)
    out = apply(params, packed)["embeddings"]
    for row, sample in np.ndindex(3, 2):
        alone = Batch.fake(Batch.spec(1, text=12, image=(1, 32, 32)), 0)
        mine = packed.text.segment[row] == sample + 1
        text = {
            name: np.pad(getattr(packed.text, name)[row][mine], (0, 12 - mine.sum()))[None]
            for name in ("ids", "block", "position", "loss")
        }
        segment = (np.arange(12) < mine.sum())[None].astype(np.int32)
        alone = alone.replace(text=dataclasses.replace(alone.text, segment=segment, **text))
        alone = alone.replace(
            image=dataclasses.replace(alone.image, pixels=packed.image.pixels[row : row + 1, sample : sample + 1])
        )
        expected = apply(params, alone)["embeddings"]
        if mine.any():
            np.testing.assert_allclose(out["text"][row, sample], expected["text"][0], atol=1e-5)
        if packed.image.valid[row, sample]:
            np.testing.assert_allclose(out["image"][row, sample], expected["image"][0], atol=1e-5)


def count(model, spec) -> int:
    shapes = jax.eval_shape(lambda b: model.init({"params": jax.random.key(0)}, b), spec)
    return element_count(shapes)


def test_vit_b16_has_the_published_number_of_parameters():
    """86,567,656 in timm's vit_base_patch16_224, less its 1000-way head (768 x 1000 + 1000) and the class token's
    position (768), which here is part of the token."""
    spec = Batch.spec(2, image=(1, 224, 224)).image
    assert count(ViT.of("B/16", class_token=ClassToken()), spec) == 86_567_656 - 769_000 - 768


def test_clip_b16_has_the_published_number_of_parameters():
    """149,620,737 in open_clip's ViT-B-16, where the image tower has no patch bias and one more position."""
    image = ViT.of("B/16", class_token=ClassToken(), stem=PatchStem(16, 768, bias=False), before=LayerNorm())
    text = TextEncoder.of("clip-B", 49_408, 77, order=causal)
    towers = Towers(image=Tower(image, First()), text=Tower(text, Last()), head=Contrastive(512))
    ours = count(towers, Batch.spec(2, text=77, image=(1, 224, 224)))
    assert ours == 149_620_737 - 768 + 1  # ours has the loss's bias, theirs a position for the class token


def test_compute_format_reaches_the_matrix_products_and_parameters_stay_float32():
    half = Dtypes(compute="bfloat16")
    towers = Towers(image=Tower(ViT.of("mu/16", 32, dtypes=half)), head=Contrastive(8))
    spec = Batch.spec(2, image=(1, 32, 32))
    params = unbox(jax.eval_shape(lambda: towers.init({"params": jax.random.key(0)}, Batch.fake(spec, 0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    text = jax.jit(towers.apply).lower(params, spec).as_text()
    products = [line.split(" : ")[-1].split("->")[0] for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 5 and all("xbf16>" in operands and "xf32>" not in operands for operands in products), (
        products
    )


def test_a_conv_stem_gives_a_grid_and_learns_from_every_pixel():
    encoder = ViT.of(
        "mu/16", 32, stem=ConvStem(((8, 3, 2), (8, 3, 1), (16, 3, 2), (32, 3, 2)), patch=2), positions=NoPositions()
    )
    images = Batch.fake(Batch.spec(1, image=(1, 32, 32)), 0).image
    params, run = drawn(encoder, images), applied(encoder)
    assert run(params, images).x.shape == (1, 4, 32)
    corner = images.pixels.copy()
    corner[..., 0, 0, :] = 255 - corner[..., 0, 0, :]
    assert not np.allclose(run(params, images).x, run(params, dataclasses.replace(images, pixels=corner)).x)


def test_two_encoders_made_of_defaults_share_nothing():
    """Equal parts are equal values, not one set of weights."""

    def stack():
        return Stack(Block(Attention(2)), depth=2)

    both = Towers(
        image=Tower(ViT(PatchStem(16, 16), stack())), video=Tower(ViT(PatchStem(16, 16), stack())), head=Contrastive(8)
    )
    batch = Batch.fake(Batch.spec(2, image=(1, 32, 32)), 0)
    params = jax.eval_shape(lambda: both.init({"params": jax.random.key(0)}, batch.replace(video=batch.image)))
    assert element_count(params["params"]["image"]) == element_count(params["params"]["video"])
    assert list(params["params"]["image"]["encoder"]) == list(params["params"]["video"]["encoder"])


def test_a_model_is_its_own_configuration(model):
    assert from_json(to_json(tiny())) == tiny()


class Spectrum(nn.Module):
    """A user's own audio encoder: mean energy of frames, linearly mapped."""

    width: int = 16

    @nn.compact
    def __call__(self, audio, *, train=False):
        rows, count, steps = audio.samples.shape
        frames = jnp.square(audio.samples[..., : steps // 10 * 10].reshape(rows, count * (steps // 10), 10))
        x = Linear("btp,pd->btd", (self.width,))(frames)
        return Tokens(x, Places.all_of("audio", rows, x.shape[1]))


def test_any_set_of_modalities_meets_in_one_space():
    towers = tiny().clone(audio=Tower(Spectrum()))
    batch = Batch.fake(Batch.spec(3, text=12, image=(1, 32, 32), audio=(1, 50, 16000)), 0)
    out = applied(towers)(drawn(towers, batch), batch)
    assert {name: x.shape for name, x in out["embeddings"].items()} == dict.fromkeys(("text", "image", "audio"), (3, 8))
