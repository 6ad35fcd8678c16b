"""Activations in memory and on disk."""

import threading

import numpy as np
import pytest

from refq.models.store import Store
from refq.models.workers import Workers
from refq.errors import InputError


def arrays(count, size=100):
    return [np.full(size, number, np.float32) for number in range(count)]


def test_what_fits_is_kept_and_what_does_not_goes_to_disk(tmp_path):
    with Store(1000, tmp_path) as store:
        for number, array in enumerate(arrays(4)):
            store.put(number, array)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert store.held == 800 == store.most and store.spilled == 800 and len(files) == 2
        for number, array in enumerate(arrays(4)):
            np.testing.assert_array_equal(store.get(number), array)
        store.drop(0)
        store.put("late", arrays(1)[0])
        assert store.held == 800 and store.spilled == 800, "room that was given back is used again"
        for number in (1, 2, 3, "late", "never there"):
            store.drop(number)
        assert store.held == 0 and not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.float32(3.5).reshape(()), np.zeros((0, 3)),
                                   np.arange(6).reshape(2, 3).T, np.array([True, False]),
                                   np.arange(5, dtype=np.float16)],
                         ids=["scalar", "empty", "transposed", "bool", "half"])
def test_every_shape_and_dtype_comes_back(array):
    with Store(0) as store:
        store.put("x", array)
        back = store.get("x")
        assert back.dtype == array.dtype and back.shape == array.shape
        np.testing.assert_array_equal(back, array)


def test_small_floats_of_onnx_come_back():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(8).astype(ml_dtypes.bfloat16)
    with Store(0) as store:
        store.put("x", array)
        assert store.get("x").dtype == array.dtype and (store.get("x") == array).all()


def test_what_is_no_array_stays_in_memory():
    with Store(0) as store:
        store.put("sequence", [np.zeros(3)])
        store.put("words", np.array(["a", "b"], object))
        assert len(store.get("sequence")) == 1 and store.get("words")[1] == "b"


def test_the_folder_goes_away_after_a_failure(tmp_path):
    with pytest.raises(RuntimeError), Store(0, tmp_path) as store:
        store.put("x", np.ones(10))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_nothing_is_said(tmp_path):
    with Store(0, tmp_path) as store:
        (folder,) = tmp_path.iterdir()
        folder.rmdir()
        with pytest.raises(InputError, match="cannot keep activations .*Allow more memory, or let TMPDIR"):
            store.put("x", np.ones(10))
        folder.mkdir()


def test_several_threads_may_use_it():
    with Store(5000) as store:
        def work(thread):
            for number in range(50):
                store.put((thread, number), np.full(10, thread * 100 + number))
            for number in range(50):
                assert store.get((thread, number))[0] == thread * 100 + number
                store.drop((thread, number))
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert store.held == 0 and store.most <= 5000


@pytest.mark.parametrize("count", [1, 2, 5])
def test_workers_give_results_in_order(count):
    with Workers(count) as workers:
        assert list(workers.map(lambda x: x * x, range(20))) == [x * x for x in range(20)]


def test_an_error_in_a_task_comes_out():
    def fail(x):
        raise InputError(f"task {x}")
    for count in (1, 2):
        with pytest.raises(InputError, match="task 0"), Workers(count) as workers:
            list(workers.map(fail, range(9)))


def test_linear_algebra_has_one_thread_inside():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    with Workers(2) as workers:
        counts = list(workers.map(lambda _: [pool["num_threads"] for pool in threadpoolctl.threadpool_info()
                                             if pool["user_api"] == "blas"], range(2)))
    assert counts and all(number == 1 for each in counts for number in each)


def test_no_worker_is_refused():
    with pytest.raises(InputError, match="0 workers; at least 1"):
        Workers(0)
