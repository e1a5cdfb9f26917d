"""The same case on the references, in a process of its own, and that process."""

import atexit
import io
import os
import pickle
import random
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from tests.attack.ops.outcome import run_case


class Reference:
    """The process whose ops run their references; started by the first case."""

    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def outcome(cls, state: Any) -> list[Tensor] | Exception:
        """What the case of a random state gives there."""
        if cls.process is None or cls.process.poll() is not None:
            cls.process = subprocess.Popen(
                [sys.executable, "-m", "tests.attack.ops"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "CMRFAST_BACKEND": "reference"},
            )
            atexit.register(cls.process.kill)
        assert cls.process.stdin is not None
        assert cls.process.stdout is not None
        try:
            pickle.dump(state, cls.process.stdin)
            cls.process.stdin.flush()
            saved = io.BytesIO(pickle.load(cls.process.stdout))
        except BaseException:  # also a time-out: the answer would go to the next case
            cls.process.kill()
            cls.process = None
            raise
        outcome: list[Tensor] | Exception = torch.load(saved, weights_only=False)
        return outcome


def serve() -> None:
    """Serve outcomes: random states come in, results go out."""
    while True:
        try:
            state = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        numbers = random.Random()
        numbers.setstate(state)
        saved = io.BytesIO()
        torch.save(run_case(numbers)[1], saved)
        pickle.dump(saved.getvalue(), sys.stdout.buffer)
        sys.stdout.buffer.flush()
