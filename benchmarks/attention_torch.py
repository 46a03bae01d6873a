"""The peer of attention.py, in PyTorch: torch.nn.functional.scaled_dot_product_attention, causal.

python benchmarks/attention_torch.py HEADS WIDTH LENGTH CALLS
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.measure import hand_over, time_calls


def main(heads: int, width: int, length: int, calls: int) -> None:
    """Times the forward pass, and that with gradients, and hands over what they were."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    made = np.random.default_rng(0).normal(size=(3, 1, heads, length, width)).astype(np.float32)
    inputs = [torch.tensor(x, requires_grad=True) for x in made]

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return scaled_dot_product_attention(*inputs, is_causal=True)

    def train() -> torch.Tensor:
        for x in inputs:
            x.grad = None
        loss = scaled_dot_product_attention(*inputs, is_causal=True).square().sum()
        loss.backward()
        return loss

    same = {"loss": train().item(), "norms": [float(x.grad.norm()) for x in inputs]}
    there, both = time_calls(forward, calls), time_calls(train, calls)
    hand_over(same | there | {"train_s": min(both["wall_s"]), "torch": torch.__version__})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:5]))
