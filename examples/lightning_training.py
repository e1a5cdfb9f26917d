"""Train a method under Lightning, with its callbacks and checkpoints; then predict a patient.

``python examples/lightning_training.py [EPOCHS]`` segments scars in synthetic hearts with a network
that is far too small for real ones; without ``SMALL`` it is the paper's.
"""

import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cmrfast.compat.lightning import MethodDataModule, MethodModule
from cmrfast.data.phantom import write_phantoms

SMALL = {"image": 64, "root": 32, "units": (1, 1, 1), "width": 16, "depth": 1, "heads": 2}
SMALL |= {"decoder": (16, 16, 8, 8, 8), "variant": "mtl", "batch": 4, "lr": 3e-3}


def main(epochs: int = 10, cases: int = 6) -> float:
    """Train, load the epoch with the best validation score, and return its score on the test."""
    folder = Path("hearts")
    root = folder if folder.exists() else write_phantoms("emidec", folder, cases=cases, shrink=4)
    data = MethodDataModule("joint_scar", root, changes=SMALL)
    module = MethodModule("joint_scar", changes=SMALL)

    objective = module.method.objective  # scar_dice, which is maximised
    best = ModelCheckpoint(monitor=objective.name, mode="max" if objective.maximise else "min")
    trainer = lightning.Trainer(max_epochs=epochs, callbacks=[best], logger=False)
    trainer.fit(module, data)

    path = best.best_model_path or best.last_model_path
    trained = MethodModule.load_from_checkpoint(path)
    (scores,) = trainer.test(trained, data)
    with torch.inference_mode():
        for case in data.test_dataloader():
            prediction = trained.task.predict(trained.model.eval(), case)
            print(case.name, {name: mask.volume.shape for name, mask in prediction.images.items()})
    return float(scores[objective.name])


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
