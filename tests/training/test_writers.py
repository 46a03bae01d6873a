"""Writers: valid lines whatever happens, and no writer stops a run."""

from __future__ import annotations

import io
import json

from rich.console import Console as Terminal

from mmjax.training.writers import Console, Jsonl, TensorBoard, Writers, clock, read_metrics


def record(step, **values):
    return {"step": step, "kind": "train", "loss": 0.5, **values}


def test_a_torn_line_and_later_steps_are_dropped_on_going_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(step)) + "\n" for step in (1, 2, 3)) + '{"step": 4, "ki')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    writer = Jsonl(path)
    writer.open(2)
    writer.write(record(3, loss=float("nan")))
    writer.close()
    assert path.read_text().splitlines()[2] == '{"step": 3, "kind": "train", "loss": null}'
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


def test_a_failing_writer_is_told_of_once_and_the_others_go_on(tmp_path, caplog):
    class Full(Jsonl):
        def write(self, record):
            raise OSError(28, "No space left on device")

    writers = Writers((Full(tmp_path / "full.jsonl"), Jsonl(tmp_path / "metrics.jsonl")))
    writers.open(0)
    for step in (1, 2):
        writers.write(record(step))
    writers.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert sum("No space left" in message for message in caplog.messages) == 1


def test_without_a_terminal_each_record_is_a_plain_line():
    text = io.StringIO()
    console = Console(2_000, Terminal(file=text, width=200))
    console.open(0)
    console.write(record(500))
    console.write(record(1_000, examples_per_s=1234.5, skipped=2.0))
    console.write({"step": 1_000, "kind": "eval", "name": "retrieval", "r1": 0.25, "seconds": 3.0})
    console.write({"step": 1_001, "kind": "event", "text": "rolled back"})
    console.close()
    _, first, second, third = text.getvalue().splitlines()
    assert first.startswith("step 1,000/2,000  loss 0.5000  1,23") and "2 skipped" in first and first.endswith("left")
    assert second == "step 1,000  retrieval: r1 0.25" and third == "step 1,001  rolled back"
    assert "\x1b" not in text.getvalue()


def test_on_a_terminal_there_is_one_live_line():
    text = io.StringIO()
    console = Console(10, Terminal(file=text, width=80, force_terminal=True))
    console.open(0)
    for step in range(1, 6):
        console.write(record(step))
    console.close()
    assert "step  5/10  loss 0.5000" in text.getvalue()


def test_numbers_reach_tensorboard(tmp_path):
    writer = TensorBoard(tmp_path)
    writer.open(0)
    writer.write(record(1, name="a"))
    writer.close()
    (events,) = tmp_path.glob("events*")
    assert b"train/a/loss" in events.read_bytes()


def test_times_read_like_a_clock():
    assert (clock(7), clock(125.4), clock(3723)) == ("0:07", "2:05", "1:02:03")
