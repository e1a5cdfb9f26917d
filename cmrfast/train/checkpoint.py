"""Checkpoints: safetensors and JSON in a folder, written atomically.

A run keeps ``checkpoints/step-000120/`` with ``tensors.safetensors`` and ``state.json``; no pickle
anywhere. The folder is written under another name, flushed to disk and renamed. The JSON holds a
hash of the tensors and one of itself, so any damage is detected: a checkpoint that loads is the
one that was saved.
"""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmrfast.atomic import atomic_write, sync
from cmrfast.data.tensor_files import write_tensors
from cmrfast.errors import CheckpointError
from cmrfast.files import file_digest, read_json, take

_log = logging.getLogger(__name__)
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{6,})")
_UNFINISHED = re.compile(r"step-\d{6,}\.(?:making|going)-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run.

    Args:
        step: optimiser steps done.
        made_for: what the run trains, such as the method and its config; other runs are refused.
        state: nested dicts and lists of tensors, numbers, strings, booleans and None.
        score: of the model, higher is better, or None where it was not measured.
        digest: hash of the tensors in its file; empty before it is saved.
    """

    step: int
    made_for: Mapping[str, Any]
    state: Mapping[str, Any]
    score: float | None = None
    digest: str = ""


class CheckpointFolder:
    """The checkpoints of a run: the newest two and the best.

    Args:
        root: the run's folder; made where missing.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, root: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"CheckpointFolder: keep must be >= 1; got {keep}")
        self.folder, self.keep = Path(root) / "checkpoints", keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and remove what is no longer kept; returns its folder.

        Raises:
            CheckpointError: it could not be written; those before are untouched.
        """
        final = self.folder / f"step-{checkpoint.step:06d}"
        making = final.with_suffix(f".making-{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            self._write(making, checkpoint)
            if final.exists():  # the same step again, after a resume
                _remove(final)
            making.rename(final)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"save_checkpoint: {final} could not be written: "
                f"{getattr(error, 'strerror', None) or error}"
            ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        self._trim()
        return final

    def rescore(self, step: int, score: float | None, *, trim: bool = True) -> None:
        """Set the score of a checkpoint that was saved before it was measured.

        Args:
            step: of the checkpoint.
            score: higher is better; None takes the score away.
            trim: remove what is no longer kept, such as the one that was the best before.

        Raises:
            CheckpointError: its description is damaged, or could not be written.
        """
        file = self.folder / f"step-{step:06d}" / _STATE
        try:
            stored = _read_state(file)
            if stored["score"] != score:
                _write_state(file, {**stored, "score": score})
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"save_checkpoint: {file}: {error}") from error
        if trim:
            self._trim()

    def forget_scores(self, chosen: Callable[[int], bool]) -> None:
        """Take the scores from checkpoints, which then no longer compete for the best.

        Args:
            chosen: whether to take that of a step.
        """
        for path, score in self._scores().items():
            if score > -math.inf and chosen(_step(path)):
                try:
                    self.rescore(_step(path), None, trim=False)
                except CheckpointError as error:  # damaged, so it cannot be used anyway
                    _log.warning("passed over: %s", error)

    def load_newest(self, made_for: Mapping[str, Any] | None) -> Checkpoint | None:
        """The newest whole checkpoint; None where there is none.

        Raises:
            CheckpointError: it was made for another model or config, or none is whole.
        """
        damaged = []
        for path in sorted(self._paths(), key=_step, reverse=True):
            try:
                return load_checkpoint(path, made_for)
            except _DamagedError as error:
                damaged.append(str(error))
                _log.warning("passed over: %s", error)
        if damaged:
            raise CheckpointError("; ".join(damaged))
        return None

    def best(self) -> Path | None:
        """The folder of the checkpoint with the highest score, the newest where none has one."""
        scores = self._scores()
        return max(scores, key=lambda path: (scores[path], _step(path)), default=None)

    def _write(self, folder: Path, checkpoint: Checkpoint) -> None:
        tensors: dict[str, Tensor] = {}
        tree = _without_tensors(checkpoint.state, tensors)
        write_tensors(tensors, folder / _TENSORS)
        state = {
            "step": checkpoint.step,
            "score": checkpoint.score,
            "made_for": checkpoint.made_for,
            "tensors_bytes": (folder / _TENSORS).stat().st_size,
            "tensors_blake2b": file_digest(folder / _TENSORS),
            "state": tree,
        }
        _write_state(folder / _STATE, state)
        sync(folder / _TENSORS)
        sync(folder)

    def _paths(self) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (p for p in self.folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir())

    def _scores(self) -> dict[Path, float]:
        """The score of every checkpoint that can be read, the lowest there is where it has none."""
        scores = {}
        for path in self._paths():
            try:
                score = take(read_json(path / _STATE), "score", float, type(None))
            except (OSError, ValueError):
                continue
            scores[path] = -float("inf") if score is None else score
        return scores

    def _trim(self) -> None:
        """Remove checkpoints that are not kept; unreadable ones stay and do not count."""
        best = self.best()
        for path in sorted(self._scores(), key=_step, reverse=True)[self.keep :]:
            if path != best:
                try:
                    _remove(path)
                except OSError as error:  # the new one is safe, so training goes on
                    _log.warning("%s could not be removed: %s", path, error.strerror or error)
        for path in self.folder.iterdir():  # left by a process that was killed
            unfinished = _UNFINISHED.fullmatch(path.name)
            if unfinished and not _alive(int(unfinished[1])):
                shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Rename first: a killed process must not leave half of a folder that looks whole."""
    going = path.with_suffix(f".going-{os.getpid()}")
    shutil.rmtree(going, ignore_errors=True)
    path.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def load_checkpoint(
    path: str | os.PathLike[str], made_for: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Read one checkpoint's folder.

    Args:
        path: the folder.
        made_for: what it must have been written for; None takes any.

    Raises:
        CheckpointError: damaged, missing, or made for something else, with the differences.
    """
    path = Path(path)
    try:
        stored = _read_state(path / _STATE)
        size, digest = take(stored, "tensors_bytes", int), take(stored, "tensors_blake2b", str)
        # The size first: to hash a file takes long where it is endless.
        if (path / _TENSORS).stat().st_size != size or file_digest(path / _TENSORS) != digest:
            raise ValueError("its tensors are not those it was saved with")
        loaded = Checkpoint(
            take(stored, "step", int),
            take(stored, "made_for", dict),
            _with_tensors(take(stored, "state", dict), load_file(path / _TENSORS)),
            take(stored, "score", float, type(None)),
            digest,
        )
    except FileNotFoundError as error:
        missing = Path(error.filename or path).name
        raise _DamagedError(f"load_checkpoint: {path}: {missing} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _DamagedError(f"load_checkpoint: {path} cannot be used: {error}") from error
    # Compare as JSON, which turns tuples into lists.
    wanted = None if made_for is None else json.loads(json.dumps(made_for))
    if wanted is not None and wanted != loaded.made_for:
        was, is_ = _differences(loaded.made_for, wanted)
        raise CheckpointError(f"load_checkpoint: {path} was written for {was}, this model is {is_}")
    return loaded


def _read_state(file: Path) -> dict[str, Any]:
    """A checkpoint's description; ``ValueError`` unless it is as it was written."""
    stored = read_json(file)
    if "blake2b" not in stored:
        raise ValueError("it is of an older version, which this one cannot continue")
    if stored.pop("blake2b") != _digest_of(stored):
        raise ValueError("its description is not the one it was saved with")
    return stored


def _write_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write a description with its hash, whole or not at all."""
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps({**state, "blake2b": _digest_of(state)}, indent=1))


class _DamagedError(CheckpointError):
    """A checkpoint is damaged; an older one may be whole."""


def _differences(was: Any, wanted: Any) -> tuple[str, str]:
    """The options that differ, as text for both sides."""
    was, wanted = _flat(was), _flat(wanted)
    keys = [k for k in {**was, **wanted} if was.get(k) != wanted.get(k)]
    one, other = ([f"{k}={side[k]!r}" for k in keys if k in side] for side in (was, wanted))
    return ", ".join(one) or "fewer options", ", ".join(other) or "fewer options"


def _flat(options: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= (
            _flat(value, f"{group}{name}.") if isinstance(value, dict) else {group + name: value}
        )
    return flat


def _without_tensors(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The tree with each tensor replaced by its number in ``tensors``."""
    if isinstance(node, Tensor):
        name = str(len(tensors))
        # Cloned, since safetensors refuses tensors that share memory, such as tied weights.
        tensors[name] = node.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(node, Mapping):
        # Pairs, since JSON would turn the numbers that optimisers use as keys into strings.
        return {"dict": [[key, _without_tensors(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        kind = "tuple" if isinstance(node, tuple) else "list"
        return {kind: [_without_tensors(value, tensors) for value in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"save_checkpoint: a state holds tensors and plain values; got {type(node)}")


def _with_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _with_tensors(value, tensors) for key, value in content}
    values = [_with_tensors(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values


def _digest_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return blake2b(text.encode(), digest_size=20).hexdigest()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _step(path: Path) -> int:
    return int(path.name.partition("-")[2])
