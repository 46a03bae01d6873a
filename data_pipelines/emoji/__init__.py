"""Emoji as image-text pairs: three artists, 14 languages, ten groups, five skin tones; all from installed packages."""

from data_pipelines.emoji.catalogue import LANGUAGES
from data_pipelines.emoji.pairs import EmojiPairs

__all__ = ["LANGUAGES", "EmojiPairs"]
