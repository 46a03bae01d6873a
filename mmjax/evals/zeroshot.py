"""Zero-shot classification: the class whose prompts lie nearest (CLIP, Radford et al. 2021, section 3.1.4).

N examples   C classes   M templates   E embedding width
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mmjax.core.errors import UserError
from mmjax.core.protocols import Data, EvalContext
from mmjax.evals.classification import Judge, class_names
from mmjax.evals.embeddings import embed, normalised
from mmjax.evals.prompts import Prompts, ReadsText
from mmjax.evals.results import Record


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """Classifies pictures by text alone: no example of a class is seen, only its name in each of `templates`.

    Class names are those of the data's label, as words (`face-smiling` reads "face smiling"), or what `words` says.
    """

    data: Data
    judge: Judge
    reader: ReadsText
    templates: tuple[str, ...] = ("{}", "a picture of {}")
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)  # class name -> how to say it
    same: str | None = None  # label: examples of one picture; each is judged once
    modality: str = "image"

    def __post_init__(self):
        wrong = [template for template in self.templates if template.count("{}") != 1]
        if wrong or not self.templates:
            raise UserError(f"a prompt template holds {{}} once, where the class name goes; got {wrong or 'none'}")

    def evaluate(self, context: EvalContext) -> Record:
        """`Judge.results`, and the prompts that were used."""
        found = self.judge.embedded(context, self.data, self.modality, self.same)
        names = [self.words.get(name, spoken(name)) for name in class_names(found, self.judge.label)]
        prompts = tuple(template.format(name) for name in names for template in self.templates)
        texts = embed(context, Prompts(self.reader, prompts), ("text",)).vectors["text"]
        grouped = normalised(texts).reshape(len(names), len(self.templates), -1)
        classes = normalised(grouped.mean(1))
        scores = normalised(found.vectors[self.modality]) @ classes.T
        return self.judge.results("zero-shot", found, scores) | {"prompts": list(prompts[: len(self.templates)])}


def spoken(name: str) -> str:
    """A label's name as words."""
    return " ".join(name.replace("-", " ").replace("_", " ").replace("&", "and").split()).lower()
