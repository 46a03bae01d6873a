"""Encoder-decoder models: what was given is encoded once, and a decoder that writes the row looks at it.

B rows   T places of the row   M vectors of the memory   D width   V vocabulary

    Seq2Seq.whisper("base", vocab)              audio -> text
    Seq2Seq.text_to_text("base", vocab)         source text -> text (T5)
    Seq2Seq.unified_io("base")                  images and source text -> text, everything is tokens
    ShowAttendTell.of(vocab)                    image -> text, by an LSTM (see `nn.recurrent`)

All of them decode (`mmjax.decoding`): `fuse` encodes, then `prefill` and `step` are the decoder's.
"""

from __future__ import annotations

import abc
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmjax.core.batch import Batch, Text
from mmjax.core.errors import look_up
from mmjax.core.parameters import declare, slot
from mmjax.core.tokens import Fused, Live, Tokens
from mmjax.encoders.cnn import ResNet
from mmjax.encoders.image import PatchStem, ViT
from mmjax.encoders.speech import SpeechEncoder, whisper_block, whisper_size
from mmjax.fusion.connectors import AsIs
from mmjax.fusion.cross import CrossFusion
from mmjax.fusion.early import Interleave
from mmjax.heads.language import Language
from mmjax.models.decoder import Decoder, Sense
from mmjax.nn.activations import gelu
from mmjax.nn.attention import Attention
from mmjax.nn.block import Block
from mmjax.nn.decoder_sizes import DecoderSize
from mmjax.nn.embeddings import LearnedGrid, LearnedPositions, NoPositions, TokenEmbedding
from mmjax.nn.feedforward import GatedFeedForward
from mmjax.nn.linear import Normal
from mmjax.nn.norms import Identity, LayerNorm, RMSNorm
from mmjax.nn.recurrent import LSTM, AttendTell
from mmjax.nn.stack import Stack
from mmjax.ops.masks import bidirectional
from mmjax.ops.rotary import Rotary


class Writes(nn.Module, abc.ABC):
    """What the models below share: a `decoder` that writes the row, of which each says what it looks at (`fuse`)."""

    decoder: Decoder

    @property
    def longest(self) -> int | None:
        """How long a row may become; None: as long as you like."""
        return self.decoder.longest

    @abc.abstractmethod
    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """The row as the decoder writes it, and the memory it looks at."""

    def prefill(self, fused: Fused) -> Float[Array, "B V"]:
        """See `Decoder.prefill`."""
        return self.decoder.prefill(fused)

    def step(self, ids: Int[Array, "B n"], places: Live, memory: Tokens | None = None) -> Float[Array, "B n V"]:
        """See `Decoder.step`."""
        return self.decoder.step(ids, places, memory)


class AsGiven(nn.Module):
    """The row is the target, and the memory is what the encoders of the media say."""

    def __call__(self, fused: Fused, text: Text, *, train: bool = False) -> Fused:
        return fused


class Source(nn.Module):
    """A joint encoder of the media and of the source text: of the prefix of each sample (places of block 0), whose
    places see each other and all media of the sample. It becomes the memory; what follows is the target.

    The decoder starts at the last place of the source, where a learned vector stands instead of what the encoder read
    there (the start token of T5), and its positions count from it. A sample without a prefix starts at its first id.
    Nothing is predicted of the source: `text.loss` must be zero there."""

    stack: nn.Module
    norm: nn.Module = slot(RMSNorm)
    positions: nn.Module = slot(NoPositions)

    @nn.compact
    def __call__(self, fused: Fused, text: Text, *, train: bool = False) -> Fused:
        row, source = fused.row, (text.block == 0) & (text.segment > 0)
        read = Tokens(row.x, row.places.replace(valid=row.valid & source))
        read = Tokens.concat([fused.memory, read] if fused.memory is not None else [read]).clean()
        places = bidirectional(read.places)
        x = self.norm(self.stack(self.positions(read.x, places.position), places, train=train))
        starts = source & ~_continued(source, text.segment)
        start = declare(self, "start", Normal(0.02), latents=1, width=row.x.shape[-1])
        x_row = jnp.where(starts[..., None], start.astype(row.x.dtype), row.x)
        valid = starts | (row.valid & ~source)
        position = _counted_from(starts, text)
        return Fused(Tokens(x_row, row.places.replace(valid=valid, position=position)), Tokens(x, places))


def _continued(source: Bool[Array, "B T"], segment: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where the next place is source of the same sample, too."""
    same = (segment[:, 1:] == segment[:, :-1]) & source[:, 1:]
    return jnp.pad(same, ((0, 0), (0, 1)))


def _counted_from(starts: Bool[Array, "B T"], text: Text) -> Int[Array, "B T"]:
    """Positions counted from where the sample's target starts; the source stands at 0."""
    number = jnp.arange(starts.shape[1])
    last = jax.lax.cummax(jnp.where(starts, number, -1), axis=1)
    begin, owner = (jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1) for x in (text.position, text.segment))
    counted = jnp.where((last >= 0) & (owner == text.segment), text.position - begin, text.position)
    return jnp.where((text.block == 0) & ~starts, 0, counted)


T5S = {
    "mu": DecoderSize(32, 2, 64, 2, head_dim=16),
    "small": DecoderSize(512, 8, 1024, 6, head_dim=64),
    "base": DecoderSize(768, 12, 2048, 12, head_dim=64),
    "large": DecoderSize(1024, 24, 2816, 16, head_dim=64),
    "xl": DecoderSize(2048, 24, 5120, 32, head_dim=64),
}
"""T5 1.1 (arXiv 2002.05202) and Unified-IO (arXiv 2206.08916, table 2), whose encoder and decoder have one shape."""


class Seq2Seq(Writes):
    """A decoder whose blocks look at a memory (`Block(cross=Attention(..))`).

    decoder: its `media` encode, its `fusion` says what becomes of that: `CrossFusion` hands it over as memory,
    `Interleave` lands it in the row. encoder: (fused, text) -> fused: `AsGiven`, or a joint encoder: `Source`.
    Outputs are those of the decoder's head for the places of the batch's row."""

    encoder: nn.Module = slot(AsGiven)

    @classmethod
    def whisper(cls, size: str, vocab: int, length: int = 448, **slots: Any) -> Seq2Seq:
        """Whisper (arXiv 2212.04356): `size` as in `encoders.speech.WHISPERS`. It hears the `Sensor` slot as features,
        80 log-mel channels at 100 Hz in the paper; for waveforms give `media={"audio": ..}`. `slots` replace parts of
        the decoder."""
        shape = whisper_size(size)
        block = whisper_block(shape, cross=Attention(shape.heads))
        parts = {
            "embedding": TokenEmbedding(vocab, shape.width),
            "stack": Stack(block, shape.depth),
            "head": Language(vocab),
            "norm": LayerNorm(1e-5),
            "positions": LearnedPositions(length),
            "media": {"sensor": Sense(SpeechEncoder.of(size), AsIs())},
            "fusion": CrossFusion(),
        }
        return cls(Decoder(**(parts | slots)))

    @classmethod
    def text_to_text(cls, size: str, vocab: int, **slots: Any) -> Seq2Seq:
        """T5 1.1's shape, `"base"` (see `T5S`), with tied tables as in Unified-IO. In place of its relative position
        bias, which is left out, attention is rotary and scaled. `slots` replace parts of the decoder; media land in
        the source."""
        shape = look_up("T5", size, T5S)
        parts = {
            "embedding": TokenEmbedding(vocab, shape.width),
            "stack": Stack(_t5_block(shape, cross=_t5_attention(shape)), shape.depth),
            "head": Language(vocab),
            "fusion": Interleave(),
        }
        return cls(Decoder(**(parts | slots)), Source(Stack(_t5_block(shape), shape.depth)))

    @classmethod
    def unified_io(cls, size: str, vocab: int = 49_536, resolution: int = 384, **slots: Any) -> Seq2Seq:
        """Unified-IO (arXiv 2206.08916, section 3): patches of 16 pixels, mapped linearly, are tokens of the source.
        What is written is ids of one vocabulary for text, 1 000 positions and 16 384 codes of pictures; the codec of
        the latter is no part of this model. Lay the row out with (resolution / 16) ** 2 places for each image."""
        side, width = resolution // 16, look_up("Unified-IO", size, T5S).width
        patches = ViT(PatchStem(16, width), Stack(Identity(), 0), LearnedGrid((side, side)), norm=Identity())
        return cls.text_to_text(size, vocab, **({"media": {"image": Sense(patches, AsIs())}} | slots))

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        fused, decoder = self.fuse(batch, train=train), self.decoder
        x = decoder.through(fused.row, fused.memory, train=train)
        return decoder.head(x, batch.text, decoder.table())

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """See `Writes.fuse`."""
        return self.encoder(self.decoder.fuse(batch, train=train), batch.text, train=train)


def _t5_attention(shape: DecoderSize, **parts: Any) -> Attention:
    return Attention(shape.heads, head_dim=shape.head_dim, bias=False, **parts)


def _t5_block(shape: DecoderSize, **slots: Any) -> Block:
    attention = _t5_attention(shape, rotary=Rotary())
    return Block(attention, GatedFeedForward(shape.mlp, gelu), RMSNorm(), **slots)


class ShowAttendTell(Writes):
    """Captions by an LSTM that looks at the cells of a picture at each word (arXiv 1502.03044, soft attention).

    decoder: its `stack` is an `AttendTell`, its fusion `CrossFusion`. Outputs are those of the head, and "attention"
    [B T M]: how much each vector of the memory was looked at to predict the id of each place, for
    `objectives.attention.DoublyStochastic` and for pictures of it."""

    @classmethod
    def of(cls, vocab: int, width: int = 512, hidden: int = 1800, **slots: Any) -> ShowAttendTell:
        """Words of `width`, an LSTM of `hidden` (those of the released code), a ResNet-50 for the paper's VGG. `slots`
        replace parts of the decoder."""
        parts = {
            "embedding": TokenEmbedding(vocab, width),
            "stack": AttendTell(LSTM(hidden), dropout=0.5),
            "head": Language(vocab),
            "norm": Identity(),
            "media": {"image": Sense(ResNet.of("50"), AsIs())},
            "fusion": CrossFusion(),
            "tied": False,
        }
        return cls(Decoder(**(parts | slots)))

    def __call__(self, batch: Batch, *, train: bool = False) -> dict[str, Any]:
        fused, decoder = self.fuse(batch, train=train), self.decoder
        x = decoder.positions(fused.row.x, fused.row.places.position)
        x, looks = decoder.stack.tell(x, fused.row.places, fused.memory, train=train)
        return decoder.head(decoder.norm(x), batch.text, decoder.table()) | {"attention": _told_of(looks, batch.text)}

    def fuse(self, batch: Batch, *, train: bool = False) -> Fused:
        """See `Writes.fuse`."""
        return self.decoder.fuse(batch, train=train)


def _told_of(looks: Float[Array, "B T M"], text: Text) -> Float[Array, "B T M"]:
    """At each place the look of the place before it, zero where a sample begins."""
    before = jnp.pad(looks[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.where((text.position > 0)[..., None], before, 0)
