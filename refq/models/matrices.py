"""The weight matrices of a model as arrays, for whoever wants numbers and no graph."""

from collections.abc import Iterator

import numpy as np

from refq.errors import InputError
from refq.models import files
from refq.models.graph import Graph
from refq.models.weights import WeightSite, find_weights, read_weight


def weight_matrices(model_input) -> Iterator[tuple[str, np.ndarray, int | tuple[int, int]]]:
    """(name, matrix, axis that the layer sums over) of every weight that refq casts, each stored weight once.

    model_input: a path or a ModelProto. Raises InputError for a model that cannot be read or has no such
    weight, and for weights with NaN or infinity.
    """
    source = files.load(model_input)
    graph = Graph(files.inline(source, []), source.directory)
    groups: dict[tuple, WeightSite] = {}
    for site in find_weights(graph):
        if site.view:
            groups.setdefault(site.group, site)
    if not groups:
        raise InputError(f"{model_input} has no weight that refq casts")
    for site in groups.values():
        yield site.tensor, read_weight(graph, site), site.view.axis
