"""Connectors: tokens of items to tokens of items, each item by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.pytrees import flatten_names
from mmjax.core.tokens import Tokens
from mmjax.fusion.connectors import MLP, AsIs, GridPool, InTurn, PixelShuffle, Placed, Project, SkipFirst
from mmjax.fusion.resampler import Resampler
from mmjax.nn.embeddings import LearnedPositions
from mmjax.nn.norms import LayerNorm
from tests.fusion.fusion_toy import assert_same, items, parameters, real, run, spoiled, values_and_gradient

PICTURES = items("image", [[1, 2, 0], [1, 0, 1]], 16)  # 4 x 4 cells each

CONNECTORS = {
    "as is": (AsIs(), 16, 16),
    "project": (Project(8), 16, 8),
    "mlp": (MLP(8, norm=LayerNorm()), 16, 8),
    "shuffle": (PixelShuffle(2), 4, 64),
    "shuffle, mlp": (InTurn((PixelShuffle(2), MLP(8))), 4, 8),
    "pool": (GridPool(4), 1, 16),
    "skip first": (SkipFirst(3), 13, 16),
    "placed": (Placed(LearnedPositions(16)), 16, 16),
    "perceiver": (Resampler.perceiver(queries=3, depth=2, heads=2), 3, 16),
    "q-former": (Resampler.qformer(queries=5, depth=2, heads=2, width=8), 5, 8),
}


@pytest.fixture(scope="module", params=CONNECTORS, ids=str)
def case(request):
    connector, size, width = CONNECTORS[request.param]
    params = parameters(connector, PICTURES, 3)
    return connector, params, size, width


def parameters_of(connector):
    variables = jax.eval_shape(lambda: connector.init({"params": jax.random.key(0)}, PICTURES, 3))
    return variables.get("params")


def test_sizes_and_places(case):
    connector, params, size, width = case
    out = run(connector, params, PICTURES, 3)
    assert out.x.shape == (2, 3 * size, width)
    np.testing.assert_array_equal(out.places.segment, np.repeat([[1, 2, 0], [1, 0, 1]], size, axis=1))
    np.testing.assert_array_equal(out.places.position, np.tile(np.arange(size), (2, 3)))
    np.testing.assert_array_equal(out.valid, out.places.segment > 0)
    assert (np.asarray(out.places.modality) == 1).all() and (np.asarray(out.places.block) == 0).all()


def test_what_stands_at_absent_pictures_never_matters(case):
    connector, params, *_ = case
    plain = values_and_gradient(connector, params, PICTURES, 3)
    holed = values_and_gradient(connector, params, spoiled(PICTURES), 3)
    assert_same(real(holed), real(plain))


def test_pictures_do_not_see_each_other(case):
    connector, params, size, _ = case
    whole = run(connector, params, PICTURES, 3)
    for row, number in np.ndindex(2, 3):
        one = jax.tree.map(lambda x, r=row, n=number: x[r : r + 1, 16 * n : 16 * (n + 1)], PICTURES)
        alone = run(connector, params, one, 1)
        part = jax.tree.map(lambda x, r=row, n=number: x[r : r + 1, size * n : size * (n + 1)], whole)
        assert_same(real(alone), real(part))


def cells_by_hand(grid: np.ndarray, fold: int) -> list[np.ndarray]:
    rows, columns = grid.shape[:2]
    return [grid[r : r + fold, c : c + fold] for r in range(0, rows, fold) for c in range(0, columns, fold)]


def test_pixel_shuffle_joins_squares_of_cells_in_row_major_order():
    tokens = items("image", [[1]], 8)
    squares = cells_by_hand(np.asarray(tokens.x).reshape(2, 4, 16), 2)
    out = PixelShuffle(2, grid=(2, 4)).apply({}, tokens, 1).x[0]
    np.testing.assert_array_equal(out, [square.reshape(-1) for square in squares])


def test_grid_pool_is_the_mean_of_the_valid_cells():
    tokens = items("image", [[1]], 16)
    valid = np.random.default_rng(0).random((4, 4)) < 0.5
    valid[:2, :2] = False  # a square where nothing is real
    tokens = spoiled(Tokens(tokens.x, tokens.places.replace(valid=jnp.asarray(valid.reshape(1, 16)))))
    out = GridPool(2).apply({}, tokens, 1)
    squares = cells_by_hand(np.asarray(tokens.x).reshape(4, 4, 16), 2)
    flags = cells_by_hand(valid, 2)
    for number, (square, flag) in enumerate(zip(squares, flags, strict=True)):
        assert bool(out.valid[0, number]) == flag.any()
        expected = square[flag].mean(axis=0) if flag.any() else np.zeros(16)
        np.testing.assert_allclose(out.x[0, number], expected, atol=1e-6)


def test_items_without_their_first_tokens():
    x = np.asarray(PICTURES.clean().x).reshape(2, 3, 16, 16)
    out = SkipFirst(1).apply({}, PICTURES, 3)
    np.testing.assert_array_equal(np.asarray(out.x).reshape(2, 3, 15, 16), x[:, :, 1:])
    with pytest.raises(UserError, match="16 of the 16 tokens of an item cannot go; some must stay"):
        SkipFirst(16).apply({}, PICTURES, 3)


def test_tokens_are_told_their_number_in_the_item():
    connector = Placed(LearnedPositions(16))
    params = parameters(connector, PICTURES, 3)
    added = np.asarray(run(connector, params, PICTURES, 3).x - PICTURES.clean().x).reshape(6, 16, 16)
    table = np.asarray(params["params"]["positions"]["table"])
    np.testing.assert_allclose(added, np.broadcast_to(table, added.shape), atol=1e-6)


def test_resamplers_see_a_set_of_tokens():
    order = np.random.default_rng(0).permutation(16)
    tokens = items("image", [[1]], 16)
    mixed = tokens.with_x(tokens.x[:, order])
    for resampler in (CONNECTORS["perceiver"][0], CONNECTORS["q-former"][0]):
        params = parameters(resampler, tokens, 1)
        assert_same(run(resampler, params, mixed, 1), run(resampler, params, tokens, 1))


def test_a_qformer_looks_at_the_picture_in_every_nth_block_only():
    names = flatten_names(parameters_of(Resampler.qformer(queries=2, depth=6, heads=2, every=3, width=16)))
    looking = {name.split("/")[2] for name in names if "/cross/" in name}
    blocks = {name.split("/")[2] for name in names if name.startswith("stack/")}
    assert len(blocks) == 3 and len(looking) == 1
    with pytest.raises(UserError, match="every 4-th of 6 blocks does not come out even"):
        Resampler.qformer(depth=6, every=4)


@pytest.mark.parametrize(
    ("connector", "count", "message"),
    [
        (Project(8), 5, "48 tokens are not those of 5 items"),
        (PixelShuffle(3), 3, "squares of 3 x 3 do not tile 16 tokens of an item as a grid of 4 x 4"),
        (GridPool(2, grid=(3, 4)), 3, "as a grid of 3 x 4"),
        (PixelShuffle(2), 16, "do not tile 3 tokens of an item as a grid of 1 x 1.*drop class tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(connector, count, message):
    with pytest.raises(UserError, match=message):
        connector.init({"params": jax.random.key(0)}, PICTURES, count)
