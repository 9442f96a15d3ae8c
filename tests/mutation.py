"""Which tests can fail: random modules are changed in one place at a time, and the tests that lie beside them have to notice.

`python -m tests.mutation --seed 1 --modules 20 --mutants 8` prints a line a change. A change that survives needs a test, or a reason why
it changes nothing that anybody could notice. `--module trainer/dose.py` takes one module. Each change lives in a process of its own, and
only there: processes that a test starts do not see it.
"""

import argparse
import ast
import copy
import importlib
import importlib.machinery
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot,
    ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div,
}  # fmt: skip
HEAVY = ("torch", "open_clip", "scipy.stats", "matplotlib.figure", "kubernetes", "minio", "numpy", "yaml", "jinja2")


def changes(node: ast.AST) -> list[tuple[str, Any]]:
    """What may be changed in this one node: field and new value."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return [("ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])]
    if isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPS:
        return [("op", SWAPS[type(node.op)]())]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        return [("value", not node.value if isinstance(node.value, bool) else node.value + 1)]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return [("test", ast.UnaryOp(ast.Not(), node.test))]
    if isinstance(node, ast.Return) and node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        return [("value", ast.Constant(None))]
    return []


def outcome(path: Path, tree: ast.AST, tests: list[str], seconds: int) -> str:
    """What the tests say of a module with this source, in a process of its own: `noticed` or `survived`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        code, source = compile(ast.fix_missing_locations(tree), str(path), "exec"), importlib.machinery.SourceFileLoader.get_code
        changed = lambda self, name: code if Path(self.path).resolve() == path else source(self, name)  # noqa: E731
        importlib.machinery.SourceFileLoader.get_code = changed  # type: ignore[method-assign,assignment]
        os._exit(
            pytest.main(
                ["-xq", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-o", f"timeout={seconds}", *tests]
            )
        )
    end = time.monotonic() + 2 * seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "noticed"
        time.sleep(0.05)
    return "noticed" if ended[1] else "survived"


def tests_of(module: Path) -> list[str]:
    """The file that mirrors a module, then those of its folder that import it."""
    room = Path("tests", *module.parts[1 if module.parts[0] == "trainer" else 0 : -1])
    mirrored, name = room / f"test_{module.stem}.py", ".".join(module.with_suffix("").parts)
    beside = [path for path in sorted(room.glob("test_*.py")) if path != mirrored and f"{name} " in path.read_text()]
    return [str(path) for path in [mirrored, *beside[:5]] if path.exists()]


def try_module(module: Path, draw: random.Random, most: int, seconds: int) -> None:
    """Print what becomes of `most` changes of a module."""
    tree, tests = ast.parse(module.read_text()), tests_of(module)
    if outcome(module.resolve(), tree, tests, seconds) != "survived":
        print(f"{module}: its tests fail, or take longer than {seconds} s, without a change", flush=True)
        return
    places = [(number, *change) for number, node in enumerate(ast.walk(tree)) for change in changes(node)]
    for number, field, value in draw.sample(places, min(most, len(places))):
        changed = copy.deepcopy(tree)
        node = list(ast.walk(changed))[number]
        before = ast.unparse(node)
        setattr(node, field, value)
        found = outcome(module.resolve(), changed, tests, seconds)
        line = f"{module}:{getattr(node, 'lineno', '?')}: {before.splitlines()[0][:60]} -> {ast.unparse(node).splitlines()[0][:60]}"
        print(f"{found}  {line}", flush=True)


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", type=int, default=20, help="number of modules, drawn from the seed")
    parser.add_argument("--mutants", type=int, default=8, help="number of changes to each module")
    parser.add_argument("--seconds", type=int, default=60, help="time limit for the tests of a module; slower ones are left out")
    parser.add_argument("--module", type=Path, help="only this module")
    options = parser.parse_args()
    for name in HEAVY:
        importlib.import_module(name)  # once for all, since it takes longer than most tests
    draw = random.Random(options.seed)
    all_of = sorted(path for package in ("trainer", "pipelines") for path in Path(package).rglob("*.py") if tests_of(path))
    for module in [options.module] if options.module else draw.sample(all_of, options.modules):
        try_module(module, draw, options.mutants, options.seconds)


if __name__ == "__main__":
    main()
