"""Evaluators of written text: pooled references, corpora by language, baselines without the picture, intervals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from mmjax.core import config
from mmjax.core.batch import Batch
from mmjax.core.errors import DataError, UserError
from mmjax.core.pytrees import abstract
from mmjax.evals.absent import Without, without
from mmjax.evals.answering import Answering, usual
from mmjax.evals.captioning import Captioning
from mmjax.evals.generation import Field, Label
from mmjax.evals.grounding import Grounding
from mmjax.evals.hallucination import Hallucination
from mmjax.evals.judging import Grouping
from mmjax.evals.ngrams import Bleu, CiderD
from mmjax.evals.perplexity import Perplexity
from mmjax.evals.results import Bootstrap, Cases, is_number
from mmjax.evals.rouge import RougeL
from mmjax.evals.tallies import mean_of

FEW = Bootstrap(draws=200)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """A data set of `table`'s batches whose examples have the given texts too."""

    table: object
    texts: dict

    def __getattr__(self, name):
        return getattr(self.table, name)

    def example(self, index):
        return self.table.example(index) | {name: column[index] for name, column in self.texts.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Says:
    """A generator that writes `seen[i]` for example i, and `blind[i]` where its picture is gone."""

    seen: list
    blind: list = dataclasses.field(default_factory=list)

    def __call__(self, context, data):
        for batch in data.batches():
            there, ids = batch.present("image")[:, 0], batch.id[:, 0]
            yield (
                [(self.seen if t else self.blind)[i] if i >= 0 else "padding" for i, t in zip(ids, there, strict=True)],
                batch,
            )


@pytest.fixture
def pairs(table):
    """Ten captions of four pictures, in two languages."""
    picture = np.array([0, 0, 1, 1, 2, 2, 3, 3, 0, 1])
    language = np.array([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    names = {"language": ("en", "de")}
    captions = ["a red cat", "the cat sits", "two dogs run", "dogs in a park", "a blue boat", "boat on a lake"]
    captions += ["green tree", "a tall tree", "eine rote katze", "zwei hunde im park"]
    return Examples(table(10, {"picture": picture, "language": language}, names), {"caption": captions})


def captioning(data, seen, blind, **changes):
    grouping = Grouping(cluster="picture", macro="language", slices=("language",), examples=2, bootstrap=FEW)
    settings = {"metrics": (RougeL(), Bleu(), CiderD()), "grouping": grouping, "same": "picture"} | changes
    return Captioning(data, Says(seen, blind), **settings)


def test_captions_of_one_picture_are_pooled_by_language(pairs):
    said = [
        "the cat sits",
        "?",
        "two dogs run",
        "?",
        "a blue boat",
        "?",
        "a tall tree",
        "?",
        "eine rote katze",
        "nichts",
    ]
    found = captioning(pairs, said, ["a thing"] * 10).evaluate(None)
    english, german = found["slices"]["language"]["en"], found["slices"]["language"]["de"]
    assert english["rouge_l"]["value"] == 1 and english["rouge_l"]["n"] == 4  # the second caption of each is right too
    assert german["rouge_l"]["value"] == 0.5 and german["rouge_l"]["n"] == 2
    assert found["all"]["rouge_l"]["value"] == 0.75  # languages count alike
    assert found["all"]["bleu1"]["value"] == pytest.approx((1 + german["bleu1"]["value"]) / 2, rel=1e-4)
    blind = found["all"]["rouge_l"]["image_absent"]
    gain = found["gain"]["image_absent"]["rouge_l"]
    assert 0 < blind < 0.5 and gain["value"] == pytest.approx(0.75 - blind, abs=1e-4)
    assert gain["low"] <= gain["value"] <= gain["high"] and gain["chance"] == 0
    json.dumps(found, allow_nan=False)


def test_each_language_is_a_corpus_of_its_own(pairs):
    """The rarity of German words is counted among German captions: leaving out English changes nothing."""
    said = list(pairs.texts["caption"])
    said[9] = "zwei katzen"
    both = captioning(pairs, said, said).evaluate(None)["slices"]["language"]["de"]["cider_d"]
    alone = CiderD()([said[8], said[9]], [[pairs.texts["caption"][i]] for i in (8, 9)])["cider_d"]
    assert both["value"] == pytest.approx(alone.value, rel=1e-4)


def test_examples_show_the_best_and_the_worst(pairs):
    said = list(pairs.texts["caption"])
    said[4] = "nothing of it"
    examples = captioning(pairs, said, ["blind"] * 10).evaluate(None)["examples"]
    assert [example["score"] for example in examples[:2]] == [1, 1]
    assert examples[2]["id"] == 4 and examples[2]["score"] == 0
    assert examples[2]["said"] == "nothing of it" and examples[2]["image_absent"] == "blind"
    assert examples[2]["right"] == ["a blue boat", "boat on a lake"]
    assert len({example["id"] for example in examples}) == 4


def test_results_do_not_depend_on_the_batch_size(pairs):
    said = list(pairs.texts["caption"])
    other = Examples(dataclasses.replace(pairs.table, rows=3), pairs.texts)
    results = [captioning(data, said, said).evaluate(None) for data in (pairs, other)]
    assert results[0] == results[1]


def test_null_examples_are_left_out(table):
    data = Examples(table(4, {}, {}, 8, (1,)), {"answers": [["red"], ["blue"], ["red"], ["red"]]})
    found = Answering(data, Says(["red", "x", "red", "no"], ["red"] * 4), grouping=Grouping(bootstrap=FEW))
    assert found.evaluate(None)["all"]["exact_match"]["n"] == 3


def test_answers_stand_beside_what_needs_no_picture(table):
    truths = [["red"], ["red"], ["two", "2"], ["a cat"], ["red"], ["blue"]]
    data = Examples(
        table(6, {"kind": np.array([0, 0, 1, 2, 0, 0])}, {"kind": ("colour", "count", "thing")}), {"answers": truths}
    )
    grouping = Grouping(slices=("kind",), bootstrap=FEW)
    task = Answering(data, Says(["Red.", "red", "2", "cat", "red", "green"], ["red"] * 6), grouping=grouping)
    found = task.evaluate(None)
    match = found["all"]["exact_match"]
    assert (match["value"], match["chance"], match["image_absent"]) == (0.83333, 0.5, 0.5)
    assert found["slices"]["kind"]["count"]["exact_match"]["image_absent"] == 0
    assert found["slices"]["kind"]["colour"]["exact_match"]["chance"] == 0.75
    assert is_number(found["gain"]["image_absent"]["vqa_accuracy"])
    assert usual(truths) == "red"


def test_without_a_baseline_the_model_is_asked_once(table):
    data = Examples(table(3, {}), {"answers": [["a"], ["b"], ["c"]]})
    found = Answering(data, Says(["a", "b", "x"]), absent=None, grouping=Grouping(bootstrap=FEW)).evaluate(None)
    assert found["gain"] == {} and "image_absent" not in found["all"]["exact_match"]


def test_hallucination_by_how_the_question_was_chosen(table):
    labels = {"answer": np.array([1, 0, 1, 0]), "chosen": np.array([0, 0, 1, 1])}
    data = table(4, labels, {"answer": ("no", "yes"), "chosen": ("random", "adversarial")})
    grouping = Grouping(slices=("chosen",), bootstrap=FEW)
    task = Hallucination(data, Says(["Yes.", "No.", "yes", "yes"], ["yes"] * 4), Label("answer"), grouping=grouping)
    found = task.evaluate(None)
    assert found["slices"]["chosen"]["random"]["f1"]["value"] == 1
    assert found["slices"]["chosen"]["adversarial"]["precision"]["value"] == 0.5
    assert found["all"]["yes_ratio"]["value"] == 0.75 and found["all"]["accuracy"]["chance"] == 0.5
    assert found["all"]["yes_ratio"]["image_absent"] == 1


@dataclasses.dataclass(frozen=True, eq=False)
class Boxed:
    """A table with a label of four numbers."""

    table: object
    box: np.ndarray

    def __getattr__(self, name):
        return getattr(self.table, name)

    def spec(self):
        return abstract(next(self.batches()))

    def batches(self, *where):
        for batch in self.table.batches(*where):
            box = self.box[np.maximum(batch.id, 0)]
            yield batch.replace(labels={**batch.labels, "box": box})


def test_grounding_reads_boxes_of_a_label(table):
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
    said = ["[0, 0, 0.5, 0.5]", "[0, 0, 0.5, 0.5]", "nowhere"]
    task = Grounding(Boxed(table(3, {}), boxes), Says(said, ["0 0 1 1"] * 3), grouping=Grouping(bootstrap=FEW))
    found = task.evaluate(None)["all"]
    assert found["accuracy_0.5"]["value"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["iou"]["image_absent"] == 0.5 and found["readable"]["value"] == pytest.approx(2 / 3, abs=1e-4)


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
    """An EvalContext of a model that is sure of `loss` nats at every place, and twice as unsure without a picture."""

    loss: float = 0.5

    def outputs(self, data, *names):
        for batch in data.batches():
            factor = np.where(batch.present("image"), 1, 2)
            nll = np.where(batch.text.position > 0, self.loss * factor, np.nan)  # padding is not to be looked at
            yield {"nll": nll, "hit": np.broadcast_to(batch.text.position % 2 == 1, nll.shape)}, batch


@dataclasses.dataclass(frozen=True, eq=False)
class Rowed:
    """A table whose rows count 0 1 2 3, with loss on the last three."""

    table: object

    def __getattr__(self, name):
        return getattr(self.table, name)

    def batches(self, *where):
        for batch in self.table.batches(*where):
            shape = batch.text.ids.shape
            position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
            loss = np.where(batch.text.segment > 0, 1, 0).astype(np.float32)
            slot = np.full(shape, -1, np.int32)
            yield batch.replace(text=dataclasses.replace(batch.text, position=position, loss=loss, slot=slot))


def test_perplexity_is_the_exponent_of_a_mean_over_tokens(table):
    found = Perplexity(Rowed(table(10, {})), Grouping(bootstrap=FEW)).evaluate(Scored())["all"]
    assert found["nll"]["value"] == 0.5 and found["perplexity"]["value"] == pytest.approx(math.exp(0.5), rel=1e-4)
    assert found["perplexity"]["image_absent"] == pytest.approx(math.e, rel=1e-4)
    assert found["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-4)  # places 1 and 3 of 1 2 3
    with pytest.raises(UserError, match="needs a model with a language head: no output of the model is called 'nll'"):
        Perplexity(table(3, {})).evaluate(NoHead())


class NoHead:
    def outputs(self, data, *names):
        return (({"embeddings": {}}, batch) for batch in data.batches())


def test_taking_the_picture_away_keeps_the_rest_of_the_row():
    spec = Batch.spec(3, samples=2, text=(40, {"image": 4}), image=(2, 4, 4))
    batch = Batch.fake(spec, seed=1)
    gone = without(batch, "image").check()
    assert not gone.image.valid.any() and not gone.image.pixels.any() and (gone.text.slot < 0).all()
    kept = (batch.text.slot < 0) & (batch.text.segment > 0)
    np.testing.assert_array_equal(gone.text.segment > 0, kept)
    for name in ("ids", "segment", "block", "loss"):
        np.testing.assert_array_equal(getattr(gone.text, name)[kept], getattr(batch.text, name)[kept])
    for row in range(3):
        for number in (1, 2):
            places = gone.text.position[row][gone.text.segment[row] == number]
            assert places.tolist() == list(range(len(places)))
    assert {k: v.shape for k, v in vars(abstract(gone).text).items() if hasattr(v, "shape")} == {
        k: v.shape for k, v in vars(spec.text).items() if hasattr(v, "shape")
    }


def test_data_without_the_modality_is_refused(table):
    with pytest.raises(UserError, match="'audio' cannot be taken away from this data; it has: image. To leave out"):
        next(Without(table(3, {}), "audio").batches())


def test_wrong_set_ups_are_refused(table):
    data = Examples(table(2, {}), {"answers": [["a"], ["b"]]})
    with pytest.raises(UserError, match="no field of this data's examples is called 'answer'; did you mean answers"):
        Answering(data, Says(["a", "b"]), Field("answer")).evaluate(None)
    with pytest.raises(UserError, match="Answering has no metrics"):
        Answering(data, Says(["a", "b"]), metrics=()).evaluate(None)
    with pytest.raises(UserError, match="no label of this data is called 'kind'"):
        Answering(data, Says(["a", "b"]), grouping=Grouping(slices=("kind",))).evaluate(None)
    with pytest.raises(UserError, match="a generator gave 1 texts for a batch of 8 rows"):
        Answering(data, lambda context, data: ((["a"], batch) for batch in data.batches())).evaluate(None)
    with pytest.raises(DataError, match="every example of the data is padding or could not be read"):
        Answering(Examples(table(2, {}, {}, 8, (0, 1)), data.texts), Says(["a", "b"])).evaluate(None)


def test_intervals_of_means_are_those_of_the_other_evaluators():
    values, cluster = np.random.default_rng(0).random(60), np.arange(60) // 3
    cases = Cases.of(cluster, np.arange(60) % 2)
    assert mean_of(values).estimate(cases).record() == cases.mean(values).record()


def test_a_corpus_score_has_an_interval_that_knows_clusters():
    said, truths = ["a b c d e"] * 20 + ["a b x d y"] * 20, [["a b c d e f"]] * 40
    tally = Bleu()(said, truths)["bleu4"]
    apart = tally.estimate(Cases.of(np.arange(40))).record()
    together = tally.estimate(Cases.of(np.arange(40) // 10)).record()
    assert apart["low"] < apart["value"] < apart["high"] and apart["value"] == pytest.approx(tally.value, rel=1e-4)
    assert together["high"] - together["low"] > 1.5 * (apart["high"] - apart["low"])


def test_evaluators_are_configuration():
    for task in (Captioning(None, None), Answering(None, None), Hallucination(None, None), Grounding(None, None)):
        assert config.from_json(json.loads(json.dumps(config.to_json(task)))) == task
    assert config.from_json(config.to_json(Perplexity(None))) == Perplexity(None)
