"""Files are read as data: nothing in the package can turn what a file holds into code that runs."""

import ast
import io
import tarfile
from pathlib import Path

import pytest
from repository import ROOT

from rap_jax.data.builders import _member

FILES = [path for folder in ("rap_jax", "launch", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# Each can run code that lies in a file.
RUN_WHAT_THEY_READ = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
    "code",
    "yaml",
}
CALLS = {"eval", "exec", "compile", "__import__", "extractall", "extract", "unpack_archive", "spec_from_file_location"}
BUILTINS = {"eval", "exec", "compile"}
# A module that the user names as `module:function`, and optional packages of a fixed list.
MAY_IMPORT_BY_NAME = {"rap_jax/__init__.py", "rap_jax/evaluation/network.py", "rap_jax/_runtime/environment.py"}


@pytest.fixture(scope="module")
def nodes() -> list[tuple[str, ast.AST]]:
    """Imports and calls of all files, each with the file's name."""
    return [
        (str(path.relative_to(ROOT)), node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
    ]


def test_no_module_that_runs_what_it_reads_is_imported(nodes: list[tuple[str, ast.AST]]) -> None:
    for name, node in nodes:
        found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not RUN_WHAT_THEY_READ & {module.split(".")[0] for module in found}, name


def test_no_call_runs_text_or_unpacks_by_names_of_an_archive(nodes: list[tuple[str, ast.AST]]) -> None:
    for name, node in nodes:
        if not isinstance(node, ast.Call):
            continue
        called, owner = node.func, ""
        if isinstance(called, ast.Attribute):
            owner = ast.unparse(called.value)
        word = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
        # `re.compile` and PyTorch's `network.eval()` make no code of text.
        assert word not in CALLS or (word in BUILTINS and owner not in ("", "builtins")), f"{name}: {ast.unparse(node)}"
        assert word != "import_module" or name in MAY_IMPORT_BY_NAME, f"{name}: {ast.unparse(node)}"
        if word == "load" and owner in ("np", "numpy"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle") == "False", f"{name}: {ast.unparse(node)}"


def test_the_files_are_those_of_the_package() -> None:
    assert len(FILES) > 150 and all(path.read_text() for path in FILES if path.name != "__init__.py")


def test_only_the_named_file_of_an_archive_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in ("../outside", "/tmp/outside", "cifar-10-batches-bin/data_batch_1.bin"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    content.seek(0)
    with tarfile.open(fileobj=content, mode="r:") as archive:
        assert _member(archive, "cifar-10-batches-bin/data_batch_1.bin") == b"abc"
    assert not list(tmp_path.iterdir()) and not (tmp_path.parent / "outside").exists()
