"""What an import costs: ``import bigopt`` brings no engine, store or GPU library; the mathematics needs NumPy alone.

The layers between bigopt's own modules are import-linter's (``make lint``); what it cannot see, imports by name, is
looked for here.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bigopt

ROOT = Path(bigopt.__file__).parent

HEAVY = (
    *("dask", "distributed", "bokeh", "pyspark", "py4j"),
    *("zarr", "numcodecs", "pyarrow", "fsspec", "obstore", "pandas", "scipy", "sklearn", "matplotlib"),
    *("numba", "llvmlite"),
    *("cupy", "torch", "msgspec", "yaml", "click", "rich"),
)

NUMPY_ALONE = ("core", "models", "optim", "strategies", "work", "fit", "backends.local", "data.memory")

# who may import a package; a prefix stands for its modules and for modules whose names go on with "_"
OWNERS = {
    **dict.fromkeys(("dask", "distributed", "bokeh"), ("bigopt.backends.dask",)),
    **dict.fromkeys(("pyspark", "py4j"), ("bigopt.backends.spark",)),
    **dict.fromkeys(("cupy", "cupyx"), ("bigopt.core.arrays",)),
    **dict.fromkeys(("zarr", "numcodecs", "pyarrow", "fsspec", "obstore"), ("bigopt.data",)),
    **dict.fromkeys(("msgspec", "yaml"), ("bigopt.config",)),
    **dict.fromkeys(("click", "rich"), ("bigopt.cli",)),
    **dict.fromkeys(("pickle", "_pickle", "shelve", "marshal", "dill", "joblib", "cloudpickle"), ()),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def belongs(module: str, owner: str) -> bool:
    return module == owner or module.startswith((f"{owner}.", f"{owner}_"))


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_bigopt_loads_nothing_heavy() -> None:
    loaded = python("import sys, bigopt; print(*sorted({name.partition('.')[0] for name in sys.modules}))").split()
    assert "bigopt" in loaded
    assert not set(HEAVY) & set(loaded)


READ = """
import sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from bigopt.data.open import open_dataset
table = {"a": np.arange(5, dtype=np.float32), "b": np.arange(5, dtype=np.float64), "t": np.arange(5)}
pq.write_table(pa.table({k: pa.Array.from_buffers(pa.from_numpy_dtype(v.dtype), 5, [None, pa.py_buffer(v.tobytes())])
                         for k, v in table.items()}), sys.argv[1])
data = open_dataset(sys.argv[1], target="t")
print([piece.y.tolist() for piece in data.source.pieces(data.partitions[0])], "pandas" in sys.modules)
"""


def test_reading_parquet_does_not_import_pandas(tmp_path: Path) -> None:
    assert python(READ, str(tmp_path / "d.parquet")).split("]]")[1].strip() == "False"


ALONE = """
import importlib, json, sys

class NumPyAlone:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "bigopt"):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, NumPyAlone())
report = {}
for module in json.loads(MODULES):
    # from scratch, so that no module leans on what another one has imported
    for name in [n for n in sys.modules if n.partition(".")[0] == "bigopt"]:
        del sys.modules[name]
    try:
        importlib.import_module(module)
    except BaseException as error:
        report[module] = f"{type(error).__name__}: {error}"
    else:
        report[module] = "imported"
print(json.dumps(report))
"""

LIGHT = [name for name in FILES if any(name == f"bigopt.{r}" or name.startswith(f"bigopt.{r}.") for r in NUMPY_ALONE)]


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    return dict(json.loads(python(ALONE.replace("MODULES", repr(json.dumps([*LIGHT, "bigopt.data.memory"]))))))


@pytest.mark.parametrize("module", LIGHT)
def test_numpy_alone_is_enough_for(module: str, alone: dict[str, str]) -> None:
    assert alone[module] == "imported"


def test_the_block_blocks() -> None:
    report = json.loads(python(ALONE.replace("MODULES", repr(json.dumps(["bigopt.config", "click", "bigopt.core"])))))
    assert report["bigopt.config"].startswith("ModuleNotFoundError: blocked: ")
    assert report["click"] == "ModuleNotFoundError: blocked: click"
    assert report["bigopt.core"] == "imported"


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level names of all imports anywhere in a module, also of ``import_module`` and ``__import__`` by name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return {name.partition(".")[0] for name in found}


@pytest.mark.parametrize("module", FILES)
def test_packages_stay_with_their_owners(module: str) -> None:
    packages = imported_packages(ast.parse(FILES[module].read_text(encoding="utf-8")))
    strays = {p for p in packages & OWNERS.keys() if not any(belongs(module, owner) for owner in OWNERS[p])}
    assert not strays


def test_the_finder_sees_every_way_to_import() -> None:
    code = (
        "def f():\n import a.b\n from c.d import e\n importlib.import_module('g.h')\n __import__('i')\n from . import j"
    )
    assert imported_packages(ast.parse(code)) == {"a", "c", "g", "i"}
