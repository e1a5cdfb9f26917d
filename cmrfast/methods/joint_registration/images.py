"""LGE stacks registered to cine stacks, slice by slice, and both segmented on their own grids."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cmrfast.data.slices import world_from_slice
from cmrfast.data.volume import Volume
from cmrfast.infer import predict_batches
from cmrfast.methods.joint_registration.grid import SharedGrid, network_view, shared_grid
from cmrfast.models.joint_registration import RECIPE, JointRegistration, Recipe
from cmrfast.ops import resample, resample_argmax
from cmrfast.ops.affine_sample import EDGES, vox_from_frame


@dataclass(frozen=True)
class Registration:
    """An LGE stack aligned with a cine stack.

    Args:
        grid: which slices are paired; the next two have one entry for each pair.
        thetas: (P, 2, 3), normalised, as the network gave them.
        lge_from_cine: (P, 4, 4) float64, mm: from a point of the cine slice to the one of the LGE
            slice that shows the same, both in the scanner's coordinates.
        warped: the LGE image on the cine grid, float32; 0 where there is none.
        cine_labels, lge_labels: uint8, each on the grid of its image; 0 beyond what the network
            saw. None of variant ``stn``.
    """

    grid: SharedGrid
    thetas: Tensor
    lge_from_cine: Tensor
    warped: Volume
    cine_labels: Volume | None
    lge_labels: Volume | None


def register(
    model: JointRegistration, cine: Volume, lge: Volume, recipe: Recipe = RECIPE, *, batch: int = 16
) -> Registration:
    """Align each LGE slice with the cine slice at its position, and segment both.

    Memory holds the inputs, the results, ten float32 values for each pixel that the network sees,
    one batch in the network, and about six float32 images of the larger grid.

    Args:
        model: a ``JointRegistration`` in evaluation mode.
        cine: one frame, of the cardiac phase in which the LGE image was acquired.
        lge: one image.
        recipe: the one that the model was trained with.
        batch: pairs in one forward pass.

    Example:
        >>> from cmrfast.models import build
        >>> model = build("joint_registration", widths=(4, 8)).eval()
        >>> cine = Volume(torch.rand(1, 40, 40, 3), torch.diag(torch.tensor([1.2, 1.2, 8.0, 1.0])))
        >>> lge = Volume(torch.rand(1, 60, 60, 6), torch.diag(torch.tensor([0.8, 0.8, 5.0, 1.0])))
        >>> result = register(model, cine, lge, Recipe(side=64))
        >>> result.warped.shares_grid(cine), result.lge_labels.shares_grid(lge)
        (True, True)
        >>> [(pair.source, pair.target) for pair in result.grid.pairs], result.grid.unpaired
        ([(0, 0), (1, 1), (1, 2), (2, 3)], (4, 5))
    """
    grid = shared_grid(cine, lge, recipe)
    if not grid.pairs:
        raise ValueError("joint_registration: an LGE slice must lie in the cine stack; none does")
    images = network_view(grid, cine, lge, recipe)
    thetas: list[Tensor] = []
    probabilities: dict[str, list[Tensor]] = {"cine": [], "lge": []}
    for outputs in predict_batches("joint_registration", model, images._asdict(), batch):
        thetas.append(outputs["theta"].float())
        for name in outputs.keys() & probabilities.keys():
            probabilities[name].append(outputs[name].float().softmax(1))
    theta = torch.cat(thetas).to(lge.data.device)
    lge_from_cine = world_transforms(grid, theta)
    cine_labels = lge_labels = None
    if probabilities["cine"]:
        stack = torch.cat(probabilities["cine"]).permute(1, 2, 3, 0).to(cine.data.device)
        on_grid = grid.onto_cine(stack, grid.world_from_vox, cine.shape[:2])
        cine_labels = cine.with_data(on_grid.argmax(0, keepdim=True).byte())
    if probabilities["lge"]:
        stack = torch.cat(probabilities["lge"]).permute(1, 2, 3, 0).to(lge.data.device)
        labels = resample_argmax(stack, grid.world_from_vox, lge.world_from_vox, lge.shape)
        lge_labels = lge.with_data(labels[None])
    warped = warp_image(grid, lge_from_cine, lge, cine)
    return Registration(grid, theta, lge_from_cine, warped, cine_labels, lge_labels)


def world_transforms(grid: SharedGrid, thetas: Tensor) -> Tensor:
    """Normalised maps (P, 2, 3) as maps (P, 4, 4) of scanner coordinates in mm, float64."""
    plane = vox_from_frame(thetas.detach().cpu(), grid.shape[:2], grid.shape[:2], EDGES)
    vox_from_vox = torch.eye(4, dtype=torch.float64).repeat(len(plane), 1, 1)
    vox_from_vox[:, :2, :2], vox_from_vox[:, :2, 3] = plane[..., :2], plane[..., 2]
    vox_from_world = torch.linalg.inv(grid.world_from_vox)
    lge_from_cine: Tensor = grid.world_from_vox @ vox_from_vox @ vox_from_world
    return lge_from_cine


def warp_image(
    grid: SharedGrid, lge_from_cine: Tensor, lge: Volume, cine: Volume, *, labels: bool = False
) -> Volume:
    """Resample an image or mask of the LGE stack onto the cine grid, aligned.

    Each slice is warped within its plane, then the stack is interpolated between slices.

    Args:
        grid: of a registration.
        lge_from_cine: of a registration.
        lge: on the registered stack's grid.
        cine: whose grid the result takes.
        labels: warp the mask of each label; the label with the largest weight wins.

    Returns:
        float32, or the labels in their own dtype; 0 where there is no LGE slice.
    """
    if not labels:
        return cine.with_data(_warped(grid, lge_from_cine, lge, lge.data.float(), cine))
    values = torch.cat((lge.data.new_zeros(1), lge.data.flatten())).unique()
    masks = (lge.data == values.view(-1, 1, 1, 1)).float()
    weights = _warped(grid, lge_from_cine, lge, masks, cine)
    # Outside the stack all weights are 0, and the background must win.
    background = (values == 0).view(-1, 1, 1, 1)
    weights = torch.where(background & (weights.sum(0) == 0), 1.0, weights)
    return cine.with_data(values[weights.argmax(0, keepdim=True)])


def _warped(
    grid: SharedGrid, lge_from_cine: Tensor, lge: Volume, data: Tensor, cine: Volume
) -> Tensor:
    """(C, I', J', K') on the LGE grid to (C, I, J, K) on the cine grid."""
    moved = []
    for pair, transform in zip(grid.pairs, lge_from_cine, strict=True):
        world = world_from_slice(lge, pair.target)
        moved.append(resample(data[..., pair.target], world, transform @ world, lge.shape[:2]))
    world = world_from_slice(lge, grid.pairs[0].target)
    return grid.onto_cine(torch.stack(moved, -1), world, cine.shape[:2])
