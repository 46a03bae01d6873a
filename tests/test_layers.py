"""The law of imports: layers point down, siblings are strangers, names say something, `import mmjax` is free."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("mmjax", "data_pipelines", "experiments")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

LEVELS = (
    ("core",),
    ("ops",),
    ("nn",),
    ("encoders", "fusion", "heads"),
    ("models", "objectives"),
    ("adapt", "decoding", "training"),
    ("evals", "explain", "interop"),
    ("report",),
    ("cli",),
)
"""Parts of mmjax from the ground up; a part imports only parts of lower levels, and itself."""

LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
FREE = {"mmjax", "mmjax.__main__"}  # the version, and the door's other name
SAYS_NOTHING = {"utils", "util", "common", "misc", "helpers", "helper"}


def module_of(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports(file: pathlib.Path, anywhere: bool = True) -> Iterator[str]:
    """Modules of ours that a file imports; `anywhere` counts those inside functions, too, but never type-only ones."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree) if anywhere else tree.body:
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def part_of(module: str) -> str:
    """`mmjax.core.batch` -> `core`."""
    return module.split(".")[1] if module.count(".") else ""


def complaint(module: str, target: str) -> str | None:
    """Why `module` may not import `target`, or None."""
    package, other = module.split(".")[0], target.split(".")[0]
    if package == "experiments":
        return None
    if other == "experiments" or (package == "mmjax" and other == "data_pipelines"):
        return f"{module} imports {target}: {package} must not know {other}"
    if package == "data_pipelines":
        fine = other == "data_pipelines" or part_of(target) in ("core", "")
        return None if fine else f"{module} imports {target}: data_pipelines may import mmjax.core only"
    mine, theirs = part_of(module), part_of(target)
    if module in FREE or target in FREE or mine == theirs:
        return None
    if mine not in LEVEL or theirs not in LEVEL:
        return f"{module} imports {target}: the layer of {mine if mine not in LEVEL else theirs} is not declared"
    if LEVEL[theirs] >= LEVEL[mine]:
        way = "sideways" if LEVEL[theirs] == LEVEL[mine] else "upwards"
        return f"{module} imports {target}: {way}"
    return None


def test_imports_point_down():
    found = [complaint(module, target) for module, file in MODULES.items() for target in imports(file)]
    assert len(found) > 50, "the walk saw hardly any import"
    assert [text for text in found if text] == []


@pytest.mark.parametrize(
    ("module", "target", "word"),
    [
        ("mmjax.core.batch", "mmjax.nn.linear", "upwards"),
        ("mmjax.models.towers", "mmjax.objectives.contrastive", "sideways"),
        ("mmjax.encoders.image", "mmjax.heads.contrastive", "sideways"),
        ("mmjax.training.loop", "data_pipelines.pipeline", "must not know"),
        ("mmjax.training.loop", "experiments.emoji_towers", "must not know"),
        ("data_pipelines.pipeline", "mmjax.training.loop", "core only"),
        ("mmjax.newpart.thing", "mmjax.core.batch", "not declared"),
    ],
)
def test_the_law_refuses(module, target, word):
    assert word in complaint(module, target)


def test_no_cycle_of_modules():
    graph = {module: set(imports(file, anywhere=False)) & MODULES.keys() for module, file in MODULES.items()}
    state: dict[str, str] = {}

    def visit(module: str, path: list[str]) -> None:
        assert state.get(module) != "open", f"imports in a circle: {' -> '.join([*path, module])}"
        if module in state:
            return
        state[module] = "open"
        for target in graph[module]:
            if target != module:
                visit(target, [*path, module])
        state[module] = "closed"

    for module in graph:
        visit(module, [])
    assert set(state) == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_module_names(module):
    name = module.rsplit(".", 1)[-1]
    assert name not in SAYS_NOTHING, f"{module}: a name that says nothing"
    assert name.startswith("__") or name not in sys.stdlib_module_names, f"{module}: named like a standard module"


def test_every_folder_is_a_package():
    folders = {file.parent for file in FILES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = {"jax", "jaxlib", "flax", "numpy", "grain", "optax", "orbax", "PIL", "rich", "torch", "tensorflow"}
OPTIONAL = {"torch", "transformers", "tensorboardX", "pyarrow", "matplotlib", "data_pipelines", "experiments"}


@pytest.mark.subprocess
@pytest.mark.parametrize("module", ["mmjax", "mmjax.cli.main", "mmjax.cli.arguments"])
def test_importing_the_package_loads_nothing_heavy(module):
    assert run_python(f"import sys, {module}; print(sorted({HEAVY} & sys.modules.keys()))") == "[]"


@pytest.mark.subprocess
def test_import_takes_under_a_second():
    """A bound a user was promised, with ten times the room it needs."""
    code = "import time; start = time.perf_counter(); import mmjax; print(time.perf_counter() - start)"
    assert float(run_python(code)) < 1.0


@pytest.mark.subprocess
def test_importing_every_module_starts_no_backend_and_loads_no_optional_package():
    code = f"""
import importlib, sys
for module in {sorted(m for m in MODULES if m.startswith("mmjax") and not m.endswith("__main__"))!r}:
    importlib.import_module(module)
from jax._src import xla_bridge
assert not xla_bridge._backends, 'a device was touched'
print(sorted({OPTIONAL} & sys.modules.keys()))
"""
    assert run_python(code) == "[]"
