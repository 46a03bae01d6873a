"""Masked image modelling: hide patches of a picture, and tell their pixels.

B rows   N pictures of a row   P = B N pictures   T patches of a picture, K of them visible   D width   C pixels each
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Images
from mmjax.core.errors import UserError
from mmjax.core.parameters import declare, slot
from mmjax.nn.embeddings import SinCosGrid
from mmjax.nn.linear import Linear, Normal
from mmjax.nn.norms import LayerNorm
from mmjax.ops.patches import patchify


def hide_patches(
    key: jax.Array, pictures: int, patches: int, rate: float
) -> tuple[Int[Array, "P K"], Bool[Array, "P T"]]:
    """A random round(rate * T) of each picture's patches are hidden (MAE, arXiv 2111.06377, section 3): the visible
    ones in order, and which are hidden. Raises UserError when none or all would be."""
    hidden = round(rate * patches)
    if not 0 < hidden < patches:
        raise UserError(f"hiding {rate:g} of {patches} patches leaves {patches - hidden}; some must stay, some must go")
    luck = jax.random.uniform(key, (pictures, patches))
    visible = jnp.sort(jnp.argsort(luck, axis=1)[:, : patches - hidden], axis=1)
    rows = jnp.arange(pictures)[:, None]
    return visible, jnp.ones((pictures, patches), bool).at[rows, visible].set(False)


def targets(images: Images, patch: int, normalise: float | None) -> Float[Array, "P T C"]:
    """The pixels of each patch in [-1, 1]; with `normalise` (a small number added to the variance) each patch has mean
    0 and variance 1 (MAE, arXiv 2111.06377, section 3)."""
    pixels = images.pixels.reshape(-1, *images.pixels.shape[2:]).astype(jnp.float32) / 127.5 - 1
    cells = patchify(pixels, patch)
    if normalise is None:
        return cells
    mean, variance = jnp.mean(cells, -1, keepdims=True), jnp.var(cells, -1, keepdims=True)
    return (cells - mean) * jax.lax.rsqrt(variance + normalise)


class MAE(nn.Module):
    """Masked autoencoder (arXiv 2111.06377): the encoder sees the visible patches only; a small decoder sees them with
    a learned vector at each hidden place, and tells normalised pixels.

    encoder: a `ViT`; its parts are used as they are, so what is trained are its own parameters. decoder: a stack of
    blocks of `width`. patch: pixels of the encoder's patches. Gives {"patches": {"error" float32 [B N T]: mean squared
    over pixels, "hidden" bool [B N T]}}; in a picture that is not valid nothing is hidden. In training patches are
    drawn by the step's own randomness, in evaluation they are the same for every call."""

    encoder: nn.Module
    decoder: nn.Module
    width: int
    patch: int
    rate: float = 0.75
    normalise: float | None = 1e-6
    positions: nn.Module = slot(SinCosGrid)
    norm: nn.Module = slot(LayerNorm)

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> dict[str, dict[str, Array]]:
        encoder = self.encoder
        x, grid = encoder.patches(images)
        pictures, patches, _ = x.shape
        visible, hidden = hide_patches(_key(self, train), pictures, patches, self.rate)
        seen = jnp.take_along_axis(encoder.positions(x, grid), visible[..., None], axis=1)
        seen = encoder.norm(encoder.stack(encoder.before(encoder.class_token(seen)), train=train))
        seen = Linear("btd,dD->btD", (self.width,), name="narrow")(seen[:, -visible.shape[1] :])
        whole = jnp.broadcast_to(_token(self, seen, self.width), (pictures, patches, self.width))
        whole = whole.at[jnp.arange(pictures)[:, None], visible].set(seen)
        whole = self.norm(self.decoder(self.positions(whole, grid), train=train))
        target = targets(images, self.patch, self.normalise)
        told = Linear("btd,dp->btp", (target.shape[-1],), name="pixels")(whole).astype(jnp.float32)
        return _told(images, jnp.mean(jnp.square(told - target), axis=-1), hidden)


class SimMIM(nn.Module):
    """Masked pixels by one linear map (arXiv 2111.09886): the encoder sees every place, a learned vector at the hidden
    ones, and "error" is the mean absolute difference. Otherwise as `MAE`."""

    encoder: nn.Module
    patch: int
    rate: float = 0.6
    normalise: float | None = None

    @nn.compact
    def __call__(self, images: Images, *, train: bool = False) -> dict[str, dict[str, Array]]:
        encoder = self.encoder
        x, grid = encoder.patches(images)
        pictures, patches, width = x.shape
        _, hidden = hide_patches(_key(self, train), pictures, patches, self.rate)
        x = encoder.positions(jnp.where(hidden[..., None], _token(self, x, width), x), grid)
        x = encoder.norm(encoder.stack(encoder.before(encoder.class_token(x)), train=train))
        target = targets(images, self.patch, self.normalise)
        told = Linear("btd,dp->btp", (target.shape[-1],), name="pixels")(x[:, -patches:]).astype(jnp.float32)
        return _told(images, jnp.mean(jnp.abs(told - target), axis=-1), hidden)


def _key(module: nn.Module, train: bool) -> jax.Array:
    return module.make_rng("dropout") if train else jax.random.key(0)


def _token(module: nn.Module, like: Array, width: int) -> Float[Array, "1 D"]:
    """The learned vector that stands at hidden places."""
    return declare(module, "token", Normal(0.02), latents=1, width=width).astype(like.dtype)


def _told(images: Images, error: Float[Array, "P T"], hidden: Bool[Array, "P T"]) -> dict[str, dict[str, Array]]:
    shape = (*images.valid.shape, -1)
    return {"patches": {"error": error.reshape(shape), "hidden": hidden.reshape(shape) & images.valid[..., None]}}
