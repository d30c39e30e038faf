"""The sandbox: what programs can do there, what hostile ones cannot, and that nothing is left of either."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lit_rlvr.workers import sandbox
from lit_rlvr.workers.jail import landlock, seccomp
from lit_rlvr.workers.sandbox import ExecutionFailed, ProgramLimits, run

LIMITS = ProgramLimits(cpu_seconds=60, memory_mb=512)
BRIEF = ProgramLimits(cpu_seconds=1, memory_mb=512)
"""For programs that compute without end."""
EVIL = Path("/tmp") / f"lit-rlvr-evil-{os.getpid()}"

needs_landlock = pytest.mark.skipif(
    ctypes.CDLL(None).syscall(landlock.CREATE_RULESET, None, 0, 1) < 1, reason="no Landlock in this kernel"
)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, file, folder or descriptor."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before, others = os.listdir("/proc/self/fd"), set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= others
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert list(tmp_path.iterdir()) == [] and not EVIL.exists()


def failure(program: str, text: str = "", function: str = "", limits: ProgramLimits = LIMITS) -> tuple[str, str]:
    with pytest.raises(ExecutionFailed) as caught:
        run(program, text, limits, function)
    return caught.value.status, caught.value.reason


# what programs can do

WORKS = {
    "input": ("a, b = map(int, input().split())\nprint(a + b, input())", "1 2\nx", "3 x\n"),
    "buffer": ("print(sum(map(int, sys.stdin.buffer.read().split())))", "1 2\n3", "6\n"),
    "descriptor": ("import os\nprint(os.fstat(0).st_size, open(0).read())", "é", "2 é\n"),
    "main": ("if __name__ == '__main__':\n    print(1)", "", "1\n"),
    "imported": ("print(List, gcd(4, 6), math.pi > 3, deque([1]), pow(2, 3, 5), datetime.date.min)", "",
                 "typing.List 2 True deque([1]) 3 0001-01-01\n"),
    "exit": ("print(1)\nsys.exit(3)\nprint(2)", "", "1\n"),
    "quit": ("print(1)\nif input() == '1': exit()\nquit()", "2", "1\n"),
    "closed output": ("print(1)\nsys.stdout.close()", "", "1\n"),
    "closed descriptor": ("import os\nprint(1, flush=True)\nos.close(1)", "", "1\n"),
    "deep recursion": ("f = lambda n: n and 1 + f(n - 1)\nprint(f(40000))", "", "40000\n"),
    "thread": ("import threading\nthreading.stack_size(2**26)\nthreading.Thread(target=lambda: print(1)).start()", "",
               "1\n"),
    "long integer": ("print(len(str(10**40000)))", "", "40001\n"),
    "annotations": ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n"
                    "    a: int\nprint(A(1))", "", "A(a=1)\n"),
    "stderr": ("print(1)\nprint(2, file=sys.stderr)", "", "1\n"),
    "bytes": ("sys.stdout.buffer.write(b'\\xff')", "", "\ufffd"),
    "numpy": ("import numpy\nprint(numpy.linalg.det(numpy.eye(3)))", "", "1.0\n"),
    "folder": ("import os\nprint(os.getcwd(), sys.argv)", "", "/ ['']\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKS)
def test_a_program_reads_computes_and_prints(name: str) -> None:
    program, text, output = WORKS[name]
    assert run(program, text, LIMITS) == output


CALLS = {
    "method": ("class Solution:\n    def f(self, a: List[int], b: int):\n        return sum(a) + b", "[1, 2]\n3", "6"),
    "function": ("def f(a):\n    return (a, {1: (True, None)})", '"é"', '["\\u00e9", {"1": [true, null]}]'),
    "no arguments": ("def f():\n    return 1.5", "", "1.5"),
    "printing": ("def f(a):\n    print('noise')\n    return a", "[]", "[]"),
    "numpy": ("import numpy\ndef f(a):\n    return [numpy.int64(a), numpy.arange(2)]", "7", "[7, [0, 1]]"),
    "no main": ("def f():\n    return 1\nif __name__ == '__main__':\n    print(input())", "", "1"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_is_called(name: str) -> None:
    program, text, value = CALLS[name]
    assert run(program, text, LIMITS, "f") == value


def test_every_run_is_the_same() -> None:
    program = "print(random.random(), hash('a'), random.sample(range(99), 5), {'a', 'b', 'c'})"
    assert run(program, "", LIMITS) == run(program, "", LIMITS)


# what goes wrong is told

TROUBLE = {
    "exception": ("1 / 0", "ok", "ZeroDivisionError: division by zero"),
    "syntax": ("print(", "ok", "SyntaxError: '(' was never closed"),
    "no input": ("input()", "ok", "EOFError: EOF when reading a line"),
    "exit code": ("import os\nprint(1, flush=True)\nos._exit(3)", "ok", "ended with code 3"),
    "crash": ("import ctypes\nctypes.string_at(0)", "ok", "crashed by SIGSEGV"),
    "recursion": ("def f(): f()\nf()", "ok", "RecursionError: maximum recursion depth exceeded"),
    "10 GB": ("bytearray(10**10)", "timeout", "out of memory"),
    "many bytes": ("a = [str(n) * 10**6 for n in range(9999)]", "timeout", "out of memory"),
    "endless output": ("while True: print('x' * 10**5)", "timeout", "more than 16 MiB of output"),
    "endless errors": ("while True: sys.stderr.write('x' * 10**5)", "timeout", "more than 16 MiB of output"),
    "threads": ("import threading, time\nthreading.stack_size(2**15)\n"
                "for _ in range(10**5): threading.Thread(target=time.sleep, args=(99,)).start()", "timeout",
                "more than 128 threads"),
}  # fmt: skip


ENDLESS = {
    "loop": ("while True: pass", "out of CPU time"),
    "deaf to signals": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        "killed, out of CPU time or memory",
    ),
}


@pytest.mark.parametrize("name", ["loop", pytest.param("deaf to signals", marks=pytest.mark.slow)])
def test_what_computes_without_end_is_stopped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 300)  # however busy the machine is
    program, reason = ENDLESS[name]
    assert failure(program, limits=BRIEF) == ("timeout", reason)


@pytest.mark.parametrize("name", TROUBLE)
def test_what_goes_wrong_is_told(name: str) -> None:
    program, status, reason = TROUBLE[name]
    assert failure(program) == (status, reason)


@pytest.mark.slow
def test_right_answers_then_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 6)
    status, reason = failure("import time\nprint(1, flush=True)\ntime.sleep(999)", limits=BRIEF)
    assert (status, reason) == ("timeout", "out of wall-clock time (6 s)")


def test_a_function_that_gives_no_value_is_told() -> None:
    assert failure("def g(): pass", "", "f") == ("ok", "KeyError: 'f'")
    assert failure("def f(): return {1}", "", "f") == ("ok", "TypeError: the value holds a set, which is not JSON")
    assert failure("def f(): return 1", "2", "f")[1].startswith("TypeError: f() takes 0 positional arguments")


# what programs cannot do; were it not refused, it would do no harm either

FORBIDDEN = {
    "fork": "os.fork()",
    "fork bomb": "for _ in range(3): os.fork()",
    "background child": "subprocess.Popen(['sleep', '9'])",
    "spawn": "os.posix_spawn('/bin/sleep', ['sleep', '9'], {})",
    "exec": "os.execv('/bin/true', ['true'])",
    "processes": "multiprocessing.Process(target=print).start()",
    "kill the parent": "os.kill(os.getppid(), 0)",
    "kill a group": "os.killpg(0, 0)",
    "kill all": "os.kill(-1, 0)",
    "internet socket": "socket.socket()",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "pair of sockets": "socket.socketpair()",
    "write": f"open({str(EVIL)!r}, 'w')",
    "append": f"open({str(EVIL)!r}, 'a')",
    "create": f"os.open({str(EVIL)!r}, os.O_CREAT)",
    "write here": "open('evil', 'w')",
    "truncate": f"os.open({str(EVIL)!r}, os.O_TRUNC)",
    "make a folder": f"os.mkdir({str(EVIL)!r})",
    "delete": f"os.remove({str(EVIL)!r})",
    "rename": f"os.rename({str(EVIL)!r}, {str(EVIL)!r})",
    "link": f"os.symlink('/', {str(EVIL)!r})",
    "permissions": f"os.chmod({str(EVIL)!r}, 0)",
    "temporary file": "tempfile.TemporaryFile()",
    "memory file": "os.memfd_create('evil')",
    "session": "os.setsid()",
    "limits": "resource.prlimit(0, resource.RLIMIT_AS, (-1, -1))",
    "limits of the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "signals by descriptor": "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "timer": "signal.setitimer(signal.ITIMER_REAL, 1)",
}
IMPORTS = "import fcntl, multiprocessing, os, resource, signal, socket, subprocess, tempfile"


@pytest.mark.first_case_fast
@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_forbidden_fails(name: str) -> None:
    status, reason = failure(f"{IMPORTS}\n{FORBIDDEN[name]}")
    refused = (
        "Operation not permitted",
        "not allowed to raise",
        "No usable temporary directory",
        "Permission denied",
    )
    assert status == "ok" and any(words in reason for words in refused), reason


def test_a_shell_is_not_started(tmp_path: Path) -> None:
    assert run(f"import os\nprint(os.system('touch {tmp_path}/evil') != 0)", "", LIMITS) == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_system_calls_by_number_are_refused_too() -> None:
    """Also those of other numberings of the same machine."""
    program = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    program += "for number in (41, 57, 59, 101, 157, 317, 425, 0x40000000 + 41): print(libc.syscall(number, 0, 0, 0))"
    assert set(run(program, "", LIMITS).split()) == {"-1"}


@needs_landlock
@pytest.mark.parametrize(
    "source",
    [
        "open('/etc/passwd')",
        f"open({__file__!r})",
        f"os.listdir({str(Path.home())!r})",
        "open('/proc/self/environ')",
        "open(f'/proc/{os.getppid()}/environ')",
        "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "os.listdir('/proc')",
        "os.listdir('.')",
    ],
)
def test_nothing_but_the_installation_is_read(source: str) -> None:
    assert "Permission denied" in failure(f"import os\n{source}")[1]


def test_nothing_of_the_parent_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its environment nor its modules, nor an open file."""
    monkeypatch.setenv("SECRET_TOKEN", "abc123")
    ours = ("OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "LC_CTYPE")  # Python itself sets the last one
    program = f"import os\nprint(set(os.environ) - set({ours}), 'lit_rlvr' in sys.modules)"
    assert run(program, "", LIMITS) == "set() False\n"
    opened = "import os\nfor fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n    print(fd)"
    assert run(opened, "", LIMITS) == ""


def test_it_dies_with_its_parent() -> None:
    source = (
        f"from lit_rlvr.workers.sandbox import *\nrun('import time; time.sleep(99)', '', ProgramLimits{tuple(LIMITS)})"
    )
    parent = subprocess.Popen([sys.executable, "-c", source])
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    parent.kill()
    parent.wait()
    (child,) = children
    _, alive = psutil.wait_procs([child], 10)
    assert alive == []


def test_a_jail_that_cannot_be_closed_runs_nothing() -> None:
    with pytest.raises(RuntimeError, match="the sandbox did not start: OverflowError"):
        run("print(1)", "", ProgramLimits(1, memory_mb=1 << 60))


# the filter itself, read as the kernel reads it

CALLS_OF = {
    "x86_64": {"socket": 41, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101, "creat": 85,
               "bpf": 321, "memfd_create": 319, "io_uring_setup": 425, "openat2": 437, "setrlimit": 160, "prctl": 157},
    "aarch64": {"socket": 198, "execve": 221, "kill": 129, "ptrace": 117, "bpf": 280, "memfd_create": 279,
                "io_uring_setup": 425, "openat2": 437, "setrlimit": 164, "prctl": 167},
}  # fmt: skip


def decide(code: seccomp.Code, machine: int, number: int, *arguments: int) -> int:
    """What a filter says of one system call."""
    words = {seccomp.NUMBER: number, seccomp.MACHINE: machine}
    for i in range(6):
        value = arguments[i] if i < len(arguments) else 0
        place = seccomp.ARGUMENTS + 8 * i
        words |= {place: value & 0xFFFFFFFF, place + 4: value >> 32}
    at = value = 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == seccomp.LOAD:
            value = words[constant]
        elif operation == seccomp.IF_EQUAL:
            at += if_true if value == constant else if_false
        elif operation == seccomp.IF_ANY_BIT:
            at += if_true if value & constant else if_false
        else:
            assert operation == seccomp.RETURN
            return constant


@pytest.mark.parametrize("name", seccomp.ALLOWED_CALLS)
def test_every_machine_has_its_filter(name: str) -> None:
    machine, calls = seccomp.ALLOWED_CALLS[name]
    code = seccomp.program(machine, calls)
    refused, allowed = seccomp.ERROR | errno.EPERM, seccomp.ALLOW

    def says(call: str, *arguments: int) -> int:
        return decide(code, machine, calls[call], *arguments)

    assert all(decide(code, machine, number) == refused for number in CALLS_OF[name].values())
    assert all(says(call) == allowed for call in calls if call not in seccomp.RULES)
    assert decide(code, 0x40000003, calls["read"]) == seccomp.KILL  # 32-bit x86
    assert decide(code, machine, calls["read"] | 0x40000000) == refused  # x32
    assert says("openat", 0, 0, os.O_RDONLY | os.O_CLOEXEC) == allowed
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_RDWR | os.O_TMPFILE):
        assert says("openat", 0, 0, flags) == refused
    assert says("clone", 0x3D0F00) == allowed  # what starting a thread asks for
    assert says("clone", signal.SIGCHLD) == says("clone", 0x4100 | signal.SIGCHLD) == refused
    assert says("clone3") == seccomp.ERROR | errno.ENOSYS
    assert says("fcntl", 0, 1030) == allowed and says("fcntl", 0, 8) == says("fcntl", 0, 4) == refused
    assert says("ioctl", 0, 0x5401) == allowed and says("ioctl", 0, 0x5412) == refused
    assert says("prlimit64", 0, 9, 0) == allowed
    assert says("prlimit64", 0, 9, 0x7F0000000000) == says("prlimit64", 0, 9, 16) == refused


def test_a_kernel_without_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> None:
        def call(*_: object) -> int:
            raise OSError(code, "no")

        monkeypatch.setattr(landlock, "_call", call)

    for code in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
        fail(code)
        assert landlock.read_only_beneath(["/"]) is False
    fail(errno.E2BIG)
    with pytest.raises(OSError, match="no"):
        landlock.read_only_beneath(["/"])
