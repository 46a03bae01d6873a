"""A small state, its checkpoints, and a way to damage them, for the checkpoint tests."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.core.pytrees import record
from mmjax.training.checkpoints import Checkpoints, CheckpointStore


@record
class State:
    step: jax.Array
    params: dict
    opt_state: tuple


def mesh(data, fsdp):
    devices = np.asarray(jax.devices()[: data * fsdp]).reshape(data, fsdp)
    return jax.sharding.Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def items_at(step, grid=None):
    """A small state as of `step`, spread over a mesh, and its parameters."""
    grid = grid or mesh(1, 1)
    whole, rows = NamedSharding(grid, PartitionSpec()), NamedSharding(grid, PartitionSpec("fsdp"))
    values = np.random.default_rng(step).normal(size=(8, 6)).astype(np.float32)
    params = {"dense": {"kernel": jax.device_put(values, rows), "bias": jax.device_put(values[0], whole)}}
    moments = jax.device_put(optax.adam(1e-3).init(params), whole)
    return {"state": State(jax.device_put(jnp.int32(step), whole), params, moments), "params": params}


def wanted(items):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), items)


def same(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return jax.tree.structure(left) == jax.tree.structure(right) and all(
        a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs
    )


def filled(folder, steps, policy=Checkpoints(every=1, keep=9)):
    store = CheckpointStore(folder, policy)
    for step in steps:
        store.save(step, items_at(step), {"examples": 16 * step})
    store.wait()
    return store


def files_of(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(step, choose=random.Random(0)):
    path = choose.choice([path for path in files_of(step) if path.stat().st_size])
    data = bytearray(path.read_bytes())
    data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    path.write_bytes(data)
