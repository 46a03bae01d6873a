"""Whether all numbers of a checkpoint are finite: asked of the devices before a save, answered behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.core.errors import ExitCode, UserError
from mmjax.core.pytrees import flatten_names


def watch(step: int, items: Mapping[str, Any]) -> Callable[[], None]:
    """Dispatches a reduction over all floating arrays, which may be donated afterwards. The function that comes back
    waits for it and raises UserError (76), naming arrays, where a value is not finite.

    A scalar may be infinite (the best value so far, before there was one), but not NaN."""
    named = {f"{item}/{path}": leaf for item, tree in items.items() for path, leaf in flatten_names(tree).items()}
    floating = {name: leaf for name, leaf in named.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    verdict = _finite(list(floating.values()))

    def refuse() -> None:
        good = jax.device_get(verdict)
        bad = [name for name, fine in zip(floating, good, strict=True) if not fine]
        if bad:
            raise UserError(
                f"checkpoint {step} was refused: {len(bad)} of {len(named)} arrays hold values that are not finite "
                f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}). Earlier checkpoints are intact. Lower the "
                "learning rate, clip the gradients or let the guard skip bad steps, and rerun",
                code=ExitCode.NUMERICS,
            )

    return refuse


@jax.jit
def _finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() if x.ndim else ~jnp.isnan(x) for x in leaves]
