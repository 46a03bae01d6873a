"""The page: holds the numbers of the JSON, shows strangers' text as text, asks the network for nothing."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.evals.classification import Judge
from mmjax.evals.embeddings import Embedded
from mmjax.evals.retrieval import Retrieval
from mmjax.report import write_report
from mmjax.report.charts import Series, line_chart, nice_ticks, shaky, short

EVIL = "<script>alert(1)</script> \"' & مرحبا"


@dataclasses.dataclass(frozen=True)
class Album:
    """Data as the report needs it: examples, and how large a batch is."""

    caption: str = EVIL

    def spec(self):
        from mmjax.core.batch import Batch

        return Batch.spec(8, image=(1, 4, 4))

    def fingerprint(self):
        return {"album": "abc123"}

    def card(self):
        return {"licence": "CC BY 4.0 <b>"}

    def example(self, index):
        pixels = np.full((8, 8, 3), index * 9 % 256, np.uint8)
        return {"image": pixels, "caption": f"{self.caption} {index}", "language": "ar"}


@dataclasses.dataclass(frozen=True)
class Judged:
    evaluator: object


@dataclasses.dataclass(frozen=True)
class Plan:
    data: object
    evals: dict


def results():
    """A retrieval result over 12 pairs with two languages, some right and some wrong."""
    rng = np.random.default_rng(0)
    labels = {"language": np.arange(12) % 2, "group": np.arange(12) // 6}
    image = rng.normal(size=(12, 4)).astype(np.float32)
    text = (image + 0.6 * rng.normal(size=(12, 4))).astype(np.float32)
    names = {"language": ("en", "ar"), "group": ("animals", "<i>food</i>")}
    found = Embedded({"text": text, "image": image}, labels, np.arange(12), names)
    task = Retrieval(Album(), macro="language", slices=("language", "group"), heatmap=5)

    class Context:
        step = 3

        def outputs(self, data, *names):
            raise AssertionError

    import mmjax.evals.retrieval as module

    original, module.embed = module.embed, lambda *_, **_named: found
    try:
        return task.evaluate(Context())
    finally:
        module.embed = original


@pytest.fixture
def folder(tmp_path):
    def write(name, value):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))

    truth = np.arange(12) % 3
    classes = Embedded({}, {"kind": truth}, np.arange(12), {"kind": ("a", "b", "<c>")})
    write(
        "experiment.json", {"format": 1, "experiment": {"steps": 30, "note": EVIL}, "source": {"file": "my_towers.py"}}
    )
    write("evals/held_out/30.json", results())
    write("evals/probe/30.json", Judge("kind").results("probe", classes, np.eye(3)[np.roll(truth, 1)]))
    rows = [{"step": s, "kind": "train", "loss": 3 / s, "lr": 1e-3, "bad": None} for s in range(1, 31)]
    write("metrics.jsonl", "\n".join(map(json.dumps, rows)) + '\n{"step": 31, "lo')
    write("command.txt", "mmjax train my_towers.py && echo <done>\n")
    write("environment.json", {"devices": {"kind": "cpu"}})
    return tmp_path / "run"


@pytest.fixture
def plan():
    return Plan(Album(), {"held_out": Judged(Retrieval(Album())), "probe": Judged(None)})


class Reader(html.parser.HTMLParser):
    """Collects what a browser would see."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.values, self.text, self.links, self.open = [], [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.values += [attributes["value"]] if tag == "data" else []
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        self.text.append(data)


def test_captions_are_text_and_nothing_is_fetched(folder, plan):
    page = write_report(folder, experiment=plan).read_text()
    seen = Reader(page)
    assert "script" not in seen.tags and "link" not in seen.tags and "iframe" not in seen.tags
    assert EVIL in "".join(seen.text)
    assert "<i>food</i>" in "".join(seen.text)
    assert all(link.startswith(("data:image/", "#")) for link in seen.links)
    assert sum(link.startswith("data:image/webp") for link in seen.links) >= 12
    assert not re.search(r"url\(|@import|https?://", page)
    assert "default-src 'none'" in page


def test_numbers_are_those_of_the_json(folder, plan):
    seen = Reader(write_report(folder, experiment=plan).read_text())
    shown = set(seen.values)
    tree = json.loads((folder / "evals/held_out/30.json").read_text())
    for direction in ("text_to_image", "image_to_text"):
        for number in tree[direction]["all"].values():
            assert str(number["value"]) in shown
        for rows in tree[direction]["slices"].values():
            assert {str(row["r1"]["value"]) for row in rows.values()} <= shown
        for gap in tree[direction]["gaps"].values():
            assert str(gap["gap"]["value"]) in shown
    probe = json.loads((folder / "evals/probe/30.json").read_text())
    assert str(probe["all"]["accuracy"]["value"]) in shown
    text = " ".join(seen.text)
    assert "mmjax train my_towers.py && echo <done>" in text
    assert "CC BY 4.0 <b>" in text and "abc123" in text
    assert "My towers" in text and "of 8 examples" in text


def test_right_to_left_captions_and_alternatives_for_pictures(folder, plan):
    page = write_report(folder, experiment=plan).read_text()
    assert re.search(r'<div class="words" dir="auto" lang="ar">', page)
    assert page.count("<img ") == page.count("alt=")


def test_stands_without_the_experiment_and_without_results(folder, tmp_path):
    page = write_report(folder).read_text()
    assert "could not be rebuilt: its record names no data" in page and "example 0" in page
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "experiment.json").write_text('{"format": 1, "experiment": {}, "source": {}}')
    assert "bare" in write_report(bare, bare / "sub" / "page.html").read_text().lower()
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
    (bare / "experiment.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        write_report(bare)


def test_data_that_cannot_be_read_is_said(folder):
    class Gone(Album):
        def example(self, index):
            raise FileNotFoundError("the disk is gone")

    plan = Plan(Gone(), {"held_out": Judged(Retrieval(Gone())), "probe": Judged(None)})
    assert "the disk is gone" in write_report(folder, experiment=plan).read_text()

    class Nothing(Gone):
        def spec(self):
            raise FileNotFoundError("the index is gone")

    plan = Plan(Nothing(), {"held_out": Judged(Retrieval(Nothing())), "probe": Judged(None)})
    assert "the index is gone" in write_report(folder, experiment=plan).read_text()

    class Other(Album):
        def fingerprint(self):
            return {"album": "another"}

    plan = Plan(Other(), {"held_out": Judged(Retrieval(Other())), "probe": Judged(None)})
    page = write_report(folder, experiment=plan).read_text()
    assert "it has changed since the numbers were taken (album)" in page and "<img" not in page


def test_charts_tell_the_truth():
    ticks = nice_ticks(0.13, 0.87)
    assert ticks[0] <= 0.13 and ticks[-1] >= 0.87 and len(ticks) <= 7
    assert nice_ticks(5, 5)[0] < 5 < nice_ticks(5, 5)[-1]
    assert [short(x) for x in (1500, 0.00025, 0, 2.5e6)] == ["1.5k", "2.5e-4", "0", "2.5M"]
    rng = np.random.default_rng(0)
    assert shaky(rng.normal(size=50)) and not shaky(np.linspace(0, 1, 50) ** 2)
    chart = line_chart([Series("loss", [1, 2, 3], [3.0, float("nan"), 1.0])], "<loss>")
    assert "&lt;loss&gt;" in chart and "nan" not in chart
    assert line_chart([Series("x", [1], [float("nan")])], "x") == ""
