"""The peer of decode.py: GPT-2 and Llama of transformers, and their `generate`.

python benchmarks/decode_torch.py FOLDER SIZE FORM STEPS CALLS      FOLDER holds weights.npz and prompts.npz, FORM is
dynamic, static or compiled

Attention is `scaled_dot_product_attention`. Prompts are padded on the left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CompileConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from benchmarks.measure import hand_over, peak_mib, time_calls

FORMS = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "compiled": {"cache_implementation": "static", "compile_config": CompileConfig(fullgraph=False)},
}


def layers_of(weights: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Weights of the stack layer by layer."""
    stack = {name.removeprefix("stack/block/"): x for name, x in weights.items() if name.startswith("stack/")}
    return [{path: x[layer] for path, x in stack.items()} for layer in range(len(stack["attention_norm/scale"]))]


def gpt2(weights: dict[str, np.ndarray]) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model, and our weights under its names; its linear maps are [in, out] as ours."""
    found = {
        "lm_head.weight": weights["embedding/table"],
        "transformer.wte.weight": weights["embedding/table"],
        "transformer.wpe.weight": weights["positions/table"],
        "transformer.ln_f.weight": weights["norm/scale"],
        "transformer.ln_f.bias": weights["norm/bias"],
    }
    for layer, its in enumerate(layers_of(weights)):
        name, width = f"transformer.h.{layer}.", len(its["attention_norm/scale"])
        for ours, theirs in (("attention_norm", "ln_1"), ("feedforward_norm", "ln_2")):
            found |= {f"{name}{theirs}.weight": its[f"{ours}/scale"], f"{name}{theirs}.bias": its[f"{ours}/bias"]}
        parts = ("query", "key", "value")
        kernels = [its[f"attention/{part}/kernel"].reshape(width, -1) for part in parts]
        found[f"{name}attn.c_attn.weight"] = np.concatenate(kernels, 1)
        found[f"{name}attn.c_attn.bias"] = np.concatenate([its[f"attention/{part}/bias"].ravel() for part in parts])
        for ours, theirs in (
            ("attention/out", "attn.c_proj"),
            ("feedforward/up", "mlp.c_fc"),
            ("feedforward/down", "mlp.c_proj"),
        ):
            kernel, bias = its[f"{ours}/kernel"], its[f"{ours}/bias"]
            found |= {f"{name}{theirs}.weight": kernel.reshape(-1, kernel.shape[-1]), f"{name}{theirs}.bias": bias}
    return GPT2LMHeadModel(GPT2Config()), found


def smollm(weights: dict[str, np.ndarray]) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model, and our weights under its names; its linear maps are [out, in]."""
    vocab, width = weights["embedding/table"].shape
    found = {
        "model.embed_tokens.weight": weights["embedding/table"],
        "lm_head.weight": weights["embedding/table"],
        "model.norm.weight": weights["norm/scale"],
    }
    layers = layers_of(weights)
    (heads, size), groups = layers[0]["attention/query/kernel"].shape[1:], layers[0]["attention/key/kernel"].shape[1]
    for layer, its in enumerate(layers):
        name = f"model.layers.{layer}."
        found[f"{name}input_layernorm.weight"] = its["attention_norm/scale"]
        found[f"{name}post_attention_layernorm.weight"] = its["feedforward_norm/scale"]
        for part in ("query", "key", "value"):
            found[f"{name}self_attn.{part[0]}_proj.weight"] = its[f"attention/{part}/kernel"].reshape(width, -1).T
        found[f"{name}self_attn.o_proj.weight"] = its["attention/out/kernel"].reshape(-1, width).T
        for part in ("gate", "up", "down"):
            found[f"{name}mlp.{part}_proj.weight"] = its[f"feedforward/{part}/kernel"].T
    shape = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=layers[0]["feedforward/up/kernel"].shape[1],
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=size,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape), found


MODELS = {"gpt2": gpt2, "smollm-135m": smollm}


def main(folder: Path, size: str, form: str, steps: int, calls: int) -> None:
    """Times calls of `generate`, and hands over what it said."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    model, weights = MODELS[size](dict(np.load(folder / "weights.npz")))
    model.eval().load_state_dict({name: torch.from_numpy(x.copy()) for name, x in weights.items()})
    given = np.load(folder / "prompts.npz")
    lengths = given["real"].sum(1)
    ids, real = (
        torch.from_numpy(np.stack([np.roll(row, len(row) - n) for row, n in zip(given[name], lengths, strict=True)]))
        for name in ("ids", "real")
    )
    options = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | FORMS[form]
    if form == "compiled":
        options["compile_config"]._compile_all_devices = True

    def call() -> list[list[int]]:
        with torch.inference_mode():
            said = model.generate(ids.long(), attention_mask=real.long(), **options)
        return said[:, ids.shape[1] :].tolist()

    facts = {"ids": call(), "torch": torch.__version__, "transformers": transformers.__version__}
    timed = time_calls(call, calls, warmup=1)
    hand_over(facts | timed | {"peak_mib": peak_mib()})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
