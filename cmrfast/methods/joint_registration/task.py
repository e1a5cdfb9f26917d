"""joint_registration on images: cine and LGE stacks of MS-CMRSeg, a sample a pair of slices."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmrfast.data.augment import Ranges, random_thetas
from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.infer import predict_batches
from cmrfast.losses import dual_loss
from cmrfast.methods.joint_registration.grid import (
    SharedGrid,
    label_view,
    network_view,
    shared_grid,
)
from cmrfast.methods.joint_registration.images import register
from cmrfast.methods.joint_registration.published import DISTANCES
from cmrfast.methods.preparation import Preparation, Source, prepare_cases
from cmrfast.methods.task import Batch, Feed, Output, Picture, Prediction, Row, Task
from cmrfast.metrics import average_surface_distance, center_distance, dice, paired_t_test
from cmrfast.models.joint_registration import Config, JointRegistration, Recipe, warp_masks
from cmrfast.ops import warp_pair

STRUCTURES = {"lv": 1, "myocardium": 2, "rv": 3}
_CINE, _LGE = "C0", "LGE"


def _prepare(source: Source[Config, Recipe]) -> Tensors:
    """``cine``, ``lge`` (N, 1, side, side) float32, ``cine_labels``, ``lge_labels``
    (N, side, side) uint8, ``slices`` (N, 2): which cine and LGE slice."""
    case = source.case
    cine, lge = _read_stacks(case, source.recipe)
    grid = _grid_of(case, cine, lge, source.recipe)
    images = network_view(grid, cine, lge, source.recipe)
    labels = label_view(grid, case.label(_CINE), case.label(_LGE))
    slices = torch.tensor([(pair.source, pair.target) for pair in grid.pairs])
    shown = torch.stack(
        [
            (mask == STRUCTURES[name]).flatten(1).any(1)
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


PAIRS = Preparation(
    "joint_registration",
    _prepare,
    images=(_CINE, _LGE),
    labels=(_CINE, _LGE),
    recipe=("spacing_mm", "side", "pairing", "clip_percent", "non_finite"),
)


class JointRegistrationTask(Task[JointRegistration, Config, Recipe]):
    """Learns from pairs of slices that both show ventricle and myocardium; scored on such pairs.

    Rows have the distances in mm between the cine labels and the LGE labels moved by theta,
    ``before_…`` those between both unmoved, and for variant ``joint`` the mean Dice of both
    segmentations over the structures that the labels or the prediction have.
    """

    preparations = (PAIRS,)

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Every pair once an epoch, augmented differently each time."""
        prepared = prepare_cases("joint_registration", cases, self._with_pairs)
        pairs = {
            name: torch.cat([p[name] for p in prepared]).to(self.device) for name in prepared[0]
        }
        return _PairFeed(pairs, self.recipe, seed)

    def predict(self, model: JointRegistration, case: Case) -> Prediction:
        """``lge_on_cine``, both segmentations, and theta and its matrix in mm for each pair."""
        cine, lge = _read_stacks(case, self.recipe)
        _grid_of(case, cine, lge, self.recipe)
        result = register(model, cine, lge, self.recipe, batch=self.predict_batch)
        images = {"lge_on_cine": Output(result.warped, case.images[_CINE])}
        if result.cine_labels is not None and result.lge_labels is not None:
            names = {value: name for name, value in STRUCTURES.items()}
            images["cine_labels"] = Output(result.cine_labels, case.images[_CINE], names)
            images["lge_labels"] = Output(result.lge_labels, case.images[_LGE], names)
        matrices = zip(
            result.grid.pairs, result.thetas.tolist(), result.lge_from_cine.tolist(), strict=True
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
            "unpaired_lge_slices": list(result.grid.unpaired),
        }
        return Prediction(images, facts)

    def require_scorable(self, case: Case) -> None:
        """Raise ``FileError`` where cine, LGE or their masks cannot be used."""
        if {_CINE, _LGE} <= case.labels.keys():
            self.prepared(PAIRS, case)

    def evaluate(self, model: JointRegistration, case: Case) -> list[Row]:
        """A row a pair of slices, or a patient's mean of them (``recipe.unit``)."""
        if not {_CINE, _LGE} <= case.labels.keys():
            return []
        pairs = self.prepared(PAIRS, case)
        rows: list[Row] = []
        images = {name: pairs[name] for name in ("cine", "lge")}
        for outputs in predict_batches("joint_registration", model, images, self.predict_batch):
            first, stop = len(rows), len(rows) + len(outputs["theta"])
            part = {name: tensor[first:stop] for name, tensor in pairs.items()}
            on_host = {name: tensor.float().cpu() for name, tensor in outputs.items()}
            rows += self._rows(case.name, on_host, part)
        return [_patient_row(rows)] if rows and self.recipe.unit == "patient" else rows

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """``…_p``: p of a paired t-test between each distance and what it was before."""
        tests = {}
        for column in DISTANCES:
            before, after = (
                [row.scores[name] for row in rows] for name in (f"before_{column}", column)
            )
            tests[f"{column}_p"] = paired_t_test(before, after).p
        return tests

    def picture(self, model: JointRegistration, case: Case) -> Picture:
        """Cine slices with their labels, and with the LGE labels (the network's, where there are
        no others) moved by theta."""
        cine, lge = _read_stacks(case, self.recipe)
        grid = _grid_of(case, cine, lge, self.recipe)
        images = network_view(grid, cine, lge, self.recipe)
        batches = list(
            predict_batches("joint_registration", model, images._asdict(), self.predict_batch)
        )
        theta = torch.cat([outputs["theta"].float().cpu() for outputs in batches])
        on_cine, on_lge = torch.zeros(2, *images.cine[:, 0].shape, dtype=torch.uint8)
        annotated = {_CINE, _LGE} <= case.labels.keys()
        if annotated:
            labels = label_view(grid, case.label(_CINE), case.label(_LGE))
            on_cine, on_lge = labels.cine[:, 0], labels.lge[:, 0]
        elif "lge" in batches[0]:
            on_lge = torch.cat([outputs["lge"].argmax(1).byte().cpu() for outputs in batches])
        moved = warp_masks(on_lge, theta).argmax(1).byte()
        image, predicted, reference, before = (
            Volume(stack.movedim(0, -1)[None], grid.world_from_vox)
            for stack in (images.cine[:, 0], moved, on_cine, on_lge)
        )
        return Picture(image, predicted, reference if annotated else None, before=before)

    def _with_pairs(self, case: Case) -> Tensors:
        pairs = self.prepared(PAIRS, case)
        if not len(pairs["slices"]):
            raise FileError(
                f"joint_registration: no pair of slices of {case.name} shows left ventricle and "
                "myocardium in both masks"
            )
        return pairs

    def _rows(
        self, case: str, outputs: Mapping[str, Tensor], pairs: Mapping[str, Tensor]
    ) -> list[Row]:
        """A row for each pair of a batch."""
        cine, lge = pairs["cine_labels"], pairs["lge_labels"]
        masks = warp_masks(lge, outputs["theta"])
        moved = masks.argmax(1)
        rows = []
        for i, (cine_slice, lge_slice) in enumerate(pairs["slices"].tolist()):
            before = self._distances(lge[i], cine[i])
            scores = {
                **self._distances(moved[i], cine[i]),
                **{f"before_{name}": value for name, value in before.items()},
            }
            one = slice(i, i + 1)
            loss = dual_loss(masks[one], cine[one], activation="none", alpha=self.config.alpha)
            scores["registration_loss"] = loss.item()
            for name in ("cine", "lge"):
                if name in outputs:
                    scores[f"{name}_dice_percent"] = 100 * _mean_dice(
                        outputs[name][i].argmax(0), pairs[f"{name}_labels"][i]
                    )
            ids = {"case": case, "cine_slice": cine_slice, "lge_slice": lge_slice}
            rows.append(Row(ids, scores))
        return rows

    def _distances(self, labels: Tensor, reference: Tensor) -> dict[str, float]:
        """The columns of table 1 for one slice; NaN unless both have the structure."""
        spacing = (self.recipe.spacing_mm,) * 2
        distances = {}
        for column in DISTANCES:
            structure, kind, _ = column.split("_")
            mask, true = (x == STRUCTURES[structure] for x in (labels, reference))
            if kind == "cd":
                distances[column] = center_distance(mask, true, spacing).item()
            else:
                distances[column] = average_surface_distance(mask, true, spacing)
        return distances


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
    """Mean over the structures that either has."""
    classes = torch.tensor([s for s in STRUCTURES.values() if s in labels or s in reference])
    if not len(classes):
        return math.nan
    masks = (side == classes.view(-1, 1, 1) for side in (labels, reference))
    return dice(*masks, batch_axes=1).mean().item()


def _patient_row(rows: Sequence[Row]) -> Row:
    """A patient's mean over slices; slices without a value are left out."""
    means = {}
    for name in rows[0].scores:
        values = [v for row in rows if not math.isnan(v := row.scores[name])]
        means[name] = sum(values) / len(values) if values else math.nan
    return Row({"case": rows[0].case, "slices": len(rows)}, means)


def _read_stacks(case: Case, recipe: Recipe) -> tuple[Volume, Volume]:
    cine, lge = (
        case.image(name, channels=1, non_finite=recipe.non_finite) for name in (_CINE, _LGE)
    )
    return cine, lge


def _grid_of(case: Case, cine: Volume, lge: Volume, recipe: Recipe) -> SharedGrid:
    grid = shared_grid(cine, lge, recipe)
    if not grid.pairs:
        raise FileError(
            f"joint_registration: no LGE slice of {case.name} lies in its cine stack; "
            "for headers without positions set pairing=index"
        )
    return grid
