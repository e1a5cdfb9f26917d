"""Methods under Lightning: the steps of ``train``, to the bit."""

import math

import pytest
import torch

pytest.importorskip("lightning", reason="needs the extra lightning")

import lightning

from cmrfast import methods
from cmrfast.compat.lightning import MethodDataModule, MethodModule
from cmrfast.data.datasets import Split
from cmrfast.data.phantom import write_phantoms
from cmrfast.train import train

SMALL = {
    "joint_scar": {
        **{"image": 64, "root": 32, "units": (1, 1, 1), "width": 16, "depth": 1, "heads": 2},
        **{"decoder": (16, 16, 8, 8, 8), "variant": "mtl", "batch": 4},
    },
    "adversarial_transfer": {
        **{"width": 4, "size": 32, "disc_widths": (4, 6, 8), "view_px": 32, "crop_shift_px": 2},
        **{
            "pixel_mm": 5.0,
            "batch": 4,
            "copies": 0,
            "pretrain_epochs": 0,
            "optimizer_g": "rmsprop",
        },
    },
    "siamese_lesion": {
        **{"patch": 32, "spacing_mm": 3.0, "batch": 4},
        **{"channels": (4, 4, 4, 4), "hidden": 8, "features": 8},
    },
    "joint_registration": {"widths": (4, 8), "side": 64, "spacing_mm": 2.6, "batch": 2},
    "new_lesions": {"patch": 16, "spacing_mm": 4.0, "overlap": 4, "batch": 2},
}
FAST = ("joint_scar", "adversarial_transfer")


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in SMALL],
)
def cohort(request, tmp_path_factory):
    """A method, its changes, and a few tiny patients."""
    root = tmp_path_factory.mktemp(request.param)
    write_phantoms(methods.get(request.param).datasets[0], root, cases=4, shrink=4)
    return request.param, SMALL[request.param], root


def fitted(method, changes, root, out, **options):
    module = MethodModule(method, changes=changes, seed=3)
    data = MethodDataModule(method, root, changes=changes, seed=3)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=out, **quiet, **options)
    trainer.fit(module, data)
    return module, data, trainer


def test_two_steps_are_those_of_train(cohort, tmp_path):
    method, changes, root = cohort
    two = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    module, data, trainer = fitted(method, changes, root, tmp_path, **two)
    # of adversarial_transfer, two of the discriminator and one of the generator in each step
    assert trainer.global_step == (2 if module.automatic_optimization else 6)
    own = train(method, root, tmp_path / "run", changes=changes, seed=3, steps=2, device="cpu")
    assert data.split == own.plan.split
    assert module.fitted == own.fitted
    for name, weight in own.model().state_dict().items():
        assert torch.equal(weight, module.model.state_dict()[name]), name
    assert math.isfinite(trainer.logged_metrics["loss"])
    assert module.method.objective.name in trainer.callback_metrics

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = MethodModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.fitted == module.fitted
    (case,) = data.test_dataloader()
    ours, expected = (m.task.predict(m.model.eval(), case) for m in (again, module))
    assert str(ours.facts) == str(expected.facts)
    for name, output in expected.images.items():
        assert torch.equal(ours.images[name].volume.data, output.volume.data)
    (scores,) = trainer.test(again, data, verbose=False)
    assert module.method.objective.name in scores


def test_messages(tmp_path):
    name, changes = "joint_scar", SMALL["joint_scar"]
    write_phantoms("emidec", tmp_path / "data", cases=4, shrink=4)
    module = MethodModule(name, changes=changes)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"accelerator": "cpu", "default_root_dir": tmp_path}
    other = MethodDataModule(name, tmp_path / "data", changes=changes, seed=1)
    with pytest.raises(ValueError, match="must have the same method, changes and seed; the data"):
        lightning.Trainer(**quiet).fit(module, other)
    with pytest.raises(ValueError, match="joint_scar needs a MethodDataModule; got NoneType"):
        lightning.Trainer(**quiet).fit(module, train_dataloaders=[1])


class _Trainer:
    """What ``setup`` looks at."""

    world_size, precision, datamodule = 1, "32-true", None


def test_what_is_left_to_train_is_refused(monkeypatch):
    module = MethodModule("adversarial_transfer", changes=SMALL["adversarial_transfer"])
    trainer = _Trainer()
    monkeypatch.setattr(MethodModule, "trainer", trainer)
    trainer.precision = "16-mixed"
    with pytest.raises(ValueError, match="takes precision 32 or bf16-mixed; got 16-mixed"):
        module.setup("fit")
    trainer.world_size = 2
    with pytest.raises(ValueError, match="adversarial_transfer takes one process; got 2"):
        module.setup("fit")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path, monkeypatch):
    name, changes = "joint_scar", SMALL["joint_scar"]
    write_phantoms("emidec", tmp_path / "data", cases=4, shrink=4)
    monkeypatch.setattr(
        "cmrfast.models.joint_scar.JointScar.forward",
        lambda self, images, myocardium=None: {
            "myocardium": (w := next(self.parameters())).sum() * images.expand(-1, 2, -1, -1),
            "scar": w.sum() * torch.full_like(images, torch.nan).expand(-1, 2, -1, -1),
        },
    )
    with pytest.raises(FloatingPointError, match="the loss of step 1 is nan"):
        fitted(name, changes, tmp_path / "data", tmp_path, max_epochs=1, num_sanity_val_steps=0)


def test_the_split_and_labels_are_the_callers(tmp_path):
    write_phantoms("emidec", tmp_path, cases=4, shrink=4)
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())[:3]
    split = Split(*((name,) for name in names))
    data = MethodDataModule("joint_scar", tmp_path, split=split)
    assert [case.name for case in data.val_dataloader()] == names[1:2]
