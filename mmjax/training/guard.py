"""The guard: updates that would do harm are skipped on the device; when they come in numbers, the run rolls back.

W steps in the window
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.pytrees import record


@record
class GuardState:
    """What the guard remembers; part of the training state, so that a resumed run judges alike."""

    losses: Float[Array, " W"]  # of the last W accepted updates, a ring
    norms: Float[Array, " W"]
    accepted: Int[Array, ""]
    skips: Bool[Array, " W"]  # which of the last W steps were skipped, a ring indexed by step
    skipped: Int[Array, ""]  # since the start of the run


@dataclasses.dataclass(frozen=True)
class Guard:
    """Skips an update whose loss or gradient is not finite, or whose loss or gradient norm is a spike.

    A spike lies more than `sigmas` standard deviations above the mean of the last `window` accepted updates (OLMo 2,
    arXiv 2501.00656, section 3.1, gives the spikes; the rule is that of its code), where a deviation counts as at
    least 5 % of the mean: a run that has settled is not stopped by its first ripple. Judging starts when the window is
    full; until then only numbers that are not finite are skipped.
    budget: more skips than this among the last `window` steps roll the run back to its last good checkpoint and skip
    the data since; after `rollbacks` of those the run stops with exit code 76.
    """

    sigmas: float = 6.0
    window: int = 128
    budget: int = 16
    rollbacks: int = 2

    def init(self) -> GuardState:
        """Nothing seen yet."""
        zeros, zero = jnp.zeros((self.window,)), jnp.zeros((), jnp.int32)
        return GuardState(zeros, zeros, zero, zeros.astype(bool), zero)

    def judge(
        self, state: GuardState, step: Int[Array, ""], loss: Float[Array, ""], norm: Float[Array, ""]
    ) -> tuple[Bool[Array, ""], GuardState]:
        """Whether the update of `step` is to be applied, and what to remember of it."""
        known = state.accepted >= self.window
        spike = self._spike(loss, state.losses) | self._spike(norm, state.norms)
        ok = jnp.isfinite(loss) & jnp.isfinite(norm) & ~(known & spike)
        at = state.accepted % self.window
        return ok, GuardState(
            losses=jnp.where(ok, state.losses.at[at].set(loss), state.losses),
            norms=jnp.where(ok, state.norms.at[at].set(norm), state.norms),
            accepted=state.accepted + ok,
            skips=state.skips.at[step % self.window].set(~ok),
            skipped=state.skipped + ~ok,
        )

    def _spike(self, value: Array, seen: Float[Array, " W"]) -> Bool[Array, ""]:
        mean = jnp.mean(seen)
        return value > mean + self.sigmas * jnp.maximum(jnp.std(seen), 0.05 * jnp.abs(mean))

    def metrics(self, state: GuardState) -> dict[str, Array]:
        """Counters for the log; `skipped_lately` is what `exhausted` asks for."""
        return {"skipped": state.skipped, "skipped_lately": jnp.sum(state.skips.astype(jnp.int32))}

    def exhausted(self, metrics: dict[str, Any]) -> bool:
        """Whether these (host) metrics are over the budget."""
        return metrics["skipped_lately"] > self.budget


@dataclasses.dataclass(frozen=True)
class NoGuard:
    """Applies every update, whatever it is."""

    rollbacks: int = 0
    window: int = 1

    def init(self) -> None:
        """Nothing to remember."""
        return None

    def judge(self, state: None, step: Any, loss: Any, norm: Any) -> tuple[Bool[Array, ""], None]:
        """Always yes."""
        return jnp.bool_(True), state

    def metrics(self, state: None) -> dict[str, Array]:
        """None."""
        return {}

    def exhausted(self, metrics: dict[str, Any]) -> bool:
        """Never."""
        return False


def keep(ok: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where `ok`, else `old`, bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, old)
