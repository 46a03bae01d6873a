"""Each family of decoders, small, against the same family in transformers as its authors configured it."""

import dataclasses
import functools

import pytest
import transformers

from benchmarks.transformers_names import GEMMA2, gpt2_model, llama_model, opt_model
from mmjax.models.decoder import Decoder
from mmjax.nn.decoder_sizes import DECODER_SIZES
from tests.drawn import drawn
from tests.parity.inputs import SHAPE, VOCAB, heads_of, rows, shrunk, told
from tests.parity.peers import Renaming, assert_same
from tests.rows import scores_of

gemma2_model = functools.partial(llama_model, names=GEMMA2)


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


T, EPSILON = transformers, {"rms_norm_eps": 1e-5}
APART, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
GEMMA2_SMALL = {"query_pre_attn_scalar": 16, "sliding_window": 4}  # published: 256, a head's width, and 4096
PEERS = {
    "gpt2": Peer("gpt2", T.GPT2Config, gpt2_model),
    "opt": Peer("opt-125m", T.OPTConfig, opt_model),
    "llama2": Peer("llama2-7b", T.LlamaConfig, llama_model, EPSILON | APART),
    "llama3": Peer("llama3-8b", T.LlamaConfig, llama_model, EPSILON | APART | turning(5e5)),
    "smollm": Peer("smollm-135m", T.LlamaConfig, llama_model, EPSILON | TIED),
    "gemma": Peer("gemma-2b", T.GemmaConfig, llama_model),
    "gemma2": Peer("gemma2-2b", T.Gemma2Config, gemma2_model, GEMMA2_SMALL, {"windows": (4, None)}),
    "qwen2": Peer("qwen2-0.5b", T.Qwen2Config, llama_model, TIED | turning(1e6)),
    "qwen3": Peer("qwen3-0.6b", T.Qwen3Config, llama_model, TIED | turning(1e6)),
}


@pytest.mark.parametrize("name", PEERS)
def test_logits_and_gradients_are_those_of_transformers(name, monkeypatch):
    peer = PEERS[name]
    shape = shrunk(peer.row, **peer.small)
    monkeypatch.setitem(DECODER_SIZES, "small", shape)
    model, batch = Decoder.of("small", VOCAB), rows((12, 7, 2))
    config = peer.config(
        **SHAPE | heads_of(shape) | peer.settings,
        vocab_size=VOCAB,
        pad_token_id=0,
        n_inner=shape.mlp,
        ffn_dim=shape.mlp,
        word_embed_proj_dim=shape.width,
    )
    module = transformers.AutoModelForCausalLM.from_config(config)
    assert_same(
        functools.partial(scores_of, model, batch=batch),
        drawn(model, batch)["params"],
        module,
        lambda: module(**told(batch)).logits,
        peer.renaming,
        counts=batch.text.valid,
    )
