"""The contract every method keeps, looped over the samples in tests/support/model_samples.py."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from cmrfast import methods
from cmrfast.models import MODELS, build
from tests.support.devices import every_device
from tests.support.model_samples import SAMPLES, given, small
from tests.support.paths import ROOT

STATE_NAMES = ROOT / "tests/support/state_names"
WRITTEN = [n for n in MODELS if importlib.util.find_spec(f"cmrfast.models.{n}")]
VARIANTS = [(n, v) for n in WRITTEN if n in SAMPLES for v in SAMPLES[n].variants]

every_model = pytest.mark.parametrize("name", [n for n in WRITTEN if n in SAMPLES])
every_variant = pytest.mark.parametrize(
    ("name", "changes"),
    [pytest.param(n, v, id=f"{n}-{'-'.join(map(str, v.values()))}") for n, v in VARIANTS],
)


def loss(model, inputs, batch):
    """Of one pass; dropout draws the same every time."""
    torch.manual_seed(2)
    return methods.get(name_of(model)).loss(model(**inputs), batch, model.config)


def name_of(model):
    return next(name for name in MODELS if type(model).__module__.endswith(name))


def train(model, inputs, batch, steps, rate):
    """The losses before each of some steps, and after the last."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(model, inputs, batch)["loss"]
        value.backward()
        optimiser.step()
        found.append(value.item())
    return [*found, loss(model, inputs, batch)["loss"].item()]


def to(device, tensors):
    return {name: x.to(device) for name, x in tensors.items()}


def test_every_model_has_samples():
    assert set(SAMPLES) == set(WRITTEN)


def test_modules_are_imported_when_asked_for():
    code = "import sys, cmrfast.models as m; print([*m.MODELS], sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cmrfast.models._check" not in done.stdout  # every method's module needs it
    assert "adversarial_transfer" in done.stdout


@every_model
@every_device
@pytest.mark.parametrize("which", [0, 1])
def test_shapes(name, device, which):
    sample = SAMPLES[name]
    side = sample.sides[which]
    inputs, _ = given(name, 3, side)
    outputs = small(name, side).eval().to(device)(**to(device, inputs))
    assert {k: tuple(x.shape) for k, x in outputs.items()} == sample.shapes(3, side)
    assert all(x.isfinite().all() for x in outputs.values())


@every_variant
def test_one_step_lowers_the_loss(name, changes):
    model = small(name, **changes).train()
    before, after = train(model, *given(name), 1, SAMPLES[name].learning_rate)
    assert after < before


@every_variant
def test_every_parameter_learns(name, changes):
    model = small(name, **changes).train()
    inputs, batch = given(name)
    loss(model, inputs, batch)["loss"].backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(n.startswith("discriminator") for n in silent)  # it learns in a step of its own


@every_model
def test_parts_are_of_the_loss(name):
    parts = loss(small(name).train(), *given(name))
    assert all(part.dim() == 0 and part.isfinite() for part in parts.values())
    assert len(parts) > 1


@every_model
def test_same_seed_same_bits(name):
    first, second = small(name).train(), small(name).train()
    inputs, batch = given(name)
    assert train(first, inputs, batch, 2, 1e-3) == train(second, inputs, batch, 2, 1e-3)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@every_model
def test_state_names_unchanged(name):
    with torch.device("meta"):
        state = build(name).state_dict()
    found = [f"{key} {' '.join(map(str, value.shape))}".strip() for key, value in state.items()]
    assert found == (STATE_NAMES / f"{name}.txt").read_text().splitlines()


@every_model
@every_device
def test_channels_last_is_equal(name, device):
    model = small(name).eval().to(device)
    inputs = to(device, given(name)[0])
    wanted = model(**inputs)
    fast = torch.channels_last if next(iter(inputs.values())).dim() == 4 else torch.channels_last_3d
    inputs = {k: x.contiguous(memory_format=fast) for k, x in inputs.items()}
    torch.testing.assert_close(model.to(memory_format=fast)(**inputs), wanted, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graph(name):
    model = small(name).eval().cuda()
    inputs = to("cuda", given(name)[0])
    with torch.no_grad():
        wanted = model(**inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = model(**inputs)
        graph.replay()
        torch.testing.assert_close(outputs, wanted)


@every_model
def test_messages(name):
    model = small(name).eval()
    inputs, _ = given(name)
    first = next(iter(inputs))
    image = inputs[first]

    def told(error, match, **change):
        with pytest.raises(error, match=match) as found:
            model(**inputs | change)
        assert "\n" not in str(found.value)

    told(
        ValueError,
        rf"{name}: {first} must be \(B, 1, .*; got",
        **{first: torch.cat((image,) * 3, 1)},
    )
    told(TypeError, rf"{name}: {first} must be a floating tensor; got", **{first: image.long()})
    holed = image.clone()
    holed.view(-1)[7] = torch.nan
    told(ValueError, rf"{name}: {first} must be finite; got 1 NaN", **{first: holed})
    wrong, _ = given(name, 2, SAMPLES[name].wrong_side)
    told(ValueError, rf"{name}: .*{first} must be .*; got", **wrong)
    with pytest.raises(ValueError, match=rf"{name}: batch must hold .*; got nothing"):
        methods.get(name).loss(model(**inputs), {})


def test_build_messages():
    with pytest.raises(ValueError, match=r"build: name must be one of siamese_lesion, .*; got 'x'"):
        build("x")
    with pytest.raises(ValueError, match=r"siamese_lesion: fields are variant, .*; got 'depth'"):
        build("siamese_lesion", depth=3)


@every_model
@pytest.mark.slow
def test_overfits_eight_samples(name):
    model = small(name).train()
    losses = train(model, *given(name, 8), 300, 3e-3)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "model", "field"),
    [
        ("siamese_lesion", "siamese_lesion", "dropout_conv"),
        ("siamese_lesion", "siamese_lesion", "dropout_full"),
        ("joint_scar", "transunet", "dropout"),
        ("new_lesions", "new_lesions", "dropout"),
    ],
)
def test_a_dropout_is_a_share(name, model, field):
    with pytest.raises(ValueError, match=rf"{model}: {field} must lie in \[0, 1\]; got 1.3"):
        build(name, **{field: 1.3})
