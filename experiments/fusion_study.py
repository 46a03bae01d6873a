"""Every way to fuse picture and question on the same task, with as many parameters and as many steps: the study.

    python -m experiments.fusion_study                            all: a table, a plot, a page; again goes on
    python -m experiments.fusion_study designs=cross,late_sum seeds=2
    mmjax train experiments/fusion_study.py design=flamingo       one of them

The task: skin tone and gender of people in small pictures, asked in English, with seven answers; judged by exact match
on compositions of role, gender and tone that training never shows, beside the same trained model without the picture.

The protocol, for all alike: encoders of picture and words that start from nothing, a design that makes one vector of
what they give, and a linear classifier over it. So designs that only give a vector and designs that could write are
compared in what they share. Hidden widths are such that all fused parts are equally large (`experiments.designs`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data_pipelines.chat import ChatFeature
from data_pipelines.emoji.questions import KINDS, EmojiQuestions
from data_pipelines.features import Bidirectional, ImageFeature, labels
from data_pipelines.pieces import Field, Mark, Rest
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import Role, Template, Turn
from data_pipelines.tokenizers import SentencePiece
from experiments.designs.fusion import DESIGNS, fused_part, hidden, model
from mmjax.cli.main import main as mmjax
from mmjax.core import config
from mmjax.core.errors import ExitCode, UserError, check_names, look_up
from mmjax.core.parameters import unbox
from mmjax.core.pytrees import element_count
from mmjax.evals.answering import Answering
from mmjax.evals.answers import ExactMatch
from mmjax.evals.choosing import Chosen
from mmjax.evals.generation import Label
from mmjax.evals.judging import Grouping
from mmjax.objectives.classification import Softmax
from mmjax.ops.augment import Jitter
from mmjax.report.comparison import Compared, Comparison
from mmjax.training import cost
from mmjax.training.average import Ema
from mmjax.training.checkpoints import Checkpoints
from mmjax.training.durable import write_text
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.loop import compile_step
from mmjax.training.optim import Group, muon
from mmjax.training.rules import Adam
from mmjax.training.schedules import Cosine
from mmjax.training.state import abstract_state, build_update
from mmjax.training.writers import read_metrics

ASKED = ("tone", "gender")
QUESTION = Template((Turn(Role(Bidirectional()), (Rest("image"), Mark("begin"), Field("question"))),))
WORDS = 14
"""Places of the row for a question."""


def experiment(
    design: str = "single_stream", resolution: int = 32, batch: int = 64, steps: int = 250, seed: int = 0
) -> Experiment:
    """design: a name in `experiments.designs.fusion`; resolution: pixels, a multiple of 16; batch: questions a step."""
    its = look_up("design", design, DESIGNS)
    train = _questions("train", resolution)
    words = SentencePiece(train, field="question", vocabulary=1_000)
    picture = ImageFeature("image", resolution, resolution)
    read = ChatFeature(words, QUESTION, its.places + WORDS, {"image": its.places}, (picture,))
    features = (read, *labels("answer", "kind", "concept"))
    held = Pipeline(_questions("unseen_compositions", resolution), features, 256, epochs=1)
    grouping = Grouping(cluster="concept", slices=("kind",))
    answers = len(train.names()["answer"])
    return Experiment(
        model=model(design, hidden(design), resolution, words.size, answers),
        data=Pipeline(train, features, batch, shuffle=seed),
        objectives={"answer": weighted(1.0, Softmax("answer"))} | dict(its.objectives),
        optimizer=muon(
            Cosine(4e-3, warmup=min(30, max(1, steps // 8))),
            decay=0.05,
            groups=(Group(".*encoders_text/.*", rule=Adam(b2=0.98)),),
        ),
        augment=Jitter(shift=0.08, zoom=(0.85, 1.1), stretch=0.08, brightness=0.02, contrast=0.04),
        average=Ema(0.98),
        steps=steps,
        evals={"answers": every(0, Answering(held, Chosen("answer"), Label("answer"), (ExactMatch(),), grouping))},
        checkpoints=Checkpoints(keep=1),
        log_every=20,
        seed=seed,
    )


def _questions(split: str, resolution: int) -> EmojiQuestions:
    return EmojiQuestions(split, resolution, ASKED, ("en",))


# ----------------------------------------------------------------------------------------------------------- the study


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared, on how many seeds each, and where the results lie; every field is a setting."""

    designs: tuple[str, ...] = tuple(DESIGNS)
    seeds: int = 1
    steps: int = 250
    batch: int = 64
    resolution: int = 32
    folder: str = "runs/fusion_study"

    def __post_init__(self):
        check_names("design", self.designs, DESIGNS)
        if self.seeds < 1:
            raise UserError(f"seeds={self.seeds}: expected how many trainings of each design, from 1 on")

    def settings(self, design: str, seed: int) -> dict[str, Any]:
        """Arguments of `experiment`."""
        shared = {"resolution": self.resolution, "batch": self.batch, "steps": self.steps}
        return {"design": design, "seed": seed, **shared}

    def chance(self) -> float:
        """How often one is right who gives each question the answer that it most often has."""
        source = _questions("unseen_compositions", self.resolution)
        kind, chances = source.column("kind"), source.chances()
        return sum(chances[name] * float(np.mean(kind == KINDS.index(name))) for name in ASKED)


def trained(study: Study, design: str, seed: int) -> dict[str, Any]:
    """What one training gave and cost. Trains unless its folder holds the same experiment, done; a training that was
    stopped goes on. Raises UserError where it stops again."""
    folder, settings = pathlib.Path(study.folder) / design / f"seed{seed}", study.settings(design, seed)
    value = experiment(**settings)
    same = _recorded(folder) == config.to_json(value)
    if not (same and (folder / "DONE").exists()):
        words = ["train", __file__, "--run", str(folder), *(f"{name}={text}" for name, text in settings.items())]
        code = mmjax(words + ["--fresh"] * (folder.exists() and not same))
        if code:
            raise UserError(
                f"the training in {folder} ended with {code}; the same command goes on", code=ExitCode(code)
            )
    if not (folder / "cost.json").exists():
        write_text(folder / "cost.json", json.dumps(costs(value)) + "\n")
    judged = _json(folder / "evals" / "answers" / f"{study.steps}.json")
    rates = [line["examples_per_s"] for line in read_metrics(folder / "metrics.jsonl") if "examples_per_s" in line]
    found = {"score": judged["all"]["exact_match"], "gain": judged["gain"]["image_absent"]["exact_match"]}
    kinds = {kind: number["exact_match"] for kind, number in judged["slices"]["kind"].items()}
    return _json(folder / "cost.json") | found | {"step_s": study.batch / statistics.median(rates), "kinds": kinds}


def costs(value: Experiment) -> dict[str, Any]:
    """Parameters of the fused part and of all; FLOPs of the products of one example's forward pass, counted in the
    traced program (`mmjax.training.cost`); bytes that the compiled training step needs beside its inputs and outputs,
    as the compiler says; None where it does not."""
    declared, mesh, update = unbox(value.declared), value.layout.mesh(), build_update(value)
    with value.layout.use(mesh):
        compiled = compile_step(value, update, abstract_state(value, update, mesh), mesh)
    return {
        "fused": element_count(fused_part(declared)),
        "parameters": element_count(declared),
        "flops": sum(cost.model_flops(value.model, declared, value.data.spec()).values()),
        "temporary_bytes": cost.memory(value, mesh, compiled).get("activations and gradients"),
    }


def _recorded(folder: pathlib.Path) -> Any:
    """The experiment that a run folder holds, as JSON; None where there is none."""
    return _json(folder / "experiment.json")["experiment"] if (folder / "experiment.json").exists() else None


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------- its results

COLUMNS = ("design", "what", "parameters fused", "of all", "MFLOPs", "MiB", "ms", "score", "no picture", "chance")


def compared(design: str, runs: Sequence[Mapping[str, Any]], chance: float) -> Compared:
    """A design's row: means over its seeds. The interval is that of the evaluation (concepts resampled) where there is
    one seed, and the range over the seeds where there are several."""
    scores, its = [run["score"]["value"] for run in runs], runs[0]
    score, absent = statistics.fmean(scores), statistics.fmean(run["score"]["image_absent"] for run in runs)
    low, high = (its["score"]["low"], its["score"]["high"]) if len(runs) == 1 else (min(scores), max(scores))
    memory = its["temporary_bytes"]
    cells = (
        design,
        DESIGNS[design].paper,
        f"{its['fused']:,}",
        f"{its['parameters']:,}",
        f"{its['flops'] / 1e6:.1f}",
        "?" if memory is None else f"{memory / 2**20:.0f}",
        f"{1e3 * statistics.median(run['step_s'] for run in runs):.0f}",
        f"{score:.3f} [{low:.3f}, {high:.3f}]",
        f"{absent:.3f}",
        f"{chance:.3f}",
    )
    return Compared(design, score, low, high, absent, cells)


def publish(study: Study, found: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """results.json, table.md, plot.svg and index.html of the designs that are done."""
    folder, chance = pathlib.Path(study.folder), study.chance()
    spread = "concepts resampled" if study.seeds == 1 else f"range over {study.seeds} seeds"
    lede = (
        f"Questions for skin tone and gender, answered by {len(found)} designs after {study.steps} steps of "
        f"{study.batch}: exact match on compositions of role, gender and tone that training never shows. Encoders, "
        "head, data and recipe are the same; the fused parts are equally large. MFLOPs: products of one example's "
        "forward pass. MiB: temporary memory of a training step. ms: a step, on this machine. In brackets: "
        f"{spread}."
    )
    rows = tuple(compared(design, runs, chance) for design, runs in found.items())
    it = Comparison("Ways to fuse picture and question", lede, COLUMNS, rows, chance, words=2)
    results = {"study": config.to_json(study), "chance": chance, "designs": found}
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "table.md", f"{lede}\n\n{it.table()}")
    write_text(folder / "plot.svg", it.drawing())
    write_text(folder / "index.html", it.page())


def main(words: Sequence[str] | None = None) -> int:
    """Trains what is not there yet, publishes after each design, and ends with one line of JSON."""
    try:
        study = config.override(Study(), config.split_settings(sys.argv[1:] if words is None else words))
        found: dict[str, list[dict[str, Any]]] = {}
        for design in study.designs:
            found[design] = [trained(study, design, seed) for seed in range(study.seeds)]
            publish(study, found)
            jax.clear_caches()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.code)
    print(json.dumps({"study": study.folder, **{name: runs[0]["score"]["value"] for name, runs in found.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
