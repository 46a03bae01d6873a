"""Networks over pictures: published sizes, tokens of a grid, and pictures that do not see each other."""

import json

import jax
import numpy as np
import pytest

from mmjax.core.batch import Batch
from mmjax.core.config import from_json, to_json
from mmjax.core.errors import UserError
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.encoders.cnn import EfficientNet, ResNet, Stage, basic, bottleneck
from mmjax.fusion.connectors import Project
from mmjax.heads.contrastive import Contrastive
from mmjax.models.decoder import Sense
from mmjax.models.towers import Tower, Towers
from mmjax.nn.norms import GroupNorm
from tests.drawn import applied, drawn

PUBLISHED = {
    "18": 11_689_512 - 513_000,
    "34": 21_797_672 - 513_000,
    "50": 25_557_032 - 2_049_000,
    "101": 44_549_160 - 2_049_000,
    "B0": 5_288_548 - 1_281_000,
    "B1": 7_794_184 - 1_281_000,
    "B4": 19_341_616 - 1_793_000,
    "B7": 66_347_960 - 2_561_000,
}
"""Trained parameters of torchvision's models less those of their classifiers."""

TINY = {
    "basic": ResNet(basic, (2, 1), 8, GroupNorm(4)),
    "bottleneck": ResNet(bottleneck, (1, 2), 4, GroupNorm(4)),
    "mbconv": EfficientNet((Stage(1, 3, 1, 8, 1), Stage(2, 5, 2, 16, 2)), 8, 24, drop=0.5),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_as_many_as_published(size):
    """Group norms have as many as batch norms, whose running statistics were never among these."""
    images = Batch.spec(1, image=(1, 64, 64)).image
    model = (EfficientNet if size.startswith("B") else ResNet).of(size)
    shapes = jax.eval_shape(lambda key, images: model.init(key, images), jax.random.key(0), images)
    assert element_count(unbox(shapes)) == PUBLISHED[size]


@pytest.fixture(scope="module", params=TINY, ids=str)
def each(request):
    model, images = TINY[request.param], Batch.fake(Batch.spec(2, image=(3, 32, 48)), 1).image
    return model, drawn(model, images), images


def test_tokens_are_the_cells_of_each_picture(each):
    model, params, images = each
    tokens = applied(model)(params, images)
    cells = (32 // 8) * (48 // 8) if isinstance(model, ResNet) else (32 // 4) * (48 // 4)
    assert tokens.x.shape[:2] == (2, 3 * cells) and np.isfinite(tokens.x).all()
    np.testing.assert_array_equal(tokens.valid, np.repeat(images.valid, cells, axis=1))
    np.testing.assert_array_equal(tokens.places.segment, np.repeat(images.segment * images.valid, cells, axis=1))
    np.testing.assert_array_equal(tokens.places.position[0], np.tile(np.arange(cells), 3))


def test_a_picture_is_blind_to_the_others(each):
    model, params, images = each
    run = applied(model)
    whole = run(params, images).x.reshape(2, 3, -1)
    turned = jax.tree.map(lambda x: np.asarray(x)[::-1, [2, 0, 1]], images)
    np.testing.assert_allclose(run(params, turned).x.reshape(2, 3, -1), whole[::-1, [2, 0, 1]], atol=1e-4)


def test_training_leaves_branches_out_by_picture():
    model, images = TINY["mbconv"], Batch.fake(Batch.spec(2, image=(3, 32, 48)), 1).image
    params = drawn(model, images)
    run = jax.jit(lambda p, key: model.apply(p, images, train=True, rngs={"dropout": key}).x)
    a, b = run(params, jax.random.key(1)), run(params, jax.random.key(2))
    still = applied(model)(params, images).x
    assert not np.allclose(a, b) and not np.allclose(a, still)


def test_networks_serve_as_towers_and_as_senses():
    batch = Batch.fake(Batch.spec(2, image=(2, 32, 32)), 0)
    towers = Towers(Contrastive(5), image=Tower(TINY["basic"]))
    out = applied(towers)(drawn(towers, batch), batch)
    np.testing.assert_allclose(np.linalg.norm(out["embeddings"]["image"], axis=-1), 1, rtol=1e-5)
    sense = Sense(TINY["mbconv"], Project(7))
    tokens = applied(sense)(drawn(sense, batch.image), batch.image)
    assert tokens.x.shape == (2, 2 * 64, 7)


def test_networks_are_their_own_configuration():
    for model in (*TINY.values(), ResNet.of("50"), EfficientNet.of("B3")):
        assert from_json(json.loads(json.dumps(to_json(model), allow_nan=False))) == model


def test_unknown_sizes_are_answered_with_the_known():
    with pytest.raises(UserError, match="no ResNet is called '51'"):
        ResNet.of("51")
    with pytest.raises(UserError, match="no EfficientNet is called 'b0'"):
        EfficientNet.of("b0")
