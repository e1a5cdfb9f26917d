"""What a TransUNet is made from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """C: the authors' code of R50-ViT-B/16; widths may shrink for studies and tests."""

    image: int = 224  # P 4.2: side in pixels, a multiple of 16
    classes: int = 2  # K
    skips: int = 3  # P 4.4: of the three skips, how many the decoder reads, coarsest first
    dropout: float = 0.1  # C: behind positions and in the MLP; attention has none
    root: int = 64  # C: channels behind the first convolution, a multiple of 32
    units: tuple[int, int, int] = (3, 4, 9)  # C: bottlenecks of the three blocks
    width: int = 768  # C: of a token
    depth: int = 12  # C: transformer layers
    heads: int = 12  # C
    hidden: int = 3072  # C: of the MLP
    decoder: tuple[int, int, int, int, int] = (512, 256, 128, 64, 16)  # C

    def __post_init__(self) -> None:
        for name, value, step in (("image", self.image, 16), ("root", self.root, 32)):
            if value < 32 or value % step:
                raise ValueError(
                    f"transunet: {name} must be a multiple of {step}, at least 32; got {value}"
                )
        if self.width % self.heads:
            raise ValueError(
                f"transunet: width must be a multiple of heads ({self.heads}); got {self.width}"
            )
        if not 0 <= self.skips <= 3:
            raise ValueError(f"transunet: skips must be 0 to 3; got {self.skips}")

    @property
    def grid(self) -> int:
        """Tokens along one side."""
        return self.image // 16
