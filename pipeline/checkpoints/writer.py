"""The process that writes a worker's checkpoints, so that the worker can go on training meanwhile.

It is run as a file, and needs the standard library and safetensors alone: it is there in a tenth of a second and holds
no copy of what it writes. What is to be written lies in memory that both processes see, an anonymous file given by its
number on the command line; a line of JSON on standard input says where in it, and a line on standard output what became
of it. It ends with its input: also when the worker is gone, and then after the file that it is writing.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

from safetensors import TensorSpec, serialize_file

_YIELDS = 10  # niceness: training goes first


def write(memory: int, job: dict[str, Any]) -> dict[str, Any]:
    """Writes one safetensors file: there whole, or not at all.

    Args:
        memory: file descriptor of the shared memory.
        job: ``path``; ``size`` of the memory; ``tensors``, for each name [dtype, shape, offset, bytes]; ``metadata``.

    Returns:
        ``sha256`` and ``bytes`` of the file.
    """
    path = Path(job["path"])
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with mmap.mmap(memory, job["size"]) as seen:
        first = ctypes.c_char.from_buffer(seen)
        base = ctypes.addressof(first)
        tensors = {
            name: TensorSpec(dtype=dtype, shape=shape, data_ptr=base + offset, data_len=length)
            for name, (dtype, shape, offset, length) in job["tensors"].items()
        }
        try:
            part.touch()
            mode = part.stat().st_mode  # safetensors makes a file anew that its owner alone may read
            serialize_file(tensors, str(part), job["metadata"])
            part.chmod(mode)
            with part.open("rb+") as written:
                os.fsync(written.fileno())
                digest, size = hashlib.file_digest(written, "sha256").hexdigest(), written.seek(0, os.SEEK_END)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
            del first, tensors  # the memory cannot be let go of while they point into it
    return {"sha256": digest, "bytes": size}


def main() -> None:
    """Writes what standard input asks for, file after file."""
    os.nice(_YIELDS)
    memory = int(sys.argv[1])
    for line in sys.stdin:
        try:
            answer = write(memory, json.loads(line))
        except Exception as error:  # noqa: BLE001 (whatever it is, the worker says it and goes on)
            answer = {"error": getattr(error, "strerror", None) or str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
