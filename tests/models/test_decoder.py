"""Decoders are the published ones, and media reach the text through every fusion, cached or not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count, flatten_names
from mmjax.core.tokens import Pattern
from mmjax.decoding.generate import generate
from mmjax.decoding.state import Fixed
from mmjax.encoders.image import ViT
from mmjax.fusion.connectors import Project
from mmjax.fusion.cross import CrossFusion, GatedCross
from mmjax.fusion.early import Concatenate, Interleave, ModalityTypes, StandIn
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block, Chain
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.feedforward import GatedFeedForward
from mmjax.nn.norms import CentredRMSNorm, RMSNorm
from mmjax.nn.stack import Stack
from mmjax.ops.masks import as_laid_out
from mmjax.ops.rotary import Rotary
from tests.drawn import drawn

VOCAB = 40

PUBLISHED = [
    ("gpt2", 50257, 124_439_808),
    ("smollm-135m", 49152, 134_515_008),
    ("gpt2-xl", 50257, 1_557_611_200),
    ("opt-125m", 50272, 125_239_296),
    ("opt-2.7b", 50272, 2_651_596_800),
    ("opt-6.7b", 50272, 6_658_473_984),
    ("llama2-7b", 32000, 6_738_415_616),
    ("llama3-8b", 128256, 8_030_261_248),
    ("gemma-2b", 256000, 2_506_172_416),
    ("gemma-7b", 256000, 8_537_680_896),
    ("gemma2-2b", 256000, 2_614_341_888),
    ("gemma2-9b", 256000, 9_241_705_984),
    ("qwen2-0.5b", 151936, 494_032_768),
    ("qwen2-7b", 152064, 7_615_616_512),
    ("qwen2-vl-2b", 151936, 1_543_714_304),
    ("qwen3-0.6b", 151936, 596_049_920),
]


def spec(length=24, **parts):
    return Batch.spec(3, text=(length, {"image": 4}), image=(1, 8, 8), **parts)


@pytest.mark.parametrize(("name", "vocab", "count"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_published_sizes_have_the_published_number_of_parameters(name, vocab, count):
    batch = Batch.fake(Batch.spec(1, text=4))
    shapes = jax.eval_shape(Decoder.of(name, vocab).init, {"params": jax.random.key(0)}, batch)
    assert element_count(unbox(shapes["params"])) == count


def test_a_wrong_size_gets_the_nearest():
    with pytest.raises(UserError, match="did you mean gemma2-2b"):
        decoder_size("gemma2_2b")


def by_hand(p, ids, softcap=None, centred=False, window=None):
    """One row through a decoder of blocks of 4 heads, 2 key-value heads, in numpy, as the papers write it."""

    def norm(scale, x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (scale + centred)

    def turn(x):
        half = x.shape[-1] // 2
        spin = np.exp(1j * np.arange(len(ids))[:, None] * 10_000.0 ** (-np.arange(half) / half))
        z = (x[..., :half] + 1j * x[..., half:]) * spin
        return np.concatenate([z.real, z.imag], -1)

    table = p["embedding"]["table"]
    x = table[ids] * (np.sqrt(table.shape[1]) if centred else 1)
    away = np.arange(len(ids))[:, None] - np.arange(len(ids))
    seen = (away >= 0) & (away < (window or len(ids)))
    for i in range(2):
        b = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), p["stack"]["block"])
        a, f = b["attention"], b["feedforward"]
        y = norm(b["attention_norm"]["scale"], x)
        q, k, v = (np.einsum("td,dhk->htk", y, a[name]["kernel"]) for name in ("query", "key", "value"))
        q, k, v = turn(q), np.repeat(turn(k), 2, 0), np.repeat(v, 2, 0)
        z = q @ np.swapaxes(k, 1, 2) / np.sqrt(q.shape[-1])
        z = np.where(seen, softcap * np.tanh(z / softcap) if softcap else z, -np.inf)
        w = np.exp(z - z.max(-1, keepdims=True))
        y = np.einsum("hqs,hsk,hkd->qd", w / w.sum(-1, keepdims=True), v, a["out"]["kernel"])
        x = x + (norm(b["attention_post_norm"]["scale"], y) if centred else y)
        y = norm(b["feedforward_norm"]["scale"], x)
        gate = y @ f["gate"]["kernel"]
        if centred:
            gate = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        y = (gate * (y @ f["up"]["kernel"])) @ f["down"]["kernel"]
        x = x + (norm(b["feedforward_post_norm"]["scale"], y) if centred else y)
    z = norm(p["norm"]["scale"], x) @ table.T
    z = 3 * np.tanh(z / 3) if centred else z
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_decoders_compute_what_the_papers_write(kind):
    plain = decoder_size("mu")
    gemma2 = decoder_size("gemma2-2b")
    if kind == "gemma2":
        its = {"width": 32, "depth": 2, "mlp": 64, "heads": 4, "kv_heads": 2, "head_dim": 8, "windows": (3,)}
        shape = dataclasses.replace(gemma2, **its, softcap=0.5, logit_softcap=3.0)
    else:
        shape = dataclasses.replace(plain, windows=(3,))
    head = Decoder.of("mu", VOCAB).head.clone(cap=shape.logit_softcap)
    model = Decoder.of(
        "mu", VOCAB, embedding=shape.embedding(VOCAB, 32), stack=shape.stack(), norm=shape.norm(), head=head
    )
    batch = Batch.fake(Batch.spec(1, text=12), 3, VOCAB)
    whole = np.ones((1, 12), np.int32)
    place = np.arange(12, dtype=np.int32)[None]
    text = dataclasses.replace(batch.text, segment=whole, block=place, position=place)
    batch = batch.replace(text=text)
    params = drawn(model, batch)["params"]
    expected = by_hand(params, text.ids[0], shape.softcap, kind == "gemma2", window=3)
    found = nll(model, params, batch)[0]
    np.testing.assert_allclose(found[1:], -expected[np.arange(11), text.ids[0, 1:]], rtol=2e-4)


def sense():
    return {"image": Sense(ViT.of("mu/4", 8), Project(32))}


def block(**parts):
    return Block(Attention(4, 2, rotary=Rotary(), **parts), GatedFeedForward(48), RMSNorm())


FUSIONS = {
    "interleave": {"fusion": Interleave(types=ModalityTypes()), "stack": Stack(block(), 2)},
    "concatenate": {"fusion": Concatenate(as_laid_out), "stack": Stack(block(pattern=Pattern(9)), 2)},
    "gated": {"fusion": CrossFusion(), "stack": Stack(Chain((GatedCross(Attention(2)), block())), 2)},
    "between": {
        "fusion": CrossFusion(),
        "stack": Stack(Block(Attention(4, rotary=Rotary()), norm=RMSNorm(), cross=Attention(2, 1)), 2),
    },
}


@pytest.fixture(scope="module", params=FUSIONS, ids=str)
def fused(request):
    model = Decoder.of("mu", VOCAB, media=sense(), **FUSIONS[request.param])
    batch = Batch.fake(spec(), 0, VOCAB)
    return model, drawn(model, batch)["params"], batch


@functools.partial(jax.jit, static_argnames="fixed")
def _nll(fixed, params, batch):
    return fixed.model.apply({"params": params}, batch)["nll"]


def nll(model, params, batch):
    return np.asarray(_nll(Fixed(model), params, batch))


def longer(batch, ids):
    """The batch with `ids` [B n] after each row."""
    text, count = batch.text, ids.shape[1]
    ends = np.where(text.segment > 0, np.arange(1, text.ids.shape[1] + 1), 0).max(1)
    wide = {f: np.pad(getattr(text, f), [(0, 0), (0, count)]) for f in ("ids", "segment", "block", "position", "loss")}
    slot = np.pad(text.slot, [(0, 0), (0, count)], constant_values=-1)
    for row, end in enumerate(ends):
        span, steps = slice(end, end + count), np.arange(1, count + 1)
        wide["ids"][row, span], wide["segment"][row, span], wide["loss"][row, span] = ids[row], 1, 1
        wide["block"][row, span] = wide["block"][row, end - 1] + steps
        wide["position"][row, span] = wide["position"][row, end - 1] + steps
    return batch.replace(text=type(text)(slot=slot, per_item=text.per_item, **wide)), ends


def test_text_follows_media_as_the_whole_row_says(fused):
    model, params, batch = fused
    made = generate(model, params, batch, steps=5)
    whole, ends = longer(batch, np.asarray(made.ids))
    found = nll(model, params, whole)
    for row, end in enumerate(ends):
        np.testing.assert_allclose(-made.log_probs[row], found[row, end : end + 5], atol=2e-5)


def test_media_matter_and_absent_media_do_not(fused):
    model, params, batch = fused
    image = batch.image
    other = batch.replace(image=dataclasses.replace(image, pixels=255 - image.pixels))
    assert not np.allclose(nll(model, params, batch), nll(model, params, other), atol=1e-3)
    gone = [b.replace(image=dataclasses.replace(b.image, valid=np.zeros_like(image.valid))) for b in (batch, other)]
    one, two = (nll(model, params, b) for b in gone)
    np.testing.assert_array_equal(one, two)
    assert np.all(np.isfinite(one))


def test_gradients_reach_every_parameter_and_are_finite(fused):
    model, params, batch = fused

    def loss(params):
        return jnp.sum(model.apply({"params": params}, batch, train=True)["nll"] * batch.text.loss)

    found = flatten_names(jax.jit(jax.grad(loss))(params))
    assert [name for name, leaf in found.items() if not np.all(np.isfinite(leaf))] == []
    silent = [name for name, leaf in found.items() if not np.any(leaf)]
    assert [name for name in silent if "key/bias" not in name] == []  # softmax is blind to an offset of all keys


def test_a_row_laid_out_for_other_sizes_is_refused():
    model = Decoder.of("mu", VOCAB, media=sense(), fusion=Interleave())
    batch = Batch.fake(Batch.spec(2, text=(24, {"image": 2}), image=(2, 8, 8)), 0, VOCAB)
    with pytest.raises(UserError, match="laid out for 2 tokens per image, but the model makes 4 of each"):
        jax.eval_shape(model.init, {"params": jax.random.key(0)}, batch)
    with pytest.raises(UserError, match="reads the row of text; the batch has image"):
        jax.eval_shape(model.init, {"params": jax.random.key(0)}, Batch.fake(Batch.spec(2, image=(1, 8, 8))))


@pytest.mark.parametrize("places", [1, 3, 0], ids=["marker", "more than tokens", "none"])
def test_a_memory_does_not_ask_for_a_place_per_token(places):
    """Four tokens of each picture are looked at; whatever the row keeps for them, only what stands behind sees them."""
    model = Decoder.of("mu", VOCAB, media=sense(), fusion=CrossFusion(StandIn()), stack=FUSIONS["between"]["stack"])
    batch = Batch.fake(Batch.spec(3, text=(24, {"image": places} if places else {}), image=(2, 8, 8)), 0, VOCAB)
    text = dataclasses.replace(batch.text, block=batch.text.position)
    batch = batch.replace(text=text)
    other = batch.replace(image=dataclasses.replace(batch.image, pixels=255 - batch.image.pixels))
    params = drawn(model, batch)["params"]
    changed = np.abs(nll(model, params, batch) - nll(model, params, other)) > 1e-4
    first = np.where((text.slot >= 0).any(1), (text.slot >= 0).argmax(1), 0)
    judged = (text.segment > 0) & (text.slot < 0) & (text.position > 0)
    behind = np.arange(24) > first[:, None]
    assert changed[judged & behind].all() and not changed[~behind].any()


def test_packed_samples_score_as_alone():
    model = Decoder.of("mu", VOCAB)
    batch = Batch.fake(Batch.spec(2, samples=3, text=32), 1, VOCAB)
    params = drawn(model, batch)["params"]
    packed = nll(model, params, batch)
    for row, sample in np.ndindex(2, 3):
        mine = np.flatnonzero(batch.text.segment[row] == sample + 1)
        if len(mine) > 1:
            cut = {f.name: getattr(batch.text, f.name) for f in dataclasses.fields(batch.text) if f.name != "per_item"}
            place = np.pad(mine, (0, 32 - len(mine)))  # one program for samples of any length
            own = {name: np.where(np.arange(32) < len(mine), x[row : row + 1, place], 0) for name, x in cut.items()}
            text = type(batch.text)(**own | {"slot": np.full((1, 32), -1, np.int32)})
            alone = nll(model, params, Batch(text=text, fault=np.zeros((1, 1), np.uint8)))
            np.testing.assert_allclose(packed[row, mine[1:]], alone[0, 1 : len(mine)], atol=1e-5)


def test_a_decoder_is_its_configuration():
    for model in (
        Decoder.of("gemma2-2b", 256),
        Decoder.of("qwen2-vl-2b", 256),
        Decoder.of("mu", VOCAB, media=sense(), **FUSIONS["gated"]),
    ):
        again = from_json(to_json(model))
        assert to_json(again) == to_json(model) and isinstance(again, Decoder)


def test_centred_norm_is_rms_norm_with_one_added():
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    scale = np.linspace(-0.5, 0.5, 8)
    one = CentredRMSNorm().apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(one, RMSNorm().apply({"params": {"scale": 1 + scale}}, x), atol=1e-6)
