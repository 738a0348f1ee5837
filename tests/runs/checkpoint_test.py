"""Checkpoints come back bit by bit on any number of devices, and damage never passes for a good state."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rap_jax._runtime.integrity import CHECKSUMS
from rap_jax.runs import checkpoint


class State(NamedTuple):
    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    masks: Any
    key: jax.Array


def make_state(step: int = 0, *, width: int = 4, dtype: Any = jnp.float32) -> State:
    params = {
        "conv1": {"kernel": jax.random.normal(jax.random.key(step), (3, 3, 1, width), dtype)},
        "fc1": {"kernel": jnp.full((8, 4), step + 0.5, dtype), "bias": jnp.zeros(4, dtype)},
    }
    pruned = {"conv1": {"kernel": True}, "fc1": {"kernel": True, "bias": False}}
    tx = optax.chain(optax.masked(optax.trace(0.9), pruned), optax.identity(), optax.adam(1e-3))
    masks = jax.tree.map(lambda x: x > 0, params)
    return State(jnp.asarray(step), params, {}, tx.init(params), masks, jax.random.key(step + 7))


def one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def template(state: State) -> State:
    return checkpoint.abstract_like(state, one_device())


def raw(x: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_bit_equal(actual: State, expected: State) -> None:
    assert str(jax.tree.structure(actual)) == str(jax.tree.structure(expected))
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        assert raw(x).tobytes() == raw(y).tobytes()


def saved_folder(tmp_path: Path, steps: tuple[int, ...] = (1, 2)) -> Path:
    folder = tmp_path / "checkpoints"
    with checkpoint.open_checkpoints(folder, max_to_keep=3) as manager:
        for step in steps:
            assert checkpoint.save(manager, step, make_state(step), {"stage": "admm", "step": step})
    return folder


def restore(folder: Path, abstract: State | None = None) -> checkpoint.Restored | None:
    with checkpoint.open_checkpoints(folder, max_to_keep=3) as manager:
        return checkpoint.restore_latest(manager, template(make_state()) if abstract is None else abstract)


def restored_step(folder: Path) -> int:
    restored = restore(folder)
    assert restored is not None
    return restored.step


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library warns of, as the user reads it."""
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def data_file(folder: Path, step: int) -> Path:
    return max((folder / str(step) / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    restored = restore(saved_folder(tmp_path))
    assert restored is not None
    assert restored.step == 2
    assert restored.meta == {"stage": "admm", "step": 2}
    assert_bit_equal(restored.state, make_state(2))
    assert isinstance(restored.state, State)
    assert restored.state.batch_stats == {}
    assert isinstance(restored.state.opt_state[0].inner_state.trace["fc1"]["bias"], optax.MaskedNode)
    assert isinstance(restored.state.opt_state[1], optax.EmptyState)
    assert restored.state.masks["conv1"]["kernel"].dtype == jnp.bool_
    assert jax.random.uniform(restored.state.key) == jax.random.uniform(jax.random.key(9))


def test_template_decides_the_containers(tmp_path: Path) -> None:
    restored = restore(saved_folder(tmp_path), template(make_state())._asdict())  # type: ignore[arg-type]
    assert restored is not None and restored.step == 2
    assert_bit_equal(State(**restored.state), make_state(2))


def test_empty_folder_gives_none(tmp_path: Path) -> None:
    assert restore(tmp_path / "new" / "folder") is None


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    with checkpoint.open_checkpoints(tmp_path, max_to_keep=2) as manager:
        for step in (1, 5, 9):
            checkpoint.save(manager, step, make_state(step), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]
    assert restored_step(tmp_path) == 9


def test_saving_a_step_again_leaves_the_first(tmp_path: Path) -> None:
    with checkpoint.open_checkpoints(tmp_path) as manager:
        assert checkpoint.save(manager, 3, make_state(3), {"first": True})
        assert not checkpoint.save(manager, 3, make_state(4), {"first": False})
    restored = restore(tmp_path)
    assert restored is not None and restored.meta == {"first": True}
    assert_bit_equal(restored.state, make_state(3))


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["data", "meta/metadata", "state/_METADATA", "state/manifest.ocdbt"])
def test_damage_falls_back_to_the_step_before(tmp_path: Path, warnings: list[str], name: str, damage: Any) -> None:
    folder = saved_folder(tmp_path)
    damage(data_file(folder, 2) if name == "data" else folder / "2" / name)
    restored = restore(folder)
    assert restored is not None and restored.step == 1
    assert_bit_equal(restored.state, make_state(1))
    assert warnings[0].startswith(f"Checkpoint 2 in {folder} is damaged (")
    assert "\n" not in warnings[0] and len(warnings) == 2


def test_digest_decides_when_the_file_checksums_were_not_written(tmp_path: Path, warnings: list[str]) -> None:
    folder = saved_folder(tmp_path)
    (folder / "2" / CHECKSUMS).unlink()
    assert restored_step(folder) == 2
    (folder / "2" / "state" / "array_metadatas" / "process_0").unlink()  # Orbax restores other values, silently
    assert restored_step(folder) == 1
    assert "checksum of its state" in warnings[0]


def test_changed_meta_is_damage_even_if_it_parses(tmp_path: Path, warnings: list[str]) -> None:
    folder = saved_folder(tmp_path)
    (folder / "2" / CHECKSUMS).unlink()
    metadata = folder / "2" / "meta" / "metadata"
    metadata.write_text(metadata.read_text().replace("float32[8,4]", "float32[8,5]"))
    assert restored_step(folder) == 1
    assert "checksum of its meta" in warnings[0]


def test_damaged_step_is_kept_aside_and_its_number_is_free_again(tmp_path: Path, warnings: list[str]) -> None:
    folder = saved_folder(tmp_path)
    flip_bit(data_file(folder, 2))
    damaged = data_file(folder, 2).read_bytes()
    with checkpoint.open_checkpoints(folder, max_to_keep=3) as manager:
        restored = checkpoint.restore_latest(manager, template(make_state()))
        assert restored is not None and restored.step == 1
        assert checkpoint.save(manager, 2, make_state(2), {"again": True})
    again = restore(folder)
    assert again is not None and again.meta == {"again": True}
    (aside,) = (folder / checkpoint.DAMAGED).iterdir()
    assert aside.name.startswith("2-")
    assert damaged in [path.read_bytes() for path in aside.rglob("*") if path.is_file()]


def test_all_damaged_is_an_error_and_stays_one(tmp_path: Path, warnings: list[str]) -> None:
    folder = saved_folder(tmp_path)
    for step in (1, 2):
        truncate(data_file(folder, step))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"Every checkpoint in {folder} is damaged \(steps \[1, 2\]\).*move it"):
            restore(folder)


@pytest.mark.parametrize(
    ("abstract", "message"),
    [
        (
            lambda s: s._replace(params={"conv1": s.params["conv1"]}),
            r"params/fc1/bias is float32\[4\], expected none",
        ),
        (lambda s: s._replace(batch_stats={"mean": s.step}), r"batch_stats/mean is absent, expected int32\[\]"),
        (lambda s: make_state(width=8), r"params/conv1/kernel is float32\[3,3,1,4\], expected float32\[3,3,1,8\]"),
        (lambda s: make_state(dtype=jnp.bfloat16), r"is float32\[3,3,1,4\], expected bfloat16\[3,3,1,4\]"),
        (lambda s: s._replace(opt_state=(*s.opt_state, optax.EmptyState())), "does not fit this run: .*opt_state"),
        (lambda s: s._replace(key=jax.random.key(0, impl="rbg")), r"key is key<fry>\[\], expected key<rbg>\[\]"),
    ],
    ids=["missing", "extra", "shape", "dtype", "empty", "key"],
)
def test_template_that_does_not_fit_is_an_error_and_no_damage(
    tmp_path: Path, warnings: list[str], abstract: Any, message: str
) -> None:
    folder = saved_folder(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        restore(folder, template(abstract(make_state())))
    assert str(folder) in str(error.value)
    assert not warnings and not (folder / checkpoint.DAMAGED).exists()
    assert restored_step(folder) == 2


@pytest.mark.parametrize("what", ["meta", "state", "arrays"])
def test_files_as_they_were_written_are_never_damaged(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Another version of Orbax, or another setting of JAX, may not read what is whole."""
    folder = saved_folder(tmp_path)
    restore_item = checkpoint.ocp.CheckpointManager.restore

    def fail(manager: Any, step: int, args: Any) -> Any:
        if what in args:
            raise ValueError("an unknown layout of files")
        return restore_item(manager, step, args=args)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "restore", fail)
        patch.setattr(checkpoint, "versions", lambda: {"orbax-checkpoint": "9.9"})
        if what == "arrays":
            patch.setattr(checkpoint, "digest", lambda state: "another")
        with pytest.raises(
            ValueError, match=r"does not fit this run: .* as they were written, by their SHA-256"
        ) as error:
            restore(folder)
    assert not isinstance(error.value, checkpoint.DamagedError) and "move" not in str(error.value)
    assert what == "meta" or "It was saved with python" in str(error.value)
    assert not warnings and not (folder / checkpoint.DAMAGED).exists()
    assert restored_step(folder) == 2


def test_what_may_not_be_read_is_not_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved_folder(tmp_path)
    (folder / "2" / CHECKSUMS).unlink()  # as after a kill right at the end of saving
    restore_item = checkpoint.ocp.CheckpointManager.restore

    def refuse(manager: Any, step: int, args: Any) -> Any:
        if "state" in args:
            raise PermissionError(13, "Permission denied")
        return restore_item(manager, step, args=args)

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(checkpoint.ocp.CheckpointManager, "restore", refuse)
        restore(folder)
    assert not (folder / checkpoint.DAMAGED).exists() and restored_step(folder) == 2


def test_numbers_of_64_bits_are_traced_back_to_their_setting(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path)
    with jax.enable_x64(True):
        wide = checkpoint.abstract_like(make_state(dtype=jnp.float64), one_device())
        with pytest.raises(ValueError, match=r"expected float64\[.* JAX_ENABLE_X64 is set here\."):
            restore(folder, wide)
    with pytest.raises(ValueError, match=r"expected float64\[.* JAX_ENABLE_X64 is not set here\."):
        restore(folder, wide)


def test_template_needs_shardings_that_fit(tmp_path: Path, warnings: list[str]) -> None:
    folder = saved_folder(tmp_path)
    with pytest.raises(ValueError, match="step of the template has no sharding"):
        restore(folder, jax.eval_shape(make_state))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    with pytest.raises(ValueError, match="(?i)shard"):
        restore(folder, checkpoint.abstract_like(make_state(), NamedSharding(mesh, PartitionSpec("data"))))
    assert not warnings


def test_eight_devices_and_one(tmp_path: Path) -> None:
    assert len(jax.devices()) == 8, "run with XLA_FLAGS=--xla_force_host_platform_device_count=8"
    mesh = Mesh(np.array(jax.devices()), ("data",))
    replicated, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    shardings = jax.tree.map(lambda x: split if x.shape[:1] == (8,) else replicated, make_state())
    on_eight = jax.device_put(make_state(1), shardings)
    assert len(on_eight.params["fc1"]["kernel"].sharding.device_set) == 8

    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 1, on_eight, {})
    restored = restore(tmp_path)
    assert restored is not None
    assert_bit_equal(restored.state, make_state(1))
    assert all(x.sharding == one_device() for x in jax.tree.leaves(restored.state))

    with checkpoint.open_checkpoints(tmp_path) as manager:
        checkpoint.save(manager, 2, restored.state, {})
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), make_state(), shardings)
    restored = restore(tmp_path, abstract)
    assert restored is not None and restored.step == 2
    assert_bit_equal(restored.state, make_state(1))
    assert restored.state.params["fc1"]["kernel"].sharding == split
    assert len(restored.state.key.sharding.device_set) == 8


SAVE_WITHOUT_END = """
import itertools, sys
import jax.numpy as jnp
from rap_jax.runs import checkpoint
manager = checkpoint.open_checkpoints(sys.argv[1])
for step in itertools.count(1):
    state = {f"w{i}": jnp.full((256, 1024), step + i, jnp.float32) for i in range(8)}
    checkpoint.save(manager, step, state, {})
    print(step, flush=True)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_kill_during_save_keeps_the_last_whole_step(tmp_path: Path, delay: float) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SAVE_WITHOUT_END, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "2":
            assert process.poll() is None
        while not list(tmp_path.glob("*.orbax-checkpoint-tmp")):
            assert process.poll() is None
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    abstract = {f"w{i}": jax.ShapeDtypeStruct((256, 1024), jnp.float32, sharding=one_device()) for i in range(8)}
    with checkpoint.open_checkpoints(tmp_path) as manager:
        restored = checkpoint.restore_latest(manager, abstract)
        assert restored is not None and restored.step >= 2
        assert all((restored.state[f"w{i}"] == restored.step + i).all() for i in range(8))
        assert checkpoint.save(manager, restored.step + 1, restored.state, {})
    assert not [path for path in tmp_path.iterdir() if not path.name.isdigit()]


def test_half_written_step_is_removed_on_opening(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path)
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
    assert restored_step(folder) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"{tmp_path}/file/checkpoints cannot be written to"):
        checkpoint.open_checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError, match="max_to_keep is 0"):
        checkpoint.open_checkpoints(tmp_path, max_to_keep=0)


def test_bad_arguments_of_save_are_errors(tmp_path: Path) -> None:
    with checkpoint.open_checkpoints(tmp_path) as manager:
        with pytest.raises(ValueError, match="meta of checkpoint 1"):
            checkpoint.save(manager, 1, make_state(), {"array": jnp.zeros(2)})
        with pytest.raises(ValueError, match="rate of the state is 0.1; expected an array"):
            checkpoint.save(manager, 1, {"rate": 0.1}, {})
    assert restore(tmp_path) is None


@pytest.mark.e2e
def test_orbax_is_quiet_and_we_are_not(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = f"""
from absl import logging
import jax.numpy as jnp
logging.set_verbosity(logging.INFO)
from rap_jax.runs import checkpoint
manager = checkpoint.open_checkpoints({str(tmp_path)!r})
logging.info("ours")
checkpoint.save(manager, 1, {{"w": jnp.zeros(3)}}, {{}})
logging.warning("ours too")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [line for line in result.stderr.splitlines() if "absl" in line]
    assert [line.rsplit(":", 1)[-1] for line in lines] == ["ours", "ours too"]
