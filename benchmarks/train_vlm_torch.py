"""The peer of train_vlm.py: the same model, loss and AdamW as one would write them in PyTorch for speed.

python benchmarks/train_vlm_torch.py FOLDER FORM CALLS       FOLDER holds weights.npz and batch.npz, FORM eager or
compile

Fused products of queries, keys and values and of gate and value, `scaled_dot_product_attention`, scores of the places
with a loss alone. The picture's tokens stand first in each row, so they are concatenated and not gathered.
B rows   T places   D width   H heads   K head width
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.train_step_torch import EPSILON, Block, Stem, Weights, below, layers, linear, norm, run


def rms_norm(weights: Weights, prefix: str) -> nn.RMSNorm:
    """RMSNorm over the last dimension."""
    layer = nn.RMSNorm(len(weights[prefix + "scale"]), eps=EPSILON)
    layer.weight.data.copy_(torch.from_numpy(weights[prefix + "scale"]))
    return layer


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [B H T K], cos and sin [T K], the sine negative in its first half."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class RotaryBlock(nn.Module):
    """Pre-norm rotary attention and gated feed-forward, without biases."""

    def __init__(self, weights: Weights):
        super().__init__()
        width, self.heads, _ = weights["attention/query/kernel"].shape
        kernels = [weights[f"attention/{part}/kernel"].reshape(width, -1) for part in ("query", "key", "value")]
        self.qkv = linear(np.concatenate(kernels, 1), None)
        self.out = linear(weights["attention/out/kernel"].reshape(-1, width), None)
        self.both = linear(np.concatenate([weights[f"feedforward/{part}/kernel"] for part in ("gate", "up")], 1), None)
        self.down = linear(weights["feedforward/down/kernel"], None)
        self.first, self.second = rms_norm(weights, "attention_norm/"), rms_norm(weights, "feedforward_norm/")

    def forward(self, x: torch.Tensor, seen: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [B T D]; seen [B 1 T T]: who sees whom."""
        rows, length, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        gate, value = self.both(self.second(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * value)


class Model(nn.Module):
    """ViT, MLP and decoder; the loss of the places `where` of the flattened row, which predict `target`."""

    def __init__(self, weights: Weights, batch: dict[str, np.ndarray]):
        super().__init__()
        image = below(weights, "media_image/encoder/")
        self.stem = Stem(below(image, "stem/"), int(batch["cell"]), (), False)
        self.mean, self.std = float(batch["mean"]), float(batch["std"])
        self.grid = nn.Parameter(torch.from_numpy(image["positions/table"]))
        self.looks, self.look_norm = layers(Block, below(image, "stack/block/")), norm(image, "norm/")
        connector = below(weights, "media_image/connector/")
        self.up, self.down = (linear(connector[f"{n}/kernel"], connector[f"{n}/bias"]) for n in ("up", "down"))
        self.words = nn.Embedding.from_pretrained(torch.from_numpy(weights["embedding/table"]), freeze=False)
        stacked = below(weights, "stack/block/")
        self.blocks, self.norm = layers(RotaryBlock, stacked), rms_norm(weights, "norm/")
        half = stacked["attention/query/kernel"].shape[-1] // 2
        place = np.arange(batch["ids"].shape[1])[:, None]
        angles = place * float(batch["base"]) ** (-np.arange(half) / half)
        turns = np.concatenate([np.cos(angles)] * 2, 1), np.concatenate([-np.sin(angles), np.sin(angles)], 1)
        self.cos, self.sin = (torch.from_numpy(x.astype(np.float32)) for x in turns)

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """As our side names them."""
        found = {"embedding": self.words, "stack": self.blocks, "norm": self.norm}
        parts = {name: list(module.parameters()) for name, module in found.items()}
        known = {id(p) for part in parts.values() for p in part}
        return parts | {"media_image": [p for p in self.parameters() if id(p) not in known]}

    def tables(self) -> Iterable[nn.Parameter]:
        """What is looked up or added by place."""
        return self.grid, self.words.weight

    def forward(self, pixels, ids, seen, where, target) -> torch.Tensor:
        """pixels [B H W 3] uint8, ids [B T - cells], seen [B 1 T T], where and target [n] -> the mean loss."""
        x = self.stem(pixels.float() * (1 / (255 * self.std)) - self.mean / self.std) + self.grid
        for block in self.looks:
            x = block(x, None)
        x = self.down(F.gelu(self.up(self.look_norm(x))))
        x = torch.cat([x, self.words(ids)], 1)
        for block in self.blocks:
            x = block(x, seen, self.cos, self.sin)
        scores = self.norm(x.flatten(0, 1)[where]) @ self.words.weight.T
        return F.cross_entropy(scores, target)


def main(folder: Path, form: str, calls: int) -> None:
    """The model and its batch."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    batch = dict(np.load(folder / "batch.npz"))
    model = Model(dict(np.load(folder / "weights.npz")), batch)
    ids, real, block = batch["ids"], batch["real"], batch["block"]
    seen = real[:, None, None, :] & (block[:, None, None, :] <= block[:, None, :, None])
    answers = np.flatnonzero(batch["loss"])  # each is predicted from the place before it
    given = batch["pixels"], ids[:, int(batch["cells"]) :].astype(np.int64), seen, answers - 1, ids.ravel()[answers]
    inputs = [torch.from_numpy(np.ascontiguousarray(x)) for x in given]
    inputs[-1] = inputs[-1].long()
    run(model, lambda: model(*inputs), batch, form, calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
