"""Caption files as people write them: a table or lines that name a picture and say what it shows."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mmjax.core.errors import DataError

CAPTION_FILES = tuple(f"{stem}.{end}" for stem in ("captions", "metadata") for end in ("csv", "tsv", "jsonl", "txt"))
"""File names that an image folder looks for, in order (`metadata.*` is what Hugging Face image folders use)."""

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "filepath", "path", "img")
TEXT_COLUMNS = ("caption", "text", "title", "description", "sentence", "prompt")

Row = Mapping[str, Any]


def read_captions(path: pathlib.Path) -> list[Row]:
    """One row per line: "image" (a name relative to the file), "caption", and further columns under their own names.

    CSV and TSV may lack a header when their first two columns are picture and caption; `.txt` is `name TAB caption`.
    Raises DataError that names line and column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    rows = _json_rows(path, text) if path.suffix == ".jsonl" else _table_rows(path, text)
    if not rows:
        raise DataError(f"{path} holds no caption")
    return rows


def _json_rows(path: pathlib.Path, text: str) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            tree = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(tree, dict):
            raise DataError(f'{path}, line {number}: expected an object such as {{"image": "a.png", "caption": "..."}}')
        rows.append(tree)
    return _renamed(path, list(dict.fromkeys(name for row in rows for name in row)), rows) if rows else []


def _table_rows(path: pathlib.Path, text: str) -> list[Row]:
    csv.field_size_limit(1 << 30)  # one huge caption is the pipeline's to cut, not a reason to stop reading
    lines = text.splitlines(keepends=True) if path.suffix != ".txt" else text.split("\n")
    if path.suffix == ".csv":
        table = list(csv.reader(lines))
    else:
        table = [line.rstrip("\r\n").split("\t", 1 if path.suffix == ".txt" else -1) for line in lines]
    table = [(number, cells) for number, cells in enumerate(table, 1) if any(cell.strip() for cell in cells)]
    if not table:
        return []
    header = [cell.strip() for cell in table[0][1]]
    if _is_header(header):
        table = table[1:]
    else:
        header = ["image", "caption", *(f"column{i}" for i in range(3, len(header) + 1))]
    for number, cells in table:
        if len(cells) != len(header):
            told = f"expected {len(header)} columns ({', '.join(header)}), found {len(cells)}"
            raise DataError(
                f"{path}, row {number}: {told}: {' | '.join(cells)[:60]!r}; quote cells that hold separators"
            )
    return _renamed(path, header, [dict(zip(header, cells, strict=True)) for _, cells in table])


def _is_header(cells: list[str]) -> bool:
    return any(cell.lower() in FILE_COLUMNS + TEXT_COLUMNS for cell in cells)


def _renamed(path: pathlib.Path, columns: list[str], rows: list[Row]) -> list[Row]:
    """The rows with the picture under "image" and the caption under "caption"."""
    lower = {column.lower(): column for column in reversed(columns)}
    file = next((lower[name] for name in FILE_COLUMNS if name in lower), None)
    text = next((lower[name] for name in TEXT_COLUMNS if name in lower), None)
    if file is None:
        told = f"no column names the pictures; found {', '.join(columns)}"
        raise DataError(f"{path}: {told}; call it {FILE_COLUMNS[0]!r} (or {', '.join(FILE_COLUMNS[1:])})")
    renames = {file: "image"} | ({text: "caption"} if text else {})
    return [{renames.get(name, name): value for name, value in row.items()} for row in rows]
