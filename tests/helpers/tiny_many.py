"""One of torchrun's processes that wait for `lit-rlvr` commands: `tiny_many.py FOLDER`.

`FOLDER/N.json` holds the N-th list of commands, with their folder and environment. All output goes to `N.log`;
`N.done-RANK` holds "" or the command that failed with its status.
"""

import ctypes
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

from lit_rlvr.cli.main import run

OF_TORCHRUN = ("RANK", "LOCAL_", "WORLD_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "OMP_")
FOLDER = Path(sys.argv[1])
OURS = {name: value for name, value in os.environ.items() if name.startswith(OF_TORCHRUN)}
PATH = list(sys.path)
PARENT = os.getppid()


def serve(number: int) -> None:
    asked = FOLDER / f"{number}.json"
    while not asked.exists():
        time.sleep(0.02)
        if os.getppid() != PARENT:
            sys.exit()
    order = json.loads(asked.read_text())
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"] | OURS)
    sys.path[:] = PATH
    log = os.open(FOLDER / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    failed = ""
    for command in order["commands"]:
        try:
            status: object = run(command)
        except BaseException:
            traceback.print_exc()
            status = "an exception"
        if status:
            failed = f"{' '.join(command)}: status {status}"
            break
    sys.stdout.flush()
    if platform.libc_ver()[0] == "glibc":  # freed memory goes back to the system: the tests' other processes need it
        ctypes.CDLL(None).malloc_trim(0)
    done = FOLDER / f"{number}.done-{os.environ['RANK']}"
    scratch = done.with_name(f"{done.name}.tmp")
    scratch.write_text(failed)
    scratch.replace(done)


for number in range(10**9):
    serve(number)
