"""On-disk cache of prepared tensors, keyed by the content of their sources and memory-mapped."""

import contextlib
import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cmrfast.data.tensor_files import write_tensors
from cmrfast.errors import FileError
from cmrfast.files import file_digest

Tensors = dict[str, Tensor]

_ABANDONED_S = 24 * 3600.0  # a temporary file this old belongs to a process that died
_CLOCKS_APART_S = 600.0  # by which the clocks of the machines that share a folder may differ

_log = logging.getLogger(__name__)


def _separate(tensors: Tensors) -> Tensors:
    """Contiguous tensors on the CPU that share no memory, which safetensors refuses."""
    separate: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        separate[name] = own
    return separate


class Cache:
    """A cache of tensors, keyed by the files and the options they were computed from.

    An entry is one safetensors file, written under a temporary name and then renamed, so that
    processes can share the folder: at worst two of them compute the same entry. The key hashes
    the bytes of every source file, so an entry is never stale; changed sources or options get
    another entry. Loaded tensors are memory-mapped: pages are read as voxels are accessed.
    A folder that cannot be written to, such as one on a full disk, costs time but ends nothing: the
    tensors are made and returned, and one warning is logged.

    Args:
        root: folder of the entries; created if missing.
        limit_bytes: size of the cache; the least recently used entries beyond it are removed.

    Example:
        >>> import tempfile, torch
        >>> folder = Path(tempfile.mkdtemp())
        >>> source = folder / "image.bin"
        >>> _ = source.write_bytes(b"voxels")
        >>> cache = Cache(folder / "cache")
        >>> made = cache.tensors([source], {"spacing_mm": 0.8}, lambda: {"a": torch.ones(2)})
        >>> again = cache.tensors([source], {"spacing_mm": 0.8}, lambda: {})  # not called
        >>> torch.equal(made["a"], again["a"])
        True
    """

    def __init__(self, root: str | os.PathLike[str], *, limit_bytes: int = 20 << 30) -> None:
        if limit_bytes < 1:
            raise ValueError(f"Cache: limit_bytes must be >= 1; got {limit_bytes}")
        self.root, self.limit_bytes = Path(root), limit_bytes
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"Cache: {self.root}: {error.strerror or error}") from error
        self._digests: dict[tuple[str, int, int, int], str] = {}
        self._warned = False

    def tensors(
        self,
        sources: Sequence[str | os.PathLike[str]],
        options: Mapping[str, object],
        make: Callable[[], Tensors],
    ) -> Tensors:
        """Return the result of ``make()``, from the cache if it holds an entry.

        Args:
            sources: files that the result depends on, identified by content, not by name.
            options: everything else it depends on, including a version of the preparation; must
                be JSON.
            make: computes the tensors; called only if there is no intact entry.

        Raises:
            FileError: a source cannot be read.
        """
        entry = self.root / f"{self._key(sources, options)}.safetensors"
        # Remake a damaged entry. load_file opens it twice; RuntimeError: it was trimmed in between.
        with contextlib.suppress(OSError, SafetensorError, RuntimeError):
            cached = load_file(entry)
            with contextlib.suppress(OSError):
                os.utime(entry)  # marks it as recently used
            return cached
        tensors = _separate(make())
        try:
            self._write(entry, tensors)
            self._trim(keep=entry)
        except (OSError, SafetensorError) as error:
            if not self._warned:
                _log.warning("Cache: %s does not keep what was prepared: %s", self.root, error)
            self._warned = True
        return tensors

    def _key(self, sources: Sequence[str | os.PathLike[str]], options: Mapping[str, object]) -> str:
        try:
            text = json.dumps(options, sort_keys=True)
        except TypeError as error:
            raise TypeError(f"Cache: options must be JSON; {error}") from None
        key = blake2b(text.encode(), digest_size=20)
        for source in sources:
            key.update(self._digest(Path(source)).encode())
        return key.hexdigest()

    def _digest(self, path: Path) -> str:
        try:
            status = path.stat()
            key = (str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns)
            if key not in self._digests:  # hash a file again only if it has changed
                self._digests[key] = file_digest(path)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"Cache: {path}: {reason}") from error
        return self._digests[key]

    def _write(self, entry: Path, tensors: Tensors) -> None:
        name = self.root / f"{secrets.token_hex(8)}.making"
        try:
            write_tensors(tensors, name)
            with open(name, "rb") as file:
                os.fsync(file.fileno())  # an entry must be on disk before it has its name
            os.replace(name, entry)
        except BaseException:
            name.unlink(missing_ok=True)
            raise

    def _trim(self, keep: Path) -> None:
        # The time of the entry just written comes from the same clock as those of the others.
        now = keep.stat().st_mtime
        entries: list[tuple[float, int, Path]] = []
        for path in self.root.iterdir():
            with contextlib.suppress(OSError):  # another process may trim as well
                status = path.stat()
                age_s = now - status.st_mtime
                if path.suffix == ".making" and abs(age_s) > _ABANDONED_S:
                    path.unlink()
                elif path.suffix == ".safetensors":
                    # An entry of the future was used before somebody set the clock right.
                    used = status.st_mtime if age_s > -_CLOCKS_APART_S else -math.inf
                    entries.append((used, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit_bytes:
                return
            if path != keep:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size
