"""Written by packaging/model_stubs.py from the fields of each Config."""

from collections.abc import Mapping
from typing import Any, Literal, overload

from torch import nn

from cmrfast.models.adversarial_transfer import AdversarialTransfer
from cmrfast.models.joint_registration import JointRegistration
from cmrfast.models.joint_scar import JointScar
from cmrfast.models.new_lesions import NewLesions
from cmrfast.models.siamese_lesion import SiameseLesion

__all__ = ["MODELS", "build"]

_CLASSES: dict[str, str]
MODELS: Mapping[str, type[nn.Module]]

@overload
def build(
    name: Literal["siamese_lesion"],
    *,
    variant: Literal["decoupled", "siamese", "partial", "pure"] = ...,
    patch: int = ...,
    shared_layers: tuple[int, ...] = ...,
    norm: Literal["lrn", "batch"] = ...,
    channels: tuple[int, int, int, int] = ...,
    hidden: int = ...,
    features: int = ...,
    classifier: tuple[int, int] = ...,
    classes: int = ...,
    dropout_conv: float = ...,
    dropout_full: float = ...,
    temperature: float = ...,
) -> SiameseLesion: ...
@overload
def build(
    name: Literal["joint_scar"],
    *,
    image: int = ...,
    classes: int = ...,
    skips: int = ...,
    dropout: float = ...,
    root: int = ...,
    units: tuple[int, int, int] = ...,
    width: int = ...,
    depth: int = ...,
    heads: int = ...,
    hidden: int = ...,
    decoder: tuple[int, int, int, int, int] = ...,
    variant: Literal["jdl", "two_step", "direct", "mtl"] = ...,
    detach_mask: bool = ...,
    myocardium_weight: float = ...,
    dice_weight: float = ...,
    dice_over: Literal["image", "batch"] = ...,
) -> JointScar: ...
@overload
def build(
    name: Literal["joint_registration"],
    *,
    variant: Literal["joint", "stn"] = ...,
    fusion: Literal["feature", "image"] = ...,
    widths: tuple[int, ...] = ...,
    head_width: int = ...,
    head_grid: int = ...,
    hidden: int = ...,
    classes: int = ...,
    alpha: float = ...,
    registration_weight: float = ...,
    cine_weight: float = ...,
    lge_weight: float = ...,
) -> JointRegistration: ...
@overload
def build(
    name: Literal["new_lesions"],
    *,
    preset: Literal["a", "b"] = ...,
    dropout: float = ...,
    aux_weight: float = ...,
    aux_on: Literal["new", "all"] = ...,
) -> NewLesions: ...
@overload
def build(
    name: Literal["adversarial_transfer"],
    *,
    variant: Literal["u_a_t", "u_a", "u"] = ...,
    gan: Literal["nonsaturating", "minmax"] = ...,
    disc: Literal["plain", "residual"] = ...,
    size: int = ...,
    width: int = ...,
    dilations: tuple[int, int, int] = ...,
    disc_widths: tuple[int, ...] = ...,
    disc_l2: float = ...,
    classes: int = ...,
    individual_weight: float = ...,
    adversarial_weight: float = ...,
    g_steps: int = ...,
) -> AdversarialTransfer: ...
@overload
def build(name: str, **changes: Any) -> nn.Module: ...
