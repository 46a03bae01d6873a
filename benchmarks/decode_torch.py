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
from benchmarks.transformers_names import gpt2_model, llama_model

FORMS = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "compiled": {"cache_implementation": "static", "compile_config": CompileConfig(fullgraph=False)},
}


def gpt2(weights: dict[str, np.ndarray]) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model, and our weights under its names."""
    return GPT2LMHeadModel(GPT2Config()), gpt2_model(weights)


def smollm(weights: dict[str, np.ndarray]) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """The model, and our weights under its names."""
    vocab, width = weights["embedding/table"].shape
    depth, _, heads, size = weights["stack/block/attention/query/kernel"].shape
    shape = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=weights["stack/block/feedforward/up/kernel"].shape[-1],
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=weights["stack/block/attention/key/kernel"].shape[2],
        head_dim=size,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape), llama_model(weights)


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
