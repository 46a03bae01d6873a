"""Sources of a few made-up records for the pipeline tests."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.protocols import BadRecord
from mmjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Counted:
    """Record i holds the number i."""

    size: int = 10

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"number": index, "kind": index % 3}

    def column(self, name):
        return np.arange(self.size) % 3 if name == "kind" else np.arange(self.size)

    def fingerprint(self):
        return {"counted": str(self.size)}

    def names(self):
        return {"kind": ("red", "green", "blue"), "other": ("never", "used")}


@dataclasses.dataclass(frozen=True)
class Gathered(Counted):
    """The same, many at once."""

    def gather(self, indices):
        if (indices >= self.size).any():
            raise UserError(f"no record {indices.max()}")
        return {"number": indices, "kind": indices % 3}


@dataclasses.dataclass(frozen=True)
class Spoilt(Counted):
    """Every record whose number is in `bad` is damaged: half of them in the source, half in what they hold."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index):
        if index in self.bad and index % 2:
            raise BadRecord("unreadable", f"record {index} is torn")
        return {"number": "not a number" if index in self.bad else index, "kind": index % 3}

    def locate(self, index):
        return f"line {index + 1}"


@dataclasses.dataclass(frozen=True)
class Captions:
    """Texts and small pictures, some of them missing."""

    texts: tuple[str | None, ...]
    pictures: tuple[bool, ...] = ()

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        shown = self.pictures[index] if self.pictures else False
        picture = np.full((4, 6, 3), index, np.uint8) if shown else None
        return {"caption": self.texts[index], "image": picture, "number": index}

    def fingerprint(self):
        return {"captions": repr(self.texts)}

    def names(self):
        return {}
