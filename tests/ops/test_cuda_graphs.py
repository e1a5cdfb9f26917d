"""On a GPU: every op is captured in a CUDA graph, and its replay gives the bits of a plain call."""

import copy

import pytest
import torch

from cmrfast import ops
from cmrfast.ops._backend import kernel_of
from tests.support.op_calls import bits, every_op, run, samples, tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def captured(call):
    """A graph of one call, and the tensors that its replay fills."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # first calls may load kernels, which no graph takes
        call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph, output


@every_op
def test_replay_of_an_op_sees_new_values(op):
    if kernel_of(op.name, "CUDA") == "reference":
        pytest.skip("a reference may read values back")
    found = samples(op, "cuda", torch.float32)
    for args in found[:: max(1, len(found) // 6)]:
        changed = copy.deepcopy(args)
        for x in tensors(changed):
            x.copy_(x / 2 if x.is_floating_point() else x)
        expected = run(op, changed)
        graph, output = captured(lambda args=args: op(*args))
        for x, new in zip(tensors(args), tensors(changed), strict=True):
            x.copy_(new)
        graph.replay()
        output = tuple(tensors(args)) if output is None else output
        assert all(map(torch.equal, bits(output), bits(expected)))


def volumes():
    return torch.randn(2, 1, 24, 20, 16, device="cuda")


def starts():
    return torch.randint(-4, 20, (9, 3)).cuda()


def turn():
    return torch.eye(3, 4, device="cuda")[None] + 0.1 * torch.randn(1, 3, 4, device="cuda")


def affine(spacing):
    return torch.diag(torch.tensor([*spacing, 1.0])).double().cuda()


#: Calls as users make them; the tensors come first.
PUBLIC = {
    "extract_patches": (lambda v, s: ops.extract_patches(v, s, (8, 8, 8)), volumes, starts),
    "window_counts": (lambda v, s: ops.window_counts(v[:, 0] > 0, s, (8, 8, 8)), volumes, starts),
    "merge_patches": (
        lambda p, s: ops.merge_patches(p, s, (24, 20, 16)),
        lambda: torch.randn(9, 1, 8, 8, 8, device="cuda"),
        starts,
    ),
    "affine_sample": (ops.affine_sample, volumes, turn),
    "warp_pair": (lambda v, t: ops.warp_pair(v, (v > 0).long(), t)[0], volumes, turn),
    "resample": (
        lambda v, a, b: ops.resample(v[0], a, b, (12, 20, 16), antialias=True),
        volumes,
        lambda: affine((1.0, 1.0, 1.0)),
        lambda: affine((2.0, 1.0, 1.0)),
    ),
    "resample_argmax": (
        lambda v, a, b: ops.resample_argmax(v[:, 0], a, b, (12, 20, 16)),
        volumes,
        lambda: affine((1.0, 1.0, 1.0)),
        lambda: affine((2.0, 1.1, 0.9)),
    ),
    "augment_intensity": (
        lambda v, n, s: ops.augment_intensity(v, 0, n, blur_sd_vox=s, low_res=s, gamma=s),
        volumes,
        lambda: torch.arange(2).cuda(),
        lambda: torch.tensor([0.7, torch.nan]).cuda(),
    ),
    "dice_ce_sums": (
        ops.dice_ce_sums,
        lambda: torch.randn(2, 3, 40, 40, device="cuda"),
        lambda: torch.randint(0, 3, (2, 40, 40)).cuda(),
    ),
    "nt_xent": (
        lambda a, c: ops.nt_xent(a, c, symmetric=True),
        *(lambda: torch.randn(65, 32, device="cuda"),) * 2,
    ),
}


@pytest.mark.parametrize("antialias", [False, True])
def test_replay_of_resample_sees_new_grids(antialias):
    volume, source, target = volumes()[0], affine((1.0, 1.0, 1.0)), affine((2.0, 1.0, 1.0))

    def call():
        return ops.resample(volume, source, target, (12, 20, 16), antialias=antialias)

    graph, output = captured(call)
    source.copy_(affine((0.9, 1.2, 1.1)))
    target.copy_(affine((1.7, 0.8, 1.5)))
    graph.replay()
    replayed = output.clone()
    assert torch.equal(replayed, call())


@pytest.mark.parametrize("name", PUBLIC)
def test_training_through_a_public_op_is_captured(name):
    if ops.backends()[name]["cuda"] == "reference":
        pytest.skip("a reference may read values back")
    call, *builders = PUBLIC[name]
    inputs = [build() for build in builders]
    trained = inputs[0].requires_grad_(name not in ("window_counts", "augment_intensity"))

    def step():
        output = call(*inputs)
        if not output.requires_grad:
            return (output,)
        return output, *torch.autograd.grad(output.square().sum(), trained)

    graph, outputs = captured(step)
    with torch.no_grad():
        trained.mul_(0.5)
    graph.replay()
    replayed = [x.clone() for x in bits(outputs)]
    assert all(map(torch.equal, replayed, bits(step())))
