"""Our parameters, or their gradients, under the names that transformers gives them (also for `tests/parity`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
Named = dict[str, np.ndarray]

ATTENTION = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}
LLAMA = ATTENTION | {
    "attention_norm": "input_layernorm",
    "feedforward_norm": "post_attention_layernorm",
    "feedforward/gate": "mlp.gate_proj",
    "feedforward/up": "mlp.up_proj",
    "feedforward/down": "mlp.down_proj",
}
GEMMA2 = LLAMA | {
    "attention_post_norm": "post_attention_layernorm",
    "feedforward_norm": "pre_feedforward_layernorm",
    "feedforward_post_norm": "post_feedforward_layernorm",
}
OPT = ATTENTION | {
    "attention/out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "feedforward_norm": "final_layer_norm",
    "feedforward/up": "fc1",
    "feedforward/down": "fc2",
}
WHISPER = OPT | {
    "cross/query": "encoder_attn.q_proj",
    "cross/key": "encoder_attn.k_proj",
    "cross/value": "encoder_attn.v_proj",
    "cross/out": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
}
CLIP = ATTENTION | {
    "attention/out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "feedforward_norm": "layer_norm2",
    "feedforward/up": "mlp.fc1",
    "feedforward/down": "mlp.fc2",
}
VIT = {
    "attention/query": "attention.q_proj",
    "attention/key": "attention.k_proj",
    "attention/value": "attention.v_proj",
    "attention/out": "attention.o_proj",
    "attention_norm": "layernorm_before",
    "feedforward_norm": "layernorm_after",
    "feedforward/up": "mlp.fc1",
    "feedforward/down": "mlp.fc2",
}


def below(params: Arrays, prefix: str) -> Named:
    """The parameters under a path."""
    return {name.removeprefix(prefix): x for name, x in params.items() if name.startswith(prefix)}


def layers(params: Arrays) -> list[Named]:
    """The parameters of a stack layer by layer: stacked in the first dimension, blocks of a chain in turn."""
    found = below(params, "stack/block/")
    chain = sorted({name.split("/")[0] for name in found if name.startswith("blocks_")})
    blocks = [below(found, name + "/") for name in chain] or [found]
    depth = len(next(iter(found.values())))
    return [{name: x[layer] for name, x in block.items()} for layer in range(depth) for block in blocks]


def linear(path: str, x: np.ndarray) -> np.ndarray:
    """A parameter as `torch.nn.Linear` holds it: kernels [out, in], heads and their width as one dimension."""
    if path.endswith("bias"):
        return x.reshape(-1)
    if not path.endswith("kernel"):
        return x
    return (x.reshape(-1, x.shape[-1]) if path.endswith("out/kernel") else x.reshape(x.shape[0], -1)).T


def renamed(params: Arrays, names: Mapping[str, str], into: str) -> Named:
    """Parameters under the peer's names; `names` maps modules. Raises KeyError for one that has no name there."""
    kinds = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    found = {}
    for path, x in params.items():
        module, _, kind = path.rpartition("/")
        found[f"{into}{names[module]}.{kinds[kind]}"] = linear(path, x)
    return found


def as_conv(kernel: np.ndarray, patch: int) -> np.ndarray:
    """Of patches [P P 3, D] as a convolution has it: [D 3 P P]."""
    return kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


def all_blocks(params: Arrays, names: Mapping[str, str], into: str) -> Named:
    """Every layer of a stack, by number."""
    found = {}
    for layer, its in enumerate(layers(params)):
        found |= renamed(its, names, f"{into}{layer}.")
    return found


def named(params: Arrays, module: str, into: str) -> Named:
    """Scale and bias of a norm, or kernel and bias of a linear map."""
    return renamed({path: x for path, x in params.items() if path.startswith(module + "/")}, {module: into}, "")


def positions_of(params: Arrays) -> np.ndarray:
    """A table of positions that begins with that of the class token, which of ours is part of the token itself."""
    return np.concatenate([params["class_token/token"], params["positions/table"]])


def clip_eyes(params: Arrays, patch: int, into: str) -> Named:
    """CLIP's tower for pictures but for its last norm."""
    return {
        f"{into}embeddings.class_embedding": 0 * params["class_token/token"][0],
        f"{into}embeddings.patch_embedding.weight": as_conv(params["stem/patches/kernel"], patch),
        f"{into}embeddings.position_embedding.weight": positions_of(params),
        **named(params, "before", f"{into}pre_layrnorm"),
        **all_blocks(params, CLIP, f"{into}encoder.layers."),
    }


def words(params: Arrays, into: str) -> Named:
    """The tower for texts of CLIP and SigLIP."""
    return {
        f"{into}embeddings.token_embedding.weight": params["embedding/table"],
        f"{into}embeddings.position_embedding.weight": params["positions/table"],
        **named(params, "norm", f"{into}final_layer_norm"),
        **all_blocks(params, CLIP, f"{into}encoder.layers."),
    }


def siglip_eyes(params: Arrays, patch: int, into: str) -> Named:
    """SigLIP's tower for pictures but for its pool."""
    return {
        f"{into}embeddings.patch_embedding.weight": as_conv(params["stem/patches/kernel"], patch),
        f"{into}embeddings.patch_embedding.bias": params["stem/patches/bias"],
        f"{into}embeddings.position_embedding.weight": params["positions/table"],
        **named(params, "norm", f"{into}post_layernorm"),
        **all_blocks(params, CLIP, f"{into}encoder.layers."),
    }


def llama(params: Arrays, names: Mapping[str, str], into: str) -> Named:
    """Embedding, blocks and last norm of a decoder whose parts are called as Llama's are."""
    return {
        f"{into}embed_tokens.weight": params["embedding/table"],
        **named(params, "norm", f"{into}norm"),
        **all_blocks(params, names, f"{into}layers."),
    }


def llama_model(params: Arrays, names: Mapping[str, str] = LLAMA) -> Named:
    """The same and its head, for Llama and those that name their parts as it does."""
    head = params.get("head/table", params["embedding/table"])
    return llama(params, names, "model.") | {"lm_head.weight": head}


def opt_model(params: Arrays) -> Named:
    """OPT and its head. Its table of positions begins with two that stand for padding."""
    return {
        "model.decoder.embed_tokens.weight": params["embedding/table"],
        "model.decoder.embed_positions.weight": np.roll(params["positions/table"], 2, axis=0),
        "lm_head.weight": params["embedding/table"],
        **named(params, "norm", "model.decoder.final_layer_norm"),
        **all_blocks(params, OPT, "model.decoder.layers."),
    }


def gpt2_model(params: Arrays) -> Named:
    """GPT-2 and its head. Its linear maps are [in, out], and query, key and value are one."""
    found = {
        "transformer.wte.weight": params["embedding/table"],
        "transformer.wpe.weight": params["positions/table"],
        **named(params, "norm", "transformer.ln_f"),
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
