"""Worker processes: order, limits, deaths, interruptions, and what is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from lit_rlvr.errors import UserError
from lit_rlvr.workers.pool import WorkerPool

EVAL = "builtins:eval"


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(workers=2, cpu_seconds=0.5, wall_seconds=120)
    yield pool
    pool.close()


def python(*sources: str) -> list[tuple[Any, ...]]:
    """Arguments of `eval`; the explicit globals keep each evaluation apart."""
    return [(source, {}) for source in sources]


def workers(pool: WorkerPool) -> list[psutil.Process]:
    return [psutil.Process(worker.process.pid) for worker in pool._live]


def test_outcomes_keep_the_order_of_the_arguments(pool: WorkerPool) -> None:
    slow_first = python("__import__('time').sleep(0.3) or 'slow'", *[repr(i) for i in range(50)])
    assert [outcome.value for outcome in pool.run(EVAL, slow_first)] == ["slow", *range(50)]
    assert pool.run(EVAL, []) == []


@pytest.mark.slow
def test_work_is_spread_over_the_workers(pool: WorkerPool) -> None:
    nap = "__import__('time').sleep(0.5) or __import__('os').getpid()"
    pool.run(EVAL, python(*[nap] * 6))
    pids = [outcome.value for outcome in pool.run(EVAL, python(nap, nap))]
    assert len(set(pids)) == 2 and os.getpid() not in pids


def test_cpu_limit_kills_a_busy_loop_at_once_and_nothing_else(pool: WorkerPool) -> None:
    pool.run(EVAL, python("1", "1"))
    outcomes = pool.run(EVAL, python("'before'", "[None for _ in iter(int, 1)]", "10 ** 10 ** 10", "'after'"))
    assert [o.status for o in outcomes] == ["ok", "timeout", "timeout", "ok"]
    assert (outcomes[1].detail, outcomes[3].value) == ("out of CPU time", "after")


HEAVY = """
import time

end = time.process_time() + {seconds}
while time.process_time() < end:
    pass
held = bytearray({megabytes} * 2**20)
"""
JUDGE = """
def judge(then):
    import heavy_package

    exec(then)
    return len(heavy_package.held)
"""


def write_modules(folder: Path, seconds: str, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "heavy_package.py").write_text(HEAVY.format(seconds=seconds, megabytes=megabytes))
    (folder / "my_judge.py").write_text(JUDGE)
    monkeypatch.syspath_prepend(folder)


def test_imports_in_the_body_of_a_call_are_not_charged_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, "0.4", 100, monkeypatch)
    with closing(WorkerPool(workers=1, cpu_seconds=0.2, wall_seconds=20, memory_mb=60)) as pool:
        calls = [("",), ("",), ("while True: pass",), ("bytearray(90 * 2**20)",), ("bytearray(10 * 2**20)",)]
        outcomes = pool.run("my_judge:judge", calls)
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "timeout", "timeout", "ok"]
    assert outcomes[2].detail == "out of CPU time" and outcomes[3].detail.startswith("MemoryError")


def test_wall_limit_is_the_last_resort(pool: WorkerPool) -> None:
    outcomes = pool.run(EVAL, python("__import__('time').sleep(60)", "'other'"), wall_seconds=0.5)
    assert outcomes[0].status == "timeout" and outcomes[0].detail == "out of wall-clock time"
    assert outcomes[1].value == "other"


def test_memory_and_recursion_bombs_are_the_answers_fault(pool: WorkerPool) -> None:
    deep = "(lambda f: f(f))(lambda f: f(f))"
    outcomes = pool.run(EVAL, python("bytearray(10 ** 9)", deep, "'other'"), memory_mb=512)
    assert [o.status for o in outcomes] == ["timeout", "timeout", "ok"]
    assert "MemoryError" in outcomes[0].detail and "RecursionError" in outcomes[1].detail
    assert (
        pool.run(EVAL, python("len(bytearray(10 ** 9))"), cpu_seconds=30, wall_seconds=120)[0].value == 10**9
    )  # in the default 2 GiB


@pytest.mark.slow
def test_a_leak_is_not_the_next_answers_fault(pool: WorkerPool) -> None:
    """What it needs itself is known only in a worker that has not judged others before."""
    leak = "__import__('sys').modules.setdefault('leak', []).append(bytearray(300 << 20)) or 'leaked'"
    innocent, bomb = "len(bytearray(300 << 20)) >> 20", "bytearray(2000 << 20)"
    answers = python(*[leak, innocent] * 6, bomb, innocent, bomb)
    outcomes = pool.run(EVAL, answers, memory_mb=1000, cpu_seconds=5, wall_seconds=60)
    assert [o.value for o in outcomes] == [*["leaked", 300] * 6, None, 300, None]
    assert outcomes[-1].status == "timeout" and "MemoryError" in outcomes[-1].detail
    assert len(workers(pool)) <= 2


def test_exceptions_name_type_and_message(pool: WorkerPool) -> None:
    outcomes = pool.run(EVAL, python("1 / 0", "lambda: 0", "1"))
    assert outcomes[0].status == "error" and outcomes[0].detail == "ZeroDivisionError: division by zero"
    assert outcomes[1].status == "error" and "pickle" in outcomes[1].detail
    assert outcomes[2].value == 1


def test_a_dead_worker_is_replaced_and_its_check_repeated_once(pool: WorkerPool, tmp_path: Path) -> None:
    once = f"(open({str(tmp_path / 'first')!r}, 'x'), __import__('os').kill(__import__('os').getpid(), 9))"
    once = f"'second' if __import__('os').path.exists({str(tmp_path / 'first')!r}) else {once}"
    always = "(__import__('os').write(2, b'last words'), __import__('os')._exit(3))"
    outcomes = pool.run(EVAL, python(once, always, *[repr(i) for i in range(10)]))
    assert (outcomes[0].value, outcomes[1].status) == ("second", "error")
    assert "exit code 3" in outcomes[1].detail and "last words" in outcomes[1].detail
    assert [o.value for o in outcomes[2:]] == list(range(10))


def module_that_dies(folder: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dies_while_loading`, which kills the first processes that import it."""
    source = f"""if True:
        import os, pathlib
        for number in range({times}):
            try:
                open({str(folder)!r} + f"/{{number}}", "x")
            except FileExistsError:
                continue
            os.write(2, b"last words")
            os.kill(os.getpid(), 9)
        answer = lambda: 42
    """
    (folder / "dies_while_loading.py").write_text(source)
    monkeypatch.syspath_prepend(folder)


def test_workers_that_always_die_while_they_load_end_the_run(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module_that_dies(tmp_path, 10_000, monkeypatch)
    with pytest.raises(UserError, match=r"could not load 'dies_while_loading:answer': exit code -9; last words"):
        pool.run("dies_while_loading:answer", [()])


def test_what_a_check_has_started_ends_with_its_worker(pool: WorkerPool, tmp_path: Path) -> None:
    told = "echo $$ > pid.half; mv pid.half pid; exec sleep 999"
    start = f"__import__('subprocess').Popen(['sh', '-c', {told!r}], cwd={str(tmp_path)!r})"
    wait = f"__import__('time').sleep(0.01) or __import__('os').path.exists({str(tmp_path / 'pid')!r})"
    (outcome,) = pool.run(
        EVAL, python(f"({start}, [0 for _ in iter(lambda: {wait}, True)], [0 for _ in iter(int, 1)])")
    )
    assert outcome.detail == "out of CPU time"
    wait_for_end(int((tmp_path / "pid").read_text()))


def test_printing_neither_corrupts_answers_nor_reaches_our_output(
    pool: WorkerPool, capfd: pytest.CaptureFixture[str]
) -> None:
    shout = "(print('x' * 10 ** 6), __import__('os').write(1, b'garbage'), __import__('os').write(2, b'noise')) and 7"
    assert [o.value for o in pool.run(EVAL, python(*[shout] * 3))] == [7, 7, 7]
    assert capfd.readouterr() == ("", "")


def test_after_an_interrupt_no_late_answer_is_taken_for_a_new_one(pool: WorkerPool) -> None:
    pool.run(EVAL, python("1", "1"))
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    late = "__import__('time').sleep(0.6) or 'late'"
    with pytest.raises(KeyboardInterrupt):
        pool.run(EVAL, python(late, late, late))
    timer.join()
    time.sleep(0.5)
    assert [o.value for o in pool.run(EVAL, python("'new'", "'new'"))] == ["new", "new"]


def test_close_leaves_no_process_and_no_descriptor_and_the_pool_restarts() -> None:
    before = len(os.listdir("/proc/self/fd"))
    pool = WorkerPool(workers=2, cpu_seconds=0.3)
    pool.run(EVAL, python("1", "[None for _ in iter(int, 1)]", "__import__('os')._exit(1)", "2"))
    before_close = workers(pool)
    assert before_close and all(worker.is_running() for worker in before_close)
    pool.close()
    assert not any(worker.is_running() for worker in before_close)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pool.run(EVAL, python("3"))[0].value == 3
    (worker,) = workers(pool)
    del pool  # collected: closed
    assert not worker.is_running()


@pytest.mark.parametrize("end", ["sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_workers_die_with_their_parent_even_when_busy(end: str) -> None:
    source = f"""if True:
        import os, sys, threading, time
        from lit_rlvr.workers.pool import WorkerPool
        pool = WorkerPool(workers=1)
        pool.run("builtins:eval", [("1",)])
        print(pool._live[0].process.pid, flush=True)
        threading.Thread(target=pool.run, args=("time:sleep", [(50,)]), daemon=True).start()
        time.sleep(0.5)
        {end}
    """
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    wait_for_end(int(done.stdout))


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)


def test_workers_import_no_torch(pool: WorkerPool) -> None:
    pool.run("lit_rlvr.answers.verdict:check", [("1", "1")])
    loaded = "[m for m in ('torch', 'lightning', 'numpy', 'vllm') if m in __import__('sys').modules]"
    assert pool.run(EVAL, python(loaded))[0].value == []


@pytest.mark.parametrize("function", ["no_such_module:f", "time:no_such_function"])
def test_a_function_that_cannot_be_imported_is_a_user_error(pool: WorkerPool, function: str) -> None:
    with pytest.raises(UserError, match=r"could not load.*no_such"):
        pool.run(function, [()])
    assert pool.run(EVAL, python("1"))[0].value == 1


def test_a_fork_neither_uses_nor_kills_the_workers(pool: WorkerPool) -> None:
    pool.run(EVAL, python("1"))
    pid = os.fork()
    if pid == 0:
        try:
            pool.run(EVAL, python("2"))
        except RuntimeError:
            pool.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert [worker.is_running() for worker in workers(pool)] == [True]
