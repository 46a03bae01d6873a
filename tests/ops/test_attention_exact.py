"""Kernels that take short cuts give what all pairs give, values and gradients, however rows are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.core.tokens import Pattern, Places, visible
from mmjax.ops.attention import Chunked, Reference
from mmjax.ops.attention_blocks import BigBird, BlockSparse, Given
from mmjax.ops.attention_dense import cut_places
from mmjax.ops.attention_flash import Flash, reach
from mmjax.ops.attention_rows import looks_ahead
from mmjax.ops.attention_sliding import Sliding
from tests.ops.attention_cases import LAYOUTS, LENGTH, AllPairs, arrays, assert_agree, attended, row, rows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [Sliding(queries=4), Sliding(ahead=0, queries=8)], ids=str)
def test_a_sliding_window_sees_what_the_pattern_says(kernel, layout):
    assert_agree(kernel, Reference(), LAYOUTS[layout], Pattern(window=6))


def test_a_sliding_window_may_hide_modalities_and_cap_logits():
    places = LAYOUTS["prefix"].replace(modality=LAYOUTS["prefix"].position % 2)
    assert_agree(Sliding(queries=4), Reference(), places, Pattern(window=6, hidden=(("text", "image"),)), softcap=2.0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_leading_places_see_and_are_seen_by_their_whole_sample(layout):
    kernel = Sliding(leading=2, samples=2, queries=4)  # one layout has three samples
    assert_agree(kernel, AllPairs(kernel), LAYOUTS[layout], Pattern(window=4))


def test_leading_places_are_the_first_of_each_sample():
    both = LAYOUTS["bidirectional"]
    seen = np.asarray(Sliding(leading=2).see(Pattern(window=4))(both, both))[0]
    assert seen[0, :17].all() and seen[:17, 1].all() and not seen[0, 17:].any()
    assert seen[10].sum() == 7 + 2


BLOCKS = {
    "big bird": BigBird(random=1),
    "given": Given(tuple((i, (i * 3) % 10) for i in range(10))),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_block_sparse_attention_is_that_of_its_layout(blocks, layout):
    kernel = BlockSparse(BLOCKS[blocks], size=4, samples=2)  # one layout has three samples
    assert_agree(kernel, AllPairs(kernel, 10), LAYOUTS[layout])


def test_big_bird_sees_its_neighbours_the_leading_block_and_drawn_ones():
    blocks = BigBird(window=3, leading=1, random=2)
    assert blocks.of(0) == (0, 1) and blocks.of(1) == (0, 1, 2)
    assert {0, 19, 20, 21} < set(blocks.of(20)) and len(blocks.of(20)) == 6
    assert blocks.of(20) == BigBird().of(20) != BigBird(seed=1).of(20)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [Flash(16, 8), Flash(8, 16)], ids=str)
def test_block_by_block_gives_the_same(kernel, layout):
    assert_agree(kernel, Reference(), LAYOUTS[layout])
    assert_agree(kernel, Reference(), LAYOUTS[layout], Pattern(window=9), softcap=3.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 9])
def test_blocks_that_nobody_sees_are_passed_over(layout, window):
    """None that somebody sees; where places are in order and there is no window, all that lie before or after."""
    for places in (jax.tree.map(lambda x, i=i: x[i : i + 1], LAYOUTS[layout]) for i in range(2)):
        blocks = cut_places(places, 4)
        seen = np.asarray(visible(places, places, Pattern(window=window)))[0].reshape(10, 4, 10, 4).any(axis=(1, 3))
        for needed, first, last in zip(seen, *map(np.asarray, reach(blocks, blocks, window)), strict=True):
            among = np.flatnonzero(needed)
            assert all(first <= block < last for block in among)
            if layout in ("causal", "prefix", "bidirectional") and window is None:
                assert last - first == (among[-1] + 1 - among[0] if len(among) else 0)


EXACT = [Flash(4, 4), Chunked(4), Sliding(queries=4), BlockSparse(Given(((0,),)), size=40)]


@pytest.mark.parametrize("kernel", EXACT, ids=str)
def test_a_memory_or_a_cache_may_stand_in_for_the_row(kernel):
    places = LAYOUTS["prefix"]
    q, k, v = arrays()
    last = jax.tree.map(lambda x: x[:, -9:-4], places)
    got = attended(q[:, :, -9:-4], k, v, last, places, pattern=Pattern(window=40), kernel=kernel)
    np.testing.assert_allclose(got, attended(q, k, v, places)[:, :, -9:-4], atol=1e-5)


@pytest.mark.parametrize("kernel", EXACT, ids=str)
def test_without_places_all_is_visible(kernel):
    parts = arrays()
    seen = Pattern(window=LENGTH)
    np.testing.assert_allclose(attended(*parts, pattern=seen, kernel=kernel), attended(*parts), atol=1e-5)


def test_cost_grows_with_the_window_and_not_with_the_row():
    def temporary(kernel, length):
        q = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
        places = Places.all_of("text", 1, length).causal()
        loss = lambda q, k, v: jnp.sum(kernel(q, k, v, places))  # noqa: E731
        cost = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile()
        return cost.memory_analysis().temp_size_in_bytes

    pattern = Pattern(window=64)
    sliding = lambda q, k, v, places: Sliding(queries=64)._banded(q, k, v, places, pattern, 1.0, None)  # noqa: E731
    assert temporary(sliding, 4096) < 2.2 * temporary(sliding, 2048)


def test_what_a_kernel_cannot_do_is_refused():
    parts, places = arrays(), LAYOUTS["causal"]
    with pytest.raises(UserError, match=r"Sliding needs a window; give pattern=Pattern\(window=512\)"):
        attended(*parts, places, kernel=Sliding())
    with pytest.raises(UserError, match="the block layout has 1 rows, but a row of tokens may hold 10 blocks"):
        attended(*parts, places, kernel=BlockSparse(Given(((0,),)), size=4))
    with pytest.raises(UserError, match="must be an odd number of blocks, such as 3; got 2"):
        attended(*parts, places, kernel=BlockSparse(BigBird(window=2)))


def test_how_far_a_row_looks_ahead():
    places = rows(row(6, 8, length=16))
    threes = places.replace(block=places.position // 3)
    assert not looks_ahead(places, 0)[0]
    assert looks_ahead(threes, 0)[0] and looks_ahead(threes, 1)[0] and not looks_ahead(threes, 2)[0]
    hole = threes.replace(valid=threes.valid.at[:, 2::3].set(False))
    assert looks_ahead(hole, 0)[0] and not looks_ahead(hole, 1)[0]


def test_visibility_of_a_window_is_that_of_the_pattern():
    places = LAYOUTS["prefix"]
    see = Sliding().see(Pattern(window=5))
    np.testing.assert_array_equal(see(places, places), visible(places, places, Pattern(window=5)))
