"""The trainer, loss, positions and export of cmrfast.compat.nnunet, compared with nnU-Net's own."""

import json
import sys

import numpy as np
import pytest
import torch

from tests.compat.test_nnunet import AUGMENTATION, Memory, patches

pytest.importorskip("nnunetv2", reason="needs the extra nnunet")

from batchgenerators.utilities.file_and_folder_operations import save_pickle
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.inference import export_prediction as their_export
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetNumpy
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from cmrfast.compat.nnunet import PatchLoader, SegmentationLoss, Targets
from cmrfast.compat.nnunet import trainer as ours
from cmrfast.compat.nnunet.export import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
    why_not,
)
from cmrfast.compat.nnunet.loading import _sample


def their_transforms(in_plane=False, mask=None):
    size = (8, 48, 48)
    composed = nnUNetTrainer.get_training_transforms(
        size, (-0.5, 0.5), None, (0, 1, 2), in_plane, use_mask_for_norm=mask
    )
    return composed.transforms


def test_ranges_are_those_of_the_installed_nnunet():
    """Probabilities and ranges are read from nnU-Net's transforms, in their order."""
    spatial, *others = their_transforms()
    assert isinstance(spatial, SpatialTransform)
    assert (spatial.p_rotation, spatial.p_scaling) == (
        AUGMENTATION.p_rotation,
        AUGMENTATION.p_scaling,
    )
    assert spatial.scaling == AUGMENTATION.scaling
    assert spatial.p_elastic_deform == 0
    random = [t for t in others if isinstance(t, RandomTransform)]
    steps = ("noise", "blur", "gain", "contrast", "low_res", "gamma_inverted", "gamma")
    for step, given in zip(steps, random, strict=True):
        assert given.apply_probability == getattr(AUGMENTATION, f"p_{step}")
    inner = [t.transform for t in random]
    assert inner[0].noise_variance == AUGMENTATION.noise_sd
    assert inner[1].blur_sigma == AUGMENTATION.blur_sd_vox
    assert inner[1].p_per_channel == AUGMENTATION.p_blur_channel
    assert inner[2].multiplier_range.contrast_range == AUGMENTATION.gain
    assert inner[3].contrast_range.contrast_range == AUGMENTATION.contrast
    assert inner[4].scale == AUGMENTATION.low_res
    assert inner[4].p_per_channel == AUGMENTATION.p_low_res_channel
    assert [t.gamma.contrast_range for t in inner[5:]] == [AUGMENTATION.gamma] * 2
    assert [t.p_invert_image for t in inner[5:]] == [1, 0]


@pytest.mark.parametrize("step", ["noise", "blur", "gain", "contrast", "low_res", "gamma"])
def test_parameters_have_nnunets_moments(step):
    """Moments over 1000 draws of the parameters that nnU-Net's own transforms return."""
    np.random.seed(0)
    torch.manual_seed(0)
    at = ("noise", "blur", "gain", "contrast", "low_res", "", "gamma").index(step)
    chance = [t for t in their_transforms() if isinstance(t, RandomTransform)][at]
    name = ("sigmas", "sigmas", "multipliers", "multipliers", "scales", "", "gamma")[at]
    image, theirs = torch.zeros(2, 4, 4, 4), []
    for _ in range(1000):
        if chance.get_parameters(image=image)["apply_transform"]:
            value = chance.transform.get_parameters(image=image)[name]
            theirs.append(np.asarray(value, dtype=float).ravel())
    theirs = np.concatenate(theirs)
    key = {"noise": "noise_sd", "blur": "blur_sd_vox"}.get(step, step)
    given = AUGMENTATION.draw(0, torch.arange(1000), channels=2, axes=3).intensity[key]
    given = given[~given.isnan()].numpy()
    count = min(len(theirs), len(given)) / (6 if step in ("blur", "low_res") else 2)
    error = 4 * theirs.std() / np.sqrt(count)
    assert given.mean() == pytest.approx(theirs.mean(), abs=error)
    assert given.std() == pytest.approx(theirs.std(), abs=error)
    assert len(given) == pytest.approx(len(theirs), abs=5 * np.sqrt(2 * len(theirs) * 6))


def test_positions_are_those_of_nnunet():
    """An image of linear ramps: what is sampled are the positions themselves."""
    np.random.seed(3)
    shape, size = (24, 30, 28), (8, 10, 12)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    transform = SpatialTransform(
        size, 0, False, p_rotation=1, rotation=(-0.5, 0.5), p_scaling=1, scaling=(0.7, 1.0),
        p_synchronize_scaling_across_axes=1,
    )  # fmt: skip
    parameters = transform.get_parameters(image=ramps)
    expected = transform._apply_to_image(ramps, **parameters)
    center = [(n - 1) / 2 for n in shape]
    matrix = torch.from_numpy(parameters["affine"])
    found = _sample(ramps.numpy(), (), center, matrix, size, "linear", 0.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class _Labels:
    all_labels, has_ignore_label = [0, 1, 2], False


@pytest.mark.parametrize("forced", [False, True])
def test_places_are_distributed_as_nnunets(forced):
    """Mean and SD of the corner of the box over many draws, for one case."""
    np.random.seed(0)
    cases = Memory(((12, 20, 24),))
    shape, properties = (12, 20, 24), cases.stored["case0"][3]
    size, margin = (6, 8, 10), (9, 11, 13)
    theirs = nnUNetDataLoader(cases, 2, margin, size, _Labels())
    locations = properties["class_locations"]
    expected = np.array([theirs.get_bbox(shape, forced, locations)[0] for _ in range(1000)])
    made = PatchLoader(cases, patches(size, margin), Targets())
    draws = np.random.default_rng(1).random((1000, 5))
    found = np.array([made._place(shape, properties, forced, list(u)) for u in draws])
    assert (found.min(0) == expected.min(0)).all()
    assert (found.max(0) == expected.max(0)).all()
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.7)
    np.testing.assert_allclose(found.std(0), expected.std(0), atol=0.5)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_equals_nnunets(batch_dice):
    logits = torch.randn(2, 3, 8, 9, 7, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 8, 9, 7), dtype=torch.int16)
    theirs = DC_and_CE_loss(
        {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False},
        {},
        weight_ce=1,
        weight_dice=1,
        dice_class=MemoryEfficientSoftDiceLoss,
    )
    losses = theirs(logits, target), SegmentationLoss(batch_dice=batch_dice)(logits, target)
    torch.testing.assert_close(*losses)
    grads = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in losses)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-8)


_RESAMPLING = {
    "default": ("resample_data_or_seg_to_shape", {"is_seg": False, "order": 1, "order_z": 0}),
    "torch": ("resample_torch_fornnunet", {"is_seg": False}),
}


def plan(resampling="default", spacing=(3.0, 1.5, 1.5), batch_dice=False, **options):
    name, given = _RESAMPLING[resampling]
    architecture = {
        "n_stages": 3, "features_per_stage": [4, 8, 8], "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3] * 3] * 3, "strides": [[1] * 3, [2] * 3, [2] * 3],
        "n_conv_per_stage": [1] * 3, "n_conv_per_stage_decoder": [1] * 2, "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None,
        "dropout_op_kwargs": None, "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {},
    }  # fmt: skip
    configuration = {
        "data_identifier": "tiny_3d", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [8, 16, 16], "spacing": list(spacing), "use_mask_for_norm": [False],
        "resampling_fn_probabilities": name, "resampling_fn_probabilities_kwargs": {
            "force_separate_z": None, **given, **options},
        "batch_dice": batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Tiny", "plans_name": "tiny", "label_manager": "LabelManager",
        "image_reader_writer": "SimpleITKIO", "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2], "configurations": {"3d": configuration},
    }  # fmt: skip


DESCRIPTION = {
    "channel_names": {"0": "LGE", "1": "T2"},
    "labels": {"background": 0, "myocardium": 1, "scar": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
REGIONS = DESCRIPTION | {
    "labels": {"background": 0, "whole": [1, 2], "scar": 2},
    "regions_class_order": [1, 2],
}


def managers(plans, description=DESCRIPTION):
    manager = PlansManager(plans)
    return manager, manager.get_configuration("3d"), manager.get_label_manager(description)


def case_properties(spacing=(2.0, 1.0, 1.0), shape=(13, 31, 29)):
    return {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(n + 4 for n in shape),
        "bbox_used_for_cropping": [[1, n + 1] for n in shape],
        "shape_after_cropping_and_before_resampling": shape,
        "sitk_stuff": {
            "spacing": spacing[::-1], "origin": (0, 0, 0), "direction": np.eye(3).ravel()
        },
    }  # fmt: skip


@pytest.mark.parametrize("resampling", _RESAMPLING)
@pytest.mark.parametrize("spacing", [(3.0, 1.5, 1.5), (8.0, 1.5, 1.5), (1.5, 1.5, 8.0)])
def test_export_gives_nnunets_labels(resampling, spacing):
    plans, configuration, labels = managers(plan(resampling, spacing))
    properties = case_properties(spacing=[s * 0.6 for s in spacing])
    logits = torch.randn(3, 8, 19, 17)
    arguments = (logits, plans, configuration, labels, properties)
    found = convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    expected = their_export.convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert (found != expected).mean() < 1e-3, "ties and rounding"


def test_export_falls_back_by_name(caplog):
    plans, configuration, labels = managers(plan(), REGIONS)
    assert why_not(configuration, labels) == "regions"
    arguments = (torch.randn(2, 8, 19, 17), plans, configuration, labels, case_properties())
    found = convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    expected = their_export.convert_predicted_logits_to_segmentation_with_correct_shape(*arguments)
    np.testing.assert_array_equal(found, expected)
    assert "nnU-Net's own export, because of regions" in caplog.text
    _, cubic, labels = managers(plan(order=3))
    assert why_not(cubic, labels) == "order=3 of resample_data_or_seg_to_shape"
    assert why_not(cubic, labels, True) == "probabilities to save"
    cubic.configuration["resampling_fn_probabilities"] = "mine"
    assert why_not(cubic, labels) == "the resampling function mine"


@pytest.mark.parametrize("save_probabilities", [False, True])
def test_exported_files(tmp_path, save_probabilities):
    plans, configuration, _ = managers(plan())
    properties = case_properties()
    arguments = (torch.randn(3, 8, 19, 17), properties, configuration, plans)
    files = []
    for folder, export in (("ours", export_prediction_from_logits),
                           ("theirs", their_export.export_prediction_from_logits)):  # fmt: skip
        (tmp_path / folder).mkdir()
        export(*arguments, DESCRIPTION, str(tmp_path / folder / "case"), save_probabilities)
        files.append(sorted(p.name for p in (tmp_path / folder).iterdir()))
    assert files[0] == files[1]


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """A preprocessed data set of nnU-Net, and where its trainer writes."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    base = tmp_path / "preprocessed" / "Dataset001_Tiny"
    truth, stored = base / "gt_segmentations", base / "tiny_3d"
    for folder in (truth, stored):
        folder.mkdir(parents=True)
    names = []
    for name, (image, label, _, properties) in Memory(((10, 22, 20),) * 3).stored.items():
        properties |= case_properties(shape=image.shape[1:])
        label = np.clip(label, 0, 2)
        properties["class_locations"][-1, 0, 1] = np.argwhere(label < 2)
        nnUNetDatasetNumpy.save_case(image, label, properties, str(stored / name))
        save_pickle(properties, str(stored / f"{name}.pkl"))
        whole = np.zeros(properties["shape_before_cropping"], np.uint8)
        SimpleITKIO().write_seg(whole, str(truth / f"{name}.nii.gz"), properties)
        names.append(name)
    split = [{"train": names[:2], "val": names[2:]}]
    (base / "splits_final.json").write_text(json.dumps(split))
    (base / "dataset_fingerprint.json").write_text("{}")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return tmp_path


def make(plans=None, description=DESCRIPTION, **attributes):
    plans = (plans or plan()) | {"continue_training": False}
    made = ours.CmrfastTrainer(plans, "3d", 0, dict(description), torch.device("cpu"))
    made.num_epochs, made.num_iterations_per_epoch, made.num_val_iterations_per_epoch = 1, 3, 1
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def losses(trainer):
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    values = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(3)]
    trainer.dataloader_train.close()
    trainer.dataloader_val.close()
    return values


@pytest.mark.slow  # nnU-Net scores in processes of its own
def test_trains_and_validates(data_set, monkeypatch):
    monkeypatch.setattr(ours, "default_num_processes", 1)
    trainer = make()
    trainer.run_training()
    trainer.perform_actual_validation()
    folder = next((data_set / "results").rglob("validation"))
    assert (folder / "case2.nii.gz").exists()
    assert (folder / "summary.json").exists()
    log = "".join(p.read_text() for p in folder.parent.glob("training_log*"))
    assert "Mean Validation Dice" in log
    assert "cmrfast:" not in log
    assert isinstance(trainer.loss.loss, SegmentationLoss)


def test_losses_depend_on_the_seed_alone(data_set, monkeypatch):
    first = losses(make())
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    assert losses(make()) == first
    assert losses(make(seed=1)) != first


@pytest.mark.parametrize("ignore", [False, True])
def test_regions_and_ignore_labels_train_with_nnunets_loss(data_set, ignore):
    description = REGIONS if not ignore else DESCRIPTION
    if ignore:
        description = description | {"labels": {"background": 0, "myocardium": 1, "ignore": 2}}
    trainer = make(description=description)
    assert all(np.isfinite(losses(trainer)))
    assert "nnU-Net's own loss" in "".join(
        p.read_text() for p in (data_set / "results").rglob("training_log*")
    )
    if not ignore:
        batch = trainer.dataloader_train.batch(0)["target"][0]
        assert batch.dtype == torch.bool
        assert batch.shape[1] == 2


def test_cascades_are_refused_by_name(data_set):
    plans = plan()
    plans["configurations"]["3d"]["previous_stage"] = "3d_lowres"
    with pytest.raises(ValueError, match="cascades are not supported, and 3d takes labels of 3d_l"):
        make(plans)


def test_nnunet_finds_the_trainer(monkeypatch):
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    from cmrfast.compat.nnunet.__main__ import FOLDER

    found = recursive_find_python_class(
        str(FOLDER), "CmrfastTrainer", None, str(FOLDER), cleanup_imports_from_base_folder=True
    )
    assert found is sys.modules["cmrfast.compat.nnunet.trainer"].CmrfastTrainer
