"""siamese_lesion on images: patches of T1 maps, with those of LGE to learn from."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.draws import order
from cmrfast.data.t1_units import FIT_FAILURES
from cmrfast.errors import FileError
from cmrfast.infer.siamese_lesion import LesionMap, classify
from cmrfast.metrics import balanced_accuracy
from cmrfast.ops import nt_xent
from cmrfast.tasks.gather import prepared_cases
from cmrfast.tasks.siamese_lesion_pairs import aligned_pairs, lesion_on_t1, lge_lesion, read_t1
from cmrfast.tasks.siamese_lesion_patches import PairFeed, PairPatches
from cmrfast.tasks.task import Feed, Output, Prediction, Row, Task, View

_VERSION = 1  # of what is cached
_MASKS = ("t1_myocardium", "lge_myocardium")
_USED = ("t1", "lge", *_MASKS, "lge_reference", "lge_lesion")  # files, as the layout names them


def _published(values: str) -> dict[str, str]:
    names = ("balanced", "sensitivity", "specificity", "classification_loss", "pairing_loss")
    return dict(zip(names, values.split(), strict=False))


class SiameseLesionTask(Task):
    """Learns from pairs of patches; predicts from T1 and the myocardium drawn on it alone.

    It is judged as in the paper: on patches of slices that are aligned with LGE, in percent.
    """

    name: ClassVar[str] = "siamese_lesion"
    layouts: ClassVar[tuple[str, ...]] = ("t1_lge",)
    inputs: ClassVar[tuple[str, ...]] = ("t1", "lge")
    objective: ClassVar[str] = "-classification_loss"
    structures: ClassVar[Mapping[int, str]] = {1: "lesion"}
    predict_batch = 64
    published: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "pure": _published("50 100 0 5.11"),
        "siamese": _published("69.51 41.88 97.14 1.31 1.63"),
        "partial": _published("78.96 59.83 98.1 0.91 1.82"),
        "decoupled": _published("81.61 71.79 91.43 0.51 1.78"),
    }

    def fit(self, cases: Sequence[Case]) -> dict[str, float]:
        """Mean and SD of T1 over all pixels of the training patients' myocardium, in ms."""
        values = torch.cat(prepared_cases("siamese_lesion", cases, _myocardial_t1))
        if not len(values) or values.std(correction=0) == 0:
            raise FileError(
                "siamese_lesion: T1 of the training patients' myocardium must vary; "
                f"its {len(values)} pixels do not"
            )
        return {
            "t1_mean_ms": values.mean().item(),
            "t1_sd_ms": values.std(correction=0).item(),
        }

    def feed(self, cases: Sequence[Case], *, seed: int) -> Feed:
        """Patches all over the myocardium, a share of them a second time, mirrored."""
        patches = self._patches(prepared_cases("siamese_lesion", cases, self._pairs))
        if not len(patches):
            raise FileError("siamese_lesion: no myocardium is large enough for a patch's centre")
        recipe = self.recipe
        patches = patches.with_mirrored(recipe.flip, seed)
        return PairFeed(patches, seed=seed, distinct=recipe.distinct_slices)

    def predict(self, model: nn.Module, case: Case) -> Prediction:
        """The map of lesion probability, and every patch with its centre in the scanner."""
        found = self._classified(model, case)
        columns = (found.slices, found.center_mm, found.probability)
        patches = [
            {"slice": k, "center_mm": center, "probability": p, "lesion": p > 0.5}
            for k, center, p in zip(*(column.tolist() for column in columns), strict=True)
        ]
        images = {"lesion_probability": Output(found.map, case.images["t1"])}
        return Prediction(images, {"patches": patches})

    def evaluate(self, model: nn.Module, case: Case) -> list[Row]:
        """A row a patch; means over the rows are the paper's scores, but see ``pooled``.

        ``sensitivity`` is NaN where a patch has no lesion, ``specificity`` where it has one. The
        pairing loss of a row is that of its batch, of the case's patches in random order.
        """
        if not _is_paired(case):
            return []
        pairs = self._pairs(case)
        patches = self._patches([pairs])
        rows: list[Row] = []
        for samples in order(0, 0, len(patches)).split(self.recipe.batch):
            batch = patches.cut(samples)
            with torch.inference_mode():
                outputs = model(batch["t1"], batch["lge"])
            logits, labels = outputs["logits"].double(), batch["labels"]
            scores = {
                "probability": logits.softmax(1)[:, 1],
                "classification_loss": F.cross_entropy(logits, labels, reduction="none"),
            }
            if "lge" in outputs:
                temperature = self.config.temperature
                pairing = nt_xent(outputs["t1"], outputs["lge"], temperature=temperature)
                scores["pairing_loss"] = pairing.expand(len(samples))
            right = 100.0 * (logits.argmax(1) == labels)
            scores["sensitivity"] = torch.where(labels == 1, right, torch.nan)
            scores["specificity"] = torch.where(labels == 0, right, torch.nan)
            slices = pairs["t1_slice"][patches.volume[samples]].tolist()
            columns = {
                "slice": slices,
                "patch": samples.tolist(),
                "lesion": labels.tolist(),
                **{name: values.tolist() for name, values in scores.items()},
            }
            rows += [
                {"case": case.name, **dict(zip(columns, row, strict=True))}
                for row in zip(*columns.values(), strict=True)
            ]
        return sorted(rows, key=lambda row: row["patch"])

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """What is no mean over rows: the balanced accuracy of all patches, in percent."""
        lesion = torch.tensor([row["lesion"] for row in rows], dtype=torch.bool)
        found = torch.tensor([row["probability"] for row in rows]) > 0.5
        return {"balanced": 100 * balanced_accuracy(found, lesion).balanced}

    def view(self, model: nn.Module, case: Case) -> View:
        """T1; where the map is above one half, and the lesion that LGE shows, both labelled 1."""
        t1, _ = read_t1(case)
        predicted = (self._classified(model, case).map.data > 0.5).byte()
        reference = None
        if _is_paired(case):
            lesion = lge_lesion(case, deviations=self.recipe.deviations)[2]
            reference = lesion_on_t1(self._pairs(case), lesion, t1)
        return View(t1, t1.with_data(predicted), reference)

    def _classified(self, model: nn.Module, case: Case) -> LesionMap:
        mean_ms, sd_ms = self._scale()
        recipe = self.recipe
        return classify(
            model,
            *read_t1(case),
            mean_ms=mean_ms,
            sd_ms=sd_ms,
            spacing_mm=recipe.spacing_mm,
            stride=recipe.stride,
            batch=self.predict_batch,
        )

    def _patches(self, subjects: Sequence[Tensors]) -> PairPatches:
        mean_ms, sd_ms = self._scale()
        recipe = self.recipe
        return PairPatches.of(
            subjects,
            size=self.config.patch,
            stride=recipe.stride,
            lesion_share=recipe.lesion_share,
            mean_ms=mean_ms,
            sd_ms=sd_ms,
            device=self.device,
        )

    def _pairs(self, case: Case) -> Tensors:
        options = {
            "spacing_mm": float(self.recipe.spacing_mm),
            "deviations": float(self.recipe.deviations),
        }
        if self.cache is None or not _is_paired(case):
            return aligned_pairs(case, **options)
        files = {**case.images, **case.labels}
        used = [name for name in _USED if name in files]
        return self.cache.tensors(
            [files[name] for name in used],
            {"task": self.name, "version": _VERSION, "files": used, **options},
            lambda: aligned_pairs(case, **options),
        )

    def _scale(self) -> tuple[float, float]:
        if not self.fitted:
            raise ValueError("siamese_lesion: fitted must hold what fit gave; it is empty")
        return self.fitted["t1_mean_ms"], self.fitted["t1_sd_ms"]


def _is_paired(case: Case) -> bool:
    return {"t1", "lge"} <= case.images.keys() and set(_MASKS) <= case.labels.keys()


def _myocardial_t1(case: Case) -> Tensor:
    """Fitted values of the myocardium, (N,) float64."""
    t1, myocardium = read_t1(case)
    values = t1.data[myocardium.data != 0].double()
    failed = torch.isin(values, torch.tensor(FIT_FAILURES, dtype=torch.float64))
    return values[values.isfinite() & ~failed]


TASK = SiameseLesionTask
