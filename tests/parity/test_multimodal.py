"""Whole models of pictures or sound and text, small, against those of transformers."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

from benchmarks.transformers_names import LLAMA, WHISPER, all_blocks, below, clip_eyes, llama, named, siglip_eyes
from experiments.clip_l14 import picture_encoder
from mmjax.core.batch import MODALITIES, Sensor
from mmjax.core.tokens import Places
from mmjax.encoders.image import ViT
from mmjax.fusion.connectors import MLP, InTurn, Project, SkipFirst
from mmjax.fusion.early import Interleave
from mmjax.models.decoder import Decoder, Sense
from mmjax.models.seq2seq import Seq2Seq
from mmjax.nn.decoder_sizes import DECODER_SIZES
from mmjax.nn.norms import Identity
from mmjax.ops.rotary import MultimodalRotary
from tests.drawn import drawn
from tests.parity.inputs import (
    EYES,
    LAST,
    PATCH,
    SHAPE,
    SIDE,
    SIZE,
    VOCAB,
    heads_of,
    pictures,
    rows,
    seen,
    shrunk,
    told,
)
from tests.parity.peers import assert_close, assert_same
from tests.rows import scores_of

CELLS = (SIDE // PATCH) ** 2


def dialogue(before, lengths, prefix=1):
    """Rows of `before` ids, a picture and more ids, up to `lengths`; the first `prefix` places see each other."""
    batch = rows(lengths, prefix=prefix)
    place = np.arange(max(lengths)) - before
    slot = np.broadcast_to(np.where((place >= 0) & (place < CELLS), place, -1), batch.text.ids.shape).astype(np.int32)
    text = dataclasses.replace(batch.text, slot=slot, loss=batch.text.loss * (slot < 0), per_item=(("image", CELLS),))
    return batch.replace(text=text, image=pictures(len(lengths))).check()


def test_llava(monkeypatch):
    """As in experiments/llava_7b.py: CLIP without its last block and its class token, an MLP, and the row."""
    eyes = picture_encoder(f"small/{PATCH}", SIDE, left_out=1, norm=Identity())
    sense = Sense(eyes, InTurn((SkipFirst(), MLP(SIZE.width))))
    monkeypatch.setitem(DECODER_SIZES, "small", shrunk("llama2-7b"))
    model = Decoder.of("small", VOCAB, media={"image": sense}, fusion=Interleave())
    batch = dialogue(3, (26, 22))
    text = transformers.LlamaConfig(**SHAPE, vocab_size=VOCAB, rms_norm_eps=1e-5, pad_token_id=0)
    vision = transformers.CLIPVisionConfig(**EYES)
    peer = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=LAST, attn_implementation="eager"
        )
    )

    def renaming(params):
        return {
            "lm_head.weight": params["head/table"],
            **named(params, "media_image/connector/parts_1/up", "model.multi_modal_projector.linear_1"),
            **named(params, "media_image/connector/parts_1/down", "model.multi_modal_projector.linear_2"),
            **clip_eyes(below(params, "media_image/encoder/"), PATCH, "model.vision_tower."),
            **llama(params, LLAMA, "model.language_model."),
        }

    def theirs():
        return peer(**told(batch), pixel_values=seen(batch.image, eyes)).logits

    unlike = ".*(class_embedding|vision_tower.(encoder.layers.1|post_layernorm)).*"
    params = drawn(model, batch)["params"]
    assert_same(partial(scores_of, model, batch=batch), params, peer, theirs, renaming, batch.text.valid, unlike)


def test_paligemma(monkeypatch):
    """As in experiments/paligemma_3b.py: SigLIP, a linear map, and a row whose picture and question see each other."""
    eyes = ViT.of(f"small/{PATCH}", SIDE)
    sense = Sense(eyes, Project(SIZE.width))
    shape = shrunk("gemma-2b")
    monkeypatch.setitem(DECODER_SIZES, "small", shape)
    model = Decoder.of("small", VOCAB, media={"image": sense}, fusion=Interleave())
    prefix = CELLS + 4
    batch = dialogue(0, (26, 23), prefix)
    text = transformers.GemmaConfig(
        **SHAPE | heads_of(shape), vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    vision = transformers.SiglipVisionConfig(**EYES, vision_use_head=False)
    config = transformers.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=LAST, projection_dim=SIZE.width
    )
    peer = transformers.PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager")

    def renaming(params):
        return {
            "lm_head.weight": params["embedding/table"],
            **named(params, "media_image/connector/map", "model.multi_modal_projector.linear"),
            **siglip_eyes(below(params, "media_image/encoder/"), PATCH, "model.vision_tower."),
            **llama(params, LLAMA, "model.language_model."),
        }

    def theirs():
        peer.train()  # only then does it tell prefix and answer apart; it has no dropout
        kinds = torch.from_numpy(batch.text.block > 0).long()
        return peer(**told(batch), token_type_ids=kinds, pixel_values=seen(batch.image, eyes)).logits

    params = drawn(model, batch)["params"]
    assert_same(partial(scores_of, model, batch=batch), params, peer, theirs, renaming, batch.text.valid)


def test_whisper():
    """Log-mel features of full length in, the scores of a transcript out."""
    frames, channels, length = 16, 80, 9
    values = np.random.default_rng(0).normal(size=(2, 1, frames, channels)).astype(np.float32)
    there, full = np.ones((2, 1), bool), np.full((2, 1), frames, np.int32)
    heard = Sensor(values, np.ones((2, 1, channels), bool), full, there, there.astype(np.int32), 100.0)
    batch = rows((length,) * 2).replace(sensor=heard).check()
    model = Seq2Seq.whisper("small", VOCAB, length)
    sides = [f"{side}_{what}" for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")]
    peer = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=VOCAB,
            d_model=SIZE.width,
            max_source_positions=frames // 2,
            max_target_positions=length,
            pad_token_id=0,
            attn_implementation="eager",
            **dict(zip(sides, 2 * (SIZE.depth, SIZE.heads, SIZE.mlp), strict=True)),
        )
    )

    def renaming(params):
        def mapped(params, into):
            # Ours has a bias of keys, which has no effect.
            params = {name: x for name, x in params.items() if not name.endswith("key/bias")}
            return all_blocks(params, WHISPER, f"{into}layers.") | named(params, "norm", f"{into}layer_norm")

        ours = below(params, "decoder/")
        ears, into = below(ours, "media_sensor/encoder/"), "model.encoder."
        convs = {f"{into}conv{n + 1}.weight": ears[f"conv_{n}/kernel"].transpose(2, 1, 0) for n in range(2)}
        return {
            "proj_out.weight": ours["embedding/table"],
            "model.decoder.embed_tokens.weight": ours["embedding/table"],
            "model.decoder.embed_positions.weight": ours["positions/table"],
            **convs,
            **{f"{into}conv{n + 1}.bias": ears[f"conv_{n}/bias"] for n in range(2)},
            **mapped(ears, into),
            **mapped(ours, "model.decoder."),
        }

    def theirs():
        features = torch.from_numpy(values[:, 0].transpose(0, 2, 1).copy())
        return peer(input_features=features, decoder_input_ids=told(batch)["input_ids"]).logits

    unlike = "model.encoder.embed_positions.weight"  # sines of its own, not learned
    params = drawn(model, batch)["params"]
    assert_same(partial(scores_of, model, batch=batch), params, peer, theirs, renaming, unlike=unlike)


def test_positions_of_qwen2_vl_over_text_and_pictures():
    """Two pictures of 3 x 4 cells between texts: the three positions of each place, and how they turn a vector."""
    rows, columns, width, sections = 3, 4, 16, (2, 3, 3)
    kinds = np.array([0] * 3 + [1] * 12 + [0] * 2 + [1] * 12 + [0] * 4)
    length, ones = len(kinds), np.ones((1, len(kinds)), np.int32)
    order = np.arange(length)[None]
    modality = np.where(kinds, MODALITIES.index("image"), MODALITIES.index("text"))[None]
    places = Places(ones > 0, 0 * ones, ones, order.astype(np.int32), modality.astype(np.int32))
    rotary = MultimodalRotary(sections, (("image", (1, rows, columns)),), 1e6)

    vision = {"hidden_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 1, "spatial_merge_size": 2}
    text = {"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1, "num_key_value_heads": 1}
    text |= {"vocab_size": 200, "intermediate_size": 16}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=150, vision_start_token_id=151
    )
    peer = qwen.Qwen2VLModel(config)
    grid = torch.tensor([[1, 2 * rows, 2 * columns]] * 2)
    ids = torch.from_numpy(np.where(kinds, 150, 1 + np.arange(length) % 9)[None])
    expected, _ = peer.get_rope_index(ids, mm_token_type_ids=torch.from_numpy(kinds[None]), image_grid_thw=grid)
    np.testing.assert_array_equal(rotary.axes(places), expected)

    x = np.random.default_rng(0).normal(size=(1, 2, length, width)).astype(np.float32)
    parts = qwen.Qwen2VLRotaryEmbedding(config.text_config)(torch.from_numpy(x), expected)
    turned, _ = qwen.apply_rotary_pos_emb(*[torch.from_numpy(x)] * 2, *parts)
    assert_close("turned", np.asarray(rotary(jnp.asarray(x), places)), turned.numpy(), 1e-5)
