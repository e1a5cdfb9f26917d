"""nnU-Net's loss of labels in one pass over the logits: cross entropy minus soft Dice."""

from torch import Tensor, nn

from cmrfast.losses import Over, dice_ce_loss


class SegmentationLoss(nn.Module):
    """Cross entropy minus the mean Dice of the foreground classes.

    Equals ``DC_and_CE_loss`` of nnU-Net with its settings (``do_bg=False``, both weights 1) up to
    rounding; for labels without an ignore label, in one process.

    Args:
        batch_dice: one Dice score per class for the whole batch, else one per image and class.
        smooth: added to numerator and denominator of each score.

    Example:
        >>> import torch
        >>> logits = 100 * torch.eye(2).view(1, 2, 1, 2)
        >>> SegmentationLoss(batch_dice=True)(logits, torch.tensor([[[[0, 1]]]])).item()
        -1.0
    """

    def __init__(self, *, batch_dice: bool, smooth: float = 1e-5) -> None:
        super().__init__()
        self.batch_dice, self.smooth = batch_dice, smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits (B, K, *S) and labels (B, 1, *S), a scalar."""
        over: Over = "batch" if self.batch_dice else "image"
        return dice_ce_loss(logits, target, over=over, smooth=self.smooth) - 1
