"""The rooms stand in one order, and each dangerous door is in one file only."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
FILES = sorted((SOURCE / "medley").rglob("*.py"))
ROOMS = (
    *("schema", "storage", "manifest", "owner", "report_page", "media", "encoders", "data", "fusion", "users", "heads", "losses", "model", "metrics", "index"),
    *("training", "bundle", "serving", "search", "cluster"),
)
MAY_IMPORT_CONFIG = ("training/run.py", "training/fitting.py", "training/worker.py", "serving/deployments.py", "search/", "cluster/")
HEAVY = {"deepspeed", "transformers", "torchvision", "torchaudio", "soundfile", "PIL", "optuna"}


def place(path: Path) -> str:
    """A file's path below the library."""
    return path.relative_to(SOURCE / "medley").as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of every module that a piece of code imports, functions and TYPE_CHECKING blocks included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            # `from medley import schema` names a module, `from medley.schema import TEXT` names one of its words.
            yield from (f"{node.module}.{alias.name}" if node.module == "medley" else str(node.module) for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_file_imports_only_from_its_own_room_and_earlier_ones(path: Path):
    own = path.relative_to(SOURCE / "medley").parts[0].removesuffix(".py")
    if own in ("__init__", "config"):
        return  # the composition root knows every room
    assert own in ROOMS, f"room '{own}' has no place in the order"
    for name in imported(parsed(path)):
        if not name.startswith("medley."):
            continue
        room = name.split(".")[1]
        if room == "config":
            assert place(path).startswith(MAY_IMPORT_CONFIG), f"{place(path)} imports medley.config"
        elif room != "__path__":
            assert ROOMS.index(room) <= ROOMS.index(own), f"{place(path)} imports {name} from a later room"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_the_library_imports_no_verbs_and_no_tests(path: Path):
    assert not {name.split(".")[0] for name in imported(parsed(path))} & {"jobs", "tune", "serve", "tests"}


def test_settings_of_the_search_import_nothing_of_ours_because_the_run_tree_does():
    assert not [name for name in imported(parsed(SOURCE / "medley" / "search" / "settings.py")) if name.startswith("medley")]


def test_only_the_engine_imports_deepspeed():
    importers = [place(path) for path in FILES if any(name.split(".")[0] == "deepspeed" for name in imported(parsed(path)))]
    assert importers == ["training/engine.py"]


def test_only_the_session_starts_or_joins_ray():
    starters = [
        place(path)
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("ray.init", "init", "ray.client")
    ]
    assert starters == ["cluster/session.py"]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_heavy_libraries_are_imported_by_the_functions_that_need_them(path: Path):
    top = ast.Module([node for node in parsed(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {name.split(".")[0] for name in imported(top)} & HEAVY


@pytest.mark.parametrize("path", FILES, ids=place)
def test_nothing_unpickles(path: Path):
    tree = parsed(path)
    assert not {name.split(".")[0] for name in imported(tree)} & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called, options = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called != "torch.save", f"{place(path)} line {node.lineno}"
            assert called != "torch.load" or options.get("weights_only") == "True", f"{place(path)} line {node.lineno}"
            assert options.get("allow_pickle", "False") == "False", f"{place(path)} line {node.lineno}"
