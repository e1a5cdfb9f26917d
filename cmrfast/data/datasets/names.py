"""Names of sequences and structures as data sets spell them, each with the one used here."""

import re
from collections.abc import Mapping

#: Sequence → other names of it.
SEQUENCES: Mapping[str, tuple[str, ...]] = {
    "lge": ("de", "late_gadolinium_enhancement", "late_gadolinium", "psir", "lge_psir"),
    "c0": ("bssfp", "ssfp", "cine"),
    "t2": ("t2w", "stir", "t2_stir"),
    "t1": ("t1map", "t1_map", "t1_mapping"),
    "earlier": ("baseline", "earlier_flair", "flair_earlier", "flair_time01", "flair_0"),
    "later": ("followup", "follow_up", "later_flair", "flair_later", "flair_time02", "flair_1"),
}
#: Structure → other names of it.
STRUCTURES: Mapping[str, tuple[str, ...]] = {
    "lv": ("left_ventricle", "lv_cavity", "lv_blood_pool", "lv_pool", "lvc"),
    "rv": ("right_ventricle", "rv_cavity", "rv_blood_pool", "rv_pool", "rvc"),
    "myocardium": ("myo", "lv_myocardium", "lv_myo", "lvm", "normal_myocardium"),
    "scar": ("infarct", "infarction", "lv_scar", "myocardial_scar"),
    "no_reflow": ("noreflow", "mvo", "microvascular_obstruction"),
    "edema": ("oedema", "lv_edema"),
    "new_lesion": ("new_lesions", "newlesion", "newlesions"),
    "lesion": ("lesions",),
    "reference": ("remote", "healthy", "healthy_myocardium"),
    "brain": ("brainmask", "brain_mask"),
    "consensus": ("ground_truth",),
    **{f"rater{n}": (f"expert{n}", f"ground_truth_expert{n}") for n in range(1, 5)},
}
#: Names of masks that say nothing about their values.
UNSPECIFIC = ("label", "labels", "mask", "seg", "segmentation", "dseg", "gt", "manual")


def plain(name: str) -> str:
    """A name in lower case, its words joined by underscores.

    Example:
        >>> plain("No-reflow"), plain("LGE (PSIR)")
        ('no_reflow', 'lge_psir')
    """
    return re.sub(r"[\W_]+", "_", name.lower()).strip("_")


def sequence_name(name: str) -> str:
    """The common name of a sequence, in lower case."""
    return _common(name, SEQUENCES)


def structure_name(name: str) -> str:
    """The common name of a structure, in lower case."""
    return _common(name, STRUCTURES)


def split_label(name: str) -> tuple[str, str] | None:
    """The image and the structure that a label's name consists of; None for another name.

    The image is empty where the name has none, the structure where the name does not say it.

    Example:
        >>> split_label("LGE scar"), split_label("scar"), split_label("C0_label")
        (('lge', 'scar'), ('', 'scar'), ('c0', ''))
    """
    words = plain(name).split("_")
    for count in range(len(words)):  # the longest structure first
        structure = structure_name("_".join(words[count:]))
        image = "_".join(words[:count])
        if structure in STRUCTURES or structure in UNSPECIFIC:
            return image, "" if structure in UNSPECIFIC else structure
    return None


def _common(name: str, names: Mapping[str, tuple[str, ...]]) -> str:
    spelled = plain(name)
    return next((common for common, others in names.items() if spelled in others), spelled)
