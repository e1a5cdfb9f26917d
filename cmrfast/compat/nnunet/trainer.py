"""``CmrfastTrainer``, which ``nnUNetv2_train -tr CmrfastTrainer`` trains with.

It differs from ``nnUNetTrainer`` in how batches are made, in the loss of labels, and in how
predictions of the validation cases become labels. Network, optimiser, schedule, checkpoints and
logs are nnU-Net's.
"""

import os
import warnings
from os.path import join
from typing import Any

import torch
from torch import Tensor

from cmrfast.compat.nnunet.augmentation import Augmentation
from cmrfast.compat.nnunet.loading import Patches, PatchLoader
from cmrfast.compat.nnunet.loss import SegmentationLoss
from cmrfast.compat.nnunet.targets import Targets

try:
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
except ImportError as error:
    raise ImportError(
        "compat.nnunet: nnU-Net is needed; install it with pip install 'cmrfast[nnunet]'"
    ) from error

from cmrfast.compat.nnunet.export import export_prediction_from_logits, why_not

_VALIDATION = 1 << 40  # distance of the seeds of training and validation
_RANK = 1 << 44
_CUDA = torch.device("cuda")


class CmrfastTrainer(nnUNetTrainer):
    """nnU-Net's trainer with this package's augmentation, loss and export.

    Results depend on ``seed``, an attribute that subclasses may change like nnU-Net's own
    (``num_epochs``, ``initial_lr``, …): on a CPU, two trainings have the same losses, however many
    threads make batches (``nnUNet_n_proc_DA``; 0 makes them in the main thread).
    """

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = _CUDA,
    ) -> None:
        # nnU-Net looks its own parameters up by these names.
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.seed = 0
        if self.is_cascaded:
            raise ValueError(
                f"CmrfastTrainer: cascades are not supported, and {configuration} takes labels of "
                f"{self.configuration_manager.previous_stage_name}; train it with nnUNetTrainer"
            )

    def initialize(self) -> None:
        """Build network, optimiser and loss; initial weights depend on the seed."""
        torch.manual_seed(self.seed)
        super().initialize()

    def _build_loss(self) -> Any:
        """Ours for labels; nnU-Net's for regions, an ignore label and several processes."""
        loss = super()._build_loss()
        labels = self.label_manager
        if labels.has_regions or labels.has_ignore_label or self.is_ddp:
            self.print_to_log_file(
                "cmrfast: nnU-Net's own loss, because of regions, an ignore label or several GPUs"
            )
            return loss
        ours = SegmentationLoss(batch_dice=self.configuration_manager.batch_dice)
        if self.enable_deep_supervision:
            return DeepSupervisionWrapper(ours, loss.weight_factors)
        return ours

    def get_dataloaders(self) -> tuple[PatchLoader, PatchLoader]:
        """Batches for training and validation."""
        train, val = self.get_tr_and_val_datasets()
        rotation, in_plane, margin_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        size = tuple(int(n) for n in self.configuration_manager.patch_size)
        augmentation = Augmentation(
            rotation=float(rotation[1]), mirror_axes=tuple(mirror_axes or ()), in_plane=in_plane
        )
        targets = self._targets()
        seed = self.seed + self.local_rank * _RANK
        threads = get_allowed_n_proc_DA()
        return (
            PatchLoader(
                train,
                self._patches(size, tuple(int(n) for n in margin_size)),
                targets,
                augmentation=augmentation,
                seed=seed,
                first=self.current_epoch * self.num_iterations_per_epoch,
                threads=threads,
                pin_memory=self.device.type == "cuda",
            ),
            PatchLoader(
                val,
                self._patches(size, size),
                targets,
                seed=seed + _VALIDATION,
                first=self.current_epoch * self.num_val_iterations_per_epoch,
                threads=min(threads, 1),
                pin_memory=self.device.type == "cuda",
            ),
        )

    def _patches(self, size: tuple[int, ...], margin_size: tuple[int, ...]) -> Patches:
        return Patches(
            self.batch_size,
            size,
            margin_size,
            tuple(int(label) for label in self.label_manager.all_labels),
            oversample=self.oversample_foreground_percent,
            probabilistic=self.probabilistic_oversampling,
            has_ignore_label=self.label_manager.has_ignore_label,
        )

    def _targets(self) -> Targets:
        labels, masked = self.label_manager, self.configuration_manager.use_mask_for_norm or ()
        regions = None
        if labels.has_regions:
            ignored = [labels.ignore_label] if labels.has_ignore_label else []
            regions = [*labels.foreground_regions, *ignored]
        return Targets(
            self._get_deep_supervision_scales(),
            regions,
            tuple(channel for channel, used in enumerate(masked) if used),
        )

    def on_train_end(self) -> None:
        """Save the last checkpoint and stop the threads."""
        super().on_train_end()
        self.dataloader_train.close()
        self.dataloader_val.close()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Predict and score the validation cases; labels are made without resampled logits."""
        reason = why_not(self.configuration_manager, self.label_manager, save_probabilities)
        if self.is_ddp or self.configuration_manager.next_stage_names:
            reason = "several GPUs or a next stage"
        if reason:
            self.print_to_log_file(f"cmrfast: nnU-Net's own export, because of {reason}")
            super().perform_actual_validation(save_probabilities)
            return
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        folder = join(self.output_folder, "validation")
        os.makedirs(folder, exist_ok=True)
        _, cases = self.get_tr_and_val_datasets()
        predictor = self._predictor()
        for name in cases.identifiers:
            self.print_to_log_file(f"predicting {name}")
            data, _, _, properties = cases.load_case(name)
            logits = predictor.predict_sliding_window_return_logits(_tensor(data)).cpu()
            export_prediction_from_logits(
                logits,
                properties,
                self.configuration_manager,
                self.plans_manager,
                self.dataset_json,
                join(folder, name),
            )
        self._score(folder)
        self.set_deep_supervision_enabled(True)

    def _predictor(self) -> Any:
        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network,
            self.plans_manager,
            self.configuration_manager,
            None,
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )
        return predictor

    def _score(self, folder: str) -> None:
        """Write ``summary.json`` and log its means, as nnU-Net does."""
        metrics = compute_metrics_on_folder(
            join(self.preprocessed_dataset_folder_base, "gt_segmentations"),
            folder,
            join(folder, "summary.json"),
            self.plans_manager.image_reader_writer_class(),
            self.dataset_json["file_ending"],
            self.label_manager.foreground_labels,
            self.label_manager.ignore_label,
            chill=True,
            num_processes=default_num_processes,
        )
        for label, scores in metrics["mean"].items():
            self.logger.log_summary(f"final_val/class_{label}_dice", scores["Dice"])
        mean = metrics["foreground_mean"]["Dice"]
        self.logger.log_summary("final_val/foreground_dice", mean)
        self.print_to_log_file("Validation complete")
        self.print_to_log_file("Mean Validation Dice: ", mean)


def _tensor(data: Any) -> Tensor:
    """A stored image in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an array that is mapped for reading is not writable
        return torch.from_numpy(data[:])
