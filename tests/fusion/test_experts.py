"""Experts by modality and by choice: against the layers they are made of, and what their losses see."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import UserError
from mmjax.core.tokens import Live, Tokens
from mmjax.decoding.generate import generate
from mmjax.fusion.experts import ByModality, ModalityAttention, ModalityBlock, NormByModality, Shared
from mmjax.fusion.grouped import EACH, TEXT_AND_MEDIA, GroupedFeedForward, GroupedGatedFeedForward, group_of
from mmjax.fusion.routed import Routed, WithLoad
from mmjax.models.decoder import Decoder
from mmjax.nn.activations import gelu
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.cache import opened
from mmjax.nn.feedforward import GatedFeedForward
from mmjax.nn.norms import LayerNorm, RMSNorm
from mmjax.nn.stack import Stack
from mmjax.objectives.experts import EvenExperts
from mmjax.ops.rotary import Rotary
from mmjax.ops.routing import Sorted, in_proportion
from mmjax.training.gradients import loss_and_gradient
from tests.fusion.fusion_toy import assert_same, items, parameters, row_of, run, values_and_gradient

ROW = Tokens.concat([items("image", [[1, 0]] * 2, 2), row_of([[1, 1, 2, 2, 2, 0]] * 2), items("audio", [[2]] * 2, 2)])
PLACES = ROW.places
IMAGES = np.asarray(PLACES.modality) == MODALITIES.index("image")

transformers = ModalityBlock(
    ModalityAttention(4, kv_heads=2, qk_norm=RMSNorm(), rotary=Rotary()),
    ByModality(GroupedGatedFeedForward(24)),
    NormByModality(),
)
apart = Block(Attention(4, kv_heads=2, bias=False, qk_norm=RMSNorm(), rotary=Rotary()), GatedFeedForward(24), RMSNorm())


def test_modalities_with_the_same_weights_are_a_plain_block():
    """Mixture of transformers, with every weight twice, is the block that it is made from."""
    plain = parameters(apart, ROW.x, PLACES)["params"]

    def twice(x):
        return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), x)

    def norms(x):
        return {"text": x, "image_video_audio_sensor": x}

    attention = {name: norms(x) if "norm" in name else twice(x) for name, x in plain["attention"].items()}
    params = {
        "attention": attention,
        "feedforward": {"feedforward": twice(plain["feedforward"])},
        "attention_norm": norms(plain["attention_norm"]),
        "feedforward_norm": norms(plain["feedforward_norm"]),
    }
    found, expected = run(transformers, {"params": params}, ROW.x, PLACES), run(apart, {"params": plain}, ROW.x, PLACES)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_weights_of_one_modality_touch_the_others_only_through_attention():
    params = parameters(transformers, ROW.x, PLACES)
    before = run(transformers, params, ROW.x, PLACES)
    for part, reaches_text in (("feedforward", False), ("attention", True)):
        louder = jax.tree.map(lambda x: x, params)
        louder["params"][part] = jax.tree_util.tree_map_with_path(
            lambda path, x: x if "norm" in str(path) else x.at[1].mul(2.0), params["params"][part]
        )
        moved = np.abs(run(transformers, louder, ROW.x, PLACES) - before).max(-1) > 1e-6
        text = np.asarray(PLACES.valid) & (np.asarray(PLACES.modality) == 0)
        assert moved[text].any() == reaches_text
        assert moved[IMAGES & np.asarray(PLACES.valid)].all()


def test_sorted_dispatch_is_the_same_block():
    params = parameters(transformers, ROW.x, PLACES)
    fast = ModalityBlock(
        transformers.attention.clone(dispatch=Sorted()),
        ByModality(GroupedGatedFeedForward(24, dispatch=Sorted())),
        NormByModality(),
    )
    found, expected = (values_and_gradient(block, params, ROW.x, PLACES) for block in (fast, transformers))
    assert_same(found, expected, atol=1e-4)


def test_decoding_from_a_cache_is_the_whole_row():
    layer, (x, places) = transformers.attention, (ROW.x[:, :10], jax.tree.map(lambda leaf: leaf[:, :10], PLACES))
    places = places.replace(valid=places.valid.at[:, 9].set(True), segment=places.segment.at[:, 9].set(2))
    params = parameters(layer, x, places)
    apply = jax.jit(lambda variables, x, places: layer.apply(variables, x, places, mutable=["fresh"]))
    _, prefilled = apply(params, x[:, :9], jax.tree.map(lambda leaf: leaf[:, :9], places))
    last = {f.name: getattr(places, f.name)[:, 9:] for f in dataclasses.fields(places)}
    live = Live(**last, slots=places, cursor=jnp.int32(9))
    step, _ = apply(params | {"cache": opened(prefilled["fresh"], 10)}, x[:, 9:], live)
    np.testing.assert_allclose(step, run(layer, params, x, places)[:, 9:], atol=2e-5)


def test_groups_of_modalities():
    np.testing.assert_array_equal(group_of(PLACES, EACH)[0], [1] * 4 + [0] * 6 + [2] * 2)
    np.testing.assert_array_equal(group_of(PLACES, TEXT_AND_MEDIA)[0], [1] * 4 + [0] * 6 + [1] * 2)
    with pytest.raises(UserError, match="no modality is called 'sound'"):
        group_of(PLACES, (("text", "sound"),))
    with pytest.raises(
        UserError, match="each of text, image, audio, video, sensor must be in one group; got text; imag"
    ):
        group_of(PLACES, (("text",), ("image", "text")))


# ------------------------------------------------------------------------------------------------------------ routing


def by_hand(layer: Routed, params, x: np.ndarray, places) -> np.ndarray:
    """Each token by itself: softmax over its group's experts, the best of them, their answers by their shares."""
    p, out = params["params"], np.zeros_like(x)
    group, modality = np.asarray(group_of(places, layer.groups)), np.asarray(places.modality)
    size = layer.experts // len(layer.groups)
    for place in np.ndindex(*x.shape[:2]):
        logits = x[place] @ p["router"]["map"]["kernel"] + p["router"]["modality"][modality[place]]
        mine = np.arange(size) + group[place] * size
        probability = np.exp(logits[mine]) / np.exp(logits[mine]).sum()
        best = np.argsort(-probability)[: layer.chosen]
        share = probability[best] if layer.share is in_proportion else probability[best] / probability[best].sum()
        for weight, expert in zip(share, mine[best], strict=True):
            one = jax.tree.map(lambda leaf, e=expert: leaf[e], p["feedforward"])
            hidden = gelu(x[place] @ one["up"]["kernel"] + one["up"]["bias"])
            out[place] += weight * np.asarray(hidden @ one["down"]["kernel"] + one["down"]["bias"])
    return out


SWITCH = Routed(4, 1, feedforward=GroupedFeedForward(8), share=in_proportion)
MIXTRAL = Routed(4, 2, feedforward=GroupedFeedForward(8, dispatch=Sorted()))
MOMA = Routed(4, 2, TEXT_AND_MEDIA, GroupedFeedForward(8))


@pytest.mark.parametrize("layer", [SWITCH, MIXTRAL, MOMA], ids=["switch", "mixtral", "moma"])
def test_tokens_go_to_the_experts_they_like_best(layer):
    params = parameters(layer, ROW.x, PLACES)
    found = run(layer, params, ROW.x, PLACES)
    np.testing.assert_allclose(found, by_hand(layer, params, np.asarray(ROW.x), PLACES), atol=2e-5)


def test_modalities_with_experts_of_their_own_leave_those_of_others_alone():
    params = parameters(MOMA, ROW.x, PLACES)
    text = PLACES.modality == 0

    def loss(params):
        return jnp.sum(jnp.where(text[..., None], jnp.sin(MOMA.apply(params, ROW.x, PLACES)), 0))

    gradient = jax.jit(jax.grad(loss))(params)["params"]["feedforward"]["up"]["kernel"]
    assert np.abs(gradient[:2]).max() > 0 and np.abs(gradient[2:]).max() == 0


@pytest.mark.parametrize(
    "fields", [{"experts": 5, "groups": TEXT_AND_MEDIA}, {"experts": 2, "chosen": 3}, {"chosen": 0}]
)
def test_experts_that_cannot_be_dealt_out_are_refused(fields):
    with pytest.raises(
        UserError, match="must divide the experts, and a token can choose at most the experts of its group"
    ):
        Routed(**fields).init({"params": jax.random.key(0)}, ROW.x, PLACES)


# --------------------------------------------------------------------------------------------------- what routers see


class Toy(nn.Module):
    """A model of one stack over the row of a batch, whose values are made of its ids."""

    stack: nn.Module

    def __call__(self, batch: Batch, *, train: bool = False):
        text = batch.text
        x = jnp.sin(text.ids[..., None] * (1.0 + jnp.arange(16)))
        places = row_of(np.ones(text.ids.shape, int)).places.replace(valid=text.valid, segment=text.segment)
        return {"hidden": self.stack(x, places, train=train)}


BLOCK = ModalityBlock(Attention(2), Routed(4, 2, feedforward=GroupedFeedForward(8)), Shared(LayerNorm()), dropout=0.1)
MODEL = WithLoad(Toy(Stack(Chain((BLOCK, Block(Attention(2)))), 3)))
BATCH = Batch.fake(Batch.spec(4, samples=2, text=7), 0)


@pytest.fixture(scope="module")
def params():
    return parameters(MODEL, BATCH)


def test_loads_of_a_stack_reach_the_outputs_by_row_and_layer(params):
    out = run(MODEL, params, BATCH)
    (load,) = out["load"].values()
    assert load.chosen.shape == (4, 3, 1, 4) and load.tokens.shape == (4, 3, 1)
    np.testing.assert_array_equal(load.tokens[:, 0, 0], np.asarray(BATCH.text.valid).sum(1))
    np.testing.assert_allclose(load.chosen.sum(-1), 2 * load.tokens)
    inner = {"params": params["params"]["model"]}
    np.testing.assert_allclose(out["hidden"], run(MODEL.model, inner, BATCH)["hidden"], atol=1e-6)
    captured, _ = jax.jit(lambda p: MODEL.apply(p, BATCH, mutable=["intermediates"]))(params)
    assert_same(captured["load"], out["load"])


def test_even_experts_reads_them_and_is_exact_in_micro_batches(params):
    objective = EvenExperts(even=0.5, z=0.1)

    def forward(params, batch, rng):
        return MODEL.apply(params, batch)

    def loss(outputs, batch):
        means = objective(outputs, batch)
        return means["loss"].value, {name: mean.value for name, mean in means.items()}

    whole, parts = (
        jax.jit(lambda p, n=n: loss_and_gradient(forward, loss, p, BATCH, jax.random.key(0), n))(params) for n in (1, 2)
    )
    assert_same(parts, whole)
    (total, told), gradient = whole
    assert float(total) == pytest.approx(0.5 * float(told["balance"]) + 0.1 * float(told["z"]), rel=1e-5)
    assert 1 <= float(told["busiest"]) <= 2 and float(told["balance"]) > 0
    router = gradient["params"]["model"]["stack"]["block"]["blocks_0"]["feedforward"]["router"]["map"]["kernel"]
    assert router.shape == (3, 16, 4) and np.abs(router).max(axis=(1, 2)).min() > 0


def test_dropout_of_a_model_that_tells_its_load_is_on_in_training(params):
    apply = jax.jit(lambda key: MODEL.apply(params, BATCH, train=True, rngs={"dropout": key})["hidden"])
    noisy = [apply(jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], noisy[2])


def test_a_model_that_tells_its_load_decodes_as_it_would_without():
    inner = Decoder.of("mu", 40, stack=Stack(ModalityBlock(Attention(2), Routed(4, 2)), 2))
    outer, batch = WithLoad(inner), Batch.fake(Batch.spec(3, text=8), 0, 40)
    params = parameters(outer, batch)["params"]
    one, two = (generate(model, tree, batch, steps=4) for model, tree in ((inner, params["model"]), (outer, params)))
    np.testing.assert_array_equal(two.ids, one.ids)
    np.testing.assert_allclose(two.log_probs, one.log_probs, atol=1e-6)
    assert outer.longest is None


def test_a_model_without_routers_is_told_what_is_missing():
    with pytest.raises(UserError, match="no load of any router.*WithLoad"):
        EvenExperts()({"hidden": jnp.zeros(3)}, BATCH)
