"""Golden files: what each experiment resolves to, as JSON, so that a change of a default shows in a review.

python -m tests.golden.refresh        # writes tests/golden/NAME.json for every experiments/NAME.py
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import json
import pathlib
import tempfile
from typing import Any

from PIL import Image

from mmjax.core.config import to_json

FOLDER = pathlib.Path(__file__).resolve().parent
EXPERIMENTS = sorted(
    path.stem for path in (FOLDER.parent.parent / "experiments").glob("*.py") if path.stem != "__init__"
)


def write_pictures(folder: pathlib.Path, count: int = 200) -> None:
    """What experiments look for when they are told no data: small pictures with captions, and beside the folder the
    file `my_chats.jsonl` of conversations about them."""
    folder.mkdir()
    names = [(f"{i:03}.png", f"picture number {i} of {count}, grey level {i}") for i in range(count)]
    for i, (name, _) in enumerate(names):
        Image.new("RGB", (20, 16), (i, i, i)).save(folder / name)
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *names])
    asked = {"from": "human", "value": "<image>\nwhich grey level is this?"}
    with (folder.parent / "my_chats.jsonl").open("w") as file:
        for i, (name, _) in enumerate(names):
            talk = [asked, {"from": "gpt", "value": f"grey level {i}"}]
            file.write(json.dumps({"image": f"{folder.name}/{name}", "conversations": talk}) + "\n")


def resolved(name: str) -> Any:
    """What `experiment()` of experiments/NAME.py returns with its defaults, as it would be stored."""
    return json.loads(json.dumps(to_json(importlib.import_module(f"experiments.{name}").experiment())))


def main() -> None:
    """Writes every golden file and removes those whose experiment is gone."""
    for stale in FOLDER.glob("*.json"):
        if stale.stem not in EXPERIMENTS:
            stale.unlink()
            print(f"removed {stale.name}")
    with tempfile.TemporaryDirectory() as home, contextlib.chdir(home):
        write_pictures(pathlib.Path("my_pictures"))
        for name in EXPERIMENTS:
            (FOLDER / f"{name}.json").write_text(json.dumps(resolved(name), indent=1, ensure_ascii=False) + "\n")
            print(f"wrote {name}.json")


if __name__ == "__main__":
    main()
