"""The short words that questions about emoji are answered with, in 14 languages.

Nothing is translated here. Names, skin tones, man and woman are captions of the installed package `emoji`, which has
them from Unicode CLDR. Yes and no, and the groups outside English, are those of CLDR 48.2 itself (npm cldr-misc-full,
`posix/messages` and `characterLabels`; Unicode License v3). There `yesstr` of Chinese reads "OK" before "yes" and
`nostr` of Turkish lacks its dotless i; this table has the words that are meant. CLDR's label for smileys and people is
one, so these two groups share an answer outside English.
"""

from __future__ import annotations

import functools

from data_pipelines.emoji.catalogue import LANGUAGES, catalogue, package
from data_pipelines.emoji.concepts import TONES

YES_NO = {
    "en": ("yes", "no"), "es": ("sí", "no"), "ja": ("はい", "いいえ"), "ko": ("예", "아니요"), "pt": ("sim", "não"),
    "it": ("sì", "no"), "fr": ("oui", "non"), "de": ("ja", "nein"), "fa": ("بله", "نه"), "id": ("ya", "tidak"),
    "zh": ("是", "否"), "ru": ("да", "нет"), "tr": ("evet", "hayır"), "ar": ("نعم", "لا"),
}  # fmt: skip
ADULTS = {"man": "1F468", "woman": "1F469"}
LABELLED = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Activities", "Objects", "Travel & Places",
            "Symbols", "Flags")  # fmt: skip
GROUPS = {
    "es": "emoticonos y personas|animales y naturaleza|comida y bebida|actividades|objetos|viajes y destinos|símbolos|"
    "banderas",
    "ja": "スマイリーと人々|動物と自然|食事と飲み物|アクティビティ|物|旅行と場所|記号|旗",
    "ko": "스마일리 및 사람|동물 및 자연|식음료|활동|사물|여행 및 장소|기호|깃발",
    "pt": "smiley ou pessoa|animal ou natureza|comidas e bebidas|atividade|objeto|viagem ou lugar|símbolo|bandeiras",
    "it": "smiley e persone|animali e natura|cibo e bevande|attività|oggetti|viaggi e luoghi|simboli|bandiere",
    "fr": "émoticônes et personnes|animaux et nature|nourriture et boisson|activités|objets|voyage et lieux|symboles|"
    "drapeaux",
    "de": "Smileys und Leute|Flora und Fauna|Essen & Trinken|Aktivitäten|Objekte|Reisen und Orte|Zeichen|Flaggen",
    "fa": "شکلک یا شخص|حیوان یا طبیعت|غذا و نوشیدنی|فعالیت|اشیاء|سفر یا مکان|نماد|پرچم‌ها",
    "id": "smiley atau orang|satwa atau alam|makanan & minuman|aktivitas|objek|perjalanan atau lokasi|simbol|bendera",
    "zh": "笑脸与人|动物与自然|饮食|行为|物体|出行与地点|符号|旗帜",
    "ru": "смайлики и люди|животные и природа|еда и напитки|занятия|объекты|путешествия и места|символы|флаги",
    "tr": "gülen yüz veya kişi|hayvanlar ve doğa|yiyecek ve içecek|aktivite|nesne|seyahat veya yer|simge|bayraklar",
    "ar": "أشكال تعبيرية وأشخاص|حيوانات وطبيعة|طعام وشراب|أنشطة|كائنات|سفر وأماكن|رموز|أعلام",
}


def yes_or_no(truth: bool, language: str) -> str:
    """The word for yes or the word for no."""
    return YES_NO[language][0 if truth else 1]


def group(name: str, language: str) -> str:
    """The name of a group of emoji."""
    if language == "en":
        return name.lower()
    labelled = "Smileys & Emotion" if name == "People & Body" else name
    return GROUPS[language].split("|")[LABELLED.index(labelled)]


def subgroup(name: str) -> str:
    """The name of a subgroup, in English: `animal-mammal` -> `animal mammal`."""
    return name.replace("-", " ")


@functools.cache
def tone(name: str, language: str) -> str:
    """The name of one of the five skin tones (`medium-light`), as captions write it."""
    point = next(point for point, known in TONES.items() if known == name)
    catalogue()  # loads the languages
    return package("emoji").EMOJI_DATA[chr(point)][language].strip(":").replace("_", " ")


@functools.cache
def gender(name: str, language: str) -> str:
    """The word for a `man` or a `woman`."""
    adult = next(emoji for emoji in catalogue() if emoji.code == ADULTS[name])
    return adult.captions[LANGUAGES.index(language)]
