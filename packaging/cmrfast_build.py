"""Build backend: setuptools, compiling against the torch that is installed where there is one.

pip builds in an empty environment. Asking for torch there would download it anew (gigabytes) for
every install; the stable C++ interface makes any torch >= 2.11 good enough to compile against.
"""

import importlib.metadata
import sys
import sysconfig

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

sys.path.insert(0, __file__.rpartition("/")[0])
import toolchain

# Every hook runs in a process of its own, and each must see the environment pip installs into.
for _key in ("purelib", "platlib"):
    _path = sysconfig.get_paths()[_key]
    if _path not in sys.path:
        sys.path.append(_path)  # at the end: the isolated setuptools stays first


def _missing() -> list[str]:
    """What the build needs beyond pyproject.toml: torch, if it can be used and is not there."""
    if toolchain.cpu_mode() == "0" or toolchain.find_compiler() is None:
        return []
    try:
        major, minor = importlib.metadata.version("torch").split(".")[:2]
    except importlib.metadata.PackageNotFoundError:
        return [toolchain.TORCH]
    return [] if (int(major), int(minor)) >= toolchain.OLDEST_TORCH else [toolchain.TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _missing()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _missing()
