"""The optimizer as one value: a rule, a rate, clipping, decay and groups of parameters by path.

    adamw(Cosine(1e-3, warmup=500), decay=0.05, groups=(frozen("image/.*"), Group("head/.*", lr_scale=0.1)))

update = -rate(step) * lr_scale * (direction + decay * parameter), after clipping all gradients to a global norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.core.errors import UserError, unknown_name
from mmjax.core.parameters import is_declared
from mmjax.core.pytrees import flatten_names, map_names, matches
from mmjax.training.rules import Adafactor, Adam, Lion, Muon, Rule, matrix
from mmjax.training.schedules import Constant, ReduceOnPlateau, Schedule

FROZEN, DEFAULT = "frozen", "default"


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose whole path matches the regular expression `pattern`, and what is different for them.

    lr_scale multiplies the rate; 0 freezes: no gradient, no moments, no movement. decay and rule replace the
    optimizer's own where given."""

    pattern: str
    lr_scale: float = 1.0
    decay: float | None = None
    rule: Rule | None = None


def frozen(pattern: str) -> Group:
    """The group of parameters that do not train."""
    return Group(pattern, lr_scale=0.0)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters follow gradients.

    clip: largest global gradient norm, None for no clipping. decay: decoupled (times the rate), on the paths that match
    `decay_on`; None means every matrix, so no biases, scales or tables. groups: the first that matches counts.
    """

    rule: Rule
    lr: Schedule
    decay: float = 0.0
    decay_on: str | None = None
    clip: float | None = 1.0
    groups: tuple[Group, ...] = ()

    def build(self, declared: Any, steps: int) -> Update:
        """The optimizer for a tree of `Declared` parameters and a run of `steps`. Raises UserError, with all faults
        gathered, for a pattern that matches no parameter, a malformed number, or a schedule that does not fit."""
        faults = [*self._pattern_faults(declared), *self._number_faults()]
        try:
            rate = self.lr.build(steps)
        except UserError as error:
            faults.append(str(error))
        if faults:
            raise UserError("optimizer: " + "\noptimizer: ".join(faults))
        groups = map_names(lambda name, _: self._group_of(name), declared, is_leaf=is_declared)
        labels = jax.tree.map(lambda i: self._label(i), groups)
        rules = {DEFAULT: self.rule} | {str(i): g.rule for i, g in enumerate(self.groups) if g.rule is not None}
        directions = {label: rule.direction(_only(declared, labels, label)) for label, rule in rules.items()}
        scales = jax.tree.map(lambda i: self.groups[i].lr_scale if i >= 0 else 1.0, groups)
        decays = map_names(self._decay_of, groups, declared)
        parts = [
            optax.clip_by_global_norm(self.clip) if self.clip is not None else optax.identity(),
            optax.partition({**directions, FROZEN: optax.set_to_zero()}, labels),
            _apply_rate(rate, scales, decays),
            _plateau(self.lr),
        ]
        return Update(optax.chain(*parts), rate, jax.tree.map(lambda scale: scale != 0, scales))

    def _group_of(self, name: str) -> int:
        """Index of the first group that matches, -1 where none does."""
        return next((i for i, group in enumerate(self.groups) if matches(group.pattern, name)), -1)

    def _label(self, index: int) -> str:
        if index < 0:
            return DEFAULT
        if self.groups[index].lr_scale == 0:
            return FROZEN
        return DEFAULT if self.groups[index].rule is None else str(index)

    def _decay_of(self, name: str, index: int, leaf: Any) -> float:
        if index >= 0 and self.groups[index].decay is not None:
            return self.groups[index].decay
        if self.decay_on is not None:
            return self.decay if matches(self.decay_on, name) else 0.0
        dims = leaf.dims if is_declared(leaf) else (None,) * leaf.ndim
        return self.decay if matrix(dims) else 0.0

    def _pattern_faults(self, declared: Any) -> Iterator[str]:
        names = list(flatten_names(declared, is_leaf=is_declared))
        patterns = [(f"group {group.pattern!r}", group.pattern) for group in self.groups]
        if self.decay_on is not None:
            patterns.append((f"decay_on {self.decay_on!r}", self.decay_on))
        for what, pattern in patterns:
            if not any(matches(pattern, name) for name in names):
                near = unknown_name("parameter", pattern, names)
                yield f"{what} matches no parameter (a pattern must match the whole path): {near}"
        if all(self._label(self._group_of(name)) == FROZEN for name in names):
            yield "every parameter is frozen; nothing would train"

    def _number_faults(self) -> Iterator[str]:
        if self.clip is not None and self.clip <= 0:
            yield f"clip must be above 0, or none for no clipping; got {self.clip}"
        if self.decay < 0:
            yield f"decay must not be negative; got {self.decay}"


@dataclasses.dataclass(frozen=True)
class Update:
    """A built optimizer."""

    transformation: optax.GradientTransformationExtraArgs
    schedule: Callable[[jax.Array], jax.Array]
    trains: Any  # tree of bool: which parameters move

    def init(self, params: Any) -> Any:
        """The optimizer's state for parameters or for boxes of them."""
        return self.transformation.init(params)

    def __call__(self, grads: Any, state: Any, params: Any, *, step: jax.Array, loss: jax.Array) -> tuple[Any, Any]:
        """(what to add to `params`, next state). The rate is that of `step`, whatever was skipped before."""
        return self.transformation.update(grads, state, params, step=step, value=loss)

    def hold(self, params: Any) -> Any:
        """The parameters, with no gradient through the frozen ones: their backward pass is never built."""
        return jax.tree.map(lambda x, moves: x if moves else jax.lax.stop_gradient(x), params, self.trains)

    def rate(self, state: Any, step: jax.Array) -> jax.Array:
        """The learning rate of a step (of parameters whose group does not scale it)."""
        plateau = state[-1]
        return self.schedule(step) * getattr(plateau, "scale", 1.0)


def _only(declared: Any, labels: Any, wanted: str) -> Any:
    """The declarations a rule is told of: its own; where other rules' parameters stand there is nothing, in the form in
    which optax will show it the rest of the tree."""
    return jax.tree.map(lambda label, leaf: leaf if label == wanted else optax.MaskedNode(), labels, declared)


def _apply_rate(rate: Callable, scales: Any, decays: Any) -> optax.GradientTransformationExtraArgs:
    """update = -rate(step) * scale * (direction + decay * parameter), with a scale and a decay per parameter."""

    def update(updates, state, params=None, *, step, **_):
        now = rate(step)

        def one(direction, param, scale, decay):
            if scale == 0:
                return jnp.zeros_like(direction)
            return -(now * scale) * (direction + decay * param if decay else direction)

        return jax.tree.map(one, updates, params, scales, decays), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _plateau(lr: Schedule) -> optax.GradientTransformationExtraArgs:
    """What a ReduceOnPlateau schedule adds; nothing for the others."""
    if not isinstance(lr, ReduceOnPlateau):
        return optax.with_extra_args_support(optax.identity())
    found = optax.contrib.reduce_on_plateau(
        lr.factor, lr.patience, rtol=lr.tolerance, accumulation_size=lr.window, min_scale=lr.smallest
    )
    # Its state's format follows the parameters it is shown: float32 ones, also where the model keeps bfloat16.
    return optax.GradientTransformationExtraArgs(lambda params: found.init({"scalar": jnp.zeros(())}), found.update)


def _schedule(lr: Schedule | float) -> Schedule:
    return Constant(lr) if isinstance(lr, int | float) else lr


def adamw(lr: Schedule | float, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, **settings: Any) -> Optimizer:
    """AdamW; `settings` are the fields of `Optimizer` (decay, decay_on, clip, groups)."""
    return Optimizer(Adam(b1, b2, eps), _schedule(lr), **settings)


def lion(lr: Schedule | float, *, b1: float = 0.9, b2: float = 0.99, **settings: Any) -> Optimizer:
    """Lion; `settings` are the fields of `Optimizer`."""
    return Optimizer(Lion(b1, b2), _schedule(lr), **settings)


def adafactor(lr: Schedule | float, **settings: Any) -> Optimizer:
    """Adafactor; `settings` are the fields of `Optimizer`."""
    return Optimizer(Adafactor(), _schedule(lr), **settings)


def muon(lr: Schedule | float, *, beta: float = 0.95, **settings: Any) -> Optimizer:
    """Muon for matrices, AdamW for the rest; `settings` are the fields of `Optimizer`."""
    return Optimizer(Muon(beta), _schedule(lr), **settings)
