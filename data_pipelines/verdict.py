"""From what was found in the data to whether it will train, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from data_pipelines.schema import Chat, Class, Media, Number, Schema, Text

if TYPE_CHECKING:
    from data_pipelines.inspection import Inspection, Labels, Pictures, Words

FEW = 500
"""Records below which a model can do little but learn them by heart."""

SMALL = 32
"""Pixels below which a picture shows little."""


def verdict(
    facts: Inspection, schema: Schema, allowed: float, unlisted: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(problems that stop training, remarks)."""
    problems = [*_stops(facts, allowed), *_pairs(facts, schema)]
    remarks = [*_losses(facts, allowed, unlisted)]
    for name, found in facts.fields.items():
        kind = next(field.kind for field in schema.fields if field.name == name)
        if isinstance(kind, Media) and kind.modality == "image":
            remarks += _pictures(name, found)
        elif isinstance(kind, Text | Chat):
            remarks += _texts(name, found)
        elif isinstance(kind, Class | Number):
            remarks += _labels(name, found, isinstance(kind, Class))
    return tuple(problems), tuple(remarks)


def _stops(facts: Inspection, allowed: float) -> Iterator[str]:
    stopping = facts.faults.get("stops training", 0)
    bad = facts.looked_at - facts.good
    if stopping:
        yield f"{stopping} records lie in damaged or unreadable files, which stops a run; restore these files first"
    if not facts.good:
        yield "not one record can be used; the list says why"
    elif bad > allowed * facts.looked_at:
        yield (
            f"{bad} of {facts.looked_at} records are bad ({bad / facts.looked_at:.1%}); a run forgives {allowed:.1%}; "
            "repair or remove those listed"
        )


def _pairs(facts: Inspection, schema: Schema) -> Iterator[str]:
    """Contrastive training needs pictures and something that tells them apart."""
    pictures = [field.name for field in schema.of_kind(Media, "image")]
    others = [field.name for field in schema.fields if isinstance(field.kind, Text | Chat | Class)]
    if not pictures:
        yield "no field is a picture; declare one, for example --schema image:image=COLUMN,caption:text=COLUMN"
    if not others:
        yield (
            "there is nothing but pictures: add captions (captions.csv with the columns file_name and text, or a .txt "
            "of the same name beside each picture), or one sub-folder per class"
        )
    for name in pictures:
        if facts.good and facts.fields[name].count and facts.fields[name].distinct < 2:
            yield f"{name}: every record shows the same picture; there is nothing to tell apart"
    telling = [facts.fields[name].distinct for name in others if facts.fields[name].count]
    if facts.good and others and max(telling, default=0) < 2:
        yield f"{' and '.join(others)}: every record says the same; there is nothing to tell apart"


def _losses(facts: Inspection, allowed: float, unlisted: Sequence[str]) -> Iterator[str]:
    bad = facts.looked_at - facts.good
    if 0 < bad <= allowed * facts.looked_at:
        yield f"{bad} bad records will be left out and listed in bad_records.jsonl; a run forgives {allowed:.1%}"
    if facts.good and facts.records < FEW:
        yield f"only {facts.records} records: a model will know them by heart; start from a trained one or add data"
    if unlisted:
        yield f"{len(unlisted)} pictures are not in the captions file and will not be used, such as {unlisted[0]}"


def _pictures(name: str, found: Pictures) -> Iterator[str]:
    if found.count > found.distinct:
        same = found.count - found.distinct
        yield f"{name}: {same} pictures are exact copies of others (fine for several captions of one picture)"
    small = found.sizes.get(f"under {SMALL}", 0)
    if small:
        yield f"{name}: {small} pictures are under {SMALL} pixels on their shorter side"
    if found.blank:
        yield f"{name}: {found.blank} pictures are of one colour only"


def _texts(name: str, found: Words) -> Iterator[str]:
    if found.cut:
        yield f"{name}: {found.cut} texts are longer than 16 kB; only their beginnings are used"
    if found.count and found.distinct < 0.5 * found.count:
        text, count = found.commonest[0]
        yield f"{name}: {found.count - found.distinct} texts occur before; the commonest, {count} times: {text!r}"


def _labels(name: str, found: Labels, named: bool) -> Iterator[str]:
    if found.absent:
        yield f"{name}: no record is {' or '.join(found.absent[:5])}"
    counts = list(found.occurrences.values())
    if named and counts and max(counts) > 20 * min(counts):
        rare = list(found.occurrences)[-1]
        yield f"{name}: unbalanced, {counts[0]} records of {next(iter(found.occurrences))} and {counts[-1]} of {rare}"
