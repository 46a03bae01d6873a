"""Metrics of answers, yes and no, and boxes: the published rules and numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mmjax.core.errors import DataError
from mmjax.evals.answers import Anls, ExactMatch, VqaAccuracy, edits, normalised_answer
from mmjax.evals.boxes import BoxFit, Locations, Numbers, iou
from mmjax.evals.pope import Pope, says_yes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000 people", "1000 people"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("yes, it is!", "yes it is"),
        ("t-shirt", "t shirt"),
        (" a\tred\n an apple ", "red apple"),
        ("its", "its"),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_in_the_challenge(text, expected):
    assert normalised_answer(text) == expected
    assert normalised_answer(expected) == expected


@pytest.mark.parametrize(("agree", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_leaves_each_person_out(agree, expected):
    """One of ten: nine of the ten sets of others hold it once, 0.9 * 1/3. Three: 0.7 * 1 + 0.3 * 2/3."""
    people = ["red"] * agree + [f"colour {i}" for i in range(10 - agree)]
    assert VqaAccuracy()(["Red."], [people])["vqa_accuracy"].value == pytest.approx(expected)
    assert VqaAccuracy()(["Red."], [people[::-1]])["vqa_accuracy"].value == pytest.approx(expected)


def test_exact_match_needs_one_of_the_truths():
    found = ExactMatch()(["two", "a dog", "cat"], [["2", "3"], ["the dog!"], ["cats"]])["exact_match"]
    assert found.each.tolist() == [1, 1, 0]
    assert VqaAccuracy()(["two"], [["2"]])["vqa_accuracy"].value == 1  # one person alone


def test_anls_forgives_letters_and_not_words():
    assert edits("kitten", "sitting") == 3 and edits("", "abc") == 3 and edits("same", "same") == 0
    found = Anls()(["Kitten", "dog", "", "half"], [["sitting", "x"], ["cat"], ["a"], ["hale", "ha"]])["anls"]
    assert found.each.tolist() == pytest.approx([1 - 3 / 7, 0, 0, 0.75])
    assert Anls()(["ab"], [["ac"]])["anls"].value == 0  # half of it is wrong: as far as the threshold


def test_pope_by_hand():
    said = ["Yes, there is.", "No.", "There is not a dog", "yes", "Yes. No doubt", "no"]
    truths = [["yes"], ["yes"], ["no"], ["no"], ["Yes"], ["no"]]
    values = {name: tally.value for name, tally in Pope()(said, truths).items()}
    expected = {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.5}
    assert values == pytest.approx(expected)
    assert says_yes("It is a notable one") and not says_yes("I do NOT see it")


def test_pope_without_a_yes_has_no_precision():
    found = Pope()(["no", "no"], [["yes"], ["no"]])
    assert np.isnan(found["precision"].value) and found["recall"].value == 0 and found["yes_ratio"].value == 0
    with pytest.raises(DataError, match='must be "yes" or "no"; the data says \'maybe\''):
        Pope()(["no"], [["maybe"]])


def test_overlap_of_boxes():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]], float)
    b = np.array([[1, 1, 3, 3], [0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1]], float)
    assert iou(a, b).tolist() == pytest.approx([1 / 7, 1, 0, 0])
    np.testing.assert_array_equal(iou(a, b), iou(b, a))


def test_boxes_are_read_from_text():
    assert Numbers()("The cat is at [0.1, .25, 0.5, 1].") == (0.1, 0.25, 0.5, 1)
    assert Numbers(scale=1000)("(100,250),(500,1000)") == (0.1, 0.25, 0.5, 1)
    assert Locations()("<loc0256><loc0000><loc0512><loc1024> cat") == (0, 0.25, 1, 0.5)
    assert Numbers()("left of the tree 3") is None and Locations()("0.1 0.2 0.3 0.4") is None


def test_box_fit_counts_what_cannot_be_read():
    truths = [[(0.0, 0.0, 1.0, 1.0)], [(0.0, 0.0, 0.2, 0.2), (0.5, 0.5, 1.0, 1.0)], [(0.0, 0.0, 1.0, 1.0)]]
    found = BoxFit(at=(0.5, 0.75))(["0 0 1 0.5", "0.5 0.5 1 1", "over there"], truths)
    values = {name: tally.value for name, tally in found.items()}
    assert values == pytest.approx({"accuracy_0.5": 2 / 3, "accuracy_0.75": 1 / 3, "iou": 0.5, "readable": 2 / 3})
    with pytest.raises(DataError, match="a true box is .left, top, right, bottom."):
        BoxFit()(["0 0 1 1"], [[(0.5, 0.5, 0.1, 0.1)]])
