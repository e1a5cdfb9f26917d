"""Affine alignment of two slices by their masks alone, coarse to fine (methods' siamese_lesion)."""

from typing import NamedTuple

import torch
from torch import Tensor

from cmrfast.metrics import dice
from cmrfast.ops import affine_sample, resample

_SIGMAS_PX = (4.0, 2.0, 1.0, 0.0)
_EVALUATIONS = 200  # at most, per level


class Alignment(NamedTuple):
    """An alignment in the scanner's millimetres, and how well the masks lie on each other."""

    moving_from_fixed: Tensor  # (4, 4) float64
    initial_dice: float
    dice: float


def align_masks(
    moving: Tensor,
    fixed: Tensor,
    moving_world_from_vox: Tensor,
    fixed_world_from_vox: Tensor,
) -> Alignment:
    """The in-plane affine that lays a moving mask on a fixed one: T1 onto LGE.

    Starts with centroids matched, scaled by the root of the area ratio and not rotated. Then
    six parameters follow the gradient of the squared difference of both masks, smoothed by 4, 2, 1
    and 0 pixels of the fixed grid in turn; a level counts only if the Dice score does not drop.
    ``resample(t1, t1_world_from_vox, moving_from_fixed @ lge_world_from_vox, lge_shape)`` then
    brings any image of the moving slice onto the fixed grid.

    Args:
        moving: (I, J) mask, nonzero inside.
        fixed: (I', J') mask.
        moving_world_from_vox: (4, 4) affine of the moving slice as the slice k = 0, mm.
        fixed_world_from_vox: (4, 4) of the fixed slice.

    Returns:
        ``moving_from_fixed``, from world to world, and the Dice score after (i) and at the end.
    """
    for name, mask in (("moving", moving), ("fixed", fixed)):
        if mask.dim() != 2 or not (mask != 0).any():
            raise ValueError(
                f"align_masks: {name} must be a mask (I, J) that is not empty; "
                f"got {tuple(mask.shape)}"
            )
    # Gradients are this search's own business, whatever the caller has switched off.
    with torch.inference_mode(False), torch.enable_grad():
        return _Search(
            (moving.clone() != 0).double(),
            (fixed.clone() != 0).double(),
            moving_world_from_vox.clone().double(),
            fixed_world_from_vox.clone().double(),
        ).run()


class _Search:
    """What stays the same while the six parameters move."""

    def __init__(self, moving: Tensor, fixed: Tensor, to_moving: Tensor, to_fixed: Tensor) -> None:
        self.moving, self.fixed = moving, fixed
        self.to_moving, self.to_fixed = to_moving, to_fixed
        steps = to_fixed[:3, :2] / torch.linalg.vector_norm(to_fixed[:3, :2], dim=0)
        normal = torch.linalg.cross(steps[:, 0], steps[:, 1])
        self.frame = torch.cat((steps, normal[:, None]), 1)  # world from in-plane mm
        self.centre_moving, self.centre_fixed = (
            _centroid(moving, to_moving),
            _centroid(fixed, to_fixed),
        )
        area = fixed.sum() * _pixel_area(to_fixed)
        self.scale = (moving.sum() * _pixel_area(to_moving) / area).sqrt()
        self.radius = (area / torch.pi).sqrt()  # makes a unit of every parameter about 1 mm

    def run(self) -> Alignment:
        best = torch.zeros(6, dtype=torch.float64, device=self.fixed.device)
        initial = score = self.overlap(best)
        for sigma in _SIGMAS_PX:
            tried = self.level(best, sigma)
            overlap = self.overlap(tried)
            if overlap >= score:
                best, score = tried, overlap
        return Alignment(self.moving_from_fixed(best), initial, score)

    def moving_from_fixed(self, parameters: Tensor) -> Tensor:
        """(4, 4) world from world; parameters are two rows of (linear, linear, shift), in mm."""
        rows = parameters.view(2, 3)
        plane = torch.eye(2, dtype=rows.dtype, device=rows.device) * self.scale
        linear = torch.block_diag(plane + rows[:, :2] / self.radius, torch.eye(1).to(rows))
        turn = self.frame @ linear @ torch.linalg.inv(self.frame)
        shift = self.centre_moving + self.frame[:, :2] @ rows[:, 2] - turn @ self.centre_fixed
        last = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).to(rows)
        return torch.cat((torch.cat((turn, shift[:, None]), 1), last))

    def level(self, start: Tensor, sigma_px: float) -> Tensor:
        """Parameters of the least squared difference of the smoothed masks."""
        sigma_mm = sigma_px * _pixel_area(self.to_fixed).sqrt()
        fixed = _smooth(self.fixed, sigma_mm, self.to_fixed)
        moving = _smooth(self.moving, sigma_mm, self.to_moving)
        parameters = start.clone().requires_grad_()
        search = torch.optim.LBFGS(
            [parameters],
            max_iter=_EVALUATIONS,
            max_eval=_EVALUATIONS,
            tolerance_grad=1e-9,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )
        least, best = torch.inf, start

        def closure() -> Tensor:
            nonlocal least, best
            search.zero_grad()
            theta = self.theta(parameters)
            sampled = affine_sample(moving[None, None], theta[None], fixed.shape)[0, 0]
            # Per mask pixel, not per image pixel: the tolerances then hold for any field of view.
            loss = (sampled - fixed).square().sum() / self.fixed.sum()
            loss.backward()
            if loss.item() < least:
                least, best = loss.item(), parameters.detach().clone()
            return loss

        search.step(closure)
        return best

    def theta(self, parameters: Tensor) -> Tensor:
        """(2, 3) between normalised coordinates, last axis first, as ``affine_sample`` takes it."""
        matrix = torch.linalg.inv(self.to_moving) @ self.moving_from_fixed(parameters)
        matrix = (matrix @ self.to_fixed)[[0, 1, 3]][:, [0, 1, 3]]
        to_unit, from_unit = _unit_from_vox(self.moving), _unit_from_vox(self.fixed).inverse()
        theta: Tensor = (to_unit @ matrix @ from_unit)[[1, 0]][:, [1, 0, 2]]
        return theta

    def overlap(self, parameters: Tensor) -> float:
        """Dice score of the fixed mask and the moving one brought onto its grid, nearest."""
        grid = self.moving_from_fixed(parameters) @ self.to_fixed
        moving, shape = self.moving[None], self.fixed.shape
        moved = resample(moving, self.to_moving, grid, shape, mode="nearest")[0]
        return dice(moved > 0.5, self.fixed > 0.5).item()


def _unit_from_vox(image: Tensor) -> Tensor:
    """(3, 3): the image's edges at -1 and 1."""
    matrix = torch.eye(3, dtype=torch.float64, device=image.device)
    for axis, n in enumerate(image.shape):
        matrix[axis, axis], matrix[axis, 2] = 2 / n, 1 / n - 1
    return matrix


def _centroid(mask: Tensor, world_from_vox: Tensor) -> Tensor:
    """(3,) world position, mm."""
    middle = mask.nonzero().double().mean(0)
    return world_from_vox[:3, :2] @ middle + world_from_vox[:3, 3]


def _pixel_area(world_from_vox: Tensor) -> Tensor:
    area: Tensor = torch.linalg.cross(world_from_vox[:3, 0], world_from_vox[:3, 1]).norm()
    return area


def _smooth(mask: Tensor, sigma_mm: Tensor, world_from_vox: Tensor) -> Tensor:
    """Gaussian along both axes, zero beyond the image."""
    for axis, n in enumerate(mask.shape):
        sigma = sigma_mm / torch.linalg.vector_norm(world_from_vox[:3, axis])
        if sigma == 0:
            return mask
        at = torch.arange(n, dtype=mask.dtype, device=mask.device)
        weights = torch.exp(-((at - at[:, None]) / sigma).square() / 2)
        weights = weights / (sigma * (2 * torch.pi) ** 0.5)
        mask = weights @ mask if axis == 0 else mask @ weights
    return mask
