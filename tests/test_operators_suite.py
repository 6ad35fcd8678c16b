"""Every model of onnx's own operator tests in the numpy engine and in onnxruntime: they compute the same."""

import warnings

import numpy as np
import pytest

from refq.errors import InputError
from refq.models.engine import Engine, OnnxRuntime

# Where they differ, found with onnx 1.23 and onnxruntime 1.32, and why.
DIFFERENT = {
    "test_maxunpool_export_with_output_shape": "onnxruntime counts places in the smaller output",
    "test_resize_downsample_scales_linear_align_corners": "onnx takes length * scale without rounding",
    "test_resize_downsample_scales_cubic_align_corners": "the same",
    "test_if_opt": "onnx.reference has an optional sequence in a list",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal": "scores where nothing is seen",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal": "the same",
}
# Random results; a Scan of opset 8, whose inputs do not have the declared rank.
LEFT_OUT = ("_expanded", "bernoulli", "random", "multinomial", "training_dropout", "test_scan_sum")


def same(got, expected):
    """Whether two results are equal up to the rounding of sums."""
    if isinstance(expected, list):
        return isinstance(got, list) and len(got) == len(expected) and all(map(same, got, expected))
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape or expected.dtype.kind in "OUS":
        return got.shape == expected.shape and got.tolist() == expected.tolist()
    if got.dtype != expected.dtype:
        return False
    tolerance = 1e-2 if got.dtype.itemsize <= 2 else 1e-5
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    return np.allclose(got, expected, tolerance, tolerance * largest, equal_nan=True)


@pytest.mark.slow
def test_the_operator_tests_of_onnx():
    pytest.importorskip("onnxruntime")
    from onnx.backend.test.case.node import collect_testcases

    compared, wrong = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [case for case in collect_testcases(None)
                 if case.model and not any(part in case.name for part in LEFT_OUT)]
        for case in cases:
            names = [value.name for value in case.model.graph.input]
            feeds = {name: array if isinstance(array, list) else np.asarray(array)
                     for name, array in zip(names, case.data_sets[0][0])}
            if any(array.dtype == object for array in feeds.values() if not isinstance(array, list)):
                continue  # a TensorProto or an absent optional
            try:
                expected = OnnxRuntime(case.model).run(feeds)
            except InputError:
                continue  # it has no kernel
            got = Engine(case.model).run(feeds)
            compared += 1
            if not all(same(got[name], array) for name, array in expected.items()):
                wrong.append(case.name)
    assert compared > 1000
    assert set(wrong) <= DIFFERENT.keys()
