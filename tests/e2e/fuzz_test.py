"""Damaged input gives a clear error or the right result: never an internal error, a hang, or a wrong number.

Each case takes something good (flags, a flagfile, raw files, a prepared copy, the files of a run), damages it at random
and reads it. A `ValueError`, or what absl raises for flags, is a clear error; so is a message that names the file. What
is read without an error has to be what was written.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from absl import flags
from raw_data import random_images
from tiers import few_and_many
from tiny_dataset import TEST, TINY, TRAIN, load_tiny, prepared_folder, write_raw

from launch.configs import config_from_flags
from launch.flagfiles import expand_flagfiles
from launch.flags import GROUPS
from rap_jax._runtime.integrity import digest
from rap_jax.config import RunConfig
from rap_jax.data import content_hash, load
from rap_jax.runs.network import load_network

SEED = 20191027
VALUES = (
    *("", "-1", "0", "1", "2", "1e400", "-inf", "nan", "1/0", "8/255", "1e-400", "99999999999999999999", "0x10", "1_0"),
    *(
        "none",
        "None",
        "true",
        "[]",
        "{}",
        "a,b",
        "conv1:2",
        "*:0.5:0.5",
        "\u0663",
        "\x00",
        "../../etc/passwd",
        "é",
        "%s",
    ),
)


def damage(content: bytes, generator: random.Random) -> bytes:
    """The bytes with a flipped bit, a part cut out, put in, overwritten or doubled, or without their end."""
    if not content:
        return b"\x00"
    kind, place = generator.randrange(6), generator.randrange(len(content))
    length = generator.randrange(1, 1 + min(64, len(content) - place))
    if kind == 0:
        flipped = content[place] ^ (1 << generator.randrange(8))
        return content[:place] + bytes([flipped]) + content[place + 1 :]
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    if kind == 3:
        return content[:place] + generator.randbytes(length) + content[place:]
    if kind == 4:
        return content[:place] + bytes(length) + content[place + length :]
    return content[: place + length] + content[place:]


def damage_a_file(folder: Path, generator: random.Random) -> str:
    """Damages or removes one file in a folder; returns which, and how."""
    path = generator.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    name = str(path.relative_to(folder))
    if generator.random() < 0.1:
        path.unlink()
        return f"{name} removed"
    before = path.read_bytes()
    path.write_bytes(damage(before, generator))
    return f"{name}, {len(before)} bytes -> {path.stat().st_size}"


def clear(error: BaseException) -> bool:
    """Whether it is an error for a user, in words."""
    text = str(error)
    return isinstance(error, ValueError | flags.Error) and len(text) > 10 and "Traceback" not in text


def read_or_refuse(read: Callable[[], Any], what: str) -> Any:
    """What is read, or None if that is refused in clear words; anything else fails the test."""
    try:
        return read()
    except Exception as error:
        assert clear(error), f"{what}: {error!r}"
        return None


def config_of(arguments: list[str]) -> RunConfig:
    values = tiny.copy.deepcopy(flags.FLAGS)
    values.unparse_flags()
    left = values(expand_flagfiles(["command", *arguments]))
    if left != ["command"]:
        raise ValueError(f"Unexpected argument {left[1]!r}")
    return config_from_flags(values)


@pytest.mark.parametrize("cases", few_and_many(30, 300))
def test_flags(cases: int) -> None:
    generator = random.Random(SEED)
    names = [name for group in GROUPS.values() for name in group]
    refused = 0
    for _ in range(cases):
        name, value = generator.choice(names), generator.choice(VALUES)
        config = read_or_refuse(
            lambda argument=f"--{name}={value}": config_of([*tiny.FLAGS, argument]), f"--{name}={value}"
        )
        refused += config is None
        if config is not None:
            assert json.dumps(tiny.dataclasses.asdict(config)), "it can be written down"
    assert cases / 3 < refused < cases


@pytest.mark.parametrize("cases", few_and_many(10, 100))
def test_flagfiles(tmp_path: Path, cases: int) -> None:
    generator = random.Random(SEED)
    recipe = Path(tiny.command.__file__).with_name("lenet_mnist.flags").read_bytes()
    for number in range(cases):
        path = tmp_path / f"{number}.flags"
        path.write_bytes(damage(recipe, generator))
        read_or_refuse(lambda path=path: config_of([f"--flagfile={path}"]), f"{path.read_bytes()!r}")


@pytest.mark.parametrize("cases", few_and_many(10, 60))
def test_raw_files_and_the_prepared_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: int) -> None:
    monkeypatch.setitem(load._PREPARED, "tiny", TINY)
    generator = random.Random(SEED)
    expected = content_hash(TRAIN, TEST)
    write_raw(tmp_path / "raw")
    load_tiny(str(tmp_path / "prepared"), str(tmp_path / "raw"))
    for number in range(cases):
        folder = tmp_path / f"damaged{number}"
        prepared = number % 2
        shutil.copytree(tmp_path / ("prepared" if prepared else "raw"), folder)
        what = damage_a_file(prepared_folder(str(folder)) if prepared else folder, generator)
        given = (str(folder),) if prepared else (str(tmp_path / f"anew{number}"), str(folder))
        data = read_or_refuse(lambda given=given: load_tiny(*given), what)
        assert data is None or data.sha256 == expected, what


@pytest.mark.parametrize("cases", few_and_many(10, 60))
def test_the_network_of_a_run(tmp_path: Path, finished: tiny.Watched, cases: int) -> None:
    generator = random.Random(SEED)
    expected = digest(load_network(finished.folder).weights)
    refused = 0
    for number in range(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copytree(finished.folder / "network", folder / "network")
        shutil.copy(finished.folder / "results.json", folder)
        what = damage_a_file(folder, generator)
        saved = read_or_refuse(lambda folder=folder: load_network(folder), what)
        refused += saved is None
        assert saved is None or digest(saved.weights) == expected, what
        shutil.rmtree(folder)
    assert refused > cases / 3


@pytest.mark.parametrize("cases", few_and_many(2, 40))
def test_a_run_that_goes_on(tmp_path: Path, finished: tiny.Watched, cases: int) -> None:
    """Its checkpoints, stages, metrics and results: it ends as it would have, or says what is damaged."""
    generator = random.Random(SEED)
    expected = tiny.without_time_and_place(finished.results)
    ended = 0
    for number in range(cases):
        folder = tmp_path / str(number)
        shutil.copytree(finished.folder, folder)
        for name in ("results.json", "report.md", "stages/retrain.json", "stages/test.json"):
            (folder / name).unlink()
        what = damage_a_file(folder, generator)
        results = read_or_refuse(lambda folder=folder: tiny.run_and_watch(folder).results, what)
        ended += results is not None
        assert results is None or tiny.without_time_and_place(results) == expected, what
        shutil.rmtree(folder)
    assert ended > cases / 4 or cases < 10


@pytest.mark.parametrize("cases", few_and_many(10, 40))
def test_images_of_a_user(tmp_path: Path, cases: int) -> None:
    """A folder of PNG files: a damaged one is named, or still is the picture that it was."""
    from PIL import Image

    from rap_jax.data.image_folder import load_image_folder

    generator = random.Random(SEED)
    images, labels = random_images(12, (8, 8, 3))
    source = tmp_path / "images"
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = source / ("train" if number < 8 else "test") / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(folder / f"{number}.png")
        del label
    expected = load_image_folder(str(source), None)
    for number in range(cases):
        folder = tmp_path / f"damaged{number}"
        shutil.copytree(source, folder)
        what = damage_a_file(folder, generator)
        found = read_or_refuse(lambda folder=folder: load_image_folder(str(folder), None), what)
        if found is not None and "removed" not in what:
            assert content_hash(found.train, found.test) == content_hash(expected.train, expected.test), what
    assert jax.devices()
