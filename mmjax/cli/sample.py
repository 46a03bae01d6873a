"""`mmjax sample RUN --image FILE "what is this?"`: a run's own model answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from mmjax.cli.restoring import restore
from mmjax.core.protocols import EvalContext
from mmjax.decoding.generate import stream
from mmjax.decoding.samplers import Greedy, Sampler, Sampling
from mmjax.evals.prompts import part_with

PURPOSE = "turns a dialogue into a prompt: a method `asking(list of str, media) -> Batch`"


def run(arguments: argparse.Namespace) -> None:
    """Streams an answer to each question; with --chat each question stands in the conversation so far."""
    loaded, context = restore(arguments)
    chat = part_with(loaded.experiment.data, "asking", PURPOSE)
    shown = {"image": [path.read_bytes() for path in arguments.image]} if arguments.image else {}
    said: list[str] = []
    for question in _questions(arguments):
        said = [*said, question] if arguments.chat else [question]
        answer = ""
        for piece in _pieces(context, chat, chat.asking(said, shown), arguments):
            answer += piece
            if not arguments.json:
                print(piece, end="", flush=True)
        print(json.dumps({"question": question, "answer": answer}, ensure_ascii=False) if arguments.json else "")
        said.append(answer)


def _questions(arguments: argparse.Namespace) -> Iterator[str]:
    """The prompt, and lines of standard input where there is none, or in a chat."""
    if arguments.prompt:
        yield arguments.prompt
    if arguments.chat or not arguments.prompt:
        yield from (line.strip() for line in sys.stdin if line.strip())


def _pieces(context: EvalContext, chat: Any, batch: Any, arguments: argparse.Namespace) -> Iterator[str]:
    """The answer bit by bit. A character of several tokens comes when it is whole."""
    ids: list[int] = []
    told = ""
    steps = stream(
        context.model, context.params, batch, _sampler(arguments), arguments.steps, end=chat.stops, rng=arguments.seed
    )
    for row in steps:
        ids.append(int(row[0]))
        text = chat.answers([ids])[0].rstrip("\ufffd")
        if text.startswith(told):
            yield text[len(told) :]
            told = text


def _sampler(arguments: argparse.Namespace) -> Sampler:
    if arguments.temperature <= 0:
        return Greedy()
    return Sampling(arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)
