"""How questions are put: sentences in English; elsewhere a task word, a language code and names that Unicode CLDR has.

The second way is that of PaliGemma (Beyer et al. 2024, arXiv 2407.07726, section 3.2.5: "caption {lang}"), so that no
sentence had to be translated. Names are put in as they stand: no wording needs a plural, or another article than `the`.
"""

from __future__ import annotations

ENGLISH = {
    "name": ("What is this?", "What does this picture show?", "Name this picture.", "Say what you see."),
    "group": ("What kind of thing is this?", "To which group does this picture belong?", "Which group is this from?"),
    "subgroup": ("More exactly, what kind of thing is this?", "To which subgroup does this picture belong?"),
    "tone": ("What is the skin tone?", "Which skin tone is shown?", "Name the skin tone."),
    "gender": ("Is this a {a} or a {b}?", "{a} or {b}?", "Who is shown, a {a} or a {b}?"),
    "country": ("Whose flag is this?", "Which flag is shown?", "Name the country or region of this flag."),
    "capital": ("What is the capital of the place with this flag?", "Name the capital that goes with this flag."),
    "region": ("In which part of the world does this flag fly?", "Which part of the world is this flag from?"),
    "is": (
        "Does this show: {a}?",
        'Is "{a}" the right name for this?',
        "{a}: yes or no?",
        "Is this picture called {a}?",
    ),
    "which": ("Which of the two is this: {a} or {b}?", "{a} or {b}?", "Is this called {a} or {b}?"),
    "exist": ("Is the {a} in this picture?", "Do you see the {a} anywhere?", "{a}: is it here?"),
    "count": ("How many times is the {a} in this picture?", "How often do you see the {a}?", "{a}: how many?"),
    "compare": ("Which is there more of, the {a} or the {b}?", "Which is here more often, the {a} or the {b}?"),
    "relation": ("On which side of the {b} is the {a}?", "Seen from the {b}, where is the {a}?"),
    "beside": ("Is the {a} {relation} the {b}?", "{a} {relation} {b}: yes or no?"),
    "larger": ("Which is drawn larger, the {a} or the {b}?", "Which takes up more of the picture, the {a} or the {b}?"),
    "locate": ("Where is the {a}?", "Give the box around the {a}.", "Locate the {a}."),
}
ELSEWHERE = {
    "name": ("caption {language}", "name {language}"),
    "group": ("group {language}",),
    "tone": ("tone {language}",),
    "gender": ("answer {language}: {a} / {b}?", "gender {language}: {a} / {b}?"),
    "is": ("answer {language}: {a}?", "is {language}: {a}?"),
    "which": ("answer {language}: {a} / {b}?", "which {language}: {a} / {b}?"),
    "exist": ("exist {language}: {a}?",),
    "count": ("count {language}: {a}",),
    "compare": ("more {language}: {a} / {b}?",),
    "larger": ("larger {language}: {a} / {b}?",),
    "locate": ("detect {language}: {a}",),
}


def wordings(kind: str, language: str) -> tuple[str, ...]:
    """Templates with {a}, {b}, {language} and {relation} to fill in; () where a kind is English only."""
    return (ENGLISH if language == "en" else ELSEWHERE).get(kind, ())


def put(kind: str, language: str, number: int, a: str = "", b: str = "", relation: str = "") -> str:
    """A question in the `number`-th wording (modulo how many there are)."""
    ways = wordings(kind, language)
    return ways[number % len(ways)].format(a=a, b=b, language=language, relation=relation)
