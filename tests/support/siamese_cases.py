"""A narrow network of siamese_lesion, for the tests on images."""

from cmrfast.models.siamese_lesion import Config

NARROW = Config(channels=(4, 8, 8, 8), hidden=16, features=8)
