"""Arrays in managed memory: their contents, their pages, and what becomes of them at the end."""

import concurrent.futures
import gc
import itertools
import mmap
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import hetmem
import matplotlib
import numpy as np
import numpy.typing as npt
import pytest

DEVICES = ["private:emulated,size=64M", "coherent:emulated,size=64M"]


@pytest.fixture
def runtime() -> Iterator[hetmem.Runtime]:
    with hetmem.Runtime(DEVICES) as runtime:
        yield runtime


@pytest.mark.parametrize("device", ["private0", "coherent0"])
@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "M8[s]", [("a", "u2"), ("b", "f4")]])
def test_contents_are_the_same_wherever_pages_are(runtime: hetmem.Runtime, device: str, dtype: Any) -> None:
    wanted = np.frombuffer(np.random.default_rng(7).bytes(np.dtype(dtype).itemsize * 30_000), dtype)
    array = runtime.empty(wanted.shape, dtype)
    array[...] = wanted
    for place in [device, "system", device]:
        outcomes = runtime.migrate(array, place)
        assert len(outcomes) == -(-array.nbytes // hetmem.PAGE)
        # What was on a private device came home when it was compared.
        assert set(outcomes) == {"already_there" if (device, place) == ("private0", "system") else "moved"}
        assert runtime.where(array) == {place: len(outcomes)}
        assert array.tobytes() == wanted.tobytes()
    assert runtime.statistics().errors == 0


def test_new_arrays_are_zeros_of_any_shape_and_order(runtime: hetmem.Runtime) -> None:
    assert runtime.zeros(5).tolist() == [0.0] * 5
    assert runtime.empty((3, 4), "i4", order="F").flags.f_contiguous
    assert runtime.full((2, 2), 7).tolist() == [[7, 7], [7, 7]]
    assert runtime.full(2, 1.5, "f4").dtype == np.float32
    assert runtime.empty((0, 3)).shape == (0, 3)
    assert runtime.empty(()).shape == ()
    array = runtime.empty(np.int64(100), np.uint8)
    assert array.ctypes.data % hetmem.PAGE == 0
    assert runtime.migrate(array, "private0").kept == {"hole": 1}


def test_slices_that_are_not_whole_pages_move_the_pages_that_they_have_a_byte_of(runtime: hetmem.Runtime) -> None:
    array = runtime.full(4 * 512, 1.0)
    assert list(runtime.migrate(array[511:513], 0)) == ["moved", "moved"]
    assert runtime.residency(array).tolist() == [1, 1, 0, 0]
    assert runtime.migrate(array[1024:1025], "coherent0").moved == 1
    assert runtime.residency(array[1023:1025]).tolist() == [1, 2]
    assert len(runtime.migrate(array[5:5], "private0")) == 0
    assert runtime.where(array[5:5]) == {}
    with pytest.raises(hetmem.InvalidInputError, match="lie apart"):
        runtime.migrate(array[::2], "private0")
    with pytest.raises(hetmem.InvalidInputError, match="lie apart"):
        runtime.migrate(array.reshape(64, 32)[:, :16], "private0")
    assert runtime.migrate(array.reshape(64, 32).T, "private0").moved == 2
    assert array.sum() == 4 * 512


def test_views_and_buffers_keep_the_memory(runtime: hetmem.Runtime) -> None:
    array = runtime.full(1024, 3.0)
    runtime.migrate(array, "private0")
    view, buffer = array[1:].reshape(-1, 3)[1:], memoryview(array)  # type: ignore[arg-type,unused-ignore]
    del array
    gc.collect()
    assert view.sum() == 3.0 * 1020
    assert runtime.where(buffer) == {"system": 2}
    assert buffer[1023] == 3.0
    assert np.from_dlpack(view).sum() == 3.0 * 1020


def test_arrays_outlive_their_runtime() -> None:
    with hetmem.Runtime(DEVICES) as runtime:
        array = runtime.full(2048, 5.0)
        runtime.migrate(array, "private0")
    del runtime
    gc.collect()
    assert array.sum() == 5.0 * 2048
    array[:] = 6.0
    assert array.sum() == 6.0 * 2048


def test_memory_is_given_back_when_the_last_view_is_gone(runtime: hetmem.Runtime) -> None:
    before = runtime.statistics().adopted_bytes
    array = runtime.full(1 << 20, 1.0)
    assert runtime.statistics().adopted_bytes > before
    view = array[7:9]
    del array
    gc.collect()
    assert runtime.statistics().adopted_bytes > before
    del view
    gc.collect()
    assert runtime.statistics().adopted_bytes == before


def test_a_closed_runtime_says_so_and_may_be_closed_again() -> None:
    runtime = hetmem.Runtime(DEVICES)
    array = runtime.full(512, 1.0)
    runtime.close()
    runtime.close()
    uses: list[Callable[[], object]] = [
        lambda: runtime.empty(1),
        lambda: runtime.migrate(array, "private0"),
        lambda: runtime.residency(array),
        lambda: runtime.advise(array, "pin"),
        lambda: runtime.statistics(),
    ]
    for use in uses:
        with pytest.raises(hetmem.ClosedError, match="closed"):
            use()


def test_arrays_that_are_there_already_are_adopted(runtime: hetmem.Runtime) -> None:
    array = np.arange(100_000, dtype=np.float64)
    managed = runtime.adopt(array)
    assert 0 < managed <= array.nbytes
    assert runtime.migrate(array, "private0").moved == managed // hetmem.PAGE
    assert runtime.where(array) == {"private0": managed // hetmem.PAGE}
    assert array.sum() == 100_000 * 99_999 / 2
    runtime.migrate(array, "private0")
    with pytest.raises(hetmem.InvalidInputError, match="adopted already"):
        runtime.adopt(array)
    with pytest.raises(hetmem.InvalidInputError, match="managed already"):
        runtime.adopt(array[: array.size // 2])
    with pytest.raises(hetmem.InvalidInputError, match="not adopted"):
        runtime.release(array[:50_000])
    runtime.advise(array, "prefer", "coherent0")
    runtime.advise(array[:1000], "soon")
    assert runtime.where(array).get("coherent0", 0) > 0
    runtime.release(array)
    with pytest.raises(hetmem.InvalidInputError, match="not adopted"):
        runtime.release(array)
    assert array[::999].tolist() == list(range(0, 100_000, 999))
    with pytest.raises(hetmem.InvalidInputError, match="no page"):
        runtime.adopt(np.zeros(100))


def test_an_adopted_array_stays_alive_and_comes_home_at_the_end() -> None:
    with hetmem.Runtime(DEVICES) as runtime:
        array = np.full(100_000, 2.0)
        view = array[50_000:]
        runtime.adopt(array)
        runtime.migrate(array, "private0")
        del array
        gc.collect()
        assert view[0] == 2.0
    assert view.sum() == 2.0 * 50_000
    # Nobody closes it.
    other = np.full(100_000, 3.0)
    runtime = hetmem.Runtime(DEVICES)
    runtime.adopt(other)
    runtime.migrate(other, "private0")
    del runtime
    gc.collect()
    assert other.sum() == 3.0 * 100_000


def test_mappings_of_the_programs_own_are_adopted(runtime: hetmem.Runtime) -> None:
    memory = mmap.mmap(-1, 16 * hetmem.PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = bytes([9]) * len(memory)
    assert runtime.adopt(memory) == len(memory)
    assert runtime.migrate(memory, "private0").moved == 16
    assert memory[5 * hetmem.PAGE] == 9
    runtime.release(memory)
    memory.close()


def test_files_are_mapped_and_read_wherever_their_pages_are(runtime: hetmem.Runtime, tmp_path: pathlib.Path) -> None:
    wanted = np.arange(1_000_001, dtype=np.float64)
    file = tmp_path / "numbers"
    wanted.tofile(file)
    array = runtime.map_file(file, np.float64)
    assert array.shape == wanted.shape and not array.flags.writeable
    with pytest.raises(ValueError):
        array.flags.writeable = True
    for device in ["private0", "coherent0", "system"]:
        outcomes = runtime.migrate(array, device)
        # Where the file system has no leases its pages stay, and say why.
        assert outcomes.moved > 0 or "no_lease" in outcomes.kept or device == "system", outcomes
        assert (array == wanted).all()
    part = runtime.map_file(file, "f8", (10, 512), offset=hetmem.PAGE)
    assert (part.ravel() == wanted[512 : 512 + 5120]).all()
    runtime.migrate(array, "private0")
    # A writer gets the file when its pages are home.
    with open(file, "r+b") as writer:
        writer.write(np.float64(-1).tobytes())
    assert array[0] == -1
    for wrong, part_of in [
        ({"offset": 5, "shape": 10}, "page"),
        ({"shape": 2_000_000, "dtype": "f8"}, "file"),
        ({"dtype": "V7"}, "no array of"),
        ({"dtype": object}, "no elements"),
        ({"offset": -1}, "negative"),
        ({"shape": -1}, "negative"),
        ({"shape": 0}, "can't be mapped"),
    ]:
        with pytest.raises(hetmem.InvalidInputError, match=part_of):
            runtime.map_file(file, **wrong)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        runtime.map_file(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError):
        runtime.map_file(tmp_path)
    with pytest.raises(hetmem.InvalidInputError, match="regular file"):
        runtime.map_file("/dev/zero", shape=10)


def test_discarded_arrays_read_as_zeros_and_their_neighbours_stay(runtime: hetmem.Runtime) -> None:
    array = runtime.full(4 * 512, 1.0)
    runtime.migrate(array, "private0")
    runtime.discard(array[100:1500])
    assert array.nonzero()[0].tolist() == [*range(100), *range(1500, 2048)]
    runtime.discard(array[:3])
    assert array.sum() == 2048 - 1400 - 3
    matrix = runtime.full((64, 64), 1.0, order="F")
    runtime.discard(matrix)
    assert matrix.sum() == 0
    masked = np.ma.MaskedArray(runtime.full(100, 1.0), mask=[True, False] * 50, hard_mask=True)
    runtime.discard(masked)
    assert not masked.data.any(), "masked or not"
    array.flags.writeable = False
    with pytest.raises(hetmem.InvalidInputError, match="can't be written"):
        runtime.discard(array)
    with pytest.raises(hetmem.InvalidInputError, match="objects"):
        runtime.discard(np.array([object()] * 2000))


def test_advice_is_taken_and_what_is_none_is_named(runtime: hetmem.Runtime) -> None:
    array = runtime.full(512, 1.0)
    runtime.advise(array, "pin")
    assert runtime.migrate(array, "private0").kept == {"advised": 1}
    runtime.advise(array, "unpin")
    runtime.advise(array, "prefer", "private0")
    runtime.advise(array, "soon")
    assert runtime.where(array) == {"private0": 1}
    for advice, device, part in [("warm", None, "there is no advice 'warm'"), ("prefer", None, "needs a device"), ("pin", 0, "without a device")]:
        with pytest.raises(hetmem.InvalidInputError, match=part):
            runtime.advise(array, advice, device)  # type: ignore[arg-type]
    with pytest.raises(hetmem.InvalidInputError, match="not managed"):
        runtime.advise(np.zeros(100_000), "pin")
    with pytest.raises(hetmem.HostRefusesError, match="hetmem run"):
        hetmem.advise(array, "soon")


def test_devices_are_named_removed_and_restored(runtime: hetmem.Runtime) -> None:
    assert [(d.name, d.index, d.memory_type, d.capacity_bytes) for d in runtime.devices] == [
        ("private0", 0, "private", 64 << 20),
        ("coherent0", 1, "coherent", 64 << 20),
    ]
    array = runtime.full(512, 1.0)
    assert runtime.migrate(array, runtime.devices[1]).moved == 1
    assert runtime.statistics().devices["coherent0"].used_bytes == hetmem.PAGE
    runtime.remove_device("coherent0")
    assert runtime.where(array) == {"system": 1}
    assert runtime.migrate(array, 1).kept == {"no_frame": 1}
    runtime.restore_device("coherent0")
    assert runtime.migrate(array, 1).moved == 1
    wrong: list[str | int] = ["private1", 2, -1, "System"]
    for place in wrong:
        with pytest.raises(hetmem.InvalidInputError, match="system, private0, coherent0"):
            runtime.migrate(array, place)
    with pytest.raises(hetmem.InvalidInputError, match="no device"):
        runtime.remove_device("system")


def test_wrong_input_is_named() -> None:
    wrong: list[tuple[str | list[str], str]] = [
        ("public:emulated", "unknown memory type"),
        (["private:cuda"], "unknown backend"),
        (["private:emulated,size=3"], "multiple of the page"),
        (["private:emulated\0"], "zero byte"),
        (["private:emulated,size=1M"] * 17, "16 devices"),
    ]
    for devices, part in wrong:
        with pytest.raises(hetmem.InvalidInputError, match=part):
            hetmem.Runtime(devices)
    with pytest.raises(hetmem.InvalidInputError, match="negative"):
        hetmem.Runtime(stock_bytes=-1)
    with pytest.raises(hetmem.InvalidInputError, match="page"):
        hetmem.Runtime(stock_bytes=5)
    with hetmem.Runtime() as runtime:
        assert runtime.devices[0].memory_type == "coherent"
        with pytest.raises(hetmem.InvalidInputError, match="negative size"):
            runtime.empty((3, -1))
        with pytest.raises(hetmem.InvalidInputError, match="objects of Python"):
            runtime.empty(3, object)
        with pytest.raises(hetmem.ExhaustedError):
            runtime.empty(1 << 60)
        with pytest.raises(hetmem.Error):
            runtime.empty(1 << 50, "u1")
        with pytest.raises(hetmem.InvalidInputError, match="not list"):
            runtime.migrate([1, 2], 0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="another process"):
            pickle.dumps(runtime)


def test_threads_touch_arrays_while_others_move_them(runtime: hetmem.Runtime) -> None:
    array = runtime.full(64 * 512, 0, np.int64)
    failures: list[BaseException] = []
    is_over = threading.Event()

    def add(part: npt.NDArray[np.int64]) -> None:
        try:
            for _ in range(200):
                part += 1
        except BaseException as error:
            failures.append(error)

    def move() -> None:
        try:
            while not is_over.is_set():
                for place in ["private0", "coherent0", "system"]:
                    runtime.migrate(array, place)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=add, args=[array[i::4]]) for i in range(4)]
    mover = threading.Thread(target=move)
    mover.start()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    is_over.set()
    mover.join()
    assert not failures
    assert (array == 200).all()


def test_a_runtime_is_closed_when_the_calls_of_other_threads_are_over() -> None:
    runtime = hetmem.Runtime(DEVICES)
    array = runtime.full(512 * 512, 1.0)
    ended: list[type] = []

    def move() -> None:
        try:
            while True:
                runtime.migrate(array, "private0")
                runtime.migrate(array, "system")
        except hetmem.Error as error:
            ended.append(type(error))

    movers = [threading.Thread(target=move) for _ in range(3)]
    for mover in movers:
        mover.start()
    while runtime.statistics().pages_migrated_to_device == 0:
        pass
    runtime.close()
    for mover in movers:
        mover.join()
    assert ended == [hetmem.ClosedError] * 3
    assert array.sum() == 512 * 512


def test_a_signal_handler_cant_close_a_runtime_in_the_middle_of_a_call(runtime: hetmem.Runtime) -> None:
    def interrupt(number: int, frame: object) -> None:
        with pytest.raises(hetmem.Error, match="in use by a call of this thread"):
            runtime.close()

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with runtime._handle.use():
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert runtime.empty(1).tolist() == [0.0]


def test_a_call_that_is_given_up_keeps_nobody_from_closing() -> None:
    runtime = hetmem.Runtime(DEVICES)
    # As where an exception of a signal handler's comes before the end of the call is noted.
    call = runtime._handle.use()
    call.__enter__()
    del call
    gc.collect()
    runtime.close()


class _Interrupted(Exception):
    """As a signal handler raises it."""


def _raise_interrupted() -> object:
    raise _Interrupted


def _interrupted(step: int, work: Callable[[], object], by: Callable[[], object] = _raise_interrupted) -> bool:
    """Whether `work` was interrupted: by a call of `by` at the step of this number, of those of the package at which Python looks for signals. What that
    raises `work` raises."""
    steps = itertools.count()
    was_interrupted = False

    def interrupt(frame: types.FrameType, event: str, argument: object) -> None:
        nonlocal was_interrupted
        is_ours = pathlib.Path(frame.f_code.co_filename).match("hetmem/*.py") or frame.f_code.co_filename.endswith("contextlib.py")
        if is_ours and event in ("call", "c_return") and next(steps) == step:
            was_interrupted = True
            by()

    sys.setprofile(interrupt)
    try:
        work()
    except _Interrupted:
        pass
    finally:
        sys.setprofile(None)
    return was_interrupted


def _is_free(lock: threading.RLock) -> bool:
    """Whether another thread can take it."""

    def take() -> bool:
        taken = lock.acquire(blocking=False)
        if taken:
            lock.release()
        return taken

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(take).result()


def test_exceptions_of_signal_handlers_lose_no_memory_and_leave_nothing_locked(runtime: hetmem.Runtime, tmp_path: pathlib.Path) -> None:
    def anonymous() -> object:
        return runtime.migrate(runtime.full(1000, 1.0), "private0")

    def of_file() -> object:
        return runtime.map_file(file).sum()

    file = tmp_path / "bytes"
    file.write_bytes(bytes(10_000))
    before = runtime.statistics().adopted_bytes
    for work in [anonymous, of_file]:
        steps = next(step for step in itertools.count() if not _interrupted(step, work))
        assert steps > 20
        gc.collect()
        assert runtime.statistics().adopted_bytes == before
        assert _is_free(runtime._handle.lock) and not runtime._handle.callers


def test_signal_handlers_use_the_runtime_at_any_moment(runtime: hetmem.Runtime) -> None:
    array = runtime.full(1000, 1.0)
    steps = next(step for step in itertools.count() if not _interrupted(step, lambda: runtime.migrate(array, "private0"), runtime.statistics))
    assert steps > 10 and array.sum() == 1000


def test_signal_handlers_close_the_runtime_at_any_moment_or_are_told_that_it_is_in_use() -> None:
    told = set[str]()
    works: list[Callable[[hetmem.Runtime], object]] = [hetmem.Runtime.statistics, hetmem.Runtime.close]
    for work in works:
        for step in itertools.count():
            own = hetmem.Runtime(DEVICES)
            try:
                if not _interrupted(step, lambda: work(own), own.close):
                    break
            except hetmem.Error as error:
                told.add(str(error).split(",")[0])
            assert _is_free(own._handle.lock) and not own._handle.callers
            own.close()
            with pytest.raises(hetmem.ClosedError):
                own.statistics()
    assert told == {"the runtime is closed", "the runtime is in use by a call of this thread"}


def test_memory_is_freed_without_a_step_of_python(runtime: hetmem.Runtime) -> None:
    array, seen = runtime.full(1000, 1.0), list[str]()
    sys.setprofile(lambda frame, event, argument: seen.append(event))
    del array
    sys.setprofile(None)
    assert "call" not in seen and "return" not in seen
    assert runtime.statistics().adopted_bytes == 0


def _child(array: npt.NDArray[Any], runtime: hetmem.Runtime, answers: "multiprocessing.Queue[Any]") -> None:
    answers.put(float(array.sum()))
    array[:] = 0
    try:
        runtime.migrate(array, "private0")
    except hetmem.InvalidInputError as error:
        answers.put(str(error))
    with hetmem.Runtime("private:emulated,size=16M") as own:
        other = own.full(1000, 2.0)
        own.migrate(other, 0)
        answers.put(float(other.sum()))
    runtime.close()
    answers.put("closed")


def test_forked_children_read_arrays_and_make_runtimes_of_their_own(runtime: hetmem.Runtime) -> None:
    array = runtime.full(100_000, 1.0)
    adopted = np.full(100_000, 4.0)
    runtime.adopt(adopted)
    runtime.migrate(array, "private0")
    runtime.migrate(adopted, "private0")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_child, args=(array, runtime, answers))
    child.start()
    assert answers.get(timeout=60) == 100_000
    assert "a forked child must make one of its own" in answers.get(timeout=60)
    assert answers.get(timeout=60) == 2000
    assert answers.get(timeout=60) == "closed"
    child.join()
    assert child.exitcode == 0
    assert array.sum() == 100_000 and adopted.sum() == 400_000
    assert runtime.migrate(array, "private0").moved > 0


def test_pools_of_processes_work_on_copies(runtime: hetmem.Runtime) -> None:
    array = runtime.full((8, 10_000), 1.0)
    runtime.migrate(array, "private0")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(np.sum, list(array)) == [10_000.0] * 8


def test_a_child_that_is_forked_while_other_threads_call_can_exit() -> None:
    script = f"""
import hetmem, os, sys, threading
runtime = hetmem.Runtime({DEVICES})
array = runtime.full(200_000, 1.0)
stop = threading.Event()
def move():
    while not stop.is_set():
        runtime.migrate(array, "private0")
thread = threading.Thread(target=move)
thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        assert array.sum() == 200_000
        del array
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
print("ended")
"""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


def test_a_program_may_end_with_arrays_away_and_threads_at_work() -> None:
    script = f"""
import hetmem, threading, numpy as np
runtime = hetmem.Runtime({DEVICES})
array = runtime.full(200_000, 1.0)
adopted = np.full(200_000, 1.0)
runtime.adopt(adopted)
def move():
    try:
        while True:
            runtime.migrate(array, "private0"); runtime.migrate(adopted, "private0")
    except hetmem.ClosedError:
        pass
threading.Thread(target=move, daemon=True).start()
while runtime.statistics().pages_migrated_to_device == 0: pass
print(array.sum())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "200000.0\n", "")


def test_pictures_are_drawn_of_where_pages_are(runtime: hetmem.Runtime) -> None:
    array = runtime.full(512 * 100, 1.0)
    runtime.migrate(array[: 512 * 30], "private0")
    matplotlib.use("Agg")
    axes = runtime.draw(array, columns=16)
    picture = axes.images[0].get_array()
    assert picture.shape == (7, 16) and picture.mask.sum() == 12
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["system", "private0"]
    assert (picture == 1).sum() == 30
    with pytest.raises(hetmem.InvalidInputError, match="columns"):
        runtime.draw(array, columns=0)


def test_heat_is_seen_by_touches_of_samples_which_are_back_at_the_end(runtime: hetmem.Runtime) -> None:
    array = runtime.full((1000, 512), 1.0)
    runtime.migrate(array[500:], "coherent0")
    heat = runtime.heatmap(array, samples=50)
    assert heat.pages.tolist() == list(range(10, 1000, 20)) and heat.touches.shape == (0, 50)
    for look in range(3):
        array[190:211] += 1
        if look == 1:
            array[890] += 1
        heat.look()
    heat.close()
    assert np.flatnonzero(heat.heat).tolist() == [9, 10, 44] and heat.heat[[9, 10]].tolist() == [1, 1]
    assert heat.touches[:, 44].tolist() == [0, 1, 0]
    assert runtime.where(array) == {"system": 500, "coherent0": 500}
    assert array.sum() == 1000 * 512 + 3 * 21 * 512 + 512
    with pytest.raises(hetmem.InvalidInputError, match="ended"):
        heat.look()
    hole = runtime.heatmap(runtime.empty((10, 512)))
    hole.look()
    assert hole.touches.tolist() == [[-1] * 10] and np.isnan(hole.heat).all()


def test_a_thread_looks_while_the_block_lasts(runtime: hetmem.Runtime) -> None:
    array = runtime.full((100, 512), 1.0)
    with runtime.heatmap(array, every=0.001) as heat:
        while len(heat.touches) < 5:
            array[50] += 1
        with pytest.raises(hetmem.InvalidInputError, match="by itself"):
            heat.look()
    looks = len(heat.touches)
    assert heat.touches[:, 50].max() == 1 and heat.heat[10] == 0
    assert runtime.where(array) == {"system": 100}
    assert len(heat.touches) == looks and str(looks) in repr(heat)
    with pytest.raises(hetmem.InvalidInputError, match="once"), heat:
        pass
    # One whose runtime is closed beside it ends, too.
    own = hetmem.Runtime(DEVICES)
    other = own.full((100, 512), 1.0)
    with own.heatmap(other, every=0.001):
        own.close()
        with pytest.raises(hetmem.ClosedError):
            own.residency(other)
    assert other.sum() == 51_200


def test_pictures_need_matplotlib_and_nothing_else_does(runtime: hetmem.Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where it is not installed.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    array = runtime.full(100, 1.0)
    heat = runtime.heatmap(array)
    heat.look()
    heat.close()
    draws: list[Callable[[], object]] = [heat.draw, lambda: runtime.draw(array)]
    for draw in draws:
        with pytest.raises(hetmem.Error, match=r"matplotlib is not installed: pip install 'hetmem\[draw\]'"):
            draw()


def test_heat_is_drawn_and_what_it_cant_be_made_of_is_named(runtime: hetmem.Runtime) -> None:
    array = runtime.full((100, 512), 1.0)
    heat = runtime.heatmap(array)
    array[7] += 1
    heat.look()
    heat.close()
    matplotlib.use("Agg")
    picture = heat.draw().images[0].get_array()
    assert picture.shape == (1, 100) and np.flatnonzero(picture).tolist() == [7]
    for wrong, part in [({"device": "coherent0"}, "no private device"), ({"samples": 0}, "samples=0"), ({"every": 0}, "every=0")]:
        with pytest.raises(hetmem.InvalidInputError, match=part):
            runtime.heatmap(array, **wrong)  # type: ignore[arg-type]
    with pytest.raises(hetmem.InvalidInputError, match="0 pages"):
        runtime.heatmap(array[:0])
    with hetmem.Runtime() as coherent, pytest.raises(hetmem.InvalidInputError, match="private:emulated"):
        coherent.heatmap(coherent.full(100, 1.0))


def test_the_library_is_of_the_packages_version() -> None:
    import importlib.metadata

    assert hetmem.version() == importlib.metadata.version("hetmem")


def test_what_is_exported_has_a_description() -> None:
    for name in [name for name in hetmem.__all__ if name not in ("PAGE", "Advice", "Place")]:
        assert getattr(hetmem, name).__doc__, name
    methods = [name for name in vars(hetmem.Runtime) if not name.startswith("_")]
    assert len(methods) > 10
    for name in methods:
        assert getattr(hetmem.Runtime, name).__doc__, name


assert "HETMEM_AGENT" not in os.environ, "these tests are for programs that have a runtime of their own"
