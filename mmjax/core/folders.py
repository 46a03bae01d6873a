"""Where what was made once is kept for later commands."""

from __future__ import annotations

import os
import pathlib


def cache_path() -> pathlib.Path:
    """$MMJAX_CACHE, or ~/.cache/mmjax. It need not exist."""
    return pathlib.Path(os.environ.get("MMJAX_CACHE") or "~/.cache/mmjax").expanduser()
