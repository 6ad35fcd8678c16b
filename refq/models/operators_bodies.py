"""Loop and Scan: operators that run a body, a graph of its own, once per turn."""

import numpy as np
import onnx
from onnx.reference.op_run import OpRun


class _Turns(OpRun):
    """A body sees the tensors around it, so these operators are given all of them as `context`."""

    def need_context(self):
        return True


class Loop(_Turns):
    """Loop: what the body carries from turn to turn, then what it gives at every turn, stacked."""

    def _run(self, trips, going, *carried, context=None, body=None, attributes=None, bindings=None):
        going = np.array(True) if going is None else going
        pieces = [[] for _ in body.output_names[1 + len(carried) :]]
        turn = 0
        while going.item() and (trips is None or turn < trips.item()):
            feeds = zip(body.input_names, (np.array(turn, np.int64), going, *carried), strict=True)
            going, *results = body.run(None, {**context, **dict(feeds)}, attributes=attributes)
            carried, scanned = results[: len(carried)], results[len(carried) :]
            for made, piece in zip(pieces, scanned, strict=True):
                made.append(piece)
            turn += 1
        types = body.output_types[1 + len(carried) :]
        return (*carried, *(np.stack(made) if made else _no_turns(type_, 0)
                            for made, type_ in zip(pieces, types)))


class Scan(_Turns):
    """Scan: along axes of its last inputs, either way, onto axes of its last outputs, either way."""

    def _run(self, *args, context=None, body=None, num_scan_inputs=None, scan_input_axes=None,
             scan_input_directions=None, scan_output_axes=None, scan_output_directions=None, attributes=None,
             bindings=None):
        count = len(args) - num_scan_inputs
        states, scanned = list(args[:count]), []
        axes = _per_item(scan_input_axes, num_scan_inputs)
        directions = _per_item(scan_input_directions, num_scan_inputs)
        for axis, backwards, array in zip(axes, directions, args[count:]):
            array = np.moveaxis(array, axis, 0)
            scanned.append(array[::-1] if backwards else array)
        turns = {len(array) for array in scanned}
        if len(turns) != 1:
            raise ValueError(f"the scanned inputs have {sorted(turns)} slices; they must have as many each")
        pieces = [[] for _ in body.output_names[count:]]
        for turn in range(*turns):
            slices = [array[turn, ...] for array in scanned]
            feeds = dict(zip(body.input_names, (*states, *slices), strict=True))
            results = body.run(None, {**context, **feeds}, attributes=attributes)
            states = results[:count]
            for made, piece in zip(pieces, results[count:], strict=True):
                made.append(piece)
        stacked = []
        axes = _per_item(scan_output_axes, len(pieces))
        directions = _per_item(scan_output_directions, len(pieces))
        for axis, backwards, made, type_ in zip(axes, directions, pieces, body.output_types[count:]):
            made = made[::-1] if backwards else made
            stacked.append(np.stack(made, axis) if made else _no_turns(type_, axis))
        return (*states, *stacked)


def _per_item(values, count):
    """An attribute with a number per input or output, 0 where it says nothing."""
    return [*(values or ()), *[0] * count][:count]


def _no_turns(type_, axis):
    """A scan output when the body never ran: of the shape the body declares, its free dims 0."""
    tensor = type_.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        raise ValueError("the body never runs and does not declare the shape of its output")
    dims = [dim.dim_value for dim in tensor.shape.dim]
    dims.insert(axis if axis >= 0 else len(dims) + 1 + axis, 0)
    return np.empty(dims, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
