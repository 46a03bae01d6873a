"""Text in any script on a picture: each stretch in a font that has its letters, as far as the machine has one."""

from __future__ import annotations

import functools
import itertools
import os
import pathlib
import unicodedata
from collections.abc import Iterator

from PIL import ImageDraw, ImageFont

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts", "/System/Library/Fonts",
           "/Library/Fonts", "C:/Windows/Fonts")  # fmt: skip
PREFERRED = ("NotoSans-Regular", "DejaVuSans", "Arial", "Helvetica", "NotoSansCJK-Regular", "msyh", "PingFang")
UNKNOWN = "\u25a1"
INVISIBLE = ("Cf", "Cs", "Mn")  # joiners, halves of surrogate pairs, variation selectors

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@functools.cache
def _files() -> tuple[str, ...]:
    """Font files, preferred ones first; bold, italic and colour fonts are left out."""
    found = [
        os.path.join(base, name)
        for folder in FOLDERS
        for base, _, names in os.walk(os.path.expanduser(folder))
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf")) and _is_upright(name)
    ]
    return tuple(sorted(found, key=lambda file: (_rank(pathlib.Path(file).stem), file)))


def _is_upright(name: str) -> bool:
    return not any(
        word in name for word in ("Bold", "Italic", "Oblique", "Light", "Black", "Color", "Condensed", "Mono")
    )


def _rank(stem: str) -> int:
    return PREFERRED.index(stem) if stem in PREFERRED else len(PREFERRED) + ("Sans" not in stem)


@functools.cache
def _font(file: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except OSError:  # a font that FreeType does not read
        return None


@functools.cache
def _fallback(size: int) -> Font:
    return ImageFont.load_default(size)


@functools.lru_cache(4096)
def _has(font: Font, letter: str) -> bool:
    return bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


@functools.lru_cache(4096)
def font_for(letter: str, size: int) -> Font:
    """The first font that has the letter; the default one when none has."""
    for file in _files():
        font = _font(file, size)
        if font is not None and _has(font, letter):
            return font
    return _fallback(size)


def _clean(text: str) -> str:
    """One line without control characters, emoji joiners and variation selectors (which no text font draws)."""
    drawn = (
        letter for letter in text if unicodedata.combining(letter) or unicodedata.category(letter) not in INVISIBLE
    )
    plain = (" " if letter.isspace() else letter for letter in drawn)
    return "".join(UNKNOWN if unicodedata.category(letter) == "Cc" else letter for letter in plain)


def runs(text: str, size: int) -> Iterator[tuple[str, Font]]:
    """(stretch, font) in order; spaces stay with what is before them."""
    fonts: list[Font] = []
    for letter in text:
        joins = fonts and (letter == " " or unicodedata.combining(letter))
        fonts.append(fonts[-1] if joins else font_for(letter, size))
    for _, group in itertools.groupby(zip(text, fonts, strict=True), key=lambda pair: id(pair[1])):
        pairs = list(group)
        yield "".join(letter for letter, _ in pairs), pairs[0][1]


def width_of(text: str, size: int) -> float:
    """Pixels."""
    return sum(font.getlength(part) for part, font in runs(text, size))


def write(canvas: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, colour: str) -> None:
    """Draws one line whose baseline starts at `place` (x, y)."""
    x, y = place
    for part, font in runs(text, size):
        canvas.text((x, y), part, font=font, fill=colour, anchor="ls")
        x += font.getlength(part)


def wrapped(text: str, size: int, width: float, lines: int) -> list[str]:
    """Up to `lines` lines of at most `width` pixels, broken at spaces where there are any; "..." where more follows."""
    done, line = [], ""
    for word in _pieces(_clean(text[: 40 * lines * 4]), size, width):
        if not line or width_of(line + word.rstrip(), size) <= width:
            line += word
            continue
        done.append(line.rstrip())
        line = word
    done.append(line.rstrip())
    if len(done) > lines or len(text) > 40 * lines * 4:
        done = done[:lines]
        while done[-1] and width_of(done[-1] + "...", size) > width:
            done[-1] = done[-1][:-1]
        done[-1] += "..."
    return done


def _pieces(text: str, size: int, width: float) -> Iterator[str]:
    """Words with the space after them; words wider than a line, and scripts without spaces, letter by letter."""
    for word in text.split(" "):
        if width_of(word, size) > width or any(unicodedata.east_asian_width(letter) == "W" for letter in word):
            yield from word
            yield " "
        else:
            yield word + " "
