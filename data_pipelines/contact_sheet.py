"""Records or a batch as one picture: cards with the image and what is said of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines import images
from data_pipelines.inspection import locate
from data_pipelines.lettering import width_of, wrapped, write
from data_pipelines.protocols import BadRecord, Source
from data_pipelines.schema import Class, Media, Schema, spoken
from mmjax.core.batch import FAULTS
from mmjax.core.errors import UserError

THUMB, INNER, MARGIN, LINE = 200, 12, 14, 19  # pixels
CARD = THUMB + 2 * INNER
TEXT, SMALL = 14, 11  # font sizes
CAPTION_LINES = 3
NOTHING = "no picture"
PAPER, CARD_PAPER, INK, GREY, RED = "#eef0f3", "#ffffff", "#1c2430", "#78828f", "#b3261e"


@dataclasses.dataclass(frozen=True)
class Card:
    """One record: its picture (None: it has none), what is said of it, its labels, and what is wrong with it."""

    picture: Image.Image | None
    caption: str = ""
    notes: Sequence[str] = ()
    fault: str | None = None


def of_source(source: Source, schema: Schema, count: int) -> list[Card]:
    """`count` records, evenly spread over the source; bad ones are shown as such."""
    indices = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)).tolist()
    return [_card(source, schema, index) for index in indices]


def _card(source: Source, schema: Schema, index: int) -> Card:
    where = locate(source, index)
    try:
        record = source[index]
        stored = [record[field.name] for field in schema.of_kind(Media, "image") if field.name in record]
        picture = Image.fromarray(images.decode(stored[0])) if stored else None
    except (BadRecord, UserError) as error:
        told = error.reason if isinstance(error, BadRecord) else str(error)
        return Card(None, fault=told, notes=[where])
    return Card(picture, *_said(record, schema, source.names()))


def _said(record: Mapping[str, Any], schema: Schema, names: Mapping[str, Sequence[str]]) -> tuple[str, list[str]]:
    said = {field.name: record[field.name] for field in schema.fields if field.name in record}
    texts = list(spoken(list(said.values())))
    classes = [f"{f.name}: {names[f.name][said[f.name]]}" for f in schema.of_kind(Class) if f.name in said]
    numbers = [
        f"{name}: {value:g}" for name, value in said.items() if isinstance(value, int | float) and name not in names
    ]
    return " / ".join(texts), [*classes, *numbers]


def of_data(data: Any, count: int) -> list[Card]:
    """The first rows of the first batch of a `core.protocols.Data`: pixels as the model gets them, texts as written."""
    batch = next(iter(data.batches(0)))
    cards = []
    for row in range(min(count, batch.fault.shape[0])):
        if batch.fault[row, 0]:
            cards.append(
                Card(None, fault=FAULTS[batch.fault[row, 0]].replace("_", " "), notes=[f"example {batch.id[row, 0]}"])
            )
            continue
        shown = data.example(int(batch.id[row, 0]))
        pixels = batch.image.pixels[row, 0] if batch.image is not None and batch.image.valid[row, 0] else None
        texts = [value for value in shown.values() if isinstance(value, str)]
        size = "" if pixels is None else f"{pixels.shape[1]} x {pixels.shape[0]}"
        cards.append(Card(None if pixels is None else Image.fromarray(pixels), " / ".join(texts), [size]))
    return cards


def draw(cards: Sequence[Card], title: str, columns: int | None = None) -> Image.Image:
    """The sheet: about as wide as high, unless `columns` is given."""
    if not cards:
        raise UserError("there is no record to draw")
    columns = columns or max(1, min(len(cards), round(len(cards) ** 0.5 + 0.4)))
    written = [list(_lines(card)) for card in cards]
    height, head = INNER + THUMB + INNER + max(map(len, written)) * LINE + INNER, 2 * MARGIN + LINE
    size = (columns * (CARD + MARGIN) + MARGIN, head + -(-len(cards) // columns) * (height + MARGIN))
    sheet = Image.new("RGB", size, PAPER)
    canvas = ImageDraw.Draw(sheet)
    for line in wrapped(title, TEXT + 2, size[0] - 2 * MARGIN, 1):
        write(canvas, (MARGIN, MARGIN + TEXT), line, TEXT + 2, INK)
    for number, (card, lines) in enumerate(zip(cards, written, strict=True)):
        x = MARGIN + number % columns * (CARD + MARGIN)
        y = head + number // columns * (height + MARGIN)
        canvas.rounded_rectangle((x, y, x + CARD, y + height), 10, fill=CARD_PAPER)
        _draw_picture(sheet, canvas, card, x + INNER, y + INNER)
        for line, (text, points, colour) in enumerate(lines):
            write(canvas, (x + INNER, y + INNER + THUMB + INNER + TEXT + line * LINE), text, points, colour)
    return sheet


def _draw_picture(sheet: Image.Image, canvas: ImageDraw.ImageDraw, card: Card, x: int, y: int) -> None:
    if card.picture is None:
        canvas.rounded_rectangle((x, y, x + THUMB, y + THUMB), 6, fill=PAPER)
        write(
            canvas,
            (x + (THUMB - width_of(NOTHING, TEXT)) / 2, y + THUMB / 2),
            NOTHING,
            TEXT,
            RED if card.fault else GREY,
        )
        return
    picture = _thumbnail(card.picture)
    sheet.paste(picture, (x + (THUMB - picture.width) // 2, y + (THUMB - picture.height) // 2))


def _thumbnail(picture: Image.Image) -> Image.Image:
    scale = min(THUMB / picture.width, THUMB / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)


def _lines(card: Card) -> Iterator[tuple[str, int, str]]:
    text, colour = (card.fault, RED) if card.fault else (card.caption, INK)
    for line in wrapped(text or "(no caption)", TEXT, THUMB, CAPTION_LINES):
        yield line, TEXT, colour if text else GREY
    note = "   ".join(note for note in card.notes if note)
    if note:
        yield wrapped(note, SMALL, THUMB, 1)[0], SMALL, GREY
