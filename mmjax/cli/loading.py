"""From a file or a run folder to an experiment."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmjax.core import config
from mmjax.core.errors import UserError, nearest
from mmjax.training.experiment import Experiment
from mmjax.training.records import FORMAT


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An experiment and where it came from; `folder`: that of the run, where it is one's."""

    experiment: Experiment
    file: pathlib.Path
    settings: Mapping[str, str]
    folder: pathlib.Path | None = None

    @property
    def name(self) -> str:
        """What the run is called."""
        return self.file.stem

    @property
    def source(self) -> dict[str, Any]:
        """What `experiment.json` keeps of the origin."""
        return {"file": self.file.name, "settings": dict(self.settings)}


def from_file(file: pathlib.Path, settings: Mapping[str, str]) -> Loaded:
    """Calls the file's `experiment` function with `settings`. The file is the user's own code and is run.

    Raises UserError for a missing file, a file without the function, an error in it, and all wrong settings at once."""
    file = file.expanduser()
    module = _module_of(file)
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise UserError(f"{file} has no function `experiment`; it must define `def experiment(...) -> Experiment`")
    value = _run_code(file, lambda: config.call(function, settings))
    if not isinstance(value, Experiment):
        raise UserError(f"{file}: experiment() must return an Experiment; it returned a {type(value).__name__}")
    _admit(value)
    return Loaded(value, file, settings)


def from_run(folder: pathlib.Path, own_file: pathlib.Path | None = None) -> Loaded:
    """The experiment that a run folder holds, rebuilt from its JSON alone; `own_file` is the file that defines parts
    which are not mmjax's. Raises UserError for a folder that is no run and for a record that cannot be rebuilt."""
    record = read_record(folder)
    source = record["source"]
    if own_file is not None:
        from_file(own_file, source["settings"])  # makes its classes known; the values come from the record
    return Loaded(config.from_json(record["experiment"]), pathlib.Path(source["file"]), source["settings"], folder)


def read_record(folder: pathlib.Path) -> dict[str, Any]:
    """`experiment.json` of a run folder."""
    path = folder / "experiment.json"
    if not path.is_file():
        runs = (
            [str(found.parent) for found in folder.parent.glob("*/experiment.json")] if folder.parent.is_dir() else []
        )
        near = nearest(str(folder), runs)
        advice = f"did you mean {' or '.join(near)}?" if near else "`mmjax train FILE.py` makes one"
        raise UserError(f"{folder} is not a run folder: it has no experiment.json; {advice}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found, complete = record["format"], {"experiment", "source"} <= record.keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}; restore it from a copy, or train into another folder") from None
    if found != FORMAT or not complete:
        raise UserError(f"{path} has format {found!r}; this version of mmjax reads format {FORMAT}")
    return record


def parts_of(tree: Any) -> Iterator[str]:
    """Modules that a JSON configuration names."""
    if isinstance(tree, Mapping):
        for key in ("$type", "$ref"):
            if key in tree:
                yield tree[key].partition(":")[0]
    for item in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from parts_of(item)


def _admit(value: Experiment) -> None:
    """Lets stored configurations name the parts that the user's own code has just used, and nothing else."""
    for name in set(parts_of(config.to_json(value))):
        sys.modules[name].__mmjax_user__ = True  # type: ignore[attr-defined]


def _module_of(file: pathlib.Path) -> types.ModuleType:
    if not file.is_file():
        here = [str(found) for folder in (file.parent, pathlib.Path("experiments")) for found in folder.glob("*.py")]
        near = nearest(str(file), [name for name in here if not name.endswith("__init__.py")])
        advice = f"did you mean {' or '.join(near)}?" if near else "give the path of a Python file"
        raise UserError(f"there is no experiment file {file}; {advice}")
    if file.suffix != ".py":
        raise UserError(f"{file} is not a Python file; an experiment is a .py file with `def experiment(...)`")
    name, path = file.stem, file.resolve()
    package = importlib.util.find_spec("experiments")
    if package and path.parent in [pathlib.Path(p).resolve() for p in package.submodule_search_locations or ()]:
        return _run_code(file, lambda: importlib.import_module(f"experiments.{name}"))
    known = sys.modules.get(name)
    if known is not None and pathlib.Path(getattr(known, "__file__", None) or "").resolve() == path:
        return known
    if known is not None or name in sys.stdlib_module_names or not name.isidentifier():
        raise UserError(
            f"{file}: a module cannot be called {name!r} here, another one is or it is no name; rename the file"
        )
    return _run_code(file, lambda: _import_path(name, path))


def _import_path(name: str, path: pathlib.Path) -> types.ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # its neighbours can be imported, as when Python runs a file
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _run_code(file: pathlib.Path, code: Callable[[], Any]) -> Any:
    """Runs a user's code; an error in it is told by file and line, not by our stack."""
    try:
        return code()
    except UserError:
        raise
    except Exception as error:
        frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if pathlib.Path(frame.filename).name == file.name]
        line = getattr(error, "lineno", None) or (own[-1].lineno if own else "?")
        raise UserError(
            f"{file}, line {line}: {type(error).__name__}: {error} (MMJAX_TRACE=1 shows the stack)"
        ) from error
