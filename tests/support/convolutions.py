"""How convolutions are held against torch's in double."""

import pytest
import torch


def both(ours, theirs, args):
    """Output and gradients of ours, and of theirs in double."""
    # Not negative, so that no sum over a whole image is a difference near 0.
    grad = torch.rand(args[0].shape[0], args[1].shape[0], *args[0].shape[2:])
    results = []
    for call, dtype in ((ours, None), (theirs, torch.float64)):
        leaves = [a.detach().to(dtype or a.dtype).requires_grad_() for a in args]
        out = call(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))))
    return results


def close(found, wanted):
    """To 1e-5 of the largest entry; below that float32's own roundings begin."""
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        largest = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * largest)


def exported(op, args, **options):
    """The functions that an exported program of the op calls."""

    class Call(torch.nn.Module):
        def forward(self, *args):
            return op(*args, **options)

    program = torch.export.export(Call(), args)
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def assert_refused(op, refused):
    """The op names what is wrong with the arguments of each row of ``refused``."""
    for args, error, message in refused:
        with pytest.raises(error, match=f"^{op.__name__}: {message}"):
            op(*args)
