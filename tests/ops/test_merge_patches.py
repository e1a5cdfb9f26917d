"""What a reference cannot show of merge_patches and PatchMerger."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfast import ops
from cmrfast.ops._backend import STATUS
from cmrfast.ops._op import OPS


@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
@settings(max_examples=25, deadline=None)
def test_merging_extracted_patches_gives_the_volume_back(seed, axes):
    torch.manual_seed(seed)
    shape = tuple(torch.randint(4, 12, (axes,)).tolist())
    size = tuple(int(torch.randint(2, n + 1, ())) for n in shape)
    volume = torch.randn(2, *shape)
    start = ops.cover_starts(shape, size, overlap=1)
    patches = ops.extract_patches(volume, start, size)
    weight = torch.rand(size) + 0.1
    torch.testing.assert_close(ops.merge_patches(patches, start, shape), volume)
    torch.testing.assert_close(ops.merge_patches(patches, start, shape, weight=weight), volume)


def test_uncovered_voxels_and_zero_weights_are_fill():
    patches, start = torch.ones(1, 1, 2, 2), torch.tensor([[0, 0]])
    merged = ops.merge_patches(patches, start, (3, 3), fill=-2.0)
    assert merged.flatten().tolist() == [1, 1, -2, 1, 1, -2, -2, -2, -2]
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    merged = ops.merge_patches(patches, start, (2, 2), weight=weight, fill=5.0)
    assert merged.flatten().tolist() == [1, 5, 5, 5]


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_merger_equals_merging_at_once(batch):
    shape, size = (11, 13, 7), (4, 5, 3)
    start = ops.cover_starts(shape, size, overlap=(1, 2, 0))
    patches, weight = torch.randn(len(start), 2, *size), torch.rand(size)
    merger = ops.PatchMerger(shape, 2, size, weight=weight)
    for part, at in zip(patches.split(batch), start.split(batch), strict=True):
        merger.add(part, at)
    whole = ops.merge_patches(patches, start, shape, weight=weight, fill=0.5)
    torch.testing.assert_close(merger.merged(fill=0.5), whole)


def test_merger_holds_no_gradient_and_takes_half_types():
    merger = ops.PatchMerger((4, 4), 1, (4, 4))
    merger.add(torch.ones(1, 1, 4, 4, requires_grad=True), torch.zeros(1, 2).long())
    merger.add(torch.ones(1, 1, 4, 4, dtype=torch.bfloat16) * 3, torch.zeros(1, 2).long())
    assert not merger.merged().requires_grad
    assert (merger.merged() == 2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_sum_in_float32(dtype):
    patches = torch.full((4096, 1, 1, 2), 1.0, dtype=dtype)
    merged = ops.merge_patches(patches, torch.zeros(4096, 2).long(), (1, 2))
    assert merged.dtype == dtype
    assert (merged == 1).all()


def test_agrees_with_torchio():
    tio = pytest.importorskip("torchio")
    shape, size, overlap = (20, 18, 16), (8, 8, 8), (2, 2, 2)
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.randn(1, *shape)))
    sampler = tio.GridSampler(subject, size, overlap)
    start = ops.cover_starts(shape, size, overlap)
    ours = {tuple(row) for row in start.tolist()}
    assert ours == {tuple(int(v) for v in row[:3]) for row in sampler.locations}
    patches = torch.randn(len(start), 1, *size)
    aggregator = tio.GridAggregator(sampler, overlap_mode="average")
    aggregator.add_batch(patches, torch.cat((start, start + 8), 1))
    merged = ops.merge_patches(patches, start, shape)
    torch.testing.assert_close(merged, aggregator.get_output_tensor())


def test_compiles():
    start = ops.cover_starts((9, 9), (4, 4), overlap=1)
    patches = torch.randn(len(start), 2, 4, 4)

    def merge(patches, start):
        return ops.merge_patches(patches, start, (9, 9))

    compiled = torch.compile(merge, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(patches, start), merge(patches, start))
    torch.testing.assert_close(compiled(patches[1:], start[1:]), merge(patches[1:], start[1:]))


PATCHES, START = torch.ones(2, 1, 3, 3), torch.zeros(2, 2).long()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((PATCHES.long(), START, (4, 4)), {}, TypeError, "patches must be a floating tensor"),
        ((PATCHES[0, 0], START, (4, 4)), {}, ValueError, "with 2 or 3 space axes"),
        ((PATCHES, START[:1], (4, 4)), {}, ValueError, r"one row per patch \(2\); got 1"),
        ((PATCHES, START, (4, 4, 4)), {}, ValueError, "shape must have one entry per space axis"),
        ((PATCHES, START, (4, 0)), {}, ValueError, "shape must be at least 1"),
        ((PATCHES, START.float(), (4, 4)), {}, TypeError, "start_vox must be an integer tensor"),
        ((PATCHES, START, (4, 4)), {"weight": torch.ones(3)}, ValueError, "weight must have the"),
    ],
)
def test_messages(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.merge_patches(*arguments, **options)


def test_merger_messages():
    merger = ops.PatchMerger((4, 4), 1, (3, 3))
    with pytest.raises(ValueError, match=r"patches must be \(P, 1, 3, 3\); got \(2, 2, 3, 3\)"):
        merger.add(PATCHES.expand(2, 2, 3, 3), START)
    with pytest.raises(ValueError, match="channels must be at least 1; got 0"):
        ops.PatchMerger((4, 4), 0, (3, 3))
    with pytest.raises(ValueError, match="size must have one entry per space axis"):
        ops.PatchMerger((4, 4), 1, (3,))


def test_complex_weights_and_float_shapes_are_refused():
    patches, start = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.int64)
    weight = torch.ones(2, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="merge_patches: weight must be a real tensor"):
        ops.merge_patches(patches, start, (2, 2), weight=weight)
    with pytest.raises(TypeError, match="PatchMerger: weight must be a real tensor"):
        ops.PatchMerger((2, 2), 1, (2, 2), weight=weight)
    with pytest.raises(TypeError, match=r"^merge_patches: shape must be integers; got \(2\.0, 2\)"):
        ops.merge_patches(patches, start, (2.0, 2))


@pytest.mark.parametrize("patches_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("weight_dtype", [torch.float16, torch.float32, torch.float64])
def test_merger_with_a_weight_of_another_dtype(patches_dtype, weight_dtype):
    """The kernel once read the weight in the dtype of the sums, whatever its own."""
    start = torch.tensor([[0, 0], [1, 1]])
    patches = torch.arange(8.0).view(2, 1, 2, 2)
    weight = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
    merger = ops.PatchMerger((3, 3), 1, (2, 2), weight=weight.to(weight_dtype))
    merger.add(patches.to(patches_dtype), start)
    wanted = ops.merge_patches(patches, start, (3, 3), weight=weight)
    torch.testing.assert_close(merger.merged().float(), wanted)


@pytest.mark.skipif(STATUS.cpu_level is None, reason="native kernels are not in use")
def test_kernel_refuses_a_weight_that_does_not_fit():
    patches, start = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, dtype=torch.int64)
    for weight in (torch.ones(2, 2).double(), torch.ones(2, 1)):
        with pytest.raises(RuntimeError):
            OPS["merge_patches"](patches, start, weight, (2, 2), 0.0)


def test_the_memory_of_the_sums_can_be_reused():
    weight = torch.rand(3, 3)
    mergers = [ops.PatchMerger((5, 6), 2, (3, 3), weight=weight) for _ in range(2)]
    patches = torch.randn(2, 2, 3, 3)
    for merger in mergers:
        merger.add(patches, torch.tensor([[0, 0], [1, 2]]))
    kept, reused = mergers[0].merged(-1.0), mergers[1].merged(-1.0, reuse=True)
    assert torch.equal(kept, reused)
    assert (kept[:, 4] == -1).all()
    assert torch.equal(mergers[0].merged(-1.0), kept)  # the sums are as they were


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_weights_of_half_patches_count(dtype):
    line = torch.exp(-((torch.arange(16) - 7.5) ** 2) / 8)
    weight = line[:, None, None] * line[:, None] * line  # down to 7e-10
    start = torch.tensor([[0, 0, 0]])
    merged = ops.merge_patches(
        torch.ones(1, 1, 16, 16, 16, dtype=dtype), start, (16, 16, 16), weight=weight
    )
    assert merged.dtype == dtype
    assert (merged == 1).all()


def test_a_merger_whose_sums_were_reused_is_at_its_end():
    merger = ops.PatchMerger((4, 4), 2, (4, 4))
    merger.add(torch.rand(1, 2, 4, 4), torch.zeros(1, 2, dtype=torch.int64))
    merger.merged(reuse=True)
    for method in ("add", "merged", "labels"):
        arguments = (torch.rand(1, 2, 4, 4), torch.zeros(1, 2).long()) if method == "add" else ()
        with pytest.raises(ValueError, match=rf"{method}: merged\(reuse=True\) was called"):
            getattr(merger, method)(*arguments)


def test_a_merger_takes_patches_of_its_own_device():
    merger = ops.PatchMerger((4, 4), 1, (2, 2))
    with pytest.raises(ValueError, match="one device; got patches on meta, sums on cpu"):
        merger.add(torch.empty(1, 1, 2, 2, device="meta"), torch.zeros(1, 2).long().to("meta"))
    weight = torch.ones(2, 2, device="meta")
    assert ops.PatchMerger((4, 4), 1, (2, 2), weight=weight).merged().device.type == "meta"
