"""What is in the machine code of a kernel: its instructions, loops, and which kinds they are of."""

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

_FUNCTION = re.compile(r"Function : (\w+)")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([^;]+?)\s*;")
_JUMP = re.compile(r"BRA\b.*?(0x[0-9a-f]+)")
#: Kinds of instructions, by the start of their names.
KINDS = {
    "calls": r"RET",  # a CALL without one is how a loop is left
    "local memory": r"LDL|STL",
    "float64": r"D(ADD|MUL|FMA|SETP|MNMX)|(I2F|F2I|F2F|FRND)\.\S*F?64",
    "tensor cores": r"HGMMA|HMMA|DMMA",
    "tensor cores of Hopper": r"HGMMA",
    "128-bit loads": r"(LDG|LDGSTS)\S*\.128",
    "128-bit stores": r"STG\S*\.128",
    "loads": r"LDG|LDGSTS|UTMALDG",
    "stores": r"STG|UTMASTG",
}


@dataclass(frozen=True)
class Code:
    """Instructions in order, each with its address; of a whole function or of a loop in it."""

    instructions: tuple[tuple[int, str], ...]

    def __len__(self) -> int:
        return len(self.instructions)

    def count(self, kind: str) -> int:
        """How many instructions are of a kind."""
        pattern = re.compile(KINDS[kind])
        return sum(bool(pattern.match(text)) for _, text in self.instructions)

    @cached_property
    def names(self) -> Counter[str]:
        """How often each instruction occurs, without its operands."""
        return Counter(text.split()[0] for _, text in self.instructions)

    @cached_property
    def loops(self) -> list["Code"]:
        """The loops, each from the target of a backward jump to the jump."""
        loops = []
        for address, text in self.instructions:
            jump = _JUMP.match(text)
            target = int(jump[1], 16) if jump else address
            if target < address:
                body = [line for line in self.instructions if target <= line[0] <= address]
                loops.append(Code(tuple(body)))
        return loops


def find_cuobjdump() -> Path | None:
    """NVIDIA's disassembler: on the path, or the one inside Triton."""
    if on_path := shutil.which("cuobjdump"):
        return Path(on_path)
    triton = find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    inside = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump"
    return inside if inside.exists() else None


def disassemble(binary: Path, architecture: int) -> dict[str, Code]:
    """The code of every function in a cubin, or in a library with several, by its mangled name."""
    command = [str(find_cuobjdump()), "-sass", "-arch", f"sm_{architecture}", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return functions(text)


def functions(text: str) -> dict[str, Code]:
    """The functions in the disassembler's output."""
    _, *parts = _FUNCTION.split(text)
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        lines = _INSTRUCTION.findall(body)
        found[name] = Code(tuple((int(address, 16), line) for address, line in lines))
    return found
