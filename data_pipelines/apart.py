"""Several dialogues about the same media in one row, each a sample of its own.   n rows of a chunk   S samples"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.chat import ChatFeature
from data_pipelines.chunks import Chunk
from mmjax.core.batch import Batch
from mmjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Apart:
    """`fields` of a record hold texts, as many in each: the first of each make one dialogue, the second the next.

    Each becomes a sample of the row, which no other sees; what does not fit behind the others is left out, and media
    belong to the first. `chat` says how one is laid out; its media must be looked at (`per_item` 0), as places in the
    row would be of one sample alone. A record whose first dialogue cannot be used is a null example.
    """

    chat: ChatFeature
    samples: int
    fields: tuple[str, ...] = ("question", "answer")

    def __post_init__(self):
        if landing := sorted(kind for kind, size in self.chat.per_item.items() if size):
            raise UserError(
                f"several dialogues share their media by looking at them, but {', '.join(landing)} would land in the "
                "row of one: give per_item 0 and a fusion with cross-attention, or one dialogue per record"
            )
        if self.samples < 1:
            raise UserError(f"a row holds at least one sample; got samples={self.samples}")

    def spec(self) -> Mapping[str, Any]:
        """See `Feature`."""
        return {**self.chat.spec(), "samples": self.samples}

    def build(self, chunk: Chunk) -> Mapping[str, Any]:
        """See `Feature`."""
        rows = [[sample] for sample in self.chat.samples(self._part(chunk, 0, chunk.errors))]
        for number in range(1, self.samples):
            errors = dict(chunk.errors)
            for row, sample in zip(rows, self.chat.samples(self._part(chunk, number, errors)), strict=True):
                if len(sample) and sum(map(len, row)) + len(sample) <= self.chat.length:
                    row.append(sample)
        return self.chat.assembled(chunk, rows)

    def show(self, part: Mapping[str, Any], row: int) -> Mapping[str, Any]:
        """See `Feature`: the dialogues one after the other."""
        return self.chat.show(part, row)

    def fingerprint(self) -> Mapping[str, str]:
        """See `ChatFeature.fingerprint`."""
        return self.chat.fingerprint()

    # ------------------------------------------------------------------------------------------------- for inference

    def asking(self, said: Sequence[str], media: Mapping[str, Sequence[Any]]) -> Batch:
        """See `ChatFeature.asking`."""
        return self.chat.asking(said, media)

    def answers(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """See `ChatFeature.answers`."""
        return self.chat.answers(ids)

    @property
    def stops(self) -> tuple[int, ...]:
        """See `ChatFeature.stops`."""
        return self.chat.stops

    def _part(self, chunk: Chunk, number: int, errors: dict[int, Any]) -> Chunk:
        """The records of dialogue `number` alone; only the first shows the media."""
        columns = {name: column for name, column in chunk.columns.items() if number == 0 or name not in self._shown}
        for name in self.fields:
            columns[name] = [_text(value, number) for value in chunk.column(name)]
        return dataclasses.replace(chunk, columns=columns, errors=errors)

    @property
    def _shown(self) -> set[str]:
        return {feature.field for feature in self.chat.media}


def _text(value: Any, number: int) -> Any:
    """The text of dialogue `number`; what holds one text alone is the first."""
    texts: Sequence[Any] = value if isinstance(value, tuple | list) else (value,)
    return texts[number] if number < len(texts) else None
