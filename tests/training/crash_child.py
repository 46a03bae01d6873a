"""What the children of the crash tests run: checkpoints 1, 2 and 3 of a small state, dying where they are told to."""

import os
import pathlib


def save_three(folder: str, fault: str) -> None:
    """Saves steps 1 to 3, keeping two, with `fault` armed."""
    os.environ |= {"MMJAX_TESTING": "1", "MMJAX_FAULTS": fault, "JAX_PLATFORMS": "cpu"}
    import jax.numpy as jnp

    from mmjax.training.checkpoints import Checkpoints, CheckpointStore

    store = CheckpointStore(pathlib.Path(folder), Checkpoints(every=1, keep=2))
    for step in (1, 2, 3):
        store.save_now(step, {"state": {"w": jnp.full((64, 64), step, jnp.float32)}}, {"step": step})
