"""Checkpoints that are checked when they are read: Orbax, with a digest of every array beside it.

Orbax writes a step into a temporary folder and renames it, so a killed process loses at most the step it was
writing. Orbax notices neither a flipped bit (it has no checksum of the data) nor a template of another dtype (it
casts). So each step carries the sha256 of its arrays with their shapes and dtypes, and one of each of its files
(`sha256sum -c files.sha256` works by hand too); restoring compares all of them:

    manager = open_checkpoints("run/checkpoints")
    template = abstract_like(jax.eval_shape(init_fn, key), sharding)
    restored = restore_latest(manager, template)
    state = restored.state if restored else init_fn(key)
    save(manager, step, state, {"stage": "admm"})

A damaged step is moved to `damaged/` beside the good ones and the step before it is used. A template that does not
fit is the caller's mistake and never counts as damage. Neither does an error of a library on files whose checksums
hold. The state is a pytree of arrays, replicated or sharded, on the devices of one process or of several that save and
restore together; it may be saved on 8 devices and restored on 1, and the reverse.
"""

import json
import logging as python_logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from rap_jax._runtime.environment import versions
from rap_jax._runtime.integrity import (
    checksum,
    compare_checksums,
    digest,
    is_damage,
    layout,
    make_writable,
    named_leaves,
    write_checksums,
)
from rap_jax._runtime.processes import from_first, largest

DAMAGED = "damaged"
OTHER_SETTINGS = "Use the settings that the checkpoint was saved with, or another folder."


class DamagedError(ValueError):
    """The files of a folder are not what was written into it."""


class Restored(NamedTuple):
    """A checkpoint as it was saved: its step, its state (placed as the template says) and the caller's meta."""

    step: int
    state: Any
    meta: dict[str, Any]


def open_checkpoints(
    directory: str | os.PathLike[str], *, max_to_keep: int = 2, read_only: bool = False
) -> ocp.CheckpointManager:
    """Opens (and creates) a folder of checkpoints and removes what a killed process left half written.

    Args:
      directory: folder of one run's checkpoints, one sub-folder per step.
      max_to_keep: how many steps stay; with 1 there is none to fall back to.
      read_only: for a folder of somebody else: nothing in it is made, removed or moved.

    Raises:
      ValueError: the folder cannot be written to, or `max_to_keep` is below 1.
    """
    if max_to_keep < 1:
        raise ValueError(f"max_to_keep is {max_to_keep}; expected 1 or more checkpoints.")
    path = Path(directory).expanduser().absolute()
    logging.get_absl_logger().addFilter(_is_not_chatter)
    if read_only:
        options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0, create=False)
    else:
        try:
            make_writable(path)
        except OSError as error:
            problem = f"The checkpoint folder {path} cannot be written to ({error.strerror})"
            raise ValueError(f"{problem}; give a folder that can be.") from error
        settings = {"cleanup_tmp_directories": True, "enable_async_checkpointing": False}
        options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, **settings)
    return ocp.CheckpointManager(path, options=options, item_names=("state", "meta"))


def abstract_like(tree: Any, sharding: Any) -> Any:
    """The template for `restore_latest`: arrays, or what `jax.eval_shape` gives, with a sharding or a tree of them."""
    each = jax.tree.map(lambda _: sharding, tree) if isinstance(sharding, jax.sharding.Sharding) else sharding
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, each)


def save(manager: ocp.CheckpointManager, step: int, state: Any, meta: dict[str, Any]) -> bool:
    """Saves `state` and `meta` as `step` and waits until they are on disk.

    A step that is there already is left alone: after a resume it holds the state that the run resumed from, and
    replacing it would mean a moment without any good checkpoint. (A damaged step has been moved away by then.)

    Args:
      step: a number that grows during the run; the highest one is restored first.
      state: pytree of arrays; typed PRNG keys, optax states and empty dicts come back as they were.
      meta: anything that JSON can hold; tuples come back as lists.

    Returns:
      True if a checkpoint was written, False if `step` was there already.

    Raises:
      ValueError: `meta` cannot be written as JSON, `state` has a leaf that is no array, or the disk is full.
    """
    if step in _steps(manager):
        return False
    try:
        record = {"meta": json.loads(json.dumps(meta)), "layout": layout(state), "sha256": digest(state)}
        record["versions"] = versions()
    except TypeError as error:
        raise ValueError(f"meta of checkpoint {step} is {meta!r}; expected what JSON can hold ({error}).") from error
    meta_args = ocp.args.JsonSave({**record, "seal": checksum(record)})
    try:
        manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=meta_args), force=True)
        manager.wait_until_finished()
        from_first(lambda: write_checksums(Path(manager.directory) / str(step)))
    except (OSError, ValueError) as error:  # ValueError: what TensorStore says of a full disk
        raise ValueError(
            f"Checkpoint {step} cannot be written to {manager.directory} (...{' '.join(str(error).split())[-120:]}). "
            "The one before it is kept. Make room, or make the folder writable, and run the same command to go on."
        ) from error
    return True


def restore_latest(manager: ocp.CheckpointManager, abstract_state: Any) -> Restored | None:
    """Restores the newest checkpoint that is whole; a damaged one is reported, moved away and the one before used.

    None if there is none at all.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, see `abstract_like`.

    Raises:
      DamagedError: every checkpoint is damaged; all stay where they are, so that a second start does not silently
        begin afresh.
      ValueError: the template has no sharding or one that does not fit it, or other names, shapes or dtypes than the
        checkpoint; or what cannot be read is as it was written.
    """
    for name, leaf in named_leaves(abstract_state):
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(f"{name} of the template has no sharding; expected one, see abstract_like.")
        leaf.sharding.shard_shape(leaf.shape)
    damaged: list[int] = []
    manager.reload()
    for step in sorted(_steps(manager), reverse=True):
        reason, restored = _restore(manager, step, abstract_state)
        if restored is not None:
            from_first(lambda: _move_away(Path(manager.directory), damaged))
            manager.reload()
            return restored
        logging.warning("Checkpoint %d in %s is damaged (%s).", step, manager.directory, reason)
        damaged.append(step)
    if damaged:
        raise DamagedError(
            f"Every checkpoint in {manager.directory} is damaged (steps {sorted(damaged)}); expected one that can be "
            "read. Restore the folder from a backup, or move it away: this stage then begins again."
        )
    return None


def _steps(manager: ocp.CheckpointManager) -> list[int]:
    """The steps that are there, as the first process sees them."""
    return from_first(lambda: [int(step) for step in manager.all_steps()])


def _restore(manager: ocp.CheckpointManager, step: int, template: Any) -> tuple[str, Restored | None]:
    """Returns the checkpoint, or the reason why it is damaged."""
    folder = Path(manager.directory) / str(step)
    # Before Orbax reads anything: of a damaged file TensorStore prints pages of tracebacks. A process killed
    # right after Orbax was done leaves no checksums.
    whole, reason = from_first(lambda: compare_checksums(folder))
    if reason:
        return reason, None
    record, reason = _attempt(lambda: manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta)
    if record is None:
        _refuse_if_whole(whole, folder, reason, None)
        return f"its meta cannot be read: {reason}", None
    if not isinstance(record, dict) or record.pop("seal", None) != checksum(record):
        return "the checksum of its meta differs", None
    # From here on the meta is known to be what was saved, so a difference is the template's and not the disk's.
    _check_layout(folder, saved=record["layout"], expected=layout(template))
    restore_args = ocp.args.StandardRestore(template)
    state, reason = _attempt(lambda: (manager.restore(step, args=ocp.args.Composite(state=restore_args)).state,))
    if state is None:
        _refuse_if_whole(whole, folder, reason, record.get("versions"))
        return f"its state cannot be read: {reason}", None
    if digest(state[0]) != record["sha256"]:
        _refuse_if_whole(whole, folder, "its arrays are read as others than were saved", record.get("versions"))
        return "the checksum of its state differs", None
    return "", Restored(step, state[0], record["meta"])


def _attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what `read` gives, or None and the error in one short line; raises what is no damage.

    What one process cannot read, none has read.
    """
    found, reason = None, ""
    try:
        found = read()
    except Exception as error:
        if not is_damage(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160].rstrip('. ')}"
    (failed,) = largest(int(bool(reason)))
    return (None, reason or "another process cannot read it") if failed else (found, "")


def _refuse_if_whole(whole: bool, folder: Path, reason: str, saved_with: dict[str, str] | None) -> None:
    """Raises if the checksums of the files hold: then settings or versions differ."""
    if not whole:
        return
    here, then = versions(), saved_with or {}
    others = [
        f"{name} {version} (here {here.get(name)})" for name, version in then.items() if here.get(name) != version
    ]
    with_others = f" It was saved with {', '.join(others)}." if others else ""
    raise ValueError(
        f"{folder} does not fit this run: {reason}. Its files are as they were written, by their SHA-256. "
        f"{OTHER_SETTINGS}{with_others}"
    )


def _move_away(directory: Path, steps: list[int]) -> None:
    """Moves damaged steps to `damaged/`, so that their numbers are free again and nothing is lost."""
    for step in steps:
        (directory / DAMAGED).mkdir(exist_ok=True)
        target = tempfile.mkdtemp(prefix=f"{step}-", dir=directory / DAMAGED)
        os.replace(directory / str(step), target)
        logging.warning("Checkpoint %d was moved to %s; going on from the one before.", step, target)


def _check_layout(folder: Path, *, saved: dict[str, str], expected: dict[str, str]) -> None:
    found = [name for name in {**expected, **saved} if saved.get(name) != expected.get(name)]
    if found:
        parts = [f"{name} is {saved.get(name, 'absent')}, expected {expected.get(name, 'none')}" for name in found[:3]]
        parts += [f"and {len(found) - 3} more"] if len(found) > 3 else []
        is_set = "set" if jax.dtypes.canonicalize_dtype("float64") == "float64" else "not set"
        about_x64 = f" JAX_ENABLE_X64 is {is_set} here." if any("64[" in part for part in parts) else ""
        raise ValueError(f"{folder} does not fit this run: {'; '.join(parts)}. {OTHER_SETTINGS}{about_x64}")


def _is_not_chatter(record: python_logging.LogRecord) -> bool:
    """Drops what Orbax logs below a warning (some 40 lines a save), and what it says of what is as it should be.

    That is its warning that read-only means read-only, and the traceback of an error that it raises as well.
    """
    if not record.pathname.startswith(os.path.dirname(ocp.__file__)):
        return True
    if record.pathname.endswith("futures/future.py"):
        return False
    return record.levelno >= python_logging.WARNING and not str(record.msg).startswith("Given directory is read only")
