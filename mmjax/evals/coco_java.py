"""The two caption metrics whose published scores come from Java programs: METEOR with paraphrases, and SPICE.

Both are optional. They need `java` and the package pycocoevalcap, which carries the programs; SPICE also needs
Stanford CoreNLP (400 MB), which that package downloads on request from nlp.stanford.edu. What needs no Java is in
`evals.ngrams`, `evals.rouge` and `evals.meteor`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import shutil
import subprocess
import tempfile
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
    """SPICE (arXiv 1607.08822): the F-score of the objects, attributes and relations that a parser finds.

    The program runs without its cache of parses: the library that keeps it opens parts of java.lang that Java closed in
    version 16, and it would write into the installed package."""

    memory: str = "8G"

    def __call__(self, said: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, Tally]:
        """`spice`."""
        check_pairs(said, truths)
        folder = _package("SPICE") / "spice"
        parser = [folder / "lib" / f"stanford-corenlp-3.6.0{part}.jar" for part in ("", "-models")]
        if missing := [str(jar) for jar in parser if not jar.exists()]:
            raise UserError(
                f"SPICE needs Stanford CoreNLP 3.6.0, which pycocoevalcap does not carry: {' and '.join(missing)} "
                f"missing. Run python -m pycocoevalcap.spice.get_stanford_models (it downloads 400 MB from "
                f"nlp.stanford.edu), or leave SPICE out of `metrics`"
            )
        with tempfile.TemporaryDirectory() as held:
            asked, told = pathlib.Path(held) / "asked.json", pathlib.Path(held) / "told.json"
            pairs = enumerate(zip(said, truths, strict=True))
            asked.write_text(
                json.dumps([{"image_id": i, "test": _line(a), "refs": [*map(_line, b)]} for i, (a, b) in pairs])
            )
            command = ["java", f"-Xmx{self.memory}", "-jar", "spice-1.0.jar", str(asked), "-out", str(told), "-silent"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode or not told.exists():
                raise UserError(f"SPICE's Java program failed ({' '.join(command)} in {folder}): {done.stderr.strip()}")
            found = {entry["image_id"]: entry["scores"]["All"]["f"] for entry in json.loads(told.read_text())}
        scores = np.array([found[number] for number in range(len(said))], np.float64)  # null where nothing is found
        return {"spice": mean_of(np.nan_to_num(scores))}


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
