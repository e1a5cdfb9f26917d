"""A small MONAI training, with MONAI's classes and with those of cmrfast in their place.

``python examples/monai_training.py [STEPS]`` trains on synthetic hearts, from the same seeds with
both, and prints their losses and how many times faster each part is with cmrfast.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from monai import inferers, losses, transforms
from monai.data import MetaTensor, list_data_collate
from monai.metrics import DiceMetric
from monai.networks.nets import UNet

from cmrfast.compat import monai as fast
from cmrfast.data.datasets import open_dataset
from cmrfast.data.phantom import write_phantoms

KEYS, SIZE, MODES = ("image", "label"), (64, 64, 4), {"mode": ("bilinear", "nearest")}


def patients(folder: Path, count: int, shrink: float) -> Iterator[dict[str, MetaTensor]]:
    """LGE volumes and their myocardium, as MONAI's loaders give them."""
    if not folder.exists():
        write_phantoms("emidec", folder, cases=count, shrink=shrink)
    for case in open_dataset("emidec", folder):
        mask = case.labelling["LGE"].mask(case.label("LGE"), "myocardium")
        pair = zip(KEYS, (case.image("LGE"), mask), strict=True)
        yield {k: MetaTensor(v.data / v.data.max(), v.world_from_vox) for k, v in pair}


def train(data: list[Any], steps: int, crops: Any, loss: Any, inferer: Any) -> dict[str, float]:
    """Train with the classes of these modules; return the seconds of each part."""
    spacing = crops.Spacingd(KEYS, (2.0, 2.0, 10.0), **MODES)
    crop = crops.RandCropByPosNegLabeld(KEYS, "label", SIZE, num_samples=2)
    affine = crops.RandAffined(KEYS, prob=0.5, rotate_range=[0.0, 0.0, 0.4], **MODES)
    augment = transforms.Compose([crop, affine]).set_random_state(0)
    loss_of = loss.DiceCELoss(to_onehot_y=True, softmax=True)
    windows = inferer.SlidingWindowInferer(SIZE, 4, overlap=0.5, mode="gaussian")
    seconds: dict[str, float] = {}

    def timed(part: str, call: Any, *args: Any) -> Any:
        seconds[part] = seconds.get(part, 0) - time.perf_counter()
        result = call(*args)
        seconds[part] += time.perf_counter()
        return result

    torch.manual_seed(0)
    network = UNet(3, 1, 2, (8, 16, 32), ((2, 2, 1), (2, 2, 1)))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    *training, last = (timed("spacing", spacing, case) for case in data)
    for step in range(steps):
        batch = list_data_collate(timed("augmentation", augment, training[step % len(training)]))
        logits = timed("network", network, batch["image"].as_tensor())
        value = timed("loss", loss_of, logits, batch["label"].as_tensor())
        optimiser.zero_grad()
        timed("gradients", value.backward)
        optimiser.step()
    logits = timed("prediction", torch.no_grad()(windows), last["image"][None], network.eval())
    dice = DiceMetric(include_background=False)(logits.argmax(1, keepdim=True), last["label"][None])
    print(f"{crops.__name__:<24} loss {value.item():.4f}, Dice {dice.item():.3f}")
    return {**seconds, "all": sum(seconds.values())}


def main(steps: int = 30, cases: int = 5, shrink: float = 2) -> dict[str, float]:
    """Train with both, after a step of each that is not timed; return the ratios."""
    data = list(patients(Path("hearts"), cases, shrink))
    modules = ((transforms, losses, inferers), (fast,) * 3)
    theirs, ours = [train(data, n, *m) for n in (1, steps) for m in modules][2:]
    ratios = {part: theirs[part] / ours[part] for part in ours}
    print("times faster:", ", ".join(f"{part} {ratio:.1f}" for part, ratio in ratios.items()))
    return ratios


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
