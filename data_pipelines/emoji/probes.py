"""Probes for things that a model only imagines, after POPE (Li et al. 2023, arXiv 2305.10355, section 5)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.cache import fingerprint_of
from data_pipelines.emoji import answers, splits
from data_pipelines.emoji.catalogue import LANGUAGES, catalogue, versions
from data_pipelines.emoji.inventory import Pool, pool, things
from data_pipelines.emoji.plans import LOCATE, composed, planned
from data_pipelines.emoji.scene_questions import LABELS, label_names, labels_of_things, name_of
from data_pipelines.emoji.scenes import PLACES, Scenes, check_size, paint
from data_pipelines.emoji.wordings import put, wordings
from data_pipelines.randomness import fold, mix, named, uniform
from mmjax.core.errors import UserError, check_names, look_up

KINDS = ("random", "popular", "adversarial")
SPLITS = (splits.TRAIN, splits.CONCEPTS, splits.STYLE)
QUESTIONS = 4  # of a scene and a kind: yes, no, yes, no
TRIES = 8


@dataclasses.dataclass(frozen=True)
class SceneProbes:
    """Questions whether a thing is in a scene, as many to be answered with yes as with no.

    What is not there is drawn at random from all things (random), from the quarter that turns up most in such scenes
    (popular), or from the subgroups of what is there (adversarial): half of what stands together in a scene is of one
    subgroup, so a model that trusts its expectations will say yes. For popular the things that are there are its most
    popular ones, too, so that what is asked about tells less of the answer (`chances`).

    A record has `image` [R R 3] uint8, `question`, `answer` (text) and, as integers, `things` [P] (-1 for none),
    `thing` (asked about), `kind`, `language`, `style`, `picture` (the scene), `concept`, `kin`, `group`, `subgroup`.
    """

    split: str = "train"
    resolution: int = 96
    kinds: tuple[str, ...] = KINDS
    languages: tuple[str, ...] = ("en",)
    scenes: int = 500
    seed: int = 0

    def __post_init__(self):
        chosen = (
            ("split", (self.split,), SPLITS),
            ("kind", self.kinds, KINDS),
            ("language", self.languages, LANGUAGES),
        )
        for kind, given, known in chosen:
            check_names(kind, given, known)
            if not given:
                raise UserError(f"no {kind} is given; choose from {', '.join(known)}")
        check_size(self.resolution, self.scenes)

    # ------------------------------------------------------------------------------------------------ as a source

    def __len__(self) -> int:
        return self.scenes * len(self.kinds) * QUESTIONS

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return {name: column[0] for name, column in self.gather(np.array([index])).items()}

    def gather(self, indices: np.ndarray) -> Mapping[str, Sequence[Any]]:
        """See `data_pipelines.protocols.Gathers`."""
        scenes, thing, truth = self._asked(indices)
        pixels, _ = paint(scenes, self.resolution)
        numbers = self._numbers(indices, thing) | {"things": scenes.thing, "style": scenes.style}
        way = (mix(named(self._keys(indices), "way") + np.asarray(indices, np.uint64)) >> np.uint64(1)).tolist()
        spoken = numbers["language"].tolist()
        rows = list(zip(thing.tolist(), spoken, way, strict=True))
        question = [put("exist", LANGUAGES[tongue], number, name_of(one, tongue)) for one, tongue, number in rows]
        answer = [answers.yes_or_no(yes, LANGUAGES[tongue]) for yes, tongue in zip(truth.tolist(), spoken, strict=True)]
        columns = {"image": pixels, "question": question, "answer": answer}
        return columns | {name: column.astype(np.int32) for name, column in numbers.items()}

    def column(self, name: str) -> np.ndarray:
        """[len] a label of every question, without drawing a picture."""
        indices = np.arange(len(self))
        return look_up("column", name, self._numbers(indices, self._asked(indices)[1]))

    def texts(self, field: str = "question") -> list[str]:
        """What questions and answers are made of, each once in a stable order: the same for either field."""
        words: set[str] = set()
        for tongue in self.languages:
            words |= {name_of(thing, LANGUAGES.index(tongue)) for thing in pool(self.split).members.tolist()}
            words |= {put("exist", tongue, way) for way in range(len(wordings("exist", tongue)))}
            words |= set(answers.YES_NO[tongue])
        return sorted(words)

    def fingerprint(self) -> Mapping[str, str]:
        """See `data_pipelines.protocols.Source`."""
        ways = [wordings("exist", tongue) for tongue in self.languages]
        codes = [catalogue()[place].code for place in things()]
        settings = dataclasses.asdict(self) | {
            "wordings": ways,
            "things": codes,
            "split seed": splits.SEED,
            "probing": 1,
        }
        return {"emoji probes": fingerprint_of(settings), "emoji packages": fingerprint_of(versions())}

    def names(self) -> Mapping[str, tuple[str, ...]]:
        """See `data_pipelines.protocols.Source`."""
        return {**label_names(), "kind": KINDS}

    def locate(self, index: int) -> str:
        """See `data_pipelines.protocols.Locates`."""
        scene, kind = divmod(index // QUESTIONS, len(self.kinds))
        return f"scene {scene} of {self.split} {self.kinds[kind]} {index % QUESTIONS}"

    def chances(self) -> dict[str, float]:
        """By kind, how often a reader is right who never sees a picture and answers by what is asked about alone, as is
        right most often in this very source. Above a half, the more so the fewer questions there are of a thing."""
        indices = np.arange(len(self))
        _, thing, truth = self._asked(indices)
        found = {}
        for kind in self.kinds:
            of_kind = np.flatnonzero(self._kind_of(indices) == KINDS.index(kind))
            votes: dict[int, collections.Counter[bool]] = collections.defaultdict(collections.Counter)
            for one, yes in zip(thing[of_kind].tolist(), truth[of_kind].tolist(), strict=True):
                votes[one][yes] += 1
            found[kind] = sum(max(counts.values()) for counts in votes.values()) / len(of_kind)
        return found

    # ------------------------------------------------------------------------------------------------------ inside

    def _asked(self, indices: np.ndarray) -> tuple[Scenes, np.ndarray, np.ndarray]:
        """(scenes, thing asked about, whether it is there) of each question."""
        keys = self._keys(indices)
        plans = planned(self.split, np.full(len(keys), LOCATE), keys)
        scenes = composed(self.split, plans, keys)
        turn = np.asarray(indices) % QUESTIONS
        number, truth = turn // 2, turn % 2 == 0
        kind = self._kind_of(indices)
        absent = _absent(pool(self.split), scenes.thing, kind, keys)
        present = np.where((kind == KINDS.index("popular"))[:, None], self._most_popular(scenes), scenes.thing[:, :2])
        rows = np.arange(len(keys))
        return scenes, np.where(truth, present[rows, number], absent[rows, number]), truth

    def _most_popular(self, scenes: Scenes) -> np.ndarray:
        """[n 2] of what is there."""
        popular = pool(self.split).popular
        rank = np.full(len(things()) + 1, len(popular))  # the last is for NOTHING
        rank[popular] = np.arange(len(popular))
        return np.take_along_axis(scenes.thing, np.argsort(rank[scenes.thing], axis=1, kind="stable"), axis=1)[:, :2]

    def _numbers(self, indices: np.ndarray, thing: np.ndarray) -> dict[str, np.ndarray]:
        scene, kind = self._scene_of(indices), self._kind_of(indices)
        spoken = np.array([LANGUAGES.index(name) for name in self.languages])[scene % len(self.languages)]
        labels = {name: labels_of_things()[name][thing] for name in LABELS}
        return {"kind": kind, "language": spoken, "thing": thing, "picture": scene, **labels}

    def _kind_of(self, indices: np.ndarray) -> np.ndarray:
        """Numbers into KINDS."""
        kinds = np.array([KINDS.index(name) for name in self.kinds])
        return kinds[np.asarray(indices) // QUESTIONS % len(kinds)]

    def _scene_of(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(indices) // (QUESTIONS * len(self.kinds))

    def _keys(self, indices: np.ndarray) -> np.ndarray:
        """Of the scene that a question is about."""
        return fold(named(named(self.seed, "probes"), self.split), self._scene_of(indices))


def _absent(among: Pool, present: np.ndarray, kind: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[n 2] two things that are not `present` [n P], of the kind asked for as far as there are any."""
    draw = uniform(fold(fold(named(keys, "absent"), kind)[:, None], np.arange(TRIES)))
    members, popular = among.members, among.popular[: max(PLACES + 2, len(among.popular) // 4)]
    anywhere = members[(draw * len(members)).astype(np.int64)]
    often = popular[(draw * len(popular)).astype(np.int64)]
    first = np.searchsorted(members, present[:, np.arange(TRIES) % 2])  # subject and other in turn
    alike = members[among.theme_start[first] + (draw * among.theme_size[first]).astype(np.int64)]
    wanted = np.stack([anywhere, often, alike])[kind, np.arange(len(kind))]
    certain = np.broadcast_to(popular[: PLACES + 2], (len(kind), PLACES + 2))  # of these, two are absent at least
    candidates = np.concatenate([wanted, often, certain], axis=1)
    taken, found = present, []
    for _ in range(2):
        free = ~(candidates[:, :, None] == taken[:, None]).any(2)
        found.append(candidates[np.arange(len(kind)), free.argmax(1)])
        taken = np.concatenate([taken, found[-1][:, None]], axis=1)
    return np.stack(found, axis=1)
