"""Encoders of pictures and texts, small, against those of transformers."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from benchmarks.transformers_names import (
    VIT,
    all_blocks,
    as_conv,
    below,
    clip_eyes,
    linear,
    named,
    positions_of,
    siglip_eyes,
    words,
)
from experiments.clip_l14 import blocks, picture_encoder
from mmjax.encoders.image import ClassToken, ViT
from mmjax.encoders.text import TextEncoder
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.activations import gelu_exact
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.feedforward import FeedForward
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import AttentionPool, First, Last
from mmjax.nn.stack import Stack
from mmjax.ops.masks import causal
from tests.drawn import drawn
from tests.parity.inputs import EYES, LAST, PATCH, SHAPE, SIDE, SIZE, VOCAB, pictures, rows, seen, told
from tests.parity.peers import assert_same

LENGTH = 9
WORDS = SHAPE | {
    "vocab_size": VOCAB,
    "max_position_embeddings": LENGTH,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": LAST,
}


def test_clip():
    """As in experiments/clip_l14.py: texts of different lengths, causal, the vector of their last token."""
    image = Tower(picture_encoder(f"small/{PATCH}", SIDE), First())
    language = TextEncoder.of("small", VOCAB, LENGTH, stack=blocks(SIZE), order=causal)
    model = Towers(image=image, text=Tower(language, Last()), head=Contrastive(24))
    batch = rows((LENGTH, 5, 2), end=(LAST,)).replace(image=pictures(3))
    peer = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=transformers.CLIPTextConfig(**WORDS).to_dict(),
            vision_config=transformers.CLIPVisionConfig(**EYES).to_dict(),
            projection_dim=24,
        )
    )

    def ours(params):
        found = model.apply({"params": params}, batch)
        vectors = found["embeddings"]
        logits = found["scale"] * vectors["text"] @ vectors["image"].T
        return jnp.concatenate([vectors["image"], vectors["text"], logits], axis=1)

    def theirs():
        found = peer(**told(batch), pixel_values=seen(batch.image, image.encoder))
        return torch.cat([found.image_embeds, found.text_embeds, found.logits_per_text], 1)

    def renaming(params):
        eyes, language = below(params, "image/encoder/"), below(params, "text/encoder/")
        return {
            "logit_scale": params["head/log_scale"],
            **named(params, "head/image", "visual_projection"),
            **named(params, "head/text", "text_projection"),
            **clip_eyes(eyes, PATCH, "vision_model."),
            **named(eyes, "norm", "vision_model.post_layernorm"),
            **words(language, "text_model."),
        }

    assert_same(ours, drawn(model, batch)["params"], peer, theirs, renaming, unlike=".*class_embedding")


def test_siglip():
    """As in experiments/siglip_b16.py: a learned query reads the picture, the last token a text without padding."""
    image = Tower(ViT.of(f"small/{PATCH}", SIDE), AttentionPool(SIZE.heads, SIZE.mlp))
    language = Tower(TextEncoder.of("small", VOCAB, LENGTH), Last())
    model = Towers(image=image, text=language, head=Contrastive(SIZE.width, project_bias=True))
    batch = rows((LENGTH,) * 3, prefix=LENGTH).replace(image=pictures(3))
    peer = transformers.SiglipModel(
        transformers.SiglipConfig(
            text_config=transformers.SiglipTextConfig(**WORDS).to_dict(),
            vision_config=transformers.SiglipVisionConfig(**EYES).to_dict(),
        )
    )

    def ours(params):
        # Its pictures are not projected a second time: what the pool says is their vector.
        found = model.apply({"params": params}, batch)
        return jnp.concatenate([found["pooled"]["image"], found["embeddings"]["text"]], axis=1)

    def theirs():
        read = peer.text_model(**told(batch)).pooler_output
        looked = peer.vision_model(pixel_values=seen(batch.image, image.encoder)).pooler_output
        return torch.cat([looked, torch.nn.functional.normalize(read, dim=-1)], 1)

    def renaming(params):
        pool, into = below(params, "image/pool/"), "vision_model.head."
        parts = [below(pool, f"attention/{part}/") for part in ("query", "key", "value")]
        return {
            "logit_scale": params["head/log_scale"].reshape(1),
            "logit_bias": params["head/bias"].reshape(1),
            **named(params, "head/text", "text_model.head"),
            **siglip_eyes(below(params, "image/encoder/"), PATCH, "vision_model."),
            **words(below(params, "text/encoder/"), "text_model."),
            f"{into}probe": pool["probe"][None],
            f"{into}attention.in_proj_weight": np.concatenate([linear("kernel", part["kernel"]) for part in parts]),
            f"{into}attention.in_proj_bias": np.concatenate([linear("bias", part["bias"]) for part in parts]),
            **named(pool, "attention/out", f"{into}attention.out_proj"),
            **named(pool, "norm", f"{into}layernorm"),
            **named(pool, "feedforward/up", f"{into}mlp.fc1"),
            **named(pool, "feedforward/down", f"{into}mlp.fc2"),
        }

    assert_same(ours, drawn(model, batch)["params"], peer, theirs, renaming)


def test_vit():
    """The released ViT: a class token, the exact GELU, a smaller epsilon."""
    block = Block(Attention(SIZE.heads), FeedForward(SIZE.mlp, gelu_exact), LayerNorm(1e-12))
    slots = {"class_token": ClassToken(), "stack": Stack(block, SIZE.depth), "norm": LayerNorm(1e-12)}
    model, images = ViT.of(f"small/{PATCH}", SIDE, **slots), pictures(3)
    peer = transformers.ViTModel(transformers.ViTConfig(**EYES), add_pooling_layer=False)

    def renaming(params):
        return {
            "embeddings.cls_token": 0 * params["class_token/token"][None],
            "embeddings.position_embeddings": positions_of(params)[None],
            "embeddings.patch_embeddings.projection.weight": as_conv(params["stem/patches/kernel"], PATCH),
            "embeddings.patch_embeddings.projection.bias": params["stem/patches/bias"],
            **named(params, "norm", "layernorm"),
            **all_blocks(params, VIT, "layers."),
        }

    assert_same(
        lambda params: model.apply({"params": params}, images).x,
        drawn(model, images)["params"],
        peer,
        lambda: peer(pixel_values=seen(images, model)).last_hidden_state,
        renaming,
        unlike=".*cls_token",
    )
