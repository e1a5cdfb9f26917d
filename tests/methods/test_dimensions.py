"""Images of two and of four dimensions, by one rule for every method."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from cmrfast import FileError, methods
from cmrfast.data import write_nifti
from cmrfast.models import MODELS
from tests.methods.test_non_finite import model_of, task_of
from tests.support.cases import phantoms


@pytest.fixture(scope="module", params=MODELS)
def method_and_case(request, tmp_path_factory):
    method = methods.get(request.param)
    return method, phantoms(
        method.datasets[0], tmp_path_factory.mktemp("data"), cases=1, shrink=4, seed=1
    )[0]


def predicted(method, case):
    task = task_of(method.name)
    with torch.inference_mode():
        return task.predict(model_of(method.name, task), case).images


def test_a_time_point_has_to_be_chosen(method_and_case, tmp_path):
    method, case = method_and_case
    images = {}
    for name in method.needs.predict.images:
        image = case.image(name)
        images[name] = tmp_path / f"{name}.nii.gz"
        frames = torch.cat((torch.zeros_like(image.data), image.data))
        write_nifti(images[name], image.with_data(frames))
    cine = replace(case, images=images)
    with pytest.raises(FileError, match=r"must have 1 channel; got 2 channels or time points"):
        predicted(method, cine)
    chosen, alone = predicted(method, replace(cine, frame=2)), predicted(method, case)
    assert chosen.keys() == alone.keys()
    for name, output in alone.items():
        assert torch.equal(chosen[name].volume.data, output.volume.data)
        assert output.volume.channels == 1


def middle_slice(path, target, k):
    """A file of two dimensions with one slice of another file."""
    stored = nibabel.load(path)
    flat = np.asanyarray(stored.dataobj)[..., k]
    affine = stored.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, k], [0, 0, 0, 1]])
    header = stored.header.copy()
    header.set_data_shape(flat.shape)
    nibabel.save(nibabel.Nifti1Image(flat, affine, header), target)
    assert len(nibabel.load(target).shape) == 2
    return target


def test_a_flat_image_is_one_slice(method_and_case, tmp_path):
    method, case = method_and_case
    needs = method.needs.predict
    images, labels = (
        {
            name: middle_slice(
                files[name],
                tmp_path / f"{kind}_{name}.nii.gz",
                case.image(name if kind == "image" else case.labelling[name].on).shape[2] // 2,
            )
            for name in names
        }
        for kind, names, files in (
            ("image", needs.images, case.images),
            ("label", needs.labels, case.labels),
        )
    )
    outputs = predicted(method, replace(case, images=images, labels=labels))
    assert outputs
    for output in outputs.values():
        assert output.volume.shape[2] == 1
