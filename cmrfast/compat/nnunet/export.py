"""nnU-Net's export of predictions: the same arguments and files, without the resampled logits."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmrfast.compat.nnunet.resampling import resample_labels

try:
    from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
    from nnunetv2.configuration import ANISO_THRESHOLD, default_num_processes
    from nnunetv2.inference import export_prediction as theirs
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
except ImportError as error:
    raise ImportError(
        "compat.nnunet: nnU-Net is needed; install it with pip install 'cmrfast[nnunet]'"
    ) from error

_log = logging.getLogger(__name__)
#: Options under which nnU-Net's resampling functions do what ``resample_labels`` does: linear
#: interpolation, the nearest slice along an axis of thick slices.
_LINEAR: dict[str, dict[str, Any]] = {
    "resample_data_or_seg_to_shape": {"is_seg": False, "order": 1, "order_z": 0},
    "resample_torch_fornnunet": {
        "is_seg": False,
        "mode": "linear",
        "aniso_axis_mode": "nearest-exact",
    },
}
_DEFAULTS: dict[str, Any] = {
    "is_seg": False,
    "order": 3,
    "order_z": 0,
    "mode": "linear",
    "aniso_axis_mode": "nearest-exact",
}
#: Value of ``force_separate_z`` if the plans do not name it.
_SEPARATE_Z = {"resample_data_or_seg_to_shape": False, "resample_torch_fornnunet": None}


def why_not(
    configuration_manager: Any, label_manager: Any, save_probabilities: bool = False
) -> str | None:
    """What makes nnU-Net's own export necessary; None if nothing does."""
    if save_probabilities:
        return "probabilities to save"
    if label_manager.has_regions:
        return "regions"
    plan = configuration_manager.configuration
    name, options = plan["resampling_fn_probabilities"], plan["resampling_fn_probabilities_kwargs"]
    if name not in _LINEAR:
        return f"the resampling function {name}"
    for option, value in _LINEAR[name].items():
        given = options.get(option, _DEFAULTS[option])
        if given != value:
            return f"{option}={given} of {name}"
    return None


def convert_predicted_logits_to_segmentation_with_correct_shape(
    predicted_logits: Tensor | np.ndarray[Any, Any],
    plans_manager: Any,
    configuration_manager: Any,
    label_manager: Any,
    properties_dict: dict[str, Any],
    return_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> Any:
    """Labels of a case on the grid of its image; nnU-Net's function of the same name.

    Calls nnU-Net's own where ``why_not`` gives a reason, which is logged.

    Args:
        predicted_logits: (K, I, J, K'), of the resampled and cropped image.
        plans_manager, configuration_manager, label_manager: of nnU-Net.
        properties_dict: of the case, from preprocessing.
        return_probabilities: return them too, by nnU-Net's own export.
        num_threads_torch: number of threads.

    Returns:
        Labels as uint8, or uint16 from 255 foreground labels on; with probabilities, both.
    """
    reason = why_not(configuration_manager, label_manager, return_probabilities)
    if reason:
        _log.warning("nnU-Net's own export, because of %s", reason)
        return theirs.convert_predicted_logits_to_segmentation_with_correct_shape(
            predicted_logits,
            plans_manager,
            configuration_manager,
            label_manager,
            properties_dict,
            return_probabilities,
            num_threads_torch,
        )
    small = len(label_manager.foreground_labels) < 255
    dtype = torch.uint8 if small else torch.uint16
    threads = torch.get_num_threads()
    torch.set_num_threads(num_threads_torch)
    try:
        labels = resample_labels(
            torch.as_tensor(predicted_logits),
            [int(n) for n in properties_dict["shape_after_cropping_and_before_resampling"]],
            nearest_axis=_thick_axis(plans_manager, configuration_manager, properties_dict),
            dtype=dtype,
        )
    finally:
        torch.set_num_threads(threads)
    whole = np.zeros(properties_dict["shape_before_cropping"], np.uint8 if small else np.uint16)
    whole = insert_crop_into_image(whole, labels.numpy(), properties_dict["bbox_used_for_cropping"])
    return whole.transpose(plans_manager.transpose_backward)


def _thick_axis(plans_manager: Any, configuration_manager: Any, properties: Any) -> int | None:
    """The axis along which nnU-Net takes the nearest slice."""
    plan = configuration_manager.configuration
    name, options = plan["resampling_fn_probabilities"], plan["resampling_fn_probabilities_kwargs"]
    spacing = [properties["spacing"][i] for i in plans_manager.transpose_forward]
    current = list(configuration_manager.spacing)
    if len(current) != len(properties["shape_after_cropping_and_before_resampling"]):
        current = [spacing[0], *current]  # a 2-D configuration
    separate, axis = determine_do_sep_z_and_axis(
        options.get("force_separate_z", _SEPARATE_Z[name]),
        current,
        spacing,
        options.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD),
    )
    return int(axis) if separate else None


def export_prediction_from_logits(
    predicted_array_or_file: Tensor | np.ndarray[Any, Any],
    properties_dict: dict[str, Any],
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json_dict_or_file: Any,
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """Write the labels of a case; nnU-Net's function of the same name.

    Args:
        predicted_array_or_file: (K, I, J, K') logits.
        properties_dict: of the case, from preprocessing.
        configuration_manager, plans_manager: of nnU-Net.
        dataset_json_dict_or_file: ``dataset.json`` or its path.
        output_file_truncated: path without the ending of the file.
        save_probabilities: save them too, by nnU-Net's own export.
        num_threads_torch: number of threads.
    """
    description = dataset_json_dict_or_file
    if isinstance(description, str):
        description = theirs.load_json(description)
    label_manager = plans_manager.get_label_manager(description)
    reason = why_not(configuration_manager, label_manager, save_probabilities)
    if reason:
        _log.warning("nnU-Net's own export, because of %s", reason)
        theirs.export_prediction_from_logits(
            predicted_array_or_file,
            properties_dict,
            configuration_manager,
            plans_manager,
            description,
            output_file_truncated,
            save_probabilities,
            num_threads_torch,
        )
        return
    labels = convert_predicted_logits_to_segmentation_with_correct_shape(
        predicted_array_or_file,
        plans_manager,
        configuration_manager,
        label_manager,
        properties_dict,
        num_threads_torch=num_threads_torch,
    )
    path = output_file_truncated + description["file_ending"]
    plans_manager.image_reader_writer_class().write_seg(labels, path, properties_dict)
