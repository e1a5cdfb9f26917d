"""Train your own network with our data loading and loss: segment the myocardium in LGE stacks.

By default on synthetic patients, in half a minute; on yours with ``--data FOLDER --side 128``.
"""

import argparse
from pathlib import Path

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
    """A network from images (B, 1, H, W), H and W even, to logits (B, 2, H, W); use your own."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 2, stride=2)]
    for dilation in (1, 2, 4, 8, 4, 2, 1):
        conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 2, 2, stride=2))


def slices_of(case: Case, side: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, side, side) in [0, 1] and masks (N, side, side) of one patient."""
    y = pack_slices(case.labelling["LGE"].mask(case.label("LGE"), "myocardium").data.byte())
    return network_view(pack_slices(case.image("LGE").data), side), center_slices(y, (side, side))


@torch.inference_mode()
def score(model: nn.Module, patients: list[tuple[Tensor, Tensor]]) -> float:
    """Mean Dice over the patients."""
    return sum(dice(model.eval()(x).argmax(1), y).item() for x, y in patients) / len(patients)


def main(words: list[str] | None = None) -> float:
    """Train, keep the network with the best validation Dice, and return that Dice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="root of the data set; default: synthetic")
    parser.add_argument("--out", type=Path, default=Path("own"), help="folder for the results")
    for name, default in {"cases": 12, "side": 80, "epochs": 20, "batch": 8, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(words)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    root = args.data or args.out / "data"
    if args.data is None and not root.exists():
        write_phantoms("emidec", root, cases=args.cases, shrink=3)
    patients = open_dataset("emidec", root)
    split = split_by_patient(patients.names, seed=args.seed)
    train = [slices_of(case, args.side) for case in patients.subset(split.train)]
    validate = [slices_of(case, args.side) for case in patients.subset(split.validate)]
    images, masks = (torch.cat(t) for t in zip(*train, strict=True))
    changes = Ranges(rotate_deg=20, scale=(0.9, 1.1), translate_share=0.05)
    model, best = network(), 0.0
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for epoch in range(args.epochs):
        for s in batches(args.seed, epoch, len(images), args.batch, drop_last=True):
            x, y = augment(images[s], masks[s], changes, seed=args.seed, epoch=epoch, samples=s)
            loss = dice_ce_loss(model.train()(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        current = score(model, validate)
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, validation Dice {current:.3f}")
        if current == (best := max(best, current)):
            save_file(model.state_dict(), args.out / "best.safetensors")
    return best


if __name__ == "__main__":
    main()
