"""What may be hung into the loop from outside: the loop calls every hook, and knows none."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

log = logging.getLogger(__name__)


class Hook:
    """All moments a hook may act at; those it does not define do nothing.

    Hooks are frozen dataclasses: what they write goes to the run folder, what they must remember does not belong here.
    The loop runs under a transfer guard: a hook that moves data to or from a device says so with
    `jax.transfer_guard("allow")`, and then makes the loop wait."""

    def before(self, folder: pathlib.Path, step: int) -> None:
        """Before step `step` (counted from 1) is dispatched."""

    def after(self, folder: pathlib.Path, step: int, state: Any, metrics: Mapping[str, jax.Array]) -> None:
        """After step `step` was dispatched; the state and its metrics lie on the devices and may not be ready."""

    def on_eval(self, folder: pathlib.Path, step: int, name: str, results: Mapping[str, Any]) -> None:
        """After evaluator `name` has judged the state after `step`."""

    def on_finish(self, folder: pathlib.Path, step: int, state: Any) -> None:
        """After the last step, its evaluations and its checkpoint."""


@dataclasses.dataclass(frozen=True)
class Profile(Hook):
    """Traces `steps` steps from step `first` on into RUN/profile (open with Perfetto or TensorBoard)."""

    first: int = 10
    steps: int = 3

    def before(self, folder: pathlib.Path, step: int) -> None:
        if step == self.first:
            _try("start", lambda: jax.profiler.start_trace(str(folder / "profile")))

    def after(self, folder: pathlib.Path, step: int, state: Any, metrics: Mapping[str, jax.Array]) -> None:
        if step == self.first + self.steps - 1:
            jax.block_until_ready(metrics)
            _try("stop", jax.profiler.stop_trace)


def _try(what: str, action: Any) -> None:
    """A profile is never worth a run."""
    try:
        with jax.transfer_guard("allow"):
            action()
    except (RuntimeError, OSError) as error:
        log.warning("the profiler did not %s: %s", what, error)
