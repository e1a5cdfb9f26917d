"""Damage: what disks, transfers, editors and hostile people do to files."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Values that somebody else's JSON may hold where ours has another.
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 1e308, -0.0, 1e-320, 0.5),
    *(float("nan"), float("inf"), "", "..", "a/b", "\0", "\x1b]0;x\x07", "é" * 300, "9" * 4000),
    *([], {}, [[]], [None], {"a": 1}, {"": {}}, [1, "a", {}], ["a"] * 1000),
)


def damage_bytes(numbers: random.Random, content: bytes) -> bytes:
    """Cut off, change, repeat, insert or swap some bytes."""
    size = len(content)
    if not size:
        return numbers.randbytes(numbers.randrange(1, 100))
    place = numbers.randrange(size)
    length = min(numbers.choice((1, 1, 2, 4, 16, 500)), size - place)
    kind = numbers.randrange(6)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + numbers.randbytes(length) + content[place + length :]
    if kind == 2:
        return content[:place] + content[place : place + length] * 2 + content[place + length :]
    if kind == 3:
        return content[:place] + content[place + length :]
    if kind == 4:
        flipped = bytes([content[place] ^ (1 << numbers.randrange(8))])
        return content[:place] + flipped + content[place + 1 :]
    return content + numbers.randbytes(numbers.randrange(1, 1000))


def damage_json(numbers: random.Random, content: Any) -> Any:
    """Change one place of a JSON value: replace, remove, rename, add or nest."""
    content = json.loads(json.dumps(content))
    places = list(_places(content))
    if not places:
        return numbers.choice(_VALUES)
    holder, key = numbers.choice(places)
    kind = numbers.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        deep: Any = 1
        for _ in range(numbers.choice((10, 100, 900))):
            deep = [deep] if numbers.random() < 0.5 else {"a": deep}
        holder[key] = deep
    elif kind == 2 and isinstance(holder, dict):
        holder[numbers.choice(("", "x", key + "x", "..", "__class__"))] = holder.pop(key)
    elif kind == 3:
        _, other = numbers.choice(places), numbers.choice(places)
        holder[key] = json.loads(json.dumps(other[0][other[1]]))
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = numbers.choice((-holder[key], holder[key] + 1, str(holder[key])))
    else:
        holder[key] = numbers.choice(_VALUES)
    return content


def replace_by_oddity(numbers: random.Random, path: Path) -> None:
    """Put something in a file's place that is no file of its kind."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    oddities: list[Callable[[], object]] = [
        lambda: None,  # missing
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path),
        lambda: path.touch(),
        lambda: path.write_text("null"),
        lambda: path.write_text("[" * 200_000),
        lambda: _sparse(path, 1 << 40),
        lambda: path.write_bytes(b"\xff\xfe" + numbers.randbytes(50)),
    ]
    numbers.choice(oddities)()


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _places(node: Any) -> Any:
    """Every holder and key below a JSON value."""
    children = {dict: dict.items, list: enumerate}.get(type(node), lambda _: ())(node)
    for key, value in list(children):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)
