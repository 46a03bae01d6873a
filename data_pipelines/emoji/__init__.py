"""Emoji as image-text pairs: three artists, 14 languages, ten groups, five skin tones; all from installed packages.

And what can be asked about them: single pictures (`EmojiQuestions`), scenes composed of several (`SceneQuestions`), and
whether a model imagines things (`SceneProbes`)."""

from data_pipelines.emoji.catalogue import LANGUAGES
from data_pipelines.emoji.pairs import EmojiPairs
from data_pipelines.emoji.probes import SceneProbes
from data_pipelines.emoji.questions import EmojiQuestions
from data_pipelines.emoji.scene_questions import SceneQuestions

__all__ = ["LANGUAGES", "EmojiPairs", "EmojiQuestions", "SceneProbes", "SceneQuestions"]
