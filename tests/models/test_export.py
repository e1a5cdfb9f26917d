"""Every network compiled, exported, in ONNX and in bfloat16, compared with eager float32."""

import copy

import pytest
import torch

from cmrfast import FileError, methods
from cmrfast.export import export
from cmrfast.models import MODELS, build
from cmrfast.models.new_lesions import fold
from tests.support.devices import every_device
from tests.support.model_samples import SAMPLES, given, small

every_model = pytest.mark.parametrize("name", list(MODELS))
every_suffix = pytest.mark.parametrize(
    "suffix", [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)]
)


def every_variant(*quick):
    """All variants; those of these methods that are the default are quick, the others slow."""
    return pytest.mark.parametrize(
        ("name", "changes"),
        [
            pytest.param(
                name,
                changes,
                id=f"{name}-{'-'.join(map(str, changes.values()))}",
                marks=() if name in quick and not changes else pytest.mark.slow,
            )
            for name, sample in SAMPLES.items()
            for changes in sample.variants
        ],
    )


def run(path, inputs):
    """What another program gets from an exported file, by the names of its outputs."""
    if path.suffix == ".pt2":
        program = torch.export.load(path)
        assert not any("cmrfast" in str(node.target) for node in program.graph.nodes)
        return program.module()(**inputs)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_inputs()} == set(inputs)
    found = session.run(None, {k: x.numpy() for k, x in inputs.items()})
    names = [o.name.removesuffix("_out") for o in session.get_outputs()]
    return {k: torch.from_numpy(x) for k, x in zip(names, found, strict=True)}


def close(found, wanted):
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5 * max(scale, 1))


@every_variant()
def test_compiles(name, changes):
    """Loss and gradients, in one graph."""
    torch._dynamo.reset()
    eager = small(name, **changes).train()
    other = copy.deepcopy(eager)
    inputs, batch = given(name)
    loss_of = methods.get(name).loss

    def parts(model, inputs, batch):
        return loss_of(model(**inputs), batch, model.config)

    compiled = torch.compile(parts, fullgraph=True, backend="aot_eager")
    for model, call in ((eager, parts), (other, compiled)):
        torch.manual_seed(2)
        call(model, inputs, batch)["loss"].backward()
    for a, b in zip(eager.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(
        compiled(other.eval(), inputs, batch), parts(eager.eval(), inputs, batch)
    )


@every_model
@pytest.mark.slow
def test_compiles_with_inductor(name):
    torch._dynamo.reset()
    model = small(name).eval()
    inputs, _ = given(name)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True)(**inputs)
        torch.testing.assert_close(found, model(**inputs), rtol=1e-4, atol=1e-4)


@every_variant("siamese_lesion", "new_lesions")
def test_exports_with_any_batch(name, changes, tmp_path):
    model, path = small(name, **changes).eval(), tmp_path / "model.pt2"
    export(model, path, given(name, 1)[0])
    for count in (1, 5):
        inputs, _ = given(name, count)
        with torch.no_grad():
            close(run(path, inputs), model(**inputs))


@every_variant("joint_registration")
def test_onnx(name, changes, tmp_path):
    pytest.importorskip("onnxscript")
    model, path = small(name, **changes).eval(), tmp_path / "model.onnx"
    export(model, path, given(name, 1)[0])
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]  # weights are inside
    for count in (1, 3):
        inputs, _ = given(name, count)
        with torch.no_grad():
            close(run(path, inputs), model(**inputs))


@every_suffix
def test_parts_of_a_network(tmp_path, suffix):
    """T1 alone, and a generator, whose forward returns a tensor."""
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
    model, path = small("siamese_lesion").eval(), tmp_path / f"model{suffix}"
    t1 = {"t1": given("siamese_lesion", 2)[0]["t1"]}
    export(model, path, t1)
    with torch.no_grad():
        close(run(path, t1), model(**t1))
    generator = small("adversarial_transfer").generator.eval()
    images = {"images": given("adversarial_transfer", 2)[0]["images"]}
    export(generator, path, images)
    found = run(path, images)
    with torch.no_grad():
        close(
            found if isinstance(found, dict) else {"output": found}, {"output": generator(**images)}
        )


@pytest.mark.slow
def test_a_folded_network_is_the_same(tmp_path):
    model = small("new_lesions").eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    inputs, _ = given("new_lesions", 2)
    export(fold(model), tmp_path / "model.pt2", inputs)
    with torch.no_grad():
        close(run(tmp_path / "model.pt2", inputs), model(**inputs))


@every_model
@every_device
def test_bfloat16_is_close(name, device):
    model = small(name).eval().to(device)
    inputs = {k: x.to(device) for k, x in given(name)[0].items()}
    with torch.no_grad():
        whole = model(**inputs)
        with torch.autocast(device, torch.bfloat16):
            mixed = model(**inputs)
        half = model.bfloat16()(**{k: x.bfloat16() for k, x in inputs.items()})
    for key, value in whole.items():
        bound = SAMPLES[name].coarse * value.abs().max()
        assert (mixed[key].float() - value).abs().max() < bound
        assert (half[key].float() - value).abs().max() < bound


def test_messages(tmp_path, monkeypatch):
    model, inputs = small("siamese_lesion").eval(), given("siamese_lesion", 1)[0]
    with pytest.raises(ValueError, match=r"^export: path must end in .pt2 or .onnx; got m.pth$"):
        export(model, tmp_path / "m.pth", inputs)
    with pytest.raises(ValueError, match=r"^export: model must be in evaluation mode; call its"):
        export(build("siamese_lesion"), tmp_path / "m.pt2", inputs)
    for wrong, came in (({}, "none"), ({"t1": torch.zeros(0, 1, 32, 32)}, r"t1 \(0, 1, 32, 32\)")):
        with pytest.raises(ValueError, match=rf"^export: inputs must be \(B, …\) .*; got {came}$"):
            export(model, tmp_path / "m.pt2", wrong)
    with pytest.raises(FileError, match=r"^export: .*m.pt2: No such file or directory$"):
        export(model, tmp_path / "missing" / "m.pt2", inputs)
    monkeypatch.setattr("cmrfast.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"^export: needs onnx; pip install cmrfast\[export\]$"):
        export(model, tmp_path / "m.onnx", inputs)
    assert not list(tmp_path.iterdir())
