"""The peer of decode.py: GPT-2 of transformers, and its `generate`.

python benchmarks/decode_torch.py FOLDER FORM STEPS CALLS       FOLDER holds weights.npz and prompts.npz, FORM dynamic,
static or compiled

Attention is `scaled_dot_product_attention`. Prompts are padded on the left.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import CompileConfig, GPT2Config, GPT2LMHeadModel

from benchmarks.measure import hand_over, peak_mib, time_calls

FORMS = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "compiled": {"cache_implementation": "static", "compile_config": CompileConfig(fullgraph=False)},
}


def renamed(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Weights of `Decoder.of("gpt2", ..)` under the names of GPT-2, whose linear maps are [in, out] as ours."""
    found = {
        "transformer.wte.weight": weights["embedding/table"],
        "transformer.wpe.weight": weights["positions/table"],
        "transformer.ln_f.weight": weights["norm/scale"],
        "transformer.ln_f.bias": weights["norm/bias"],
    }
    stack = {name.removeprefix("stack/block/"): x for name, x in weights.items() if name.startswith("stack/")}
    depth, width = stack["attention_norm/scale"].shape
    for layer in range(depth):
        its, name = {path: x[layer] for path, x in stack.items()}, f"transformer.h.{layer}."
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
    return {name: torch.from_numpy(x.copy()) for name, x in found.items()}


def main(folder: Path, form: str, steps: int, calls: int) -> None:
    """Times calls of `generate`, and hands over what it said."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    weights = renamed(dict(np.load(folder / "weights.npz")))
    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
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
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
