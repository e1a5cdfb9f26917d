"""Train a network of your own on our data and loss: the myocardium in LGE stacks.

On synthetic patients, in half a minute; or on yours: ``--data FOLDER --side 128 --epochs 100``.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cmrfast.data.augment import Ranges, augment
from cmrfast.data.datasets import Case, open_dataset, split_by_patient
from cmrfast.data.loading import batches
from cmrfast.data.phantom import write_phantoms
from cmrfast.data.slices import center_slices, pack_slices
from cmrfast.losses import dice_ce_loss
from cmrfast.methods.joint_scar.images import network_view
from cmrfast.metrics import dice


def network(width: int = 16) -> nn.Sequential:
    """Logits (B, 2, H, W) of images (B, 1, H, W), H and W even; put your own here."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 2, stride=2)]
    for dilation in (1, 2, 4, 8, 4, 2, 1):
        conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 2, 2, stride=2))


def slices_of(case: Case, side: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, side, side) in [0, 1] and masks (N, side, side) of one patient."""
    mask = case.labelling["LGE"].mask(case.label("LGE"), "myocardium").data.byte()
    image = pack_slices(case.image("LGE").data)
    return network_view(image, side), center_slices(pack_slices(mask), (side, side))


@torch.inference_mode()
def score(model: nn.Module, patients: list[tuple[Tensor, Tensor]]) -> float:
    """Mean Dice of the patients."""
    return mean(dice(model.eval()(x).argmax(1), masks).item() for x, masks in patients)


def main(words: list[str] | None = None) -> float:
    """Train, keep what is best on the validation patients, return its Dice there."""
    ask = argparse.ArgumentParser()
    ask.add_argument("--data", type=Path, help="root of the data set; default synthetic patients")
    ask.add_argument("--out", type=Path, default=Path("own"), help="folder for what comes of it")
    for name, default in {"cases": 12, "side": 80, "epochs": 20, "batch": 8, "seed": 0}.items():
        ask.add_argument(f"--{name}", type=int, default=default)
    it = ask.parse_args(words)
    it.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(it.seed)
    root = it.data or write_phantoms("emidec", it.out / "data", cases=it.cases, shrink=3)
    patients = open_dataset("emidec", root)
    split = split_by_patient(patients.names, seed=it.seed)
    train = [slices_of(case, it.side) for case in patients.subset(split.train)]
    validate = [slices_of(case, it.side) for case in patients.subset(split.validate)]
    images, masks = (torch.cat(t) for t in zip(*train, strict=True))
    changes = Ranges(rotate_deg=20, scale=(0.9, 1.1), translate_share=0.05)
    model, best = network(), 0.0
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for epoch in range(it.epochs):
        model.train()
        for s in batches(it.seed, epoch, len(images), it.batch, drop_last=True):
            x, y = augment(images[s], masks[s], changes, seed=it.seed, epoch=epoch, samples=s)
            loss = dice_ce_loss(model(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        reached = score(model, validate)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, validation Dice {reached:.3f}")
        if reached == (best := max(best, reached)):
            save_file(model.state_dict(), it.out / "best.safetensors")
    return best


if __name__ == "__main__":
    main()
