"""One model that finds pictures by words in 14 languages, names them and answers questions about them: the demo.

    make demo                                        train, evaluate, report (experiments/emoji_chat.py as a program)
    mmjax train experiments/emoji_chat.py            train and evaluate alone

Pictures meet captions as in experiments/emoji_towers.py; the same picture encoder is the memory of a small decoder that
writes names and answers, and that judges whether a caption fits. Learns from OpenMoji and Noto pictures.

It takes 7 minutes on 2 cores of an AMD EPYC (Zen 5), 8 on an Intel Xeon (Granite Rapids). To expect on unseen
compositions: R@1 .90, answers .874 (without the picture .29), CIDEr-D of names 5.0.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

from data_pipelines.apart import Apart
from data_pipelines.chat import ChatFeature
from data_pipelines.emoji.dialogues import EmojiDialogues
from data_pipelines.emoji.questions import EmojiQuestions
from data_pipelines.features import labels
from data_pipelines.mixture import Mixture
from data_pipelines.pipeline import Pipeline
from data_pipelines.templates import prefix_answer
from experiments import emoji_towers
from mmjax.cli.main import main as mmjax
from mmjax.evals.answering import Answering
from mmjax.evals.answers import ExactMatch
from mmjax.evals.captioning import Captioning
from mmjax.evals.fitting import Fitting
from mmjax.evals.generation import Field
from mmjax.evals.judging import Grouping
from mmjax.evals.writing import Writer
from mmjax.fusion.connectors import Project
from mmjax.fusion.cross import Scoped, WholeRow
from mmjax.heads.language import Language
from mmjax.models.blip import BLIP, Judge
from mmjax.models.decoder import Decoder
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.embeddings import TokenEmbedding
from mmjax.nn.feedforward import GatedFeedForward
from mmjax.nn.norms import RMSNorm
from mmjax.nn.stack import KeepAll, Stack
from mmjax.objectives.language import Language as PredictNext
from mmjax.objectives.matching import Matching
from mmjax.ops.rotary import Rotary
from mmjax.training.experiment import Experiment, every, weighted
from mmjax.training.optim import Group
from mmjax.training.rules import Adam

ASKED = {"name": 0.35, "tone": 0.3, "gender": 0.2, "group": 0.15}
"""Kinds of questions, and how often each is the first that is asked of a picture."""
SPOKEN = ("en", "es", "zh", "ar")
"""Languages in which the model is asked and answers: three scripts, two reading directions."""
OF_QUESTION = ("kind", "language", "picture", "style", "tone", "gender", "concept")


def experiment(
    width: int = 128,
    depth: int = 2,
    batch: int = 256,
    toned: float = 0.4,
    spoken: int = 40,
    judged: int = 24,
    steps: int = 960,
) -> Experiment:
    """width, depth: of the decoder; batch: pictures per step that meet captions; toned: the share of people who differ
    in tone and gender alone among them; spoken: pictures that are asked about; judged: of the former, those whose
    captions are held against other pictures."""
    towers = emoji_towers.experiment(batch=batch, toned=toned, steps=steps)
    picture, caption, *known = towers.data.parts[0].features
    words, rows, size = caption.tokenizer, batch + spoken, picture.height
    chat = ChatFeature(words, prefix_answer(), 2 * caption.length, {"image": 0}, (picture,))
    several = Apart(dataclasses.replace(chat, length=caption.samples * caption.length), caption.samples)
    questions = EmojiQuestions("train", size, tuple(ASKED), SPOKEN, turns=1)

    def asked(kind: str) -> Pipeline:
        return Pipeline(EmojiDialogues(questions, caption.samples, (kind,)), (several, *known), rows, shuffle=0)

    def held(*kinds: str) -> Pipeline:
        source = EmojiQuestions("unseen_compositions", size, kinds, SPOKEN)
        return Pipeline(source, (chat, *labels(*OF_QUESTION)), 256, epochs=1)

    writer, truth = Writer(chat, steps=16), Field("answer")
    grouping = Grouping(cluster="concept", macro="language", slices=("kind", "language", "style", "tone", "gender"))
    pairing = Grouping(cluster="concept", macro="language", slices=("language", "style", "tone", "gender"))
    pairs = [dataclasses.replace(part, batch=rows) for part in towers.data.parts]
    shares = [*(batch * weight for weight in towers.data.weights), *(spoken * share for share in ASKED.values())]
    return towers.replace(
        model=BLIP(
            decoder=Decoder(
                TokenEmbedding(words.size, width),
                Stack(_block(width), depth, KeepAll()),
                Language(words.size, scored=0.36),
            ),
            image=towers.model.image.encoder,
            pool=towers.model.image.pool,
            text=towers.model.text,
            head=towers.model.head,
            connector=Project(width),
            judge=Judge(judged, 12, same="picture", alike=("caption_id",), hardness=0.25),
            spoken=spoken + 4,  # a mixture deals out its parts to within their number
        ),
        data=Mixture((*pairs, *map(asked, ASKED)), tuple(shares)),
        objectives=towers.objectives
        | {"language": weighted(1.0, PredictNext()), "matching": weighted(1.0, Matching())},
        optimizer=dataclasses.replace(
            towers.optimizer, groups=(Group("(text|head|decoder/embedding)/.*", rule=Adam(b2=0.98)),)
        ),
        evals=towers.evals
        | {
            "answers": every(0, Answering(held("tone", "gender"), writer, truth, (ExactMatch(),), grouping)),
            "captions": every(0, Captioning(held("name"), writer, truth, grouping=grouping)),
            "fitting": every(0, Fitting(towers.evals["unseen_compositions"].evaluator.data, pairing)),
        },
    )


def _block(width: int) -> Block:
    attention = Attention(width // 32, bias=False, gain=0.0, rotary=Rotary())
    cross = Scoped(Attention(width // 32, bias=False, gain=0.0), WholeRow())
    return Block(attention, GatedFeedForward(8 * width // 3, gain=0.0), RMSNorm(), cross=cross)


PLAN = """\
mmjax demo: a model that finds pictures by words in 14 languages, and names them and answers questions in 4.
  1. draws 3,773 emoji by three artists and learns a vocabulary                      about 30 s, once
  2. trains on two of the artists: contrastive, matching and language objectives     5 to 17 min on 2 cores
  3. evaluates on concepts, compositions and a style it has never seen               about 60 s
  4. writes a page with pictures, captions, answers, curves and tables
Stop it whenever you like: the same command goes on where it stopped."""


def main() -> int:
    """The demo: prints what it will do, does it, and ends with one line of JSON."""
    run = pathlib.Path("runs/demo")
    print(PLAN, flush=True)
    for words in (["train", __file__, "--run", str(run)], ["report", str(run)]):
        code = mmjax(words)
        if code:
            return code
    print(json.dumps(summary(run)))
    return 0


def summary(run: pathlib.Path) -> dict[str, Any]:
    """The numbers of a finished run: retrieval from text to image, averaged over languages and over the styles of each
    pool; answers and captions on unseen compositions, with and without the picture."""
    found: dict[str, Any] = {"run": str(run), "report": str(run / "report.html")}
    chance = {}
    for split in ("unseen_compositions", "unseen_concepts", "unseen_style"):
        result = newest(run, split)["text_to_image"]
        scores = {name: result["all"][name] for name in ("r1", "r10")}
        found[split] = {"n": min(result["pool"]["gallery"]), **{name: score["value"] for name, score in scores.items()}}
        chance[split] = {name: score["chance"] for name, score in scores.items()}
    for name, metric, word in (("answers", "exact_match", "exact"), ("captions", "cider_d", "cider")):
        score = newest(run, name)["all"][metric]
        found[name] = {"n": score["n"], word: score["value"], "image_absent": score["image_absent"]}
    found["fitting"] = {name: score["value"] for name, score in newest(run, "fitting")["all"].items()}
    return {**found, "chance": chance}


def newest(run: pathlib.Path, name: str) -> dict[str, Any]:
    """The last results of an evaluator."""
    path = max((run / "evals" / name).glob("*.json"), key=lambda path: int(path.stem))
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
