"""The pages of docs/ are run as they stand; their links lead somewhere, their messages are real."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType

import pytest

from cmrfast import methods
from cmrfast.data.datasets import LAYOUTS
from cmrfast.models import MODELS
from tests.support import browser
from tests.support.markdown import blocks, run_bash, run_python
from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
WITH_CODE = [name for name, page in PAGES.items() if blocks(page, "python", "bash")]
METHOD = "method.md"  # its blocks are files of the package
EXTRAS = {"pipelines.md": ("monai", "lightning")}  # page → extras that it needs
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def as_it_was(monkeypatch):
    """Layouts that a page adds, and methods that read them, are gone after it."""
    layouts = dict(LAYOUTS)
    for name in MODELS:
        monkeypatch.setattr(f"cmrfast.methods.{name}.METHOD", methods.get(name))
    yield
    LAYOUTS.clear()
    LAYOUTS.update(layouts)


def run_page(name, patch, folder, *, slow):
    patch.chdir(folder)
    namespace = {}
    for block in blocks(PAGES[name], "python", "bash"):
        if block.not_run or (block.slow and not slow):
            assert block.language == "bash" or block.slow, f"{block}: Python is always run"
        elif block.language == "python":
            run_python(block, namespace)
        else:
            run_bash(block, patch)


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize("name", [name for name in WITH_CODE if name != METHOD])
def test_every_block_runs(name, monkeypatch, tmp_path):
    for extra in EXTRAS.get(name, ()):
        pytest.importorskip(extra, reason=f"needs the extra {extra}")
    run_page(name, monkeypatch, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in WITH_CODE if any(b.slow for b in blocks(PAGES[n]))])
def test_slow_blocks_run_too(name, monkeypatch, tmp_path):
    run_page(name, monkeypatch, tmp_path, slow=True)


@pytest.fixture(scope="module")
def with_added_method(tmp_path_factory):
    """A copy of the repository with the page's files in it and its diffs applied."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("cmrfast", "docs", "tests", "benchmarks", "studies"):
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("mkdocs.yml", "pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    for block in blocks(PAGES[METHOD]):
        target = folder / (block.title or "")
        if block.language == "diff":
            lines = block.text.splitlines(keepends=True)
            before, after = ("".join(x[1:] for x in lines if x[0] != sign) for sign in "+-")
            assert target.read_text().count(before) == 1
            target.write_text(target.read_text().replace(before, after))
        elif block.title:
            assert not target.exists()
            target.parent.mkdir(exist_ok=True)
            target.write_text(block.text)
    return folder


def run_in(folder, *words):
    """Python on the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, *words], cwd=folder, env=environment, check=True)


@pytest.mark.slow
def test_the_added_method_runs_as_the_others_do(with_added_method):
    folder = with_added_method
    code = f"""
import pytest
from tests.support import browser
from tests.support.markdown import blocks, run_bash
from tests.support.paths import ROOT
patch = pytest.MonkeyPatch()
for block in blocks(ROOT / "docs" / "{METHOD}", "bash"):
    run_bash(block, patch)
"""
    run_in(folder, "-c", code)
    assert (folder / "run1" / "report.html").exists()
    assert (folder / "masks" / "Case_N001" / "myocardium.nii.gz").exists()
    assert list((folder / "prepared").rglob("*.safetensors"))
    best = json.loads((folder / "search1" / "best.json").read_text())
    assert set(best["best"]) == {"lr", "rotate_deg"}
    assert best["trials"] == 2


@pytest.mark.slow
def test_the_added_method_keeps_the_contracts(with_added_method):
    tests = ("tests/models/test_contract.py", "tests/methods/test_preparation.py")
    run_in(with_added_method, "-m", "pytest", "-q", "-k", "thin_unet or every_m", *tests)


@pytest.mark.slow
def test_the_added_method_is_in_the_reference(with_added_method, tmp_path):
    if any(find_spec(name) is None for name in ("material", "mkdocstrings")):
        pytest.skip("needs the extra docs")
    run_in(with_added_method, "-m", "mkdocs", "build", "-q", "--strict", "-d", str(tmp_path))
    page = (tmp_path / "api" / "methods.html").read_text()
    assert 'id="cmrfast.methods.thin_unet.images.segment"' in page


def test_a_method_changes_three_existing_files_at_most():
    changed = {block.title for block in blocks(PAGES[METHOD], "diff")}
    assert len(changed) <= 3
    assert {name for name in changed if name.startswith("cmrfast/")} == {
        "cmrfast/models/__init__.py"
    }


def templates():
    """Every string of the sources as a pattern, its values anything, and its own letters."""
    folders = (ROOT / "cmrfast", ROOT / "packaging")
    for path in (ROOT / "setup.py", *(p for f in folders for p in f.rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            words = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            if all(word is None or isinstance(word, str) for word in words):
                pattern = "".join(".*" if word is None else re.escape(word) for word in words)
                yield re.compile(pattern, re.DOTALL), sum(len(word) for word in words if word)


def test_quoted_messages_are_in_the_sources():
    known = list(templates())

    def is_real(message):
        message = message.removeprefix("cmrfast: ")
        return any(
            letters > len(message) / 4 and pattern.fullmatch(text)
            for pattern, letters in known
            for text in (message, f"cmrfast: {message}")
        )

    quoted = [block.text.strip() for block in blocks(PAGES["messages.md"], "text")]
    assert len(quoted) > 30
    assert not [message for message in quoted if not is_real(message)]
    assert not is_real("open_dataset: patients holds no patient of emidec; it should hold a.nii")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = PAGES[name]
    for target in LINK.findall(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)):
        path, _, _ = target.partition("#")
        assert "://" not in target, f"{name}: {target} is on another host"
        assert not path or (page.parent / path).is_file(), f"{name}: {target} is not there"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^ +- .+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as the command builds it, a warning being an error."""
    if any(find_spec(name) is None for name in ("material", "mkdocstrings")):
        pytest.skip("needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        check=True,
    )
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|link|iframe)\b[^>]*(?:src|href)="([^"]+)"', text)
        assert loaded
        assert not [address for address in loaded if re.match(r"(\w+:)?//", address)]
        assert "&gt;&gt;&gt;" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text())


@pytest.mark.slow
@pytest.mark.skipif(not browser.CHROMIUM, reason="there is no chromium")
def test_search_works_from_a_disk(site):
    field = "document.querySelector('[data-md-component=search-query]')"
    found = "document.querySelectorAll('.md-search-result__item a')"
    with browser.Browser(site / "api" / "losses.html", gl=False) as page:
        page.run(f"{field}.focus(), {field}.value = 'augmentation'")
        page.run(f"{field}.dispatchEvent(new KeyboardEvent('keyup', {{bubbles: true}}))")
        page.wait(f"{found}.length > 0")
        assert "augmentation" in page.run(f"[...{found}].map(link => link.href).join()")
        assert not page.errors
        assert not page.requests


PACKAGES = ["ops", "losses", "metrics", "models", "data", "data.prepare", "infer"]
PACKAGES += ["methods", *(f"methods.{name}" for name in MODELS), "train", "runs"]
PACKAGES += ["compat.monai", "compat.lightning"]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(site, package):
    extra = package.removeprefix("compat.")
    if extra != package:
        pytest.importorskip(extra, reason=f"needs the extra {extra}")
    module = import_module(f"cmrfast.{package}")
    text = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    shown = set(re.findall(r'id="(cmrfast\.[\w.]+)"', text))
    lacking = [
        name
        for name in getattr(module, "__all__", vars(module))
        if not name.startswith("_")
        and getattr(getattr(module, name), "__module__", "").startswith(module.__name__)
        and isinstance(getattr(module, name), type | FunctionType)
        and f"{getattr(module, name).__module__}.{name}" not in shown
    ]
    assert not lacking
