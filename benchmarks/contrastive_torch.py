"""The peer of contrastive_time.py, in PyTorch: dense losses as open_clip 3.3 writes them, by its best form on one
device.

python benchmarks/contrastive_torch.py LOSS FORM ROWS WIDTH CALLS
"""

from __future__ import annotations

import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import hand_over, peak_mib, time_calls


def softmax(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """open_clip.loss.ClipLoss; one product and its transpose (its multi-device form) rather than two products."""
    logits = scale * left @ right.T
    labels = torch.arange(len(left))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def sigmoid(left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """open_clip.loss.SigLipLoss."""
    logits = scale * left @ right.T + bias
    labels = 2 * torch.eye(len(left)) - torch.ones(len(left), len(left))
    return -F.logsigmoid(labels * logits).sum() / len(left)


def main(name: str, form: str, rows: int, width: int, calls: int) -> None:
    """Times loss and gradients, and hands over what they were."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(2, rows, width)).astype(np.float32)
    sides /= np.linalg.norm(sides, axis=-1, keepdims=True)
    inputs = [torch.tensor(x, requires_grad=True) for x in (*sides, np.float32(10.0), np.float32(-10.0))]
    loss = {"softmax": softmax, "sigmoid": sigmoid}[name]
    loss = torch.compile(loss) if form == "compile" else loss
    resting = peak_mib()

    def call() -> torch.Tensor:
        for x in inputs:
            x.grad = None
        value = loss(*inputs)
        value.backward()
        return value

    value = call().item()
    slope = inputs[0].grad.numpy()
    found = {"loss": value, "norm": float(np.linalg.norm(slope)), "corner": slope[:2, :4].tolist()}
    timed = time_calls(call, calls, warmup=1)
    hand_over(found | timed | {"grown_mib": peak_mib() - resting, "peak_mib": peak_mib(), "torch": torch.__version__})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
