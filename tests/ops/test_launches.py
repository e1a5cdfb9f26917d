"""How many operations a public call gives a GPU to run: each costs a launch, however small."""

import importlib
import pkgutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cmrfast.ops
from cmrfast import losses, ops

#: Operations that return a view, or memory that nothing has written yet.
FREE = {
    *("_reshape_alias", "_unsafe_view", "alias", "as_strided", "detach", "diagonal", "expand"),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
    *("transpose", "unbind", "unfold", "unsqueeze", "view"),
    *("empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "promote_types"),
}
#: The most operations of a call, and those that its gradient adds.
FORWARD, BACKWARD = 3, 4


class Count(TorchDispatchMode):
    """Counts operations; what an op of ours runs inside is its own affair."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.inside = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, name = func._schema.name.split("::")
        outermost = not self.inside
        if outermost and name not in FREE:
            self.names.append(name)
        self.inside = self.inside or namespace == "cmrfast"
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.inside = self.inside and not outermost


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Values of tensors are not read, as on a GPU."""
    for module in pkgutil.iter_modules(cmrfast.ops.__path__, "cmrfast.ops."):
        if not module.ispkg:
            loaded = importlib.import_module(module.name)
            if hasattr(loaded, "values_readable"):
                monkeypatch.setattr(loaded, "values_readable", lambda *tensors: False)


EYE = torch.eye(4, dtype=torch.float64)
LABELS = torch.zeros(2, 8, 8, dtype=torch.int64)
MASKS = torch.zeros(2, 4, 8, 8, dtype=torch.uint8)
START = torch.zeros(5, 3, dtype=torch.int64)
CENTER = torch.zeros(5, 3)
CALLS = {
    "dice_ce_loss": (lambda x: losses.dice_ce_loss(x, LABELS), (2, 4, 8, 8)),
    "batch_dice_loss": (lambda x: losses.batch_dice_loss(x, MASKS), (2, 4, 8, 8)),
    "nt_xent": (lambda x: ops.nt_xent(x, x), (8, 16)),
    "resample": (lambda x: ops.resample(x, EYE, 1.1 * EYE, (8, 8, 8)), (1, 8, 8, 8)),
    "extract_patches": (
        lambda x: ops.extract_patches(x, START, (4, 4, 4), shift=0.3, scale=1.7),
        (1, 8, 8, 8),
    ),
    "sample_patches": (
        lambda x: ops.sample_patches(
            x, CENTER, EYE[None, :3, :3].expand(5, 3, 3), (4, 4, 4), shift=0.3, scale=1.7
        ),
        (1, 8, 8, 8),
    ),
}


SAMPLE, ONES = torch.arange(2), torch.ones(2)
#: Those without a gradient.
FORWARD_ALONE = {
    "resample_argmax": (lambda x: ops.resample_argmax(x, EYE, 1.1 * EYE, (8, 8, 8)), (3, 8, 8, 8)),
    "augment_intensity": (
        lambda x: ops.augment_intensity(x, 0, SAMPLE, noise_sd=ONES, gamma=ONES),
        (2, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", FORWARD_ALONE)
def test_a_call_without_gradient_launches_no_more_than_its_ceiling(name, as_on_a_gpu):
    call, shape = FORWARD_ALONE[name]
    x = torch.randn(*shape)
    with Count() as forward:
        call(x)
    assert len(forward.names) <= FORWARD, forward.names


@pytest.mark.parametrize("name", CALLS)
def test_a_call_launches_no_more_than_its_ceiling(name, as_on_a_gpu):
    call, shape = CALLS[name]
    x = torch.randn(*shape)
    with Count() as forward:
        call(x)
    x.requires_grad_()
    with Count() as both:
        output = call(x)
        torch.autograd.grad(output, x, torch.ones_like(output))
    assert len(forward.names) <= FORWARD, forward.names
    assert len(both.names) <= len(forward.names) + BACKWARD, both.names


def test_what_an_op_runs_inside_is_not_counted():
    x = torch.randn(1, 4, 8, 8)
    with Count() as count:
        (losses.batch_dice_loss(x, MASKS[:1]) + 1).view(1, 1)
    assert count.names == ["dice_ce_sums", "dice_ce_loss", "add"]
