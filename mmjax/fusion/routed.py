"""Experts by choice: a router sends each token to a few of many feed-forward layers.

B rows   T tokens of a row   D width   G groups of modalities   E experts of a group   X = G E experts   L layers

`Routed` is the feed-forward of a `fusion.experts.ModalityBlock`. What routers see reaches the objectives as
`outputs["load"]` when the model stands inside of `WithLoad`:

    model       WithLoad(Decoder(..., stack=Stack(ModalityBlock(Attention(8), Routed(experts=8, chosen=2)), 12), ...))
    objective   {"experts": weighted(1.0, EvenExperts(even=1e-2, z=1e-3)), ...}      (see objectives.experts)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import MODALITIES, Batch
from mmjax.core.errors import UserError
from mmjax.core.parameters import declare, slot
from mmjax.core.pytrees import flatten_names
from mmjax.core.tokens import Places
from mmjax.fusion.grouped import GroupedFeedForward, Groups, group_of
from mmjax.nn.around import Around
from mmjax.nn.cache import FRESH, MEMORY
from mmjax.nn.linear import Linear
from mmjax.ops.routing import Load, to_one


class Router(nn.Module):
    """Logits over experts, in float32: a linear map of the token, plus what its modality adds."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], places: Places, experts: int) -> Float[Array, "B T X"]:
        logits = Linear("btd,dx->btx", (experts,), bias=False, name="map")(x.astype(jnp.float32))
        table = declare(self, "modality", nn.initializers.zeros, latents=len(MODALITIES), experts=experts)
        return logits + jnp.take(table, places.modality, axis=0)


class Routed(nn.Module):
    """A feed-forward where each token goes to the `chosen` experts its router likes best, none dropped (Shazeer et al.,
    arXiv 1701.06538; Switch, arXiv 2101.03961, with chosen=1 and share=in_proportion).

    groups: modalities of one group share `experts / G` experts of their own (MoMa, arXiv 2407.21770); one
    group lets all tokens choose among all (LIMoE, arXiv 2206.02770). share: how the chosen ones' probabilities weigh
    their answers. Sows its `Load` (`ops.routing`) as the intermediate "load".
    """

    experts: int = 8
    chosen: int = 2
    groups: Groups = (MODALITIES,)
    feedforward: nn.Module = slot(GroupedFeedForward)
    router: nn.Module = slot(Router)
    share: Callable[[Array], Array] = to_one

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], places: Places, *, train: bool = False) -> Float[Array, "B T D"]:
        groups, size = len(self.groups), self.experts // len(self.groups)
        if self.experts % groups or not 1 <= self.chosen <= size:
            raise UserError(
                f"experts: {self.experts} experts in {groups} groups, {self.chosen} chosen for each token; the groups "
                "must divide the experts, and a token can choose at most the experts of its group"
            )
        group = group_of(places, self.groups)
        logits = self.router(x, places, self.experts).reshape(*x.shape[:2], groups, size)
        logits = jnp.take_along_axis(logits, group[..., None, None], axis=2)[:, :, 0]
        probability, choice = jax.lax.top_k(jax.nn.softmax(logits), self.chosen)
        self.sow("intermediates", "load", Load.of(logits, choice, group, groups, places.valid))
        expert = (group[..., None] * size + choice).reshape(-1)
        each = jnp.repeat(x.reshape(-1, x.shape[-1]), self.chosen, axis=0)
        answers = self.feedforward(each, expert, self.experts).reshape(*choice.shape, -1)
        return jnp.einsum("btk,btkd->btd", self.share(probability).astype(x.dtype), answers)


class WithLoad(Around):
    """A model whose outputs also hold `load`: {path of a router: `Load` [B L G E]}, which `objectives.experts` reads.
    L are the layers of a stack; a router outside of stacks gives [B G E]."""

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        if any(self.is_mutable_collection(name) for name in ("params", FRESH, MEMORY)):
            return self.model(batch, train=train)
        if self.is_mutable_collection("intermediates"):
            outputs = self.model(batch, train=train)
            return outputs | {"load": loads(self.model.variables["intermediates"])}
        model, variables = self.model.unbind()
        rngs = {"dropout": self.make_rng("dropout")} if self.has_rng("dropout") else {}
        outputs, seen = model.apply(variables, batch, train=train, rngs=rngs, mutable=["intermediates"])
        return outputs | {"load": loads(seen["intermediates"])}


def loads(intermediates: Any) -> dict[str, Load]:
    """The loads among what a model sowed, by path, rows first."""
    sown = flatten_names(intermediates, is_leaf=lambda x: isinstance(x, Load))
    found = {name.removesuffix("/load/0"): load for name, load in sown.items() if isinstance(load, Load)}
    return {
        name: jax.tree.map(lambda x, n=load.tokens.ndim: jnp.moveaxis(x, n - 2, 0), load)
        for name, load in found.items()
    }
