"""From texts and what is right to results: overall, by slice, beside the baselines, with examples to read.

N examples
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmjax.core.errors import UserError
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.absent import Without
from mmjax.evals.embeddings import Embedded
from mmjax.evals.gaps import gap
from mmjax.evals.generation import Field, Generator, Label, Rows, rows_of
from mmjax.evals.results import Bootstrap, Cases, Estimate, Record, rounded
from mmjax.evals.tallies import Metric, Tally, measure

Array = np.ndarray
Tallies = Mapping[str, Tally]


@dataclasses.dataclass(frozen=True)
class Grouping:
    """How cases are put together; every field but the last two is a label of the data."""

    cluster: str | None = None  # drawn as one in the bootstrap, such as the picture; None = every example by itself
    macro: str | None = None  # averaged over last, such as the language; each value is a corpus of its own
    slices: tuple[str, ...] = ()  # to report by
    examples: int = 8  # best and worst ones to show, of each
    bootstrap: Bootstrap = Bootstrap()

    def labels(self) -> tuple[str | None, ...]:
        """What must be known of each example."""
        return (self.cluster, self.macro, *self.slices)

    def group(self, about: Embedded) -> Array:
        """The value of `macro` of each example."""
        return np.zeros(len(about.id), np.int64) if self.macro is None else about.labels[self.macro]

    def results(self, about: Embedded, scores: Tallies, chance: Tallies, baselines: Mapping[str, Tallies]) -> Record:
        """`all` and `slices`: name -> number, which holds the value of each baseline too; `gain`: what each score has
        over a baseline, with the interval of the difference; `gaps`: the spread of the first score over a label."""
        cases = Cases.of(about.identity(self.cluster), self.group(about), self.bootstrap)
        table = _Table(cases, scores, chance, baselines)
        sliced = {label: self._sliced(about, label) for label in dict.fromkeys(self.slices)}
        first = next(iter(scores))
        gaps = {
            label: gap({name: table.estimate(first, w) for name, w in parts.items()}) for label, parts in sliced.items()
        }
        return {
            "macro": self.macro,
            "all": table.records(),
            "gain": {name: table.gain(name) for name in baselines},
            "slices": {label: {name: table.records(w) for name, w in parts.items()} for label, parts in sliced.items()},
            "gaps": {label: {"metric": first, **found} for label, found in gaps.items() if found is not None},
        }

    @staticmethod
    def _sliced(about: Embedded, label: str) -> dict[str, Array]:
        values = about.labels[label]
        return {about.name_of(label, int(value)): values == value for value in np.unique(values[values >= 0])}


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    cases: Cases
    scores: Tallies
    chance: Tallies
    baselines: Mapping[str, Tallies]

    def estimate(self, name: str, where: Array | None = None) -> Estimate:
        level = self.chance[name].at(self.cases, where) if name in self.chance else None
        return self.scores[name].estimate(self.cases, where, level)

    def records(self, where: Array | None = None) -> Record:
        return {name: self.estimate(name, where).record() | self._beside(name, where) for name in self.scores}

    def gain(self, baseline: str) -> Record:
        return {name: self._difference(name, tally) for name, tally in self.baselines[baseline].items()}

    def _beside(self, name: str, where: Array | None) -> Record:
        values = {key: tallies[name].at(self.cases, where) for key, tallies in self.baselines.items()}
        return {key: rounded(value) for key, value in values.items()}

    def _difference(self, name: str, other: Tally) -> Record:
        mine, theirs = self.scores[name].estimate(self.cases), other.estimate(self.cases)
        return Estimate(mine.value - theirs.value, mine.draws - theirs.draws, mine.n, mine.bootstrap, 0.0).record()


class TextTask(Protocol):
    """What the evaluators of written text have in common."""

    data: Data
    generator: Generator
    truth: Field | Label
    metrics: tuple[Metric, ...]
    grouping: Grouping
    absent: str | None


def written(context: EvalContext, task: TextTask, *labels: str | None) -> Rows:
    """What the model writes for each example."""
    if not task.metrics:
        raise UserError(f"{type(task).__name__} has no metrics; give it one or more")
    wanted = (*task.grouping.labels(), *task.truth.labels(), *labels)
    return rows_of(task.data, wanted, task.generator(context, task.data))


def judge(
    context: EvalContext, task: TextTask, said: Rows, truths: Sequence[Sequence[Any]], constant: str | None = None
) -> Record:
    """Results of `task` for the examples in `said`. `constant` is the answer that needs no model: its score is chance.

    With `task.absent` the model writes a second time without that modality (`image_absent`)."""
    group, about = task.grouping.group(said.about), said.about
    blind = {}
    if task.absent is not None:
        data = Without(task.data, task.absent)
        blind[f"{task.absent}_absent"] = rows_of(data, (), task.generator(context, data)).of(about.id)
    scores = measure(task.metrics, said.values, truths, group)
    chance = {} if constant is None else measure(task.metrics, [constant] * len(truths), truths, group)
    baselines = {name: measure(task.metrics, texts, truths, group) for name, texts in blind.items()}
    return {
        "fingerprint": dict(task.data.fingerprint()),
        **task.grouping.results(about, scores, chance, baselines),
        "examples": _examples(task.grouping.examples, said, truths, next(iter(scores.items())), blind),
    }


def _examples(
    count: int, said: Rows, truths: Sequence, first: tuple[str, Tally], blind: Mapping[str, Sequence[str]]
) -> list[Record]:
    """The best and then the worst by the first score, equals in a random but fixed order."""
    name, each = first[0], np.nan_to_num(first[1].each)
    shuffled = np.random.default_rng(0).permutation(len(each))
    order = shuffled[np.argsort(-each[shuffled], kind="stable")]
    worst = order[count:][::-1][:count]
    return [
        {
            "id": int(said.about.id[i]),
            "score": rounded(float(each[i])),
            "metric": name,
            "said": said.values[i],
            "right": [str(truth) for truth in truths[i][:5]],
            **{key: texts[i] for key, texts in blind.items()},
        }
        for i in (*order[:count], *worst)
    ]
