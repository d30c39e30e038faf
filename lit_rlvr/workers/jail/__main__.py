"""A jail for one run of an untrusted Python program; `sandbox.py` starts this folder as a script.

`python jail FD PID`: FD holds the request as JSON and receives a note once the jail is closed; PID is the parent. It
imports nothing from lit-rlvr.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import errno
import json
import os
import random
import resource
import signal
import sys
from contextlib import suppress
from types import ModuleType
from typing import Any

import landlock
import seccomp

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
OPEN_FILES = 64
INTEGER_DIGITS = 50_000
RECURSION = 50_000
LIBRARY = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
"""LiveCodeBench's pre-imports for programs: the modules, and all their names."""
IMPORTS = "\n".join([f"from {name} import *" for name in LIBRARY] + [f"import {name}" for name in LIBRARY])


def main() -> None:
    """Read the request, close the jail, report that, run the program."""
    with open(int(sys.argv[1]), "r+b", buffering=0) as channel:
        request = json.load(channel)
        limit(request["cpu_seconds"], request["memory_mb"], request["output_bytes"])
        confine(int(sys.argv[2]), request["readable"])
        channel.write(b"ready")  # appended; the program does not have this file
    sys.path[:] = [*sys.path[1:], *request["packages"]]
    sys.argv[:] = [""]
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as every script has them
    sys.set_int_max_str_digits(INTEGER_DIGITS)
    sys.setrecursionlimit(RECURSION)
    random.seed(0)  # a program that draws numbers gets the same verdict every time
    try:
        if request["function"]:
            call(request["program"], request["function"])
        else:
            execute(request["program"], "__main__")
    except SystemExit as end:  # judged by its output, if there is any
        with suppress(AttributeError, OSError, ValueError):  # it may have closed it
            sys.stdout.flush()
        if end.code and not os.fstat(1).st_size:
            sys.exit(f"ended with sys.exit({end.code!r}), without output")
    except MemoryError:
        sys.exit(errno.ENOMEM)


def limit(cpu_seconds: int, memory_mb: int, output_bytes: int) -> None:
    """Set resource limits; SIGXCPU ends a program that does not handle it, SIGKILL one that does."""
    size = memory_mb << 20
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1),
        (resource.RLIMIT_AS, size, size),
        (resource.RLIMIT_FSIZE, output_bytes, output_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # an ignored or blocked signal is inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})


def confine(parent: int, readable: list[str]) -> None:
    """Die with the parent; read only `readable`, if the kernel supports it; only compute."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before
        sys.exit("orphaned")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock.read_only_beneath(readable)
    seccomp.filter_syscalls()


def execute(program: str, name: str) -> dict[str, Any]:
    """Run the program as a module of that name; returns its namespace."""
    module = ModuleType(name)
    sys.modules[name] = module
    names = module.__dict__
    exec(IMPORTS, names)
    exec(compile(program, "program.py", "exec"), names)
    return names


def call(program: str, function: str) -> None:
    """Call a function, or the method of that name of a class `Solution`; the value is printed as JSON.

    The arguments are the lines of standard input, as JSON or Python literals. What the program prints goes to standard
    error.
    """
    arguments = []
    for line in sys.stdin.read().split("\n"):
        if line.strip():
            arguments.append(argument(line))
    with open(os.dup(1), "w") as output:
        os.dup2(2, 1)
        names = execute(program, "solution")
        owner = None
        if "Solution" in names:
            owner = names["Solution"]()
        if owner:
            method = getattr(owner, function)
        else:
            method = names[function]
        output.write(json.dumps(method(*arguments), default=plain))


def argument(line: str) -> Any:
    """Read a line as JSON, or else as a Python literal, which a tuple or a set needs."""
    try:
        return json.loads(line)
    except ValueError:
        return ast.literal_eval(line.strip())


def plain(value: Any) -> Any:
    """Return a numpy number or array as plain numbers."""
    if not hasattr(value, "tolist"):
        raise TypeError(f"the value holds a {type(value).__name__}, which is not JSON")
    return value.tolist()


if __name__ == "__main__":
    main()
