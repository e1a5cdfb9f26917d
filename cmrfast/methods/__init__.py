"""The five methods: everything of one paper between files and its network, in one folder each."""

from cmrfast.methods.cases import case_of_files, match_cases, open_cases, trainable
from cmrfast.methods.method import (
    AnyMethod,
    AnyTask,
    LogUniform,
    Method,
    Objective,
    Published,
    Uniform,
)
from cmrfast.methods.preparation import Preparation, Source, prepare_cases
from cmrfast.methods.registry import get
from cmrfast.methods.task import Batch, Feed, Output, Picture, Prediction, Row, Task

__all__ = [
    "AnyMethod",
    "AnyTask",
    "Batch",
    "Feed",
    "LogUniform",
    "Method",
    "Objective",
    "Output",
    "Picture",
    "Prediction",
    "Preparation",
    "Published",
    "Row",
    "Source",
    "Task",
    "Uniform",
    "case_of_files",
    "get",
    "match_cases",
    "open_cases",
    "prepare_cases",
    "trainable",
]
