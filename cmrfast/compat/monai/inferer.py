"""MONAI's SlidingWindowInferer on ``sliding_window``."""

from collections.abc import Callable
from typing import Any

import torch
from monai import inferers
from monai.data import MetaTensor
from monai.utils import convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from torch import Tensor

from cmrfast.compat.monai._check import refuse
from cmrfast.infer import sliding_window


class SlidingWindowInferer(inferers.SlidingWindowInferer):
    """``monai.inferers.SlidingWindowInferer``; the same arguments and results.

    Windows are cut and merged in one pass each, sums are float32 at least, and no gradient is kept.
    ``buffer_steps``, ``buffer_dim`` and ``cache_roi_weight_map`` change no result and are ignored:
    the device of the network holds one batch of windows in any case. Raises for ``progress``,
    ``with_coord``, ``condition``, and outputs of another size than the windows.

    Example:
        >>> import torch
        >>> inferer = SlidingWindowInferer((16, 16), sw_batch_size=4, overlap=0.5, mode="gaussian")
        >>> image = torch.rand(1, 1, 40, 40)
        >>> torch.allclose(inferer(image, lambda windows: windows + 1), image + 1)
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("progress", "with_coord"):
            if getattr(self, name):
                refuse("SlidingWindowInferer", name, "False", True)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Predict whole images.

        Args:
            inputs: (B, C, *S), a tensor or MetaTensor.
            network: from windows, and the other arguments, to predictions of the windows' size.
            args: further arguments of the network.
            kwargs: the same by name; ``device`` is where the result is merged.

        Returns:
            (B, K, *S), or a tuple or dict of such, of the inputs' dtype and with their metadata.
        """
        if kwargs.pop("condition", None) is not None:
            refuse("SlidingWindowInferer", "condition", "None", "a tensor")
        for name in ("buffer_steps", "buffer_dim"):
            kwargs.pop(name, None)
        device = kwargs.pop("device", self.device)
        space = inputs.shape[2:]
        if device is None and self.cpu_thresh is not None and space.numel() > self.cpu_thresh:
            device = "cpu"
        images = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        padding: Any = getattr(self.padding_mode, "value", self.padding_mode)
        network_device = self.sw_device or images.device

        def predict(windows: Tensor) -> Any:
            return network(windows.to(network_device), *args, **kwargs)

        merged = sliding_window(
            predict,
            images,
            fall_back_tuple(self.roi_size, space),
            [float(share) for share in ensure_tuple_rep(self.overlap, len(space))],
            batch=self.sw_batch_size,
            window=self.mode.value,
            sigma=self.sigma_scale,
            padding=padding,
            value=self.cval,
            merge_device=device,
        )
        if isinstance(merged, list | tuple):  # as MONAI packs them
            merged = merged[0] if len(merged) == 1 else tuple(merged)
        like = images
        if isinstance(inputs, MetaTensor):
            like = MetaTensor(torch.empty(0)).copy_meta_from(inputs, copy_attr=False)
        return convert_to_dst_type(merged, like, device=device)[0]
