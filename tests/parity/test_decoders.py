"""Each family of decoders, small, against the same family in transformers as its authors configured it."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from mmjax.core.batch import Batch, Text
from mmjax.models.decoder import Decoder
from mmjax.nn.decoder_sizes import DECODER_SIZES
from tests.drawn import drawn
from tests.parity.names import GEMMA2, LLAMA, OPT, all_blocks, layers, linear, llama, named, renamed
from tests.parity.peers import Renaming, compare, logits_of

VOCAB, LENGTH = 61, 12
LENGTHS = np.array([LENGTH, 7, 2])
SMALL = {"width": 48, "depth": 2, "mlp": 80, "heads": 4}


def of_llama(names):
    """Llama, and those that name their parts as it does."""

    def renaming(params):
        head = params.get("head/table", params["embedding/table"])
        return llama(params, names, "model.") | {"lm_head.weight": head}

    return renaming


def of_opt(params):
    """Its table of positions begins with two that stand for padding."""
    return {
        "model.decoder.embed_tokens.weight": params["embedding/table"],
        "model.decoder.embed_positions.weight": np.roll(params["positions/table"], 2, axis=0),
        "lm_head.weight": params["embedding/table"],
        **named(params, "norm", "model.decoder.final_layer_norm"),
        **all_blocks(params, OPT, "model.decoder.layers."),
    }


def of_gpt2(params):
    """Its linear maps are [in, out], and query, key and value are one."""
    found = {
        "transformer.wte.weight": params["embedding/table"],
        "transformer.wpe.weight": params["positions/table"],
        "transformer.ln_f.weight": params["norm/scale"],
        "transformer.ln_f.bias": params["norm/bias"],
        "lm_head.weight": params["embedding/table"],
    }
    names = {
        "attention_norm": "ln_1",
        "feedforward_norm": "ln_2",
        "attention/out": "attn.c_proj",
        "feedforward/up": "mlp.c_fc",
        "feedforward/down": "mlp.c_proj",
    }
    for layer, its in enumerate(layers(params)):
        name, parts = f"transformer.h.{layer}.", ("query", "key", "value")
        rest = {path: x for path, x in its.items() if path.rpartition("/")[0] in names}
        kernels, biases = (
            [linear(f"{part}/{kind}", its[f"attention/{part}/{kind}"]) for part in parts] for kind in ("kernel", "bias")
        )
        found |= {path: x.T for path, x in renamed(rest, names, name).items()}
        found |= {
            f"{name}attn.c_attn.weight": np.concatenate(kernels).T,
            f"{name}attn.c_attn.bias": np.concatenate(biases),
        }
    return found


@dataclasses.dataclass(frozen=True)
class Peer:
    """A row of our table, its family in transformers, and what its authors published that differs from the defaults
    there. small: how to make this row smaller otherwise than the rest."""

    row: str
    config: type
    renaming: Renaming
    settings: dict = dataclasses.field(default_factory=dict)
    small: dict = dataclasses.field(default_factory=dict)


def turning(base):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": base}}


T, LIKE_LLAMA, EPSILON = transformers, of_llama(LLAMA), {"rms_norm_eps": 1e-5}
APART, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
GEMMA2_SMALL = {"query_pre_attn_scalar": 16, "sliding_window": 4}  # published: 256, a head's width, and 4096
PEERS = {
    "gpt2": Peer("gpt2", T.GPT2Config, of_gpt2),
    "opt": Peer("opt-125m", T.OPTConfig, of_opt),
    "llama2": Peer("llama2-7b", T.LlamaConfig, LIKE_LLAMA, EPSILON | APART),
    "llama3": Peer("llama3-8b", T.LlamaConfig, LIKE_LLAMA, EPSILON | APART | turning(5e5)),
    "smollm": Peer("smollm-135m", T.LlamaConfig, LIKE_LLAMA, EPSILON | TIED),
    "gemma": Peer("gemma-2b", T.GemmaConfig, LIKE_LLAMA),
    "gemma2": Peer("gemma2-2b", T.Gemma2Config, of_llama(GEMMA2), GEMMA2_SMALL, {"windows": (4, None)}),
    "qwen2": Peer("qwen2-0.5b", T.Qwen2Config, LIKE_LLAMA, TIED | turning(1e6)),
    "qwen3": Peer("qwen3-0.6b", T.Qwen3Config, LIKE_LLAMA, TIED | turning(1e6)),
}


def rows():
    """Three rows of different lengths, padded on the right."""
    place = np.tile(np.arange(LENGTH), (len(LENGTHS), 1))
    real = place < LENGTHS[:, None]
    ids = np.where(real, np.random.default_rng(0).integers(1, VOCAB, place.shape), 0).astype(np.int32)
    position = np.where(real, place, 0).astype(np.int32)
    text = Text(ids, np.full_like(ids, -1), real.astype(np.int32), position, position, real.astype(np.float32))
    return Batch(text=text, id=np.arange(len(ids))[:, None], fault=np.zeros((len(ids), 1), np.uint8)).check(), real


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_are_those_of_transformers(name, monkeypatch):
    peer = PEERS[name]
    shape = DECODER_SIZES[peer.row]
    groups, size = shape.kv_heads and max(1, shape.kv_heads * 4 // shape.heads), shape.head_dim and 16
    small = dataclasses.replace(shape, **SMALL | {"kv_heads": groups, "head_dim": size} | peer.small)
    monkeypatch.setitem(DECODER_SIZES, "small", small)
    model, (batch, real) = Decoder.of("small", VOCAB), rows()
    params = drawn(model, batch)["params"]
    config = peer.config(
        vocab_size=VOCAB,
        hidden_size=small.width,
        num_hidden_layers=small.depth,
        num_attention_heads=small.heads,
        num_key_value_heads=groups or small.heads,
        head_dim=size or small.width // small.heads,
        attn_implementation="eager",
        pad_token_id=0,
        n_inner=small.mlp,
        ffn_dim=small.mlp,
        intermediate_size=small.mlp,
        word_embed_proj_dim=small.width,
        **peer.settings,
    )
    module = transformers.AutoModelForCausalLM.from_config(config)

    def theirs():
        ids, mask = (torch.from_numpy(x).long() for x in (batch.text.ids, real))
        return module(input_ids=ids, attention_mask=mask).logits

    compare(logits_of(model, batch), params, module, theirs, peer.renaming, real)
