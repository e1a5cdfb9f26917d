"""Training that starts from public weights: named in the recipe, hashed with the run."""

import numpy as np
import pytest
import torch

from cmrfast import FileError
from cmrfast.data.phantom import write_phantoms
from cmrfast.models import build
from cmrfast.models.joint_scar import Recipe
from cmrfast.models.transunet import TransUNet
from cmrfast.runs import verify
from cmrfast.train import Run, train
from tests.support.transunet_files import imagenet_arrays, official_state

NARROW = {
    **{"image": 32, "root": 32, "units": (1, 1, 1), "width": 8, "depth": 1, "heads": 2},
    **{"hidden": 16, "decoder": (16, 8, 8, 8, 8)},
}
VARIANTS = ["jdl", "two_step", "direct", "mtl"]


def encoders(model):
    return [m for m in model.modules() if type(m).__name__ == "Encoder"]


@pytest.fixture
def npz(tmp_path):
    path = tmp_path / "R50+ViT-B_16.npz"
    np.savez(path, **imagenet_arrays(build("joint_scar", **NARROW).config))
    return path


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_encoder_of_a_variant_starts_from_it(npz, variant):
    model = build("joint_scar", variant=variant, **NARROW)
    Recipe(pretrained=str(npz)).initialise(model)
    assert len(encoders(model)) == (2 if variant in ("jdl", "two_step") else 1)
    single = TransUNet(model.config)
    single.load_imagenet(npz)
    for encoder in encoders(model):
        for name, weight in encoder.state_dict().items():
            assert torch.equal(weight, single.encoder.state_dict()[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_of_the_authors_code_fills_the_encoders_alone(tmp_path, variant):
    model = build("joint_scar", variant=variant, **NARROW)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    source = TransUNet(model.config)
    state = official_state(source)
    torch.save(state, tmp_path / "whole.pth")
    source.load_official(tmp_path / "whole.pth")
    state["segmentation_head.0.weight"] = torch.zeros(9, 8, 3, 3)  # of other classes
    torch.save(state, tmp_path / "epoch_149.pth")
    model.load_pretrained(tmp_path / "epoch_149.pth")
    for encoder in encoders(model):
        for name, weight in encoder.state_dict().items():
            assert torch.equal(weight, source.encoder.state_dict()[name]), name
    for name, weight in model.state_dict().items():
        if "encoder" not in name:
            assert torch.equal(weight, before[name]), name


def test_training_starts_from_it_and_notices_a_change(tmp_path, npz):
    data = write_phantoms("emidec", tmp_path / "data", cases=4, shrink=4)

    def run_training(steps, **options):
        changes = {**NARROW, "pretrained": str(npz), "lr": 1e-12, "batch": 4}
        out = tmp_path / "run"
        return train("joint_scar", data, out, steps=steps, changes=changes, device="cpu", **options)

    run = run_training(1)
    fresh = build("joint_scar", **NARROW)
    fresh.load_pretrained(npz)
    for ours, loaded in zip(encoders(run.model()), encoders(fresh), strict=True):
        torch.testing.assert_close(ours.embed.weight, loaded.embed.weight, rtol=0, atol=1e-9)
    assert set(Run.open(run.path).inputs["recipe"]) == {"pretrained"}
    assert verify(Run.open(run.path)).same
    run_training(2, resume=True)
    with npz.open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileError, match=r"files have changed .*: recipe pretrained"):
        run_training(3, resume=True)


def test_a_missing_file_is_named(tmp_path):
    model = build("joint_scar", **NARROW)
    with pytest.raises(FileError, match=r"load_imagenet: none\.npz must be a file; got none"):
        Recipe(pretrained=str(tmp_path / "none.npz")).initialise(model)
    with pytest.raises(FileError, match=r"load_official: none\.pth must be a file; got none"):
        Recipe(pretrained=str(tmp_path / "none.pth")).initialise(model)
