"""Rows of the tables of shapes that are small."""

import pytest

from mmjax.encoders.speech import WHISPERS
from mmjax.nn.sizes import SIZES
from tests.parity.inputs import SIZE


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(SIZES, "small", SIZE)
    monkeypatch.setitem(WHISPERS, "small", SIZE)
