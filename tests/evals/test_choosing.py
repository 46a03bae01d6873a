"""Classifiers answer by the names of their classes."""

import types

import numpy as np
import pytest

from mmjax.core.errors import UserError
from mmjax.evals.choosing import Chosen

DATA = types.SimpleNamespace(names=lambda: {"answer": ("yes", "no", "maybe")})


def context(logits):
    batch = types.SimpleNamespace(rows=len(logits))
    return types.SimpleNamespace(
        outputs=lambda data, *names: iter([({"logits": np.asarray(logits, np.float32)}, batch)])
    )


def test_the_highest_score_is_said_by_its_name():
    for shape in ((2, 3), (2, 1, 3)):
        logits = np.reshape([[0.1, 0.3, 0.2], [5.0, -1.0, 4.9]], shape)
        ((texts, batch),) = Chosen("answer")(context(logits), DATA)
        assert texts == ["no", "yes"] and batch.rows == 2


def test_classes_without_names_are_refused():
    with pytest.raises(UserError, match="did you mean answer"):
        list(Chosen("answers")(context([[0.0, 1.0, 2.0]]), DATA))
    with pytest.raises(UserError, match="the model scores 2 classes per row in 'logits'; 'answer' has 3 names"):
        list(Chosen("answer")(context([[0.0, 1.0]]), DATA))
