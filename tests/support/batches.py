"""What the batches of every feed keep."""

from concurrent.futures import ThreadPoolExecutor

import torch


def pure_batch(feed, epoch, samples):
    """A batch, once it is the same in another order, among others, alone and in any thread."""
    batch = feed.batch(epoch, torch.tensor(samples))
    among = feed.batch(epoch, torch.arange(max(samples) + 1))
    with ThreadPoolExecutor(2) as pool:
        alone = list(pool.map(lambda n: feed.batch(epoch, torch.tensor([n])), samples))
    for name, values in batch.items():
        assert torch.equal(values, among[name][samples])
        assert torch.equal(values, torch.cat([one[name] for one in alone]))
    return batch
