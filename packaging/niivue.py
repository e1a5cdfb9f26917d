"""The viewer of cmrfast's pages, NiiVue: checked against npm, or replaced by another version.

python packaging/niivue.py          # are the files in the package those that npm has?
python packaging/niivue.py 0.69.0   # take over this version

Nothing else of the package needs npm: its files are part of every wheel, and no page loads them
from a network.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "cmrfast" / "runs" / "assets" / "niivue"
BUNDLE, RECORD, NOTICES = FOLDER / "niivue.umd.js.gz", FOLDER / "version.json", FOLDER / "NOTICES"
_PACKAGE = "@niivue/niivue"
_HEAD = """Third-party software in niivue.umd.js.gz, besides NiiVue, whose licence is LICENSE.

Roboto, the typeface of its labels: copyright Google, Apache License 2.0.
"""


def install(version: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """What npm says about a version and all that it needs, and where they are installed."""
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--omit=optional", "--silent")
    subprocess.run(
        ["npm", "install", "--prefix", folder, *quiet, f"{_PACKAGE}@{version}"], check=True
    )
    packages = json.loads((folder / "package-lock.json").read_text("utf-8"))["packages"]
    return packages, folder


def record(packages: dict[str, Any], bundle: bytes) -> dict[str, str]:
    """Version, npm's hash of the package, and the hash of the bundle in it."""
    own = packages[f"node_modules/{_PACKAGE}"]
    return {
        "version": own["version"],
        "licence": own["license"],
        "integrity": own["integrity"],
        "sha256": hashlib.sha256(bundle).hexdigest(),
    }


def notices(packages: dict[str, Any], folder: Path) -> str:
    """The licences of the packages that are part of the bundle."""
    parts = [_HEAD]
    for name, package in sorted(packages.items()):
        found = [p for p in (folder / name).glob("*") if p.stem.lower() == "license"]
        if name and found:
            title = f"{name.removeprefix('node_modules/')} {package['version']}"
            parts.append(f"{title}\n{'-' * len(title)}\n\n{found[0].read_text('utf-8').strip()}\n")
    return "\n\n".join(parts)


def main() -> None:
    """Check or replace the files."""
    stored = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    version = sys.argv[1] if len(sys.argv) > 1 else stored["version"]
    with tempfile.TemporaryDirectory() as temporary:
        packages, folder = install(version, Path(temporary))
        bundle = (folder / "node_modules" / _PACKAGE / "dist" / "niivue.umd.js").read_bytes()
        new, text = record(packages, bundle), notices(packages, folder)
    if len(sys.argv) > 1:
        RECORD.write_text(json.dumps(new, indent=1) + "\n", "utf-8")
        NOTICES.write_text(text, "utf-8")
        BUNDLE.write_bytes(gzip.compress(bundle, 9, mtime=0))
    elif stored != new or gzip.decompress(BUNDLE.read_bytes()) != bundle:
        sys.exit(f"niivue: the files in {FOLDER.name}/ are not those of {_PACKAGE} {version}")
    print(f"niivue {version}: {BUNDLE.stat().st_size} bytes, sha256 {new['sha256']}")


if __name__ == "__main__":
    main()
