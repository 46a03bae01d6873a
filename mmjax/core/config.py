"""Frozen values as configuration: dataclass <-> JSON, and dotted overrides typed by annotation.

There are no config classes: an experiment, its model and its optimizer are frozen dataclasses (Linen modules are, too),
so they are their own configuration. JSON keeps the type of each as `"$type": "package.module:Class"`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from mmjax.core.errors import UserError, unknown_name

TRUSTED = ("mmjax", "data_pipelines", "experiments")
"""Packages whose classes a stored configuration may name; others must have been imported by the user's own file."""

_HIDDEN = ("parent", "name")  # Linen's own fields


def fields_of(value: Any) -> list[str]:
    """Names of the configurable fields of a dataclass value, in order."""
    hidden = _HIDDEN if isinstance(value, nn.Module) else ()
    return [f.name for f in dataclasses.fields(value) if f.init and f.name not in hidden]


def is_node(value: Any) -> bool:
    """A dataclass *value* (not a class)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def changed(value: Any, **updates: Any) -> Any:
    """A copy of a dataclass value (Linen module or not) with fields changed."""
    return value.clone(**updates) if isinstance(value, nn.Module) else dataclasses.replace(value, **updates)


# ---------------------------------------------------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """A JSON tree from which `from_json` rebuilds an equal value. Raises UserError for what has no stable text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if is_node(value):
        return {"$type": _address(type(value))} | {name: to_json(getattr(value, name)) for name in fields_of(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, np.dtype):
        return {"$dtype": value.name}
    if callable(value) and getattr(value, "__qualname__", "<").isidentifier():
        return {"$ref": _address(value)}
    raise UserError(
        f"a configuration cannot hold {value!r} ({type(value).__name__}): use numbers, text, tuples, dicts, frozen "
        "dataclasses or functions that stand at the top of a module"
    )


def from_json(tree: Any) -> Any:
    """The value that `to_json` wrote; lists come back as tuples. Never runs code that the reader does not already have:
    a `$type` must name a dataclass, a `$ref` a function, each in a trusted or already imported module."""
    if isinstance(tree, list):
        return tuple(from_json(item) for item in tree)
    if not isinstance(tree, dict):
        return tree
    if "$float" in tree:
        return float(tree["$float"])
    if "$dtype" in tree:
        return np.dtype(tree["$dtype"])
    if "$ref" in tree:
        return _resolve(tree["$ref"], callable, "a function")
    if "$type" in tree:
        cls = _resolve(tree["$type"], lambda x: isinstance(x, type) and dataclasses.is_dataclass(x), "a dataclass")
        known = {f.name for f in dataclasses.fields(cls) if f.init}
        given = {key: from_json(item) for key, item in tree.items() if key != "$type"}
        for key in given.keys() - known:
            raise UserError(f"{tree['$type']} (stored configuration): " + unknown_name("field", key, known))
        return cls(**given)
    return {key: from_json(item) for key, item in tree.items()}


def _address(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _resolve(address: str, accept: Callable[[Any], bool], what: str) -> Any:
    module, _, name = address.partition(":")
    if module not in sys.modules and module.split(".")[0] not in TRUSTED:
        raise UserError(
            f"the stored configuration names {address}, from a module outside of mmjax; stored configurations do not "
            "import code. Give the file that defines it with --experiment FILE"
        )
    if module.split(".")[0] not in TRUSTED and not getattr(sys.modules.get(module), "__mmjax_user__", False):
        raise UserError(
            f"the stored configuration names {address}; only mmjax's and your experiment's own parts may be named"
        )
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the stored configuration names {address}, which this version does not have: {error}"
        ) from None
    if (
        not accept(found) or _address(found) != address
    ):  # what a module only imports (`...:subprocess.run`) is not its own
        raise UserError(f"the stored configuration names {address}, which is not {what} of that module")
    return found


# ----------------------------------------------------------------------------------------------------------- overrides


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every settable leaf, in order."""
    if is_node(value):
        children = [(name, getattr(value, name)) for name in fields_of(value)]
    elif isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, tuple) and any(is_node(item) or isinstance(item, Mapping) for item in value):
        children = [(str(i), item) for i, item in enumerate(value)]
    else:
        yield prefix, value
        return
    for name, child in children:
        yield from leaves(child, f"{prefix}.{name}" if prefix else name)


def override(value: Any, settings: Mapping[str, str]) -> Any:
    """`value` with dotted leaves set from text (`{"optimizer.lr.peak": "3e-4"}`), each parsed by its annotation.

    All faults are gathered into one UserError; an unknown name is answered with the nearest ones."""
    faults = []
    for name, text in settings.items():
        try:
            value = _set(value, value, name.split("."), text, name)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\n".join(faults))
    return value


def _set(root: Any, value: Any, path: list[str], text: str, name: str) -> Any:
    head, rest = path[0], path[1:]
    child, annotation = _child(root, value, head, name)
    if rest:
        new = _set(root, child, rest, text, name)
    elif is_node(child) or isinstance(child, Mapping):
        inner = ", ".join(f"{name}.{field}" for field, _ in list(leaves(child))[:4])
        raise UserError(f"{name} is a {type(child).__name__}, which has no text form; set its parts ({inner}, ...)")
    else:
        new = parse(text, annotation, name, child)
    if isinstance(value, Mapping):
        return {**value, head: new}
    if isinstance(value, tuple):
        return (*value[: int(head)], new, *value[int(head) + 1 :])
    return changed(value, **{head: new})


def _child(root: Any, value: Any, head: str, name: str) -> tuple[Any, Any]:
    missing = UserError(unknown_name("setting", name, [leaf for leaf, _ in leaves(root)]))
    if isinstance(value, tuple):
        if not head.isdigit() or int(head) >= len(value):
            raise missing
        return value[int(head)], None
    if isinstance(value, Mapping):
        if head not in value:
            raise missing
        return value[head], None
    if not is_node(value) or head not in fields_of(value):
        raise missing
    return getattr(value, head), hints(type(value)).get(head)


@functools.cache
def hints(thing: Any) -> dict[str, Any]:
    """Resolved annotations of a class or function; empty where a name in them cannot be resolved."""
    try:
        return typing.get_type_hints(thing)
    except (NameError, TypeError, AttributeError):
        return {}


def parse(text: str, annotation: Any, name: str, current: Any = None) -> Any:
    """Text -> a value of type `annotation` (or, where that says nothing, of the type of `current`).

    Understands bool, int (`1e3` too, when whole), float, str, None, Literal, tuples (`1,2,3`) and unions of these."""
    if annotation in (None, Any) or isinstance(annotation, str):
        annotation = _type_of(current)
    for option in _options(annotation):
        found, result = _try(text, option, name)
        if found:
            return result
    expected = " or ".join(dict.fromkeys(_word(option) for option in _options(annotation)))
    was = "" if current is None else f" (now {current!r})"
    raise UserError(f"{name}={text}: expected {expected}{was}")


def _type_of(value: Any) -> Any:
    """What text must look like to stand for a value of the same kind."""
    if isinstance(value, tuple) and value and len({type(item) for item in value}) == 1:
        return tuple[type(value[0]), ...]
    return str if value is None else type(value)


def _options(annotation: Any) -> Sequence[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = list(typing.get_args(annotation))
        return sorted(parts, key=lambda part: (part is str, part is float))  # the narrowest reading first
    return [annotation]


def _word(option: Any) -> str:
    if typing.get_origin(option) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    if typing.get_origin(option) is tuple or option is tuple:
        inner = typing.get_args(option)
        count = "" if not inner or inner[1:] == (...,) else f"{len(inner)} "
        return f"{count}comma-separated values"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    return words.get(option, f"a {getattr(option, '__name__', option)}, which has no text form")


def _try(text: str, option: Any, name: str) -> tuple[bool, Any]:
    if option is bool:
        word = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower())
        return word is not None, word
    if option is type(None):
        return text.lower() in ("none", "null"), None
    if option is str:
        return True, text
    if typing.get_origin(option) is typing.Literal:
        same = [choice for choice in typing.get_args(option) if str(choice) == text]
        return bool(same), same[0] if same else None
    if typing.get_origin(option) is tuple or option is tuple:
        return _try_tuple(text, typing.get_args(option), name)
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        return False, None
    if option is int:
        if not math.isfinite(number) or not number.is_integer():
            return False, None
        return True, int(text) if text.lstrip("+-").isdigit() else int(number)  # 2**60 + 1 is no float
    return option is float and math.isfinite(number), number


def _try_tuple(text: str, inner: tuple[Any, ...], name: str) -> tuple[bool, Any]:
    """`tuple[int, ...]` takes any number of items, `tuple[int, str]` exactly two; a bare `tuple` takes numbers."""
    items = [item.strip() for item in text.strip("()[] ").split(",") if item.strip()]
    kinds = inner[:1] * len(items) if inner[1:] == (...,) else inner or (int | float,) * len(items)
    if len(kinds) != len(items):
        return False, None
    return True, tuple(parse(item, kind, name) for item, kind in zip(items, kinds, strict=True))


def call(function: Callable[..., Any], settings: Mapping[str, str], kind: str = "experiment") -> Any:
    """Calls an experiment function with text arguments, then applies the remaining settings as dotted overrides.

    Function arguments win over leaves of the same name. All faults of one kind are reported together."""
    parameters = inspect.signature(function).parameters
    annotations = hints(function)
    arguments, rest, required = {}, {}, _required(parameters)
    faults = [f"{name}=... must be given" for name in required if name not in settings]
    for name, text in settings.items():
        if name not in parameters:
            rest[name] = text
            continue
        default = parameters[name].default
        try:
            arguments[name] = parse(
                text, annotations.get(name), name, None if default is inspect.Parameter.empty else default
            )
        except UserError as error:
            faults.append(str(error))
    if all(name in arguments for name in required):
        # After a fault the defaults stand in, so that the other settings are checked, too.
        value = function(**(arguments if not faults else {name: arguments[name] for name in required}))
        known = [name for name, _ in leaves(value)]
        unknown = [name for name in rest if name.split(".")[0] not in {leaf.split(".")[0] for leaf in known}]
        faults += [unknown_name("setting", name, [*parameters, *known]) for name in unknown]
        try:
            value = override(value, {name: text for name, text in rest.items() if name not in unknown})
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(f"{kind}: " + "\n".join(faults))
    return value


def _required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    gather = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, p in parameters.items() if p.default is p.empty and p.kind not in gather]


def split_settings(words: Sequence[str]) -> dict[str, str]:
    """`["steps=10", "optimizer.lr.peak=1e-3"]` -> a dict. Raises UserError for one without `=` or given twice."""
    settings: dict[str, str] = {}
    for word in words:
        name, equals, text = word.lstrip("-").partition("=")
        if not equals or not name:
            raise UserError(f"settings are name=value; got {word!r}")
        if name in settings:
            raise UserError(f"{name} is set twice: {settings[name]} and {text}")
        settings[name] = text
    return settings
