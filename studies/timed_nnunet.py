"""nnU-Net trained for some minutes on all training cases, then applied to the test cases.

python studies/timed_nnunet.py DATASET SECONDS OUT

``studies.peers`` calls this in a process of its own. DATASET is the name of a data set that nnU-Net
has preprocessed, in the folders of its environment variables; OUT gets a label image of every test
case and ``steps.json``. nnU-Net's commands would search all of its trainers, some of which need
torchvision, for one of this name.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

CONFIGURATION = "2d"  # the smallest


class TimedTrainer(nnUNetTrainer):  # type: ignore[misc]
    """Trains until the time is over, without validation.

    The learning rate falls by nnU-Net's polynomial, with the fraction of the time that has passed
    in place of that of the epochs.
    """

    def train_for(self, seconds: float) -> int:
        """Train; returns the number of steps."""
        self.on_train_start()
        self.network.train()
        steps, start = 0, time.monotonic()
        while (elapsed := time.monotonic() - start) < seconds:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - elapsed / seconds) ** 0.9
            self.train_step(next(self.dataloader_train))
            steps += 1
        return steps

    def predict(self, images: Path, out: Path) -> None:
        """Write the labels of all cases in a folder, with nnU-Net's mirroring and overlap."""
        self.set_deep_supervision_enabled(False)
        self.network.eval()
        predictor = nnUNetPredictor(device=self.device, allow_tqdm=False)
        predictor.manual_initialization(
            self.network,
            self.plans_manager,
            self.configuration_manager,
            [self.network.state_dict()],
            self.dataset_json,
            type(self).__name__,
            self.inference_allowed_mirroring_axes,
        )
        predictor.predict_from_files_sequential(str(images), str(out))


def main(dataset: str, seconds: float, out: Path) -> None:
    """Train and predict."""
    raw, preprocessed = (Path(os.environ[f"nnUNet_{k}"], dataset) for k in ("raw", "preprocessed"))
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text("utf-8"))
    description = json.loads((preprocessed / "dataset.json").read_text("utf-8"))
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    trainer = TimedTrainer(
        plans | {"continue_training": False},
        CONFIGURATION,
        "all",
        description,
        torch.device("cpu"),
    )
    out.mkdir(parents=True, exist_ok=True)
    steps = trainer.train_for(seconds)
    trainer.predict(raw / "imagesTs", out)
    batch = plans["configurations"][CONFIGURATION]["batch_size"]
    (out / "steps.json").write_text(json.dumps({"steps": steps, "batch": batch}), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
