"""Spans become places: by hand, by rules, and for any interleaving; what is too long goes in whole spans."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_sources import Captions

from data_pipelines.chat import ChatFeature
from data_pipelines.features import Bidirectional, Causal, ImageFeature
from data_pipelines.pieces import Field, Mark
from data_pipelines.pipeline import Pipeline
from data_pipelines.spans import MediaSpan, TextSpan, lay_out, moved, proven
from data_pipelines.templates import Role, Template, Turn
from data_pipelines.tokenizers import Bytes
from data_pipelines.truncation import DropLast, DropOldest, Refuse
from mmjax.core.batch import Batch, Text
from mmjax.core.errors import DataError

TWO_WAYS, CAUSAL = Bidirectional(), Causal()


def test_the_picture_of_a_prefix_and_an_answer():
    """bos <image of 3 tokens> what col ? red"""
    spans = [
        TextSpan((2,), TWO_WAYS),
        MediaSpan("image", 0),
        TextSpan((11, 12, 13), TWO_WAYS),
        TextSpan((14,), CAUSAL, loss=1.0),
    ]
    layout = lay_out(spans, {"image": 3})
    assert layout.ids.tolist() == [2, 0, 0, 0, 11, 12, 13, 14]
    assert layout.slot.tolist() == [-1, 0, 1, 2, -1, -1, -1, -1]
    assert layout.block.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert layout.position.tolist() == list(range(8))
    assert layout.loss.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


def test_a_bidirectional_span_amid_causal_ones_is_a_block_of_its_own():
    spans = [TextSpan((5, 6)), MediaSpan("image", 0), MediaSpan("image", 1), TextSpan((7, 8)), MediaSpan("image", 2)]
    assert lay_out(spans, {"image": 2}).block.tolist() == [1, 2, 3, 3, 3, 3, 4, 5, 6, 6]
    causal = [dataclasses.replace(span, reading=CAUSAL) for span in spans]
    assert lay_out(causal, {"image": 2}).block.tolist() == list(range(1, 11))


def test_items_are_numbered_as_they_land_kind_by_kind():
    spans = [MediaSpan("audio", 0), MediaSpan("image", 3), TextSpan((9,)), MediaSpan("image", 1)]
    layout = lay_out(spans, {"image": 2, "audio": 1})
    assert layout.items == {"audio": (0,), "image": (3, 1)}
    assert layout.slot.tolist() == [4, 0, 1, -1, 2, 3]
    assert layout.landing == {"image": (0, 2, 2), "audio": (4, 1, 1)}


def test_an_item_of_no_tokens_lands_nowhere_and_is_there():
    layout = lay_out([TextSpan((5,)), MediaSpan("image", 0), TextSpan((6,))], {"image": 0})
    assert layout.ids.tolist() == [5, 6] and layout.items == {"image": (0,)} and layout.landing == {}


def test_an_item_stands_once():
    with pytest.raises(DataError, match="span 2: image 0 has a place in the sample already"):
        lay_out([MediaSpan("image", 0), TextSpan((1,)), MediaSpan("image", 0)], {"image": 1})


# ------------------------------------------------------------------------------------------------ any interleaving

KINDS = ("image", "audio")


@st.composite
def interleavings(draw):
    """Spans of two kinds of media and text in any order, and how many tokens an item takes."""
    number = dict.fromkeys(KINDS, 0)
    spans = []
    for what in draw(st.lists(st.sampled_from(("text", *KINDS)), max_size=12)):
        reading = draw(st.sampled_from([TWO_WAYS, CAUSAL]))
        turn = draw(st.integers(0, 3))
        if what == "text":
            ids = draw(st.lists(st.integers(4, 99), max_size=5))
            spans.append(TextSpan(tuple(ids), reading, draw(st.sampled_from([0.0, 0.5, 1.0])), turn))
        else:
            spans.append(MediaSpan(what, number[what], reading, turn))
            number[what] += 1
    return sorted(spans, key=lambda span: span.turn), {kind: draw(st.integers(1, 4)) for kind in KINDS}


def renumbered(spans):
    """Items of each kind in the order of their spans."""
    number, found = dict.fromkeys(KINDS, 0), []
    for span in spans:
        if isinstance(span, MediaSpan):
            span = dataclasses.replace(span, item=number[span.kind])
            number[span.kind] += 1
        found.append(span)
    return found


def rows_of(many, per_item, slack=1):
    """The batch of a row for each list of spans, with more room than it needs."""
    layouts = [lay_out(renumbered(spans), per_item) for spans in many]
    items = {kind: max(len(layout.items.get(kind, ())) for layout in layouts) + slack for kind in KINDS}
    length = max(map(len, layouts)) + slack
    spec = Batch.spec(
        len(many), text=(length, per_item), image=(items["image"], 2, 2), audio=(items["audio"], 4, 8_000)
    )
    batch = Batch.fake(Batch.spec(len(many), image=(items["image"], 2, 2), audio=(items["audio"], 4, 8_000)))
    text = Text(*(np.zeros((len(many), length), np.int32) for _ in range(5)), np.zeros((len(many), length), np.float32))
    text.slot[:] = -1
    start = {kind: np.zeros(1, np.int32) for kind in KINDS}
    parts = {}
    for row, layout in enumerate(layouts):
        for name in ("ids", "block", "position", "loss"):
            getattr(text, name)[row, : len(layout)] = getattr(layout, name)
        nobody = np.zeros(len(layout), np.int32)
        text.slot[row, : len(layout)] = moved(layout.slot, nobody, layout.landing, spec.landing(), start)
        text.segment[row, : len(layout)] = 1
    for kind in KINDS:
        held = np.array([[len(layout.items.get(kind, ()))] for layout in layouts])
        valid = np.arange(items[kind]) < held
        part = getattr(batch, kind)
        length = {"length": valid.astype(np.int32)} if kind == "audio" else {}
        parts[kind] = dataclasses.replace(part, valid=valid, segment=valid.astype(np.int32), **length)
    return batch.replace(text=dataclasses.replace(text, per_item=spec.text.per_item), **parts)


@settings(max_examples=100, deadline=None)
@given(st.lists(interleavings(), min_size=1, max_size=3))
def test_any_interleaving_keeps_the_contract_of_slots(many):
    """`proven` and `check` raise what is broken."""
    batch = rows_of([spans for spans, _ in many], per_item=many[0][1])
    assert proven(batch, "toy").check() is batch


@settings(max_examples=150, deadline=None)
@given(interleavings())
def test_who_sees_whom_is_what_the_spans_say(drawn):
    """A place sees all before it, and behind it exactly the run of bidirectional spans that it stands in."""
    spans, per_item = drawn
    layout = lay_out(renumbered(spans), per_item)
    run, runs = 0, []
    for before, span in zip([None, *spans], spans, strict=False):
        run += before is not None and (before.reading.causal or span.reading.causal)
        size = len(span.ids) if isinstance(span, TextSpan) else per_item[span.kind]
        runs += [(run, span.reading.causal)] * size
    place = np.arange(len(runs))
    same = np.array([[a == b and not a[1] for b in runs] for a in runs], bool).reshape(len(runs), len(runs))
    seen = layout.block[None, :] <= layout.block[:, None]
    assert (seen[place[:, None] >= place[None, :]]).all()
    ahead = place[:, None] < place[None, :]
    assert (seen & ahead)[same & ahead].all()
    causal = np.array([b for _, b in runs], bool)
    assert not (seen & ahead)[causal, :].any() and not (seen & ahead)[:, causal].any()


# ------------------------------------------------------------------------------------------------------- truncation

sizes = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 2)), max_size=10)


@settings(max_examples=300, deadline=None)
@given(sizes, st.integers(0, 40), st.integers(0, 6), st.sampled_from([DropOldest(), DropLast(), Refuse()]))
def test_truncation_keeps_what_must_stay_fits_and_is_maximal(spans, places, items, policy):
    spans = sorted(spans)
    turn, needs = np.array([s[0] for s in spans], int), np.array([s[1:] for s in spans], int).reshape(-1, 2)
    room = np.array([places, items])
    stays = policy.keep(turn, needs, room)
    fits = (needs.sum(0) <= room).all()
    droppable = turn > 0
    if stays is None:
        assert not fits or not droppable.any()
        return
    assert (needs[stays].sum(0) <= room).all() and stays[~droppable].all()
    assert not fits or stays.all()
    if policy == Refuse():
        assert stays.all()
    elif policy == DropLast():
        kept = stays[droppable]
        assert (np.diff(kept.astype(int)) <= 0).all() and kept[:1].all()
        if not kept.all():
            more = stays.copy()
            more[np.flatnonzero(droppable & ~stays)[0]] = True
            assert (needs[more].sum(0) > room).any()
    else:
        oldest = turn[stays & droppable].min()
        assert np.array_equal(stays, ~droppable | (turn >= oldest))
        older = turn[droppable & (turn < oldest)]
        if older.size:
            assert (needs[stays | (turn == older.max())].sum(0) > room).any()


@pytest.mark.parametrize("policy", [DropOldest(), DropLast(), Refuse()])
def test_what_must_stay_and_does_not_fit_refuses_the_sample(policy):
    assert policy.keep(np.array([0, 1]), np.array([[5], [1]]), np.array([4])) is None


# ------------------------------------------------------------------------------------------------------------ proof


def test_a_violation_names_data_set_example_and_span():
    batch = rows_of([[MediaSpan("image", 0), TextSpan((5,)), MediaSpan("image", 1)]] * 2, {"image": 2, "audio": 1})
    batch = batch.replace(id=np.array([[40], [41]], np.int32))
    batch.text.slot[1, 3] = -1
    with pytest.raises(DataError) as caught:
        proven(batch, Captions(("a",)))
    told = str(caught.value)
    assert "Captions(texts=('a',), pictures=()): media do not stand in the token row as they must:" in told
    assert "- example 41: image 1 of row 1, segment 1: its token 0 does not land" in told
    assert "example 40" not in told and caught.value.code == 65


def test_a_feature_whose_media_and_row_disagree_stops_the_pipeline():
    @dataclasses.dataclass(frozen=True)
    class Careless:
        """Shows every picture, whatever its row says."""

        chat: ChatFeature

        def spec(self):
            return self.chat.spec()

        def build(self, chunk):
            parts = dict(self.chat.build(chunk))
            valid = np.ones_like(parts["image"].valid)
            return parts | {"image": dataclasses.replace(parts["image"], valid=valid, segment=valid.astype(np.int32))}

    template = Template((Turn(Role(loss=1.0), (Mark("begin"), Field("caption"))),))
    chat = ChatFeature(Bytes(), template, 16, {"image": 2}, (ImageFeature(height=2, width=2),))
    with pytest.raises(
        DataError, match=r"Captions.*\n- example 0: image 0 of row 0, segment 1: its token 0 does not land"
    ):
        Pipeline(Captions(("a", "b")), (Careless(chat),), 2, epochs=1).rows(np.arange(2))
