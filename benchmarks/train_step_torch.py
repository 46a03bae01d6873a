"""The peer of train_step.py: the same towers, loss and AdamW as one would write them in PyTorch for speed.

python benchmarks/train_step_torch.py FOLDER FORM CALLS       FOLDER holds weights.npz and batch.npz, FORM eager or
compile

Fused query-key-value product, `scaled_dot_product_attention`, channels-last convolutions, tanh GELU, fused AdamW.
B rows   S texts of a row   T text slots of a row   D width   H heads
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.measure import hand_over, peak_mib, time_calls

EPSILON = 1e-6
Weights = dict[str, np.ndarray]


def below(weights: Weights, prefix: str) -> Weights:
    """The weights under a path."""
    return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}


def linear(kernel: np.ndarray, bias: np.ndarray | None) -> nn.Linear:
    """From a kernel [in, out]."""
    layer = nn.Linear(*kernel.shape, bias=bias is not None)
    layer.weight.data.copy_(torch.from_numpy(kernel.T.copy()))
    if bias is not None:
        layer.bias.data.copy_(torch.from_numpy(bias))
    return layer


def norm(weights: Weights, prefix: str) -> nn.LayerNorm:
    """LayerNorm over the last dimension."""
    layer = nn.LayerNorm(len(weights[prefix + "scale"]), eps=EPSILON)
    layer.weight.data.copy_(torch.from_numpy(weights[prefix + "scale"]))
    layer.bias.data.copy_(torch.from_numpy(weights[prefix + "bias"]))
    return layer


class PictureNorm(nn.Module):
    """GroupNorm with one group, over [B H W C]."""

    def __init__(self, weights: Weights, prefix: str):
        super().__init__()
        self.inner = nn.GroupNorm(1, len(weights[prefix + "scale"]), eps=1e-4)
        self.inner.weight.data.copy_(torch.from_numpy(weights[prefix + "scale"]))
        self.inner.bias.data.copy_(torch.from_numpy(weights[prefix + "bias"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class GatedResidual(nn.Module):
    """x + down(silu(gate) * up), of the normalised x."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.norm = norm(weights, "norm/")
        self.both = linear(np.concatenate([weights["layer/gate/kernel"], weights["layer/up/kernel"]], 1), None)
        self.down = linear(weights["layer/down/kernel"], None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(self.norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, weights: Weights):
        super().__init__()
        width, self.heads, _ = weights["attention/query/kernel"].shape
        parts = ("query", "key", "value")
        kernel = np.concatenate([weights[f"attention/{part}/kernel"].reshape(width, -1) for part in parts], 1)
        bias = np.concatenate([weights[f"attention/{part}/bias"].reshape(-1) for part in parts])
        self.qkv = linear(kernel, bias)
        self.out = linear(weights["attention/out/kernel"].reshape(-1, width), weights["attention/out/bias"])
        self.up = linear(weights["feedforward/up/kernel"], weights["feedforward/up/bias"])
        self.down = linear(weights["feedforward/down/kernel"], weights["feedforward/down/bias"])
        self.first, self.second = norm(weights, "attention_norm/"), norm(weights, "feedforward_norm/")

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """x [B T D]; seen [B 1 1 T]: which keys are real."""
        rows, length, width = x.shape
        qkv = self.qkv(self.first(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=seen)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.second(x)), approximate="tanh"))


def layers(block: Callable[[Weights], nn.Module], stacked: Weights) -> nn.ModuleList:
    """A block for each layer of stacked weights."""
    depth = len(next(iter(stacked.values()))) if stacked else 0
    return nn.ModuleList(block({name: x[i] for name, x in stacked.items()}) for i in range(depth))


class Transformer(nn.Module):
    """What both encoders have: blocks, the last norm, and the pool."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.blocks = layers(Block, below(weights, "encoder/stack/block/"))
        self.norm = norm(weights, "encoder/norm/")
        score = weights.get("pool/score/kernel")
        self.score = None if score is None else linear(score, None)

    def forward(self, x: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """x [B T D], real [B T] -> [B D]: the mean of the real tokens, weighted per head when weights are learned."""
        seen = None if real is None else real[:, None, None, :]
        for block in self.blocks:
            x = block(x, seen)
        x = self.norm(x)
        if self.score is None:
            if real is None:
                return x.mean(1)
            return (x * (real / real.sum(1, keepdim=True))[..., None]).sum(1)
        score = self.score(x)
        if real is not None:
            score = score.masked_fill(~real[..., None], torch.finfo(score.dtype).min)
        weight = score.softmax(1)
        parts = x.view(*x.shape[:2], weight.shape[-1], -1)
        return (weight[..., None] * parts).sum(1).flatten(1)


class Stem(nn.Module):
    """Patches by one strided convolution, or cells and stages of convolution, norm and GELU."""

    def __init__(self, weights: Weights, cell: int, strides: tuple[int, ...], whole: bool):
        super().__init__()
        self.cell, self.convs, self.norms = cell, nn.ModuleList(), nn.ModuleList()
        if not strides:
            kernel = weights["patches/kernel"]  # [cell cell 3, D]
            kernels = [(kernel.reshape(cell, cell, 3, -1), weights["patches/bias"], cell)]
        else:
            kernels = [(weights[f"conv_{i}/kernel"], weights[f"conv_{i}/bias"], s) for i, s in enumerate(strides)]
            kind = PictureNorm if whole else norm
            self.norms.extend(kind(weights, f"norm_{i}/") for i in range(len(strides)))
        for kernel, bias, stride in kernels:
            size, _, inner, outer = kernel.shape
            conv = nn.Conv2d(inner, outer, size, stride).to(memory_format=torch.channels_last)
            conv.weight.data.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
            conv.bias.data.copy_(torch.from_numpy(bias))
            self.convs.append(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [B H W 3] -> [B T D]. The permutations are views: in memory channels stay last."""
        if not self.norms:
            return self.convs[0](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        rows, height, width, _ = x.shape
        cell = self.cell
        x = x.view(rows, height // cell, cell, width // cell, cell, 3).transpose(2, 3)
        x = x.reshape(rows, height // cell, width // cell, -1)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            (size, _), (stride, _), side = conv.kernel_size, conv.stride, x.shape[1]
            pad = max((-(-side // stride) - 1) * stride + size - side, 0)
            edge = (pad // 2, pad - pad // 2)
            y = conv(F.pad(x.permute(0, 3, 1, 2), edge * 2)).permute(0, 2, 3, 1)
            y = F.gelu(norm(y), approximate="tanh")
            x = x + y if x.shape == y.shape else y
        return x.flatten(1, 2)


class Towers(nn.Module):
    """Image and text tower, and the head."""

    def __init__(self, weights: Weights, batch: dict[str, np.ndarray]):
        super().__init__()
        image, text = below(weights, "image/"), below(weights, "text/")
        strides, whole = tuple(batch["strides"].tolist()), bool(batch["whole"])
        self.stem = Stem(below(image, "encoder/stem/"), int(batch["cell"]), strides, whole)
        self.mean, self.std = float(batch["mean"]), float(batch["std"])
        after = below(text, "after/")
        self.after = GatedResidual(after) if after else nn.Identity()
        self.image, self.text = Transformer(image), Transformer(text)
        self.grid = nn.Parameter(torch.from_numpy(image["encoder/positions/table"]))
        self.words = nn.Embedding.from_pretrained(torch.from_numpy(text["encoder/embedding/table"]), freeze=False)
        table = text.get("encoder/positions/table")
        self.places = None if table is None else nn.Parameter(torch.from_numpy(table))
        self.to_image, self.to_text = (linear(weights[f"head/{name}/kernel"], None) for name in ("image", "text"))
        self.log_scale = nn.Parameter(torch.from_numpy(weights["head/log_scale"]))

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """As our side names them."""
        image = [*self.stem.parameters(), *self.image.parameters(), self.grid]
        head = [*self.to_image.parameters(), *self.to_text.parameters(), self.log_scale]
        known = {id(p) for p in (*image, *head)}
        return {"image": image, "head": head, "text": [p for p in self.parameters() if id(p) not in known]}

    def tables(self) -> Iterable[nn.Parameter]:
        """What is looked up or added by place."""
        return [p for p in (self.grid, self.words.weight, self.places) if p is not None]

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """pixels [B H W 3] uint8, ids and real [B S T/S] -> unit vectors of images [B E] and texts [B S E], scale."""
        x = self.stem(pixels.float() * (1 / (255 * self.std)) - self.mean / self.std) + self.grid
        image = F.normalize(self.to_image(self.image(x, None)), dim=-1)
        x = self.words(ids.view(-1, ids.shape[-1]))
        x = x if self.places is None else x + self.places[: x.shape[1]]
        pooled = self.after(self.text(x, real.view(-1, real.shape[-1])))
        text = F.normalize(self.to_text(pooled), dim=-1)
        return image, text, self.log_scale.clamp(max=float(np.log(100.0))).exp()


def info_nce(image, text, scale, positive, counted) -> torch.Tensor:
    """Mean over images and texts of logsumexp over what counts minus the mean over positives."""
    logits = scale * image @ text.T
    if positive is None:
        own = torch.arange(len(image))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    masked = logits.masked_fill(~counted, float("-inf"))
    drawn = torch.where(positive, logits, 0.0)
    rows = masked.logsumexp(1) - drawn.sum(1) / positive.sum(1)
    columns = masked.logsumexp(0) - drawn.sum(0) / positive.sum(0)
    return (rows.sum() + columns.sum()) / (len(rows) + len(columns))


def optimizer(model: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """AdamW with decay on what multiplies activations, as on our side."""
    tables = {id(p) for p in model.tables()}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def run(model: nn.Module, loss_of: Callable[[], torch.Tensor], batch: Weights, form: str, calls: int) -> None:
    """Times steps, and hands over the first gradients and losses. `model.parts()` are its parameters by what they are
    part of, `model.tables()` those that are looked up."""
    update = optimizer(model, float(batch["rate"]), float(batch["decay"]))
    parameters = list(model.parameters())
    loss_of = torch.compile(loss_of) if form == "compile" else loss_of

    def step() -> float:
        update.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        update.step()
        return loss.item()

    loss_of().backward()
    slopes = {
        name: sum(p.grad.double().square().sum().item() for p in part) ** 0.5 for name, part in model.parts().items()
    }
    losses = [step() for _ in range(3)]
    hand_over({"losses": losses, "slopes": slopes, "peak_mib": peak_mib()} | time_calls(step, calls, warmup=1))


def main(folder: Path, form: str, calls: int) -> None:
    """Towers and their batch."""
    torch.set_num_threads(int(os.environ["MMJAX_BENCH_THREADS"]))
    batch = dict(np.load(folder / "batch.npz"))
    model = Towers(dict(np.load(folder / "weights.npz")), batch)
    rows, texts = len(batch["pixels"]), int(batch["texts"])
    pixels, ids, real = (torch.from_numpy(batch[name]) for name in ("pixels", "ids", "real"))
    inputs = pixels, ids.view(rows, texts, -1).long(), real.view(rows, texts, -1)
    positive = counted = None
    if texts > 1:
        picture, caption = (torch.from_numpy(batch[name]) for name in ("picture", "caption"))
        positive = picture[:, :1] == picture.view(1, -1)
        counted = positive | ~(caption[:, :1] == caption.view(1, -1))
    run(model, lambda: info_nce(*model(*inputs), positive, counted), batch, form, calls)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
