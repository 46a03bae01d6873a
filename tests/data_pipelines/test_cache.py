"""The cache makes each entry once, whoever asks, and never shows half of one."""

from __future__ import annotations

import multiprocessing

import pytest

from data_pipelines.cache import cache_folder, cached
from mmjax.core.errors import StorageError


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "in side"))


def test_an_entry_is_made_once_per_fingerprint():
    made = []

    def make(path):
        made.append(path)
        path.write_text("done")

    first = cached("thing.txt", {"from": 1}, make)
    assert cached("thing.txt", {"from": 1}, make) == first and first.read_text() == "done"
    assert cached("thing.txt", {"from": 2}, make) != first
    assert len(made) == 2 and first.parent == cache_folder() and first.suffix == ".txt"


def test_a_maker_that_fails_leaves_nothing_that_looks_like_an_entry():
    def half(path):
        path.write_text("half")
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        cached("thing.txt", {}, half)
    assert [path.name for path in cache_folder().iterdir() if not path.name.endswith(".lock")] == []
    assert cached("thing.txt", {}, lambda path: path.write_text("whole")).read_text() == "whole"


def _ask(log):
    def make(path):
        with open(log, "a") as file:
            file.write("made\n")
        path.write_text("x" * 100_000)

    return cached("shared.bin", {"of": "many"}, make).stat().st_size


def test_processes_wait_for_the_one_that_makes(tmp_path):
    log = tmp_path / "log"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert pool.map(_ask, [str(log)] * 8) == [100_000] * 8
    assert log.read_text() == "made\n"


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(StorageError, match="set MMJAX_CACHE to a writable folder"):
        cache_folder()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "other"))
    with pytest.raises(StorageError, match="No space left on device.*free some space"):
        cached("thing.txt", {}, full)
