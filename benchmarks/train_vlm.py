"""A small model of pictures and text for train_step.py: a ViT whose tokens stand in the row of a decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.stepping import Case, plain
from mmjax.core.batch import Batch, Images, Text
from mmjax.encoders.image import ViT
from mmjax.fusion.connectors import MLP
from mmjax.fusion.early import Interleave
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.decoder_sizes import decoder_size
from mmjax.nn.stack import Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.training.experiment import Experiment

ROWS, LENGTH, VOCAB = 16, 96, 8_000
RESOLUTION, PATCH, DEPTH = 64, 8, 6
CELLS = (RESOLUTION // PATCH) ** 2
QUESTION, ANSWER = 16, 16  # ids at most


def small() -> Experiment:
    """ViT-Ti/8 at 64 pixels, an MLP, and six layers of width 384; loss on the answers alone."""
    shape = decoder_size("S")
    model = Decoder.of(
        "S",
        VOCAB,
        stack=Stack(shape.block(), DEPTH),
        head=Language(VOCAB, scored=ANSWER / LENGTH),
        media={"image": Sense(ViT.of(f"Ti/{PATCH}", RESOLUTION), MLP(shape.width))},
        fusion=Interleave(),
    )
    shapes = Batch.spec(ROWS, text=(LENGTH, {"image": CELLS}), image=(1, RESOLUTION, RESOLUTION))
    return plain(model, PredictNext(), shapes)


def random_batch(experiment: Experiment) -> Batch:
    """A picture, a question and an answer in each row; questions and answers of random lengths."""
    rng, place = np.random.default_rng(0), np.tile(np.arange(LENGTH), (ROWS, 1))
    asked = CELLS + rng.integers(QUESTION // 2, QUESTION + 1, (ROWS, 1))
    ends = asked + rng.integers(ANSWER // 2, ANSWER + 1, (ROWS, 1))
    real, answer = place < ends, (place >= asked) & (place < ends)
    ids = np.where(real & (place >= CELLS), rng.integers(0, VOCAB, place.shape), 0)
    vectors = ids, np.where(place < CELLS, place, -1), real, answer * (place - asked + 1), real * place
    row = [x.astype(np.int32) for x in vectors]
    ones = np.ones((ROWS, 1), np.int32)
    pixels = rng.integers(0, 256, (ROWS, 1, RESOLUTION, RESOLUTION, 3)).astype(np.uint8)
    return Batch(
        text=Text(*row, answer.astype(np.float32), experiment.data.spec().text.per_item),
        image=Images(pixels, ones > 0, ones),
        id=np.arange(ROWS, dtype=np.int32)[:, None],
        fault=0 * ones.astype(np.uint8),
    ).check()


def told(experiment: Experiment, batch: Batch) -> dict[str, Any]:
    """What the peer reads beside the weights."""
    encoder = experiment.model.media["image"].encoder
    return {
        "pixels": batch.image.pixels[:, 0],
        "ids": batch.text.ids,
        "real": batch.text.valid,
        "block": batch.text.block,
        "loss": batch.text.loss,
        "cells": CELLS,
        "cell": PATCH,
        "mean": encoder.mean[0],
        "std": encoder.std[0],
        "base": experiment.model.stack.block.attention.rotary.base,
    }


CASE = Case(small, random_batch, "benchmarks/train_vlm_torch.py", told)
