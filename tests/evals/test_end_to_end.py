"""Evaluators over a real pipeline and real towers: from pixels and words to numbers, the same on any mesh."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from data_pipelines.features import ImageFeature, TextFeature, labels
from data_pipelines.pipeline import Pipeline
from data_pipelines.tokenizers import Bytes
from mmjax.core.config import from_json, to_json
from mmjax.core.layout import Layout
from mmjax.core.parameters import unbox
from mmjax.encoders.image import ViT
from mmjax.encoders.text import TextEncoder
from mmjax.evals.classification import Judge
from mmjax.evals.neighbours import Neighbours
from mmjax.evals.prompts import reader_of
from mmjax.evals.retrieval import Retrieval
from mmjax.evals.search import search
from mmjax.evals.zeroshot import ZeroShot
from mmjax.heads.contrastive import Contrastive
from mmjax.models.towers import Tower, Towers
from mmjax.nn.pooling import Mean
from mmjax.training.context import Context

COLOURS = ("red", "green", "blue", "grey")
LANGUAGES = ("en", "de")
WORDS = (("red", "rot"), ("green", "grün"), ("blue", "blau"), ("grey", "grau"))


@dataclasses.dataclass(frozen=True)
class Tiles:
    """`size` noisy tiles of four colours, each named in two languages; record i is a function of i."""

    size: int = 22

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        colour, language, tile = index // 2 % 4, index % 2, index // 2
        base = np.array([[220, 30, 30], [30, 200, 40], [40, 40, 230], [120, 120, 120]])[colour]
        noise = np.random.default_rng(tile).integers(-25, 25, (32, 32, 3))
        pixels = np.clip(base + noise, 0, 255).astype(np.uint8)
        words = f"{WORDS[colour][language]} {tile}"
        return {"image": pixels, "caption": words, "colour": colour, "language": language, "tile": tile}

    def fingerprint(self):
        return {"tiles": str(self.size)}

    def names(self):
        return {"colour": COLOURS, "language": LANGUAGES}


def tiles(batch=8):
    text = TextFeature(Bytes(), length=16, samples=1)
    features = (ImageFeature(height=32, width=32), text, *labels("colour", "language", "tile"))
    return Pipeline(Tiles(), features, batch=batch, epochs=1)


@pytest.fixture(scope="module")
def model():
    towers = Towers(
        image=Tower(ViT.of("mu/16", 32), Mean()), text=Tower(TextEncoder.of("mu", 300, 16), Mean()), head=Contrastive(8)
    )
    batch = next(tiles().batches())
    return towers, unbox(jax.jit(lambda key: towers.init({"params": key}, batch))(jax.random.key(0)))["params"]


@pytest.fixture(scope="module")
def context(model):
    """Contexts by number of devices, each compiled once."""

    @functools.cache
    def on(devices=1):
        layout = Layout(data=devices)
        return Context.of(*model, 7, layout, layout.mesh(jax.devices()[:devices]))

    return on


def retrieval(data):
    return Retrieval(data, same="tile", macro="language", cluster="tile", slices=("language", "colour"), examples=2)


def test_same_numbers_for_any_batch_and_mesh(context):
    one = retrieval(tiles(8)).evaluate(context())
    assert one["text_to_image"]["pool"] == {"queries": 22, "gallery": [11]}
    assert set(one["text_to_image"]["slices"]["colour"]) == set(COLOURS)
    for batch, devices in ((16, 1), (8, 4)):
        other = retrieval(tiles(batch)).evaluate(context(devices))
        assert other["text_to_image"]["all"] == one["text_to_image"]["all"]
        np.testing.assert_allclose(other["heatmap"]["cosine"], one["heatmap"]["cosine"], atol=2e-3)


def test_colour_is_read_off_an_untrained_tower(context):
    """Even random weights keep colour: neighbours find it, and each tile is judged once."""
    task = Neighbours(tiles(), tiles(), Judge("colour", cluster="tile"), k=1, same="tile")
    found = task.evaluate(context())
    assert found["all"]["accuracy"]["n"] == 11
    assert found["all"]["accuracy"]["value"] == 1.0


def test_zero_shot_and_search_read_text_as_the_model_does(context):
    data = tiles()
    reader = reader_of(data)
    found = ZeroShot(data, Judge("colour"), reader, ("{}", "a {} tile"), same="tile").evaluate(context())
    assert found["all"]["accuracy"]["n"] == 11 and 0 <= found["all"]["accuracy"]["value"] <= 1
    hits = search(context(), data, reader, "red 0", count=3, same="tile")
    known = [outputs["embeddings"] for outputs, _ in context().outputs(data)]
    pictures, query = np.concatenate([part["image"] for part in known]), known[0]["text"][0]  # that caption is "red 0"
    for hit in hits:
        assert hit.cosine == pytest.approx(float(query @ pictures[hit.id]), abs=1e-3)
    assert hits[0].cosine >= hits[1].cosine >= hits[2].cosine


def test_evaluators_are_configuration():
    task = retrieval(tiles())
    text = to_json(dataclasses.replace(task, data=None))
    assert from_json(text) == dataclasses.replace(task, data=None)
