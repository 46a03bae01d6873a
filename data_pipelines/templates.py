"""Templates: how the fields of a record become a dialogue of text, marks and media, and who predicts what of it.

A template is turns; a turn is a role and pieces; a role says how its words are read and whether they are learnt. Pieces
are tokenised one by one. `prefix_answer`, `vicuna`, `marked_chat` and `document` are ready-made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from data_pipelines.features import Bidirectional, Causal, Reading
from data_pipelines.pieces import Content, Field, Mark, Piece, Rest, Shelf, Words, contents_of
from data_pipelines.protocols import BadRecord, Record
from mmjax.core.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Role:
    """How the words of a speaker stand in the row. loss: weight of predicting them and `closes` (0: they are given).
    media: how media among them are read, None for as the words. lasting: no truncation drops them."""

    reading: Reading = Causal()
    loss: float = 0.0
    opens: tuple[Piece, ...] = ()
    closes: tuple[Piece, ...] = ()
    media: Reading | None = None
    lasting: bool = False


@dataclasses.dataclass(frozen=True)
class Said:
    """One turn of a dialogue, not looked up in the record yet."""

    role: Role
    pieces: tuple[Piece, ...]
    closes: tuple[Piece, ...]


class Turns(Protocol):
    """A part of a template."""

    def speakers(self) -> Sequence[Role]:
        """The roles that may occur."""
        ...

    def said(self, record: Record) -> list[Said]:
        """The turns that a record has here."""
        ...

    def asked(self, record: Record) -> list[Said]:
        """The same up to where the model's last turn begins."""
        ...


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn that every record has."""

    role: Role
    pieces: tuple[Piece, ...]

    def speakers(self) -> Sequence[Role]:
        """See `Turns`."""
        return (self.role,)

    def said(self, record: Record) -> list[Said]:
        """See `Turns`."""
        return [Said(self.role, self.pieces, self.role.closes)]

    def asked(self, record: Record) -> list[Said]:
        """See `Turns`."""
        return [Said(self.role, (), ())]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The messages that a field holds: {"role": "user", "content": as for `Field`}. Who speaks is looked up in `roles`;
    the first of these with a loss is the model. speaker, content: other names for the two keys."""

    roles: Mapping[str, Role]
    field: str = "messages"
    speaker: str = "role"
    content: str = "content"
    placeholders: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def speakers(self) -> Sequence[Role]:
        """See `Turns`."""
        return tuple(self.roles.values())

    def said(self, record: Record) -> list[Said]:
        """See `Turns`. Raises BadRecord for what is no conversation."""
        messages = record.get(self.field)
        if not isinstance(messages, list | tuple) or not messages:
            raise BadRecord("bad_schema", f"{self.field!r} must hold a list of messages; it holds {messages!r:.60}")
        return [self._message(message, number) for number, message in enumerate(messages)]

    def asked(self, record: Record) -> list[Said]:
        """See `Turns`: an answer that closes the conversation is left out."""
        said = self.said(record)
        model = next((role for role in self.roles.values() if role.loss), None)
        if model is None:
            raise UserError(f"no role of the conversation has a loss: nobody answers ({', '.join(self.roles)})")
        return [*(said[:-1] if said[-1].role.loss else said), Said(model, (), ())]

    def messages(self, said: Sequence[str], media: Sequence[str]) -> list[dict[str, Any]]:
        """Messages in which a user and the model have said `said` in turn; items of `media` come with the first."""
        asks = next(name for name, role in self.roles.items() if not role.loss and not role.lasting)
        answers = next(name for name, role in self.roles.items() if role.loss)
        first = [*({"type": kind} for kind in media), said[0]] if media else said[0]
        texts = [first, *said[1:]]
        return [{self.speaker: (asks, answers)[i % 2], self.content: text} for i, text in enumerate(texts)]

    def _message(self, message: Any, number: int) -> Said:
        where = f"message {number} of {self.field!r}"
        if not isinstance(message, Mapping) or not {self.speaker, self.content} <= message.keys():
            raise BadRecord("bad_schema", f"{where} must hold {self.speaker!r} and {self.content!r}")
        name = message[self.speaker]
        if name not in self.roles:
            raise BadRecord("bad_value", f"{where}: " + unknown_name("role", str(name), self.roles))
        role = self.roles[name]
        return Said(role, (_Message(message[self.content], self.placeholders, where),), role.closes)


@dataclasses.dataclass(frozen=True)
class _Message:
    value: Any
    placeholders: Mapping[str, str]
    where: str

    def contents(self, record: Record, shelf: Shelf) -> Iterator[Content]:
        """See `Piece`."""
        yield from contents_of(self.value, shelf, self.placeholders, self.where)


@dataclasses.dataclass(frozen=True)
class Template:
    """Turns in order."""

    turns: tuple[Turns, ...]

    def said(self, record: Record) -> list[Said]:
        """All turns of a record."""
        return [said for turns in self.turns for said in turns.said(record)]

    def asked(self, record: Record) -> list[Said]:
        """What stands before the model's last turn, and that turn opened. Raises UserError when the model has none."""
        last = max((i for i, turns in enumerate(self.turns) if any(r.loss for r in turns.speakers())), default=None)
        if last is None:
            raise UserError("no role of the template has a loss: there is nothing to answer")
        before = [said for turns in self.turns[:last] for said in turns.said(record)]
        return before + self.turns[last].asked(record)

    def put(self, said: Sequence[str], media: Sequence[str] = ()) -> dict[str, Any]:
        """The text fields of a record in which a user and the model have said `said` in turn, the user last; items of
        `media` (kinds) come first. Raises UserError for a dialogue in a template that has one question."""
        for turns in self.turns:
            if isinstance(turns, Conversation):
                return {turns.field: turns.messages(said, media)}
        given = [turns for turns in self.turns if isinstance(turns, Turn) and not turns.role.loss]
        fields = [piece.name for turns in given for piece in turns.pieces if isinstance(piece, Field)]
        if len(said) != 1 or len(fields) != 1:
            raise UserError(
                f"this model was trained on one question with one answer each ({', '.join(fields) or 'none'}); it "
                f"cannot take {len(said)} turns of a conversation"
            )
        return {fields[0]: said[0]}

    def marks(self) -> set[str]:
        """The names of all marks in it."""
        fixed = [piece for turns in self.turns for piece in getattr(turns, "pieces", ())]
        of_roles = [piece for turns in self.turns for r in turns.speakers() for piece in (*r.opens, *r.closes)]
        return {piece.name for piece in (*fixed, *of_roles) if isinstance(piece, Mark)}

    def stops(self) -> set[str]:
        """The marks with which the model closes its turns."""
        roles = [role for turns in self.turns for role in turns.speakers() if role.loss]
        return {piece.name for role in roles for piece in role.closes[:1] if isinstance(piece, Mark)}


# ---------------------------------------------------------------------------------------------------------- ready-made


def prefix_answer(question: str = "question", answer: str = "answer", kind: str = "image") -> Template:
    """All media, then the question, seen from everywhere; the answer is causal and learnt (PaliGemma, arXiv 2407.07726,
    section 3.2.1)."""
    given = Role(Bidirectional())
    learnt = Role(Causal(), loss=1.0, closes=(Mark("end"),))
    return Template((Turn(given, (Rest(kind), Mark("begin"), Field(question))), Turn(learnt, (Field(answer),))))


VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)


def vicuna(field: str = "conversations", system: str = VICUNA) -> Template:
    """LLaVA's conversations (arXiv 2304.08485, section 4.2; its JSON: "from", "value", "<image>"): all causal, the
    assistant's turns and their ends are learnt. Needs no marks but begin and end."""
    roles = {
        "human": Role(opens=(Words("USER:"),)),
        "gpt": Role(opens=(Words("ASSISTANT:"),), loss=1.0, closes=(Mark("end"),)),
    }
    return Template(
        (
            Turn(Role(lasting=True), (Mark("begin"), Words(system))),
            Conversation(roles, field, "from", "value", {"<image>": "image"}),
        )
    )


CHAT_MARKS = ("<system>", "<user>", "<assistant>", "<turn ends>")
"""What `marked_chat` asks of the tokenizer: `Marked(tokenizer, CHAT_MARKS)`."""


def marked_chat(field: str = "messages") -> Template:
    """Messages of system, user and assistant between marks that no text can hold; media are bidirectional inside (as in
    Gemma 3, arXiv 2503.19786, section 2), the rest is causal; the assistant's turns and their ends are learnt."""
    system, user, assistant, ends = map(Mark, CHAT_MARKS)
    roles = {
        "system": Role(opens=(system,), closes=(ends,), lasting=True),
        "user": Role(opens=(user,), closes=(ends,), media=Bidirectional()),
        "assistant": Role(opens=(assistant,), closes=(ends,), loss=1.0),
    }
    return Template((Turn(Role(lasting=True), (Mark("begin"),)), Conversation(roles, field)))


def document(field: str = "document", placeholders: Mapping[str, str] | None = None) -> Template:
    """Interleaved text and media as they come, all causal, all text learnt (Flamingo, arXiv 2204.14198, section 2.4;
    Kosmos-1, arXiv 2302.14045, section 2.2). Too long ones: `truncation.DropLast`."""
    words = Role(loss=1.0, closes=(Mark("end"),))
    return Template((Turn(Role(lasting=True), (Mark("begin"),)), Turn(words, (Field(field, placeholders or {}),))))
