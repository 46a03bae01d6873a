"""Text into the words that captions are compared by.

English is cut as the COCO caption evaluation does it (arXiv 1504.00325, section 3.1: the Penn Treebank tokenizer of
Stanford CoreNLP 3.4.1, lower case, punctuation left out), by rules that were checked against that program. A script
that puts no space between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) is cut into characters with
their marks, wherever it occurs: scores of such languages compare with other character-level scores only. Every other
script is cut at spaces and punctuation.
"""

from __future__ import annotations

import functools
import re
import unicodedata

Words = tuple[str, ...]

_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_FOREIGN = "¡«»¿\u2010-\u2027\u2030-\u205e،؛؟۔।॥\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"

_LETTER = rf"[^\s!-/:-@\[-`{{-~{_FOREIGN}]"  # marks of vowels and joiners included, which \w leaves out
_WORD = rf"{_LETTER}+(?:(?:[-/_']|(?<=\d)[.,:](?=\d)|[.!?](?=[^\W\d])){_LETTER}+)*"
_SHORTENED = "mr|mrs|ms|dr|prof|st|ave|blvd|rd|jr|sr|vs|etc|inc|ltd|corp|dept|gen|lt|col|capt|sgt|gov|sen|rep"

_TOKEN = re.compile(
    rf"""(?:https?://|www\.)\S+ | [^\s@]+@[^\s@]+\.\w+                        # addresses
      | (?:[a-z]\.){{2,}}(?![a-z]) | \b(?:{_SHORTENED})\.(?!\w)               # u.s.  p.m.  st.
      | '\d\ds?\b | 'n'                                                       # the '90s, rock 'n' roll
      | '(?:tis|twas)\b | '(?:s|m|d|ll|re|ve)(?!{_LETTER})                    # what is left of other contractions
      | (?<!\S)[-+](?=\.?\d){_WORD} | (?<![^\s(])\.\d+                        # -5  .5
      | {_WORD} | [?!]{{2,}} | [][(){{}}] | [\#$%&@*+=<>~^|\\]""",
    re.VERBOSE,
)
_CLITIC = re.compile(r"(?<=.)(?:n't|'(?:s|m|d|ll|re|ve))$|(?<=^y')all$")
_PAIRS = {"cannot": 3, "gonna": 3, "wanna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "'tis": 2, "'twas": 2}
_NAMES = {"(": "-lrb-", ")": "-rrb-", "{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "£": " # ", "€": " $ ", "½": " 1/2", "¼": " 1/4"})


@functools.lru_cache(maxsize=1 << 17)
def words(text: str) -> Words:
    """The words of `text`. Brackets become `-lrb-` and the like and stay, as in the original."""
    text = text.translate(_PLAIN).lower()
    if _UNSPACED.search(text):
        text = _spaced(text)
    return tuple(part for token in _TOKEN.findall(text) for part in _parts(token))


def _parts(token: str) -> Words:
    if token in _NAMES:
        return (_NAMES[token],)
    if token in _PAIRS:
        return token[: _PAIRS[token]], token[_PAIRS[token] :]
    found = _CLITIC.search(token)
    return (token,) if found is None else (*_parts(token[: found.start()]), found.group())


def _spaced(text: str) -> str:
    """Spaces around each character of an unspaced script; a mark stays with the letter before it."""
    out = []
    for letter in unicodedata.normalize("NFC", text):
        if unicodedata.category(letter).startswith("M") and out:
            out[-1] = out[-1].rstrip() + letter + " " * out[-1].endswith(" ")
        else:
            out.append(f" {letter} " if _UNSPACED.match(letter) else letter)
    return "".join(out)
