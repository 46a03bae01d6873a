"""Every fusion is its own configuration."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import flax.linen as nn
import pytest

from mmjax import fusion
from mmjax.fusion.experts import ByModality, ModalityAttention, ModalityBlock, NormByModality, Shared
from mmjax.fusion.resampler import Resampler
from mmjax.fusion.routed import Routed
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import LearnedPositions
from mmjax.nn.stack import Stack
from mmjax.ops.routing import Sorted
from tests.fusion.fusion_toy import through_json

MODULES = sorted(
    {
        part
        for module in pkgutil.iter_modules(fusion.__path__)
        for part in vars(importlib.import_module(f"mmjax.fusion.{module.name}")).values()
        if isinstance(part, type) and issubclass(part, nn.Module) and part.__module__.startswith("mmjax.fusion")
    },
    key=lambda part: part.__name__,
)
FILL = {
    "attention": Attention(2), "block": Block(Attention(2)), "stack": Stack(Block(Attention(2)), 2),
    "encoder": Stack(Block(Attention(2)), 2), "decoder": Stack(Block(Attention(2), cross=Attention(2)), 2),
    "feedforward": ByModality(), "model": Block(Attention(2)), "parts": (Block(Attention(2)),),
    "guide": "text", "width": 8, "queries": 4, "heads": 2, "equation": "d->m", "out": (8,), "experts": 2,
    "positions": LearnedPositions(8),
}  # fmt: skip


def filled(cls: type[nn.Module]) -> nn.Module:
    """One with its required fields filled in."""
    no_default = dataclasses.MISSING
    fields = [f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
    required = [f.name for f in fields if f.default is no_default and f.default_factory is no_default]
    return cls(**{name: FILL[name] for name in required})


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_every_module_survives_json(cls):
    value = filled(cls)
    assert type(through_json(value)) is cls and through_json(value) == value


@pytest.mark.parametrize(
    "value",
    [
        Resampler.perceiver(),
        Resampler.qformer(),
        ModalityBlock(ModalityAttention(8, dispatch=Sorted()), ByModality(), NormByModality()),
        ModalityBlock(Attention(8), Routed(), Shared()),
    ],
    ids=["perceiver", "q-former", "mixture of transformers", "mixture of experts"],
)
def test_published_models_survive_json(value):
    assert through_json(value) == value
