"""The stub of ``cmrfast.models`` has the fields of every Config."""

import importlib.util

from cmrfast import models
from tests.support.paths import ROOT


def test_the_stub_is_what_its_script_writes():
    path = ROOT / "packaging" / "model_stubs.py"
    spec = importlib.util.spec_from_file_location("model_stubs", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.STUB.read_text("utf-8") == script.stub(), "run python packaging/model_stubs.py"
    assert all(f'Literal["{name}"]' in script.stub() for name in models.MODELS)
