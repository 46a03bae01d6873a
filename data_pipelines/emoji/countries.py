"""Which country a flag belongs to, its capital and its part of the world.

Facts are those of the package `countryinfo` (MIT), in English. Its part of the world is a region of the United Nations'
geoscheme (M49): Africa, Americas, Asia, Europe, Oceania.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import pathlib

from mmjax.core.errors import UserError

PACKAGE = "countryinfo"
MOVED = {"KZ": "Astana", "BI": "Gitega"}  # capitals that changed (2022, 2019) after the package's facts were gathered
NO_ONE_CAPITAL = ("BO", "BQ", "EH", "HK", "HM", "IL", "LK", "MO", "NR", "PS", "SZ", "TK", "VA", "ZA")
"""Several capitals, none, or a disputed one: never asked for."""
LETTER_A = 0x1F1E6  # regional indicator symbol letter A


@dataclasses.dataclass(frozen=True)
class Country:
    """capital: "" where the question has no one answer; region: "" for Antarctica and the like."""

    capital: str
    region: str


def country_code(code: str) -> str:
    """The ISO 3166-1 letters that a flag is written with: `1F1E9-1F1EA` -> `DE`; "" for other emoji."""
    letters = [int(point, 16) - LETTER_A for point in code.split("-")]
    return "".join(chr(ord("A") + letter) for letter in letters) if _are_letters(letters) else ""


def _are_letters(letters: list[int]) -> bool:
    return len(letters) == 2 and all(0 <= letter < 26 for letter in letters)


@functools.cache
def countries() -> dict[str, Country]:
    """Facts by two-letter code. Raises UserError when the package is missing."""
    found = {}
    for file in sorted((_folder() / "data").glob("*.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))
        code, capital = facts["ISO"]["alpha2"], facts.get("capital") or ""
        settled = code not in NO_ONE_CAPITAL and isinstance(capital, str)
        found[code] = Country(MOVED.get(code, capital) if settled else "", facts.get("region") or "")
    return found


def version() -> dict[str, str]:
    """Of the package that the facts come from."""
    _folder()
    return {PACKAGE: importlib.metadata.version(PACKAGE)}


def _folder() -> pathlib.Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"questions about flags need the package {PACKAGE}: pip install {PACKAGE}==1.0.1")
    return pathlib.Path(spec.submodule_search_locations[0])
