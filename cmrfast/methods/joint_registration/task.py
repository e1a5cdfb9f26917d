"""joint_registration on images: cine and LGE stacks of MS-CMRSeg, a sample a pair of slices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from cmrfast.data.augment import Ranges, random_thetas
from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.infer.batches import in_batches
from cmrfast.infer.joint_registration import (
    SharedGrid,
    label_view,
    network_view,
    register,
    shared_grid,
)
from cmrfast.losses import dual_loss
from cmrfast.metrics import average_surface_distance, center_distance, dice, paired_t_test
from cmrfast.models.joint_registration import Recipe, warp_masks
from cmrfast.ops import warp_pair
from cmrfast.tasks.gather import prepared_cases
from cmrfast.tasks.task import Batch, Feed, Output, Prediction, Row, Task, View

_CINE, _LGE = "C0", "LGE"
_STRUCTURES = {"lv": 1, "myocardium": 2, "rv": 3}
_VERSION = 1  # of what is cached

_COLUMNS = ("lv_cd_mm", "lv_asd_mm", "myocardium_asd_mm", "rv_cd_mm", "rv_asd_mm")
_TABLE_1 = {
    "before": ("3.28 (1.83)", "2.53 (1.23)", "1.78 (0.78)", "4.36 (3.79)", "2.42 (1.20)"),
    "stn, 25": ("2.46 (1.31)", "2.20 (1.23)", "1.52 (0.84)", "2.92 (2.18)", "1.95 (1.02)"),
    "stn, 35": ("2.27 (1.38)", "2.09 (1.14)", "1.40 (1.12)", "2.52 (2.66)", "1.73 (1.02)"),
    "joint, 25": ("2.26 (1.34)", "1.96 (0.93)", "1.41 (0.71)", "2.60 (2.02)", "1.77 (0.84)"),
    "joint, 35": ("2.18 (1.46)", "1.94 (0.93)", "1.33 (0.73)", "2.53 (2.14)", "1.72 (0.97)"),
}
_DICE = {"cine_dice_percent": "84.73", "lge_dice_percent": "71.49"}  # section 3, of "joint"


class JointRegistrationTask(Task):
    """Learns from pairs of slices that both show ventricle and myocardium, and is judged on them.

    Rows have the distances in mm between the cine labels and the LGE labels that follow theta,
    ``before_…`` those between both as they are, and of variant ``joint`` the mean Dice of the
    three structures in both segmentations.
    """

    name: ClassVar[str] = "joint_registration"
    layouts: ClassVar[tuple[str, ...]] = ("mscmrseg",)
    inputs: ClassVar[tuple[str, ...]] = ("cine", "lge")
    objective: ClassVar[str] = "-registration_loss"
    structures: ClassVar[Mapping[int, str]] = {n: name for name, n in _STRUCTURES.items()}
    published: ClassVar[Mapping[str, Mapping[str, str]]] = {
        model: dict(zip(_COLUMNS, cells, strict=True)) | (_DICE if model == "joint, 35" else {})
        for model, cells in _TABLE_1.items()
    }

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Every pair once an epoch, each time moved anew."""
        found = prepared_cases(self.name, cases, self._with_pairs)
        pairs = {name: torch.cat([f[name] for f in found]).to(self.device) for name in found[0]}
        return _PairFeed(pairs, self.recipe, seed)

    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """``lge_on_cine``, both segmentations, and of each pair theta and its matrix in mm."""
        cine, lge = case.image(_CINE), case.image(_LGE)
        self._grid(case, cine, lge)
        found = register(model, cine, lge, self.recipe, batch=self.predict_batch)
        images = {"lge_on_cine": Output(found.warped, case.images[_CINE])}
        if found.cine_labels is not None and found.lge_labels is not None:
            images["cine_labels"] = Output(found.cine_labels, case.images[_CINE])
            images["lge_labels"] = Output(found.lge_labels, case.images[_LGE])
        matrices = zip(
            found.grid.pairs, found.thetas.tolist(), found.lge_from_cine.tolist(), strict=True
        )
        facts = {
            "pairs": [
                {
                    "cine_slice": pair.source,
                    "lge_slice": pair.target,
                    "theta": theta,
                    "lge_from_cine_mm": lge_from_cine,
                }
                for pair, theta, lge_from_cine in matrices
            ],
            "unpaired_lge_slices": list(found.grid.unpaired),
        }
        return Prediction(images, facts)

    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """A row a pair of slices, or a patient's mean of them (``recipe.unit``)."""
        if not {_CINE, _LGE} <= case.labels.keys():
            return []
        pairs = self._prepared(case)
        rows: list[Row] = []
        first = 0
        images = {name: pairs[name] for name in self.inputs}
        for outputs in in_batches(self.name, model, images, self.predict_batch):
            stop = first + len(outputs["theta"])
            part = {name: tensor[first:stop] for name, tensor in pairs.items()}
            on_host = {name: tensor.float().cpu() for name, tensor in outputs.items()}
            rows += [{"case": case.name, **row} for row in self._rows(on_host, part)]
            first = stop
        return [_mean(rows)] if rows and self.recipe.unit == "patient" else rows

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """``…_p``: of a paired t-test of each distance against what it was before."""
        found = {}
        for column in _COLUMNS:
            before, after = (
                [float(row[name]) for row in rows] for name in (f"before_{column}", column)
            )
            found[f"{column}_p"] = paired_t_test(before, after).p
        return found

    def view(self, model: nn.Module, case: Case) -> View:
        """Cine slices with their labels, and with the LGE labels (the network's, where there are
        no others) that follow theta."""
        cine, lge = case.image(_CINE), case.image(_LGE)
        grid = self._grid(case, cine, lge)
        images = network_view(grid, cine, lge, self.recipe)
        found = list(in_batches(self.name, model, images._asdict(), self.predict_batch))
        theta = torch.cat([outputs["theta"].float().cpu() for outputs in found])
        on_cine, on_lge = torch.zeros(2, *images.cine[:, 0].shape, dtype=torch.uint8)
        annotated = {_CINE, _LGE} <= case.labels.keys()
        if annotated:
            labels = label_view(grid, case.label(_CINE), case.label(_LGE))
            on_cine, on_lge = labels.cine[:, 0], labels.lge[:, 0]
        elif "lge" in found[0]:
            on_lge = torch.cat([outputs["lge"].argmax(1).byte().cpu() for outputs in found])
        moved = warp_masks(on_lge, theta).argmax(1).byte()
        stacks = [stack.movedim(0, -1)[None] for stack in (images.cine[:, 0], moved, on_cine)]
        image, predicted, reference = (Volume(s, grid.world_from_vox) for s in stacks)
        return View(image, predicted, reference if annotated else None)

    def _grid(self, case: Case, cine: Volume, lge: Volume) -> SharedGrid:
        if cine.channels != 1 or lge.channels != 1:
            raise FileError(
                f"{self.name}: {case.name} must have one image in each file; "
                f"got {cine.channels} in {_CINE}, {lge.channels} in {_LGE}"
            )
        grid = shared_grid(cine, lge, self.recipe)
        if not grid.pairs:
            raise FileError(
                f"{self.name}: no LGE slice of {case.name} lies in its cine stack; "
                "for headers without positions set pairing=index"
            )
        return grid

    def _with_pairs(self, case: Case) -> Tensors:
        pairs = self._prepared(case)
        if not len(pairs["slices"]):
            raise FileError(
                f"{self.name}: no pair of slices of {case.name} shows left ventricle and "
                "myocardium in both masks"
            )
        return pairs

    def _prepared(self, case: Case) -> Tensors:
        """``cine``, ``lge`` (N, 1, side, side) float32, ``cine_labels``, ``lge_labels``
        (N, side, side) uint8, ``slices`` (N, 2): which cine and LGE slice."""

        def make() -> Tensors:
            cine, lge = case.image(_CINE), case.image(_LGE)
            grid = self._grid(case, cine, lge)
            images = network_view(grid, cine, lge, self.recipe)
            labels = label_view(grid, case.label(_CINE), case.label(_LGE))
            slices = torch.tensor([(pair.source, pair.target) for pair in grid.pairs])
            shown = torch.stack(
                [
                    (mask == _STRUCTURES[name]).flatten(1).any(1)
                    for mask in labels
                    for name in ("lv", "myocardium")
                ]
            ).all(0)
            return {
                "cine": images.cine[shown],
                "lge": images.lge[shown],
                "cine_labels": labels.cine[shown, 0],
                "lge_labels": labels.lge[shown, 0],
                "slices": slices[shown],
            }

        keys = (_CINE, _LGE)
        if self.cache is None or not set(keys) <= case.images.keys() & case.labels.keys():
            return make()
        recipe = self.recipe
        options = {
            "task": self.name,
            "version": _VERSION,
            "spacing_mm": recipe.spacing_mm,
            "side": recipe.side,
            "pairing": recipe.pairing,
            "clip_percent": recipe.clip_percent,
            "labelling": [asdict(case.labelling[key]) for key in keys],
        }
        sources = [files[key] for files in (case.images, case.labels) for key in keys]
        return self.cache.tensors(sources, options, make)

    def _rows(self, outputs: Mapping[str, Tensor], pairs: Mapping[str, Tensor]) -> list[Row]:
        """Scores of each pair of a batch."""
        cine, lge = pairs["cine_labels"], pairs["lge_labels"]
        masks = warp_masks(lge, outputs["theta"])
        moved = masks.argmax(1)
        rows: list[Row] = []
        for i, (cine_slice, lge_slice) in enumerate(pairs["slices"].tolist()):
            row: Row = {"cine_slice": cine_slice, "lge_slice": lge_slice}
            row |= self._distances(moved[i], cine[i])
            before = self._distances(lge[i], cine[i])
            row |= {f"before_{name}": value for name, value in before.items()}
            loss = dual_loss(
                masks[i : i + 1], cine[i : i + 1], activation="none", alpha=self.config.alpha
            )
            row["registration_loss"] = loss.item()
            for name in ("cine", "lge"):
                if name in outputs:
                    row[f"{name}_dice_percent"] = 100 * _mean_dice(
                        outputs[name][i].argmax(0), pairs[f"{name}_labels"][i]
                    )
            rows.append(row)
        return rows

    def _distances(self, labels: Tensor, reference: Tensor) -> dict[str, float]:
        """The columns of table 1, of one slice; NaN where a structure is in one of both alone."""
        spacing = (self.recipe.spacing_mm,) * 2
        found = {}
        for column in _COLUMNS:
            structure, kind, _ = column.split("_")
            mask, true = (x == _STRUCTURES[structure] for x in (labels, reference))
            if kind == "cd":
                found[column] = center_distance(mask, true, spacing).item()
            else:
                found[column] = average_surface_distance(mask, true, spacing)
        return found


class _PairFeed:
    """Pairs in memory; each image of a batch is warped once, together with its labels."""

    def __init__(self, pairs: Mapping[str, Tensor], recipe: Recipe, seed: int) -> None:
        self.pairs, self.seed = pairs, seed
        self.common = Ranges(
            rotate_deg=recipe.rotate_deg, translate_vox=recipe.shift_px, gamma=recipe.gamma
        )
        self.further = Ranges(
            rotate_deg=recipe.lge_rotate_deg, translate_vox=recipe.lge_shift_px, gamma=recipe.gamma
        )

    def __len__(self) -> int:
        return len(self.pairs["slices"])

    def batch(self, epoch: int, samples: Tensor) -> Batch:
        """``cine``, ``lge`` (B, 1, H, W), ``cine_labels``, ``lge_labels`` (B, H, W) uint8."""
        cine, lge, cine_labels, lge_labels = (
            self.pairs[name][samples] for name in ("cine", "lge", "cine_labels", "lge_labels")
        )
        shape = tuple(cine.shape[2:])
        common, cine_gamma = random_thetas(self.common, shape, self.seed, epoch, samples)
        # Draws of the LGE image's own motion are those of samples beyond the epoch's.
        own = samples + len(self)
        further, lge_gamma = random_thetas(self.further, shape, self.seed, epoch, own)
        linear = common[..., :2] @ further
        both = torch.cat((linear[..., :2], linear[..., 2:] + common[..., 2:]), 2)
        assert cine_gamma is not None  # the recipe's ranges have one
        assert lge_gamma is not None
        to = cine.device
        cine, cine_labels = warp_pair(cine, cine_labels, common.to(to), cine_gamma.to(to))
        lge, lge_labels = warp_pair(lge, lge_labels, both.to(to), lge_gamma.to(to))
        return {"cine": cine, "lge": lge, "cine_labels": cine_labels, "lge_labels": lge_labels}


def _mean_dice(labels: Tensor, reference: Tensor) -> float:
    """Of the three structures."""
    classes = torch.tensor(list(_STRUCTURES.values())).view(-1, 1, 1)
    return dice(labels == classes, reference == classes, batch_axes=1).mean().item()


def _mean(rows: Sequence[Row]) -> Row:
    """A patient's mean over slices; slices without a value are left out."""
    mean: Row = {"case": rows[0]["case"], "slices": len(rows)}
    for name in [n for n in rows[0] if n not in ("case", "cine_slice", "lge_slice")]:
        values = [v for row in rows if not math.isnan(v := float(row[name]))]
        mean[name] = sum(values) / len(values) if values else math.nan
    return mean


TASK = JointRegistrationTask
