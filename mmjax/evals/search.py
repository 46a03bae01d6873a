"""Pictures by words: ranks the pictures of a data set for a query, and draws them on one sheet."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmjax.core.errors import UserError
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.embeddings import embed, normalised
from mmjax.evals.prompts import Prompts, ReadsText


@dataclasses.dataclass(frozen=True)
class Hit:
    """One picture that was found."""

    rank: int
    cosine: float
    id: int
    caption: str


def search(
    context: EvalContext, data: Data, reader: ReadsText, query: str, count: int = 12, same: str | None = None
) -> list[Hit]:
    """The `count` pictures of `data` nearest to `query`, best first, each picture (label `same`) once."""
    if not query.strip():
        raise UserError('the search text is empty; say what to look for, such as "a red fruit"')
    (asked,) = normalised(embed(context, Prompts(reader, (query,)), ("text",)).vectors["text"])
    found = embed(context, data, ("image",), once=("image", same))
    cosine = normalised(found.vectors["image"]) @ asked
    order = np.argsort(-cosine, kind="stable")[:count]
    ids = [int(found.id[i]) for i in order]
    captions = [caption_of(data.example(index)) for index in ids]
    rows = zip(order, ids, captions, strict=True)
    return [Hit(rank, round(float(cosine[i]), 4), index, text) for rank, (i, index, text) in enumerate(rows, 1)]


def caption_of(example: Mapping[str, Any]) -> str:
    """The text of an example: its caption or text, or its first words."""
    texts = {name: value for name, value in example.items() if isinstance(value, str)}
    return texts.get("caption") or texts.get("text") or next(iter(texts.values()), "")


def picture_of(example: Mapping[str, Any]) -> Image.Image | None:
    """The picture of an example ([H W 3] or [N H W 3] uint8, a Pillow image, or encoded bytes), if it has one."""
    value = example.get("image")
    if value is None or isinstance(value, Image.Image):
        return value
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value)).convert("RGB")
    pixels = np.asarray(value)
    return Image.fromarray((pixels[0] if pixels.ndim == 4 else pixels).astype(np.uint8))


TILE, GAP, LINE = 128, 16, 20  # pixels


def contact_sheet(data: Data, hits: Sequence[Hit], title: str, path: pathlib.Path, columns: int = 6) -> pathlib.Path:
    """Draws the hits in reading order with rank, cosine and caption, as a PNG."""
    columns = max(min(columns, len(hits)), 1)
    height = TILE + 2 * LINE + GAP
    rows = -(-len(hits) // columns)
    sheet = Image.new("RGB", (GAP + columns * (TILE + GAP), 3 * GAP + LINE + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _shorten(draw, title, sheet.width - 2 * GAP, 18), fill="#1c1c1a", font=_font(18))
    for i, hit in enumerate(hits):
        x, y = GAP + i % columns * (TILE + GAP), 2 * GAP + LINE + i // columns * height
        picture = picture_of(data.example(hit.id))
        if picture is not None:
            sheet.paste(picture.convert("RGB").resize((TILE, TILE), Image.Resampling.BICUBIC), (x, y))
        draw.rectangle((x - 1, y - 1, x + TILE, y + TILE), outline="#dddcd6")
        draw.text((x, y + TILE + 4), f"{hit.rank}   {hit.cosine:.3f}", fill="#6b6a64", font=_font(12))
        draw.text((x, y + TILE + LINE), _shorten(draw, hit.caption, TILE, 12), fill="#1c1c1a", font=_font(12))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """Cut to fit; Pillow's own font has Latin letters only, so other scripts are left out instead of drawn as boxes."""
    text = "".join(letter for letter in text if letter.isprintable())
    if any(ord(letter) > 0x24F for letter in text):
        return ""
    while text and draw.textlength(text, font=_font(size)) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text
