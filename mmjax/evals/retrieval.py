"""Retrieval in both directions: does a caption find its picture, and a picture its caption?

N examples   Q queries   G gallery items   E embedding width

An example is a pair (caption, picture); labels say which pairs share a picture (`same`), share a caption (`alike`),
which pairs are searched among themselves only (`within`) and which are averaged apart (`macro`).

- text to image, per value of `within`: each pair's caption searches the distinct pictures. Every picture that has this
  caption, in the same language, is right.
- image to text, per value of `within` and of `macro`: each distinct picture searches the distinct captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.embeddings import Embedded, embed, normalised
from mmjax.evals.gaps import gap
from mmjax.evals.ranking import Ranked, Relation, chance_median_rank, chance_precision, chance_recall, rank
from mmjax.evals.results import Bootstrap, Cases, Estimate, Record, codes

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Recall at k, median rank and mean average precision, overall and by slice; each with interval and chance.

    Results: `{query}_to_{gallery}` and `{gallery}_to_{query}` each hold `all` (name -> number), `slices`
    (label -> value -> name -> number), `gaps` (label -> gap of the first recall), `examples`; `heatmap` holds a small
    similarity matrix. Raises UserError for labels that the data lacks.
    """

    data: Data
    query: str = "text"
    gallery: str = "image"
    same: str | None = None  # label: pairs of one picture; None = every example has its own
    alike: str | None = None  # label: pairs of one caption; None = every example has its own
    within: str | None = None  # label whose values have separate galleries, such as the style of the drawing
    macro: str | None = None  # label averaged over last, such as the language
    cluster: str | None = None  # label drawn as one in the bootstrap; None = `same`
    slices: tuple[str, ...] = ()  # labels to report by
    at: tuple[int, ...] = (1, 5, 10)
    examples: int = 12  # right ones and wrong ones to show, of each
    heatmap: int = 14  # side of the similarity matrix
    bootstrap: Bootstrap = Bootstrap()

    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        """See the class."""
        labels = (self.same, self.alike, self.within, self.macro, self.cluster, *self.slices)
        found = embed(context, self.data, (self.query, self.gallery), labels, once=(self.gallery, self.same))
        pairs = _Pairs.of(self, found)
        forward = Direction.run(pairs.forward(), found.vectors[self.query], found.vectors[self.gallery])
        backward = Direction.run(pairs.backward(), found.vectors[self.gallery], found.vectors[self.query])
        return {
            "kind": "retrieval",
            "modalities": {"query": self.query, "gallery": self.gallery},
            "macro": self.macro,
            "fingerprint": dict(self.data.fingerprint()),
            f"{self.query}_to_{self.gallery}": self._judge(forward, found, pairs),
            f"{self.gallery}_to_{self.query}": self._judge(backward, found, pairs),
            "heatmap": self._heatmap(found, pairs),
        }

    def _judge(self, direction: Direction, found: Embedded, pairs: _Pairs) -> Record:
        cases = Cases.of(pairs.cluster[direction.row], pairs.macro[direction.row], self.bootstrap)
        everything = np.ones(len(direction.row), bool)
        slices, gaps = {}, {}
        for label in dict.fromkeys(self.slices):
            values = found.labels[label][direction.row]
            tables = {
                found.name_of(label, value): self._metrics(direction, cases, values == value)
                for value in np.unique(values[values >= 0])
            }
            slices[label] = {name: _records(table) for name, table in tables.items()}
            first = f"r{self.at[0]}"
            gaps[label] = {"metric": first, **(gap({name: table[first] for name, table in tables.items()}) or {})}
        return {
            "all": _records(self._metrics(direction, cases, everything)),
            "pool": {"queries": len(direction.row), "gallery": sorted({int(size) for size in direction.ranked.pool})},
            "slices": slices,
            "gaps": {label: found_gap for label, found_gap in gaps.items() if "gap" in found_gap},
            "examples": direction.examples(self.examples, pairs.macro, found),
        }

    def _metrics(self, direction: Direction, cases: Cases, where: Array) -> dict[str, Estimate]:
        ranked = direction.ranked
        table = {f"r{k}": (ranked.recall(k), chance_recall(ranked.pool, ranked.positives, k)) for k in self.at}
        table["map"] = ranked.precision, chance_precision(ranked.pool, ranked.positives)
        level = chance_median_rank(ranked.pool[where], ranked.positives[where])
        return cases.means(table, where) | {"median_rank": cases.median(ranked.rank.astype(np.float64), where, level)}

    def _heatmap(self, found: Embedded, pairs: _Pairs) -> Record:
        """Cosines of a few captions (rows) of one language with their pictures (columns), spread over the data."""
        rows = np.flatnonzero((pairs.macro == pairs.macro[0]) & (pairs.within == pairs.within[0]))
        rows = rows[np.sort(np.unique(pairs.same[rows], return_index=True)[1])]
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(self.heatmap, len(rows))).round().astype(int))]
        queries, gallery = (normalised(found.vectors[name][rows]) for name in (self.query, self.gallery))
        return {"ids": found.id[rows].tolist(), "cosine": np.round(queries @ gallery.T, 3).tolist()}


def _records(table: Mapping[str, Estimate]) -> dict[str, Record]:
    return {name: estimate.record() for name, estimate in table.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """One search: rows of the data that stand for its queries and for its gallery, and what is right for which."""

    queries: Int[Array, " Q"]
    gallery: Int[Array, " G"]
    right: Relation

    @classmethod
    def of(cls, rows: Array, query: Array, key: Array, item: Array) -> Pool:
        """From pairs at `rows`: rows of equal `query` are one query, which is right with every `item` of its `key`."""
        query, key, item = codes(query[rows]), codes(key[rows]), codes(item[rows])
        first = np.sort(np.unique(query, return_index=True)[1])
        shown = np.unique(item, return_index=True)[1]
        return cls(rows[first], rows[shown], Relation.between(key[first], key, item, int(key.max()) + 1))


@dataclasses.dataclass(frozen=True, eq=False)
class _Pairs:
    """The roles of the labels, one value per example."""

    same: Int[Array, " N"]
    alike: Int[Array, " N"]  # caption and language together
    within: Int[Array, " N"]
    macro: Int[Array, " N"]
    cluster: Int[Array, " N"]

    @classmethod
    def of(cls, task: Retrieval, found: Embedded) -> _Pairs:
        one = np.zeros(len(found.id), np.int64)
        macro, within = (one if label is None else found.labels[label] for label in (task.macro, task.within))
        same, alike = found.identity(task.same), codes(found.identity(task.alike), macro)
        return cls(same, alike, within, macro, found.identity(task.cluster, same))

    def forward(self) -> Iterator[Pool]:
        for value in np.unique(self.within):
            yield Pool.of(np.flatnonzero(self.within == value), codes(self.same, self.alike), self.alike, self.same)

    def backward(self) -> Iterator[Pool]:
        place = codes(self.within, self.macro)
        for value in range(int(place.max()) + 1):
            yield Pool.of(np.flatnonzero(place == value), self.same, self.same, self.alike)


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """All pools of a direction, searched: query q stands at row `row[q]` of the data."""

    row: Int[Array, " Q"]
    ranked: Ranked
    pools: Sequence[Pool]
    queries: Float[Array, "N E"]
    gallery: Float[Array, "N E"]

    @classmethod
    def run(cls, pools: Iterator[Pool], queries: Float[Array, "N E"], gallery: Float[Array, "N E"]) -> Direction:
        """Searches each pool; vectors are those of all rows of the data."""
        pools, queries, gallery = list(pools), normalised(queries), normalised(gallery)
        parts = [rank(queries[pool.queries], gallery[pool.gallery], pool.right) for pool in pools]
        fields = [f.name for f in dataclasses.fields(Ranked)]
        ranked = Ranked(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
        return cls(np.concatenate([pool.queries for pool in pools]), ranked, pools, queries, gallery)

    def examples(self, count: int, macro: Array, found: Embedded, shown: int = 5) -> list[Record]:
        """`count` queries that found a right item first and `count` that did not, dealt over the values of `macro`."""
        chosen = []
        for right in (True, False):
            rows = np.flatnonzero((self.ranked.rank == 1) == right)
            chosen += [self._example(q, found, shown) for q in _deal(rows, macro[self.row[rows]], count)]
        return chosen

    def _example(self, query: int, found: Embedded, shown: int) -> Record:
        starts = np.cumsum([0] + [len(pool.queries) for pool in self.pools])
        index = int(np.searchsorted(starts, query, side="right")) - 1
        pool, local = self.pools[index], int(query - starts[index])
        score = self.gallery[pool.gallery] @ self.queries[self.row[query]]
        first = np.argsort(-score, kind="stable")[:shown]
        right = pool.right.of(local)
        return {
            "id": int(found.id[self.row[query]]),
            "rank": int(self.ranked.rank[query]),
            "pool": int(self.ranked.pool[query]),
            "right": [int(i) for i in found.id[pool.gallery[right]][:shown]],
            "found": [
                {"id": int(found.id[pool.gallery[i]]), "cosine": round(float(score[i]), 4), "right": bool(i in right)}
                for i in first
            ],
        }


def _deal(rows: Int[Array, " Q"], kind: Array, count: int) -> list[int]:
    """`count` of `rows`, one of each kind in turn, the same ones for the same data."""
    order = np.random.default_rng(0).permutation(len(rows))
    queues = {value: [int(rows[i]) for i in order if kind[i] == value] for value in np.unique(kind)}
    turns = [row for depth in range(count) for queue in queues.values() for row in queue[depth : depth + 1]]
    return turns[:count]
