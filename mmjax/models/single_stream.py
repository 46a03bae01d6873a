"""One stream: pictures and words go through one stack together, and tasks are asked of what becomes of them.

    ViLT      SingleStream(..., tasks=(HiddenWords(...), Belonging()))
    UNITER    SingleStream(..., tasks=(HiddenWords(...), Belonging(), HiddenRegions()))

B rows   N pictures of a row   t tokens of a picture   M = N t   T places of the row of text   D width   C features
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmjax.core.batch import MODALITIES, Batch, Text
from mmjax.core.dtypes import Dtypes
from mmjax.core.errors import UserError
from mmjax.core.parameters import slot, unbox
from mmjax.core.tokens import Places, Tokens
from mmjax.fusion.early import Concatenate
from mmjax.heads.masked import MaskedLanguage, MaskText
from mmjax.heads.masked_image import hide_patches
from mmjax.heads.matching import Matching
from mmjax.models.decoder import Sense
from mmjax.nn.embeddings import NoPositions
from mmjax.nn.linear import Linear
from mmjax.nn.norms import LayerNorm
from mmjax.nn.pooling import First


class SingleStream(nn.Module):
    """Early fusion with several objectives (ViLT, arXiv 2102.03334; UNITER, arXiv 1909.11740), norms before branches.

    Slots: `embedding` (ids -> vectors) and `positions` of the words, `image` (`Sense`: what its encoder gives are the
    features [B M C], its connector takes them to the width), `fusion`, `stack`, `norm`, `tasks`. A task is a module
    called with this model, the features and the batch; it reads rows of its own making with `words`, `pictures` and
    `read`. Outputs are those of all tasks. Raises UserError when the batch lacks text or pictures."""

    embedding: nn.Module
    image: Sense
    stack: nn.Module
    tasks: tuple[nn.Module, ...]
    positions: nn.Module = slot(NoPositions)
    fusion: nn.Module = slot(Concatenate)
    norm: nn.Module = slot(LayerNorm)
    dtypes: Dtypes = Dtypes()

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        if batch.text is None or batch.image is None:
            has = ", ".join(batch.modalities()) or "nothing"
            raise UserError(f"a single stream reads pictures and words together; the batch has {has}")
        features, told = self.image.encoder(batch.image, train=train), {}
        for task in self.tasks:
            told |= task(self, features, batch, train=train)
        return told

    def words(self, text: Text) -> Tokens:
        """[B T D] the words of a row before the stack; places of media are none."""
        kind = jnp.full_like(text.ids, MODALITIES.index("text"))
        places = Places(text.valid & (text.slot < 0), text.block, text.segment, text.position, kind)
        return Tokens(self.positions(self.dtypes.enter(self.embedding(text.ids)), text.position), places)

    def pictures(self, features: Tokens, items: int) -> Tokens:
        """[B M D] the pictures of a row before the stack."""
        tokens = self.image.connector(features, items)
        return tokens.with_x(self.dtypes.enter(tokens.x))

    def read(self, pictures: Tokens, words: Tokens, *, train: bool = False) -> tuple[Tokens, Tokens]:
        """What becomes of pictures and words that see each other."""
        at, none = words.places, jnp.full(words.valid.shape, -1)
        text = Text(none, none, at.segment, at.block, at.position, jnp.zeros(none.shape))
        row = self.fusion(words, text, {"image": pictures}).row
        row = row.with_x(self.norm(self.stack(row.x, row.places, train=train)))
        seen, told = row.split([pictures.x.shape[1], words.x.shape[1]])
        return seen, told

    def table(self) -> Float[Array, "V D"]:
        """The vectors of the words."""
        return unbox(self.embedding.get_variable("params", "table"))


class HiddenWords(nn.Module):
    """Masked language modelling with the whole picture in sight; outputs are those of `head`, whose table is that of
    the words."""

    mask: MaskText
    head: MaskedLanguage

    def __call__(self, model: SingleStream, features: Tokens, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        hidden = self.mask(batch.text, train=train)
        pictures = model.pictures(features, batch.image.valid.shape[1])
        _, words = model.read(pictures, model.words(hidden.text), train=train)
        return self.head(words.x, batch.text, hidden.chosen, model.table())


class Belonging(nn.Module):
    """Image-text matching: the first word's vector, mapped and bounded, says whether the row's picture and text belong
    together (ViLT, arXiv 2102.03334). False pairs are drawn from the batch, each as likely as the other, but none that
    shares a label of `same` or `alike` (see `heads.matching`, which gives the outputs)."""

    same: str | None = None
    alike: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, model: SingleStream, features: Tokens, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        words = model.words(batch.text)
        pool = Linear("bd,dD->bD", words.x.shape[-1:], name="pool")

        def judged(pictures: Tokens, words: Tokens, *, train: bool) -> Float[Array, "R D"]:
            _, told = model.read(pictures, words, train=train)
            return jnp.tanh(pool(First()(told)[:, 0]))

        # Pairs of cosine 0 are equally hard.
        level = jnp.zeros((batch.fault.shape[0], 1))
        present = {name: batch.present(name)[:, 0] for name in ("image", "text")}
        outputs = {"embeddings": dict.fromkeys(present, level), "present": present, "scale": jnp.zeros(())}
        matching = Matching(judged, same=self.same, alike=self.alike, name="matching")
        return matching(model.pictures(features, batch.image.valid.shape[1]), words, outputs, batch, train=train)


class HiddenRegions(nn.Module):
    """Masked region modelling: `rate` of a picture's features are zeroed and told from the rest and the whole text by
    one linear map, in squared distance (UNITER's regression, arXiv 1909.11740). Features of an encoder that trains are
    the target as they are, without gradient. Gives {"patches": {"error" float32 [B N t], "hidden" bool [B N t]}}, as
    `heads.masked_image` does."""

    rate: float = 0.15

    @nn.compact
    def __call__(self, model: SingleStream, features: Tokens, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        rows, items = batch.image.valid.shape
        size = features.x.shape[1] // items
        key = self.make_rng("dropout") if train else jax.random.key(0)
        hidden = hide_patches(key, rows * items, size, self.rate)[1].reshape(rows, items * size)
        blind = features.with_x(jnp.where(hidden[..., None], 0, features.x))
        seen, _ = model.read(model.pictures(blind, items), model.words(batch.text), train=train)
        told = Linear("btd,dD->btD", features.x.shape[-1:], name="features")(seen.x).astype(jnp.float32)
        target = jax.lax.stop_gradient(features.x).astype(jnp.float32)
        error = jnp.mean(jnp.square(told - target), axis=-1).reshape(rows, items, size)
        return {"patches": {"error": error, "hidden": hidden.reshape(error.shape) & batch.image.valid[..., None]}}
