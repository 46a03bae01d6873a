"""The two caption metrics whose published scores come from Java programs: METEOR with paraphrases, and SPICE.

Both are optional. They need `java` and the package pycocoevalcap, which carries the programs; SPICE also needs Stanford
CoreNLP (400 MB), which that package downloads on request. What needs no Java is in `evals.ngrams`, `evals.rouge` and
`evals.meteor`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from mmjax.core.errors import UserError
from mmjax.evals.meteor import Meteor
from mmjax.evals.tallies import Tally, check_pairs, mean_of
from mmjax.evals.tokenise import words


@dataclasses.dataclass(frozen=True)
class MeteorJar:
    """METEOR 1.5 with all of its stages (same word, stem, synonym, paraphrase), as COCO leaderboards report it."""

    memory: str = "2G"

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`meteor`."""
        check_pairs(said, truths)
        folder = _package("METEOR") / "meteor"
        command = ["java", "-jar", f"-Xmx{self.memory}", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
        asked = [
            " ||| ".join(("SCORE", *map(_line, references), _line(text)))
            for text, references in zip(said, truths, strict=True)
        ]
        done = subprocess.run(command, cwd=folder, input="\n".join(asked) + "\n", capture_output=True, text=True)
        answers = done.stdout.splitlines()
        if done.returncode or len(answers) != len(said):
            raise UserError(f"METEOR's Java program failed ({' '.join(command)} in {folder}): {done.stderr.strip()}")
        counts = np.array([[float(x) for x in answer.split()] for answer in answers])
        return {"meteor": Tally(_summed(counts), Meteor().score)}


def _summed(answers: np.ndarray) -> np.ndarray:
    """The program's 23 counts as the 7 of `Meteor.score`. Each pair is (text, reference): lengths, function words, then
    content and function words matched in each of four stages, chunks, words matched."""
    lengths, function, stages = answers[:, 0:2], answers[:, 2:4], answers[:, 4:20].reshape(-1, 4, 2, 2)
    delta, worth = Meteor().delta, np.array([1.0, 0.6, 0.8, 0.6])
    weighted = delta * (lengths - function) + (1 - delta) * function
    matched = np.einsum("qskp,s,k->qp", stages, worth, np.array([delta, 1 - delta]))
    return np.column_stack([weighted, matched, answers[:, 21:23].mean(1), answers[:, 20], lengths.sum(1)])


@dataclasses.dataclass(frozen=True)
class Spice:
    """SPICE (arXiv 1607.08822): the F-score of the objects, attributes and relations that a parser finds."""

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`spice`."""
        check_pairs(said, truths)
        parser = _package("SPICE") / "spice" / "lib" / "stanford-corenlp-3.6.0.jar"
        if not parser.exists():
            raise UserError(
                f"SPICE needs Stanford CoreNLP 3.6.0, and {parser} does not exist: run python -m "
                "pycocoevalcap.spice.get_stanford_models (it downloads 400 MB), or leave SPICE out of `metrics`"
            )
        from pycocoevalcap.spice.spice import Spice as Program

        references = {i: [" ".join(words(reference)) for reference in given] for i, given in enumerate(truths)}
        try:
            _, scores = Program().compute_score(references, {i: [" ".join(words(text))] for i, text in enumerate(said)})
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"SPICE's Java program failed: {error}; it was written for Java 8") from None
        return {"spice": mean_of(np.nan_to_num([score["All"]["f"] for score in scores]))}


def _line(text: str) -> str:
    return " ".join(words(text)).replace("|||", "")


def _package(metric: str) -> pathlib.Path:
    """Where pycocoevalcap lies. Raises UserError when it or Java is missing."""
    missing = [] if shutil.which("java") else ["java (a Java runtime, on the PATH)"]
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None:
        missing.append("pycocoevalcap (pip install pycocoevalcap)")
    if missing:
        raise UserError(
            f"{metric} is a Java program and needs {' and '.join(missing)}; leave it out of `metrics`, or use "
            "evals.meteor.Meteor, which needs neither"
        )
    return pathlib.Path(found.submodule_search_locations[0])
