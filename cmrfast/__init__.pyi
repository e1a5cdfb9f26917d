"""The parts that ``cmrfast.__getattr__`` imports on first use."""

from cmrfast import data as data
from cmrfast import infer as infer
from cmrfast import losses as losses
from cmrfast import methods as methods
from cmrfast import metrics as metrics
from cmrfast import models as models
from cmrfast import ops as ops
from cmrfast import runs as runs
from cmrfast import train as train
from cmrfast import viz as viz
from cmrfast.errors import CheckpointError as CheckpointError
from cmrfast.errors import FileError as FileError

__version__: str
