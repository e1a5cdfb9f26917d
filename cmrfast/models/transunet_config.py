"""Configuration of a TransUNet."""

from dataclasses import dataclass

from cmrfast.models._check import require_shares


@dataclass(frozen=True)
class Config:
    """P: the paper; C: the authors' code of R50-ViT-B/16, whose widths tests shrink; D: ours."""

    image: int = 224  # P 4.2: side in pixels, a multiple of 16
    classes: int = 2  # D: channels of the logits
    skips: int = 3  # P 4.4: skips that the decoder reads, coarsest first; at most 3
    dropout: float = 0.1  # C: after the position embeddings and in the MLP; attention has none
    root: int = 64  # C: channels after the first convolution, a multiple of 32
    units: tuple[int, int, int] = (3, 4, 9)  # C: bottlenecks in each of the three blocks
    width: int = 768  # C: features of a token
    depth: int = 12  # C: transformer layers
    heads: int = 12  # C: attention heads
    hidden: int = 3072  # C: hidden units of the MLP
    decoder: tuple[int, int, int, int, int] = (512, 256, 128, 64, 16)  # C: channels per level

    def __post_init__(self) -> None:
        for name, value, multiple in (("image", self.image, 16), ("root", self.root, 32)):
            if value < 32 or value % multiple:
                raise ValueError(
                    f"transunet: {name} must be a multiple of {multiple}, at least 32; got {value}"
                )
        if self.width % self.heads:
            raise ValueError(
                f"transunet: width must be a multiple of heads ({self.heads}); got {self.width}"
            )
        if not 0 <= self.skips <= 3:
            raise ValueError(f"transunet: skips must be 0 to 3; got {self.skips}")
        require_shares("transunet", dropout=self.dropout)

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image // 16
