"""siamese_lesion on images: patches of T1 maps, with those of LGE to learn from."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cmrfast.data.cache import Tensors
from cmrfast.data.datasets.case import Case
from cmrfast.data.random import order
from cmrfast.data.t1_units import FIT_FAILURES
from cmrfast.data.volume import Volume
from cmrfast.errors import FileError
from cmrfast.methods.preparation import Preparation, Source, prepare_cases
from cmrfast.methods.siamese_lesion.images import LesionMap, classify
from cmrfast.methods.siamese_lesion.pairs import aligned_pairs, lesion_on_t1, lge_lesion, read_t1
from cmrfast.methods.siamese_lesion.patches import PairFeed, PairPatches
from cmrfast.methods.task import (
    Feed,
    Output,
    Picture,
    Prediction,
    Row,
    Task,
    presence,
    rows_of_columns,
)
from cmrfast.metrics import balanced_accuracy
from cmrfast.models.siamese_lesion import Config, Recipe, SiameseLesion
from cmrfast.ops import nt_xent


def _prepare(source: Source[Config, Recipe]) -> Tensors:
    recipe = source.recipe
    return aligned_pairs(
        source.case,
        spacing_mm=recipe.spacing_mm,
        deviations=recipe.deviations,
        border_px=recipe.border_px,
        non_finite=recipe.non_finite,
    )


PAIRS = Preparation(
    "siamese_lesion",
    _prepare,
    images=("t1", "lge"),
    labels=("t1_myocardium", "lge_myocardium"),
    optional_labels=("lge_reference", "lge_lesion"),
    recipe=("spacing_mm", "deviations", "border_px", "non_finite"),
)


class SiameseLesionTask(Task[SiameseLesion, Config, Recipe]):
    """Learns from pairs of patches; predicts from T1 and the myocardium drawn on it alone.

    Scored as in the paper: on patches of slices that are aligned with LGE, in percent.
    """

    preparations = (PAIRS,)
    mixes_cases = True
    predict_batch = 64

    def fit(self, cases: Sequence[Case]) -> dict[str, float]:
        """Mean and SD of T1 over all pixels of the training patients' myocardium, in ms."""
        values = torch.cat(prepare_cases("siamese_lesion", cases, self._myocardial_t1))
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
        """Patches all over the myocardium, and mirrored copies of a fraction of them."""
        patches = self._patches(
            prepare_cases("siamese_lesion", cases, lambda case: self.prepared(PAIRS, case))
        )
        if not len(patches):
            raise FileError("siamese_lesion: no myocardium is large enough for a patch's centre")
        return PairFeed(patches.with_mirrored(self.recipe.flip, seed), seed=seed)

    def arrange(self, feed: Feed, epoch: int, samples: Tensor) -> Tensor:
        """The same samples; with ``distinct_slices``, spread over the slices."""
        if not self.recipe.distinct_slices:
            return samples
        assert isinstance(feed, PairFeed)
        return feed.spread(epoch, samples)

    def predict(self, model: SiameseLesion, case: Case) -> Prediction:
        """The map of lesion probability, where it is above one half, the volume of that in ml, and
        every patch with its centre in the scanner."""
        result = self._classify(model, case)
        lesion = _lesion(result)
        columns = (result.slices, result.center_mm, result.probability)
        patches = [
            {"slice": k, "center_mm": center, "probability": p, "lesion": p > 0.5}
            for k, center, p in zip(*(column.tolist() for column in columns), strict=True)
        ]
        images = {
            "lesion": Output(lesion, case.images["t1"], {1: "lesion"}),
            "lesion_probability": Output(result.map, case.images["t1"]),
        }
        return Prediction(images, {"lesion_ml": lesion.mask_ml(), "patches": patches})

    def require_scorable(self, case: Case) -> None:
        """Raise ``FileError`` where T1, LGE or their masks cannot be used."""
        if _is_paired(case):
            self.prepared(PAIRS, case)

    def evaluate(self, model: SiameseLesion, case: Case) -> list[Row]:
        """A row a patch; see ``evaluate_all``."""
        return self.evaluate_all(model, [case])

    def evaluate_all(self, model: SiameseLesion, cases: Sequence[Case]) -> list[Row]:
        """A row a patch; means over the rows are the paper's scores, but see ``pooled``.

        ``sensitivity`` is NaN where a patch has no lesion, ``specificity`` where it has one. The
        pairing loss of a row is that of its batch, of patches of all patients in random order, as
        in training; patches left over from the last whole batch have none.
        """
        paired = [case for case in cases if _is_paired(case)]
        if not paired:
            return []
        subjects = [self.prepared(PAIRS, case) for case in paired]
        patches = self._patches(subjects)
        names = [c.name for c, s in zip(paired, subjects, strict=True) for _ in s["t1_slice"]]
        t1_slice = torch.cat([pairs["t1_slice"] for pairs in subjects])
        rows: list[Row] = []
        # A fixed order: the pairing loss depends on which patches share a batch.
        for samples in order(0, 0, len(patches)).split(self.recipe.batch):
            batch, volume = patches.cut(samples), patches.volume[samples].cpu()
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
                whole = len(samples) == min(self.recipe.batch, len(patches))
                scores["pairing_loss"] = pairing.expand(len(samples)) * (1 if whole else torch.nan)
            right = 100.0 * (logits.argmax(1) == labels)
            scores["sensitivity"] = torch.where(labels == 1, right, torch.nan)
            scores["specificity"] = torch.where(labels == 0, right, torch.nan)
            ids = {
                "slice": t1_slice[volume].tolist(),
                "patch": samples.tolist(),
                "lesion": labels.tolist(),
            }
            found = zip(labels.tolist(), logits.argmax(1).tolist(), strict=True)
            present = {"lesion": [presence(*patch) for patch in found]}
            rows += rows_of_columns([names[k] for k in volume.tolist()], ids, scores, present)
        return sorted(rows, key=lambda row: row.ids["patch"])

    def pooled(self, rows: Sequence[Row]) -> dict[str, float]:
        """The balanced accuracy of all patches, in percent."""
        lesion = torch.tensor([row.ids["lesion"] for row in rows], dtype=torch.bool)
        positive = torch.tensor([row.scores["probability"] for row in rows]) > 0.5
        return {"balanced": 100 * balanced_accuracy(positive, lesion).balanced}

    def picture(self, model: SiameseLesion, case: Case) -> Picture:
        """T1; where the map is above one half, and the lesion that LGE shows, both labelled 1."""
        t1, _ = read_t1(case, self.recipe.non_finite)
        result = self._classify(model, case)
        reference = None
        if _is_paired(case):
            recipe = self.recipe
            lesion = lge_lesion(
                case,
                deviations=recipe.deviations,
                border_px=recipe.border_px,
                non_finite=recipe.non_finite,
            )[2]
            reference = lesion_on_t1(self.prepared(PAIRS, case), lesion, t1)
        return Picture(t1, _lesion(result), reference, {"lesion": result.map})

    def _classify(self, model: SiameseLesion, case: Case) -> LesionMap:
        mean_ms, sd_ms = self._scale()
        recipe = self.recipe
        return classify(
            model,
            *read_t1(case, recipe.non_finite),
            mean_ms=mean_ms,
            sd_ms=sd_ms,
            clip_sd=recipe.clip_sd,
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
            clip_sd=recipe.clip_sd,
            device=self.device,
        )

    def _myocardial_t1(self, case: Case) -> Tensor:
        """Fitted values of the myocardium, (N,) float64."""
        t1, myocardium = read_t1(case, self.recipe.non_finite)
        values = t1.data[myocardium.data != 0].double()
        failed = torch.isin(values, torch.tensor(FIT_FAILURES, dtype=torch.float64))
        return values[~failed]

    def _scale(self) -> tuple[float, float]:
        if not self.fitted:
            raise ValueError("siamese_lesion: fitted must hold what fit returned; it is empty")
        return self.fitted["t1_mean_ms"], self.fitted["t1_sd_ms"]


def _lesion(result: LesionMap) -> Volume:
    """Where the map is above one half, uint8."""
    return result.map.with_data((result.map.data > 0.5).byte())


def _is_paired(case: Case) -> bool:
    return set(PAIRS.images) <= case.images.keys() and set(PAIRS.labels) <= case.labels.keys()
