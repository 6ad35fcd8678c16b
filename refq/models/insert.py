"""Putting new weights into a graph: where their users see them, in place of what they read before."""

from dataclasses import dataclass

from onnx import NodeProto, helper

from refq.models.deliver import Proof
from refq.models.export import Exported
from refq.models.graph import Graph, Scope, Use
from refq.models.weights import WeightSite


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight in the new data type, and the layers that use it. proof: what the file must give back."""

    sites: tuple[WeightSite, ...]
    exported: Exported
    proof: Proof


def insert(graph: Graph, done: list[Weight]) -> None:
    """Put every new weight where its users see it, let them read it, and drop what nothing reads now.

    Layers that read the weight in another order of axes than the first get it through a Transpose, one for
    each order.
    """
    for item in done:
        if not item.exported.nodes and _in_place(graph, item):
            continue
        home = _common_scope([site.static.scope for site in item.sites])
        home.graph.initializer.extend(item.exported.initializers)
        first = min(item.sites, key=lambda site: _ancestor(site, home))
        outputs, turning = _turned(graph, item)
        graph.insert_before(first.node, home, [*item.exported.nodes, *turning])
        for site in item.sites:
            use = Use(site.node, site.operand, site.node.scope)
            graph.rewire(use, outputs[item.sites[0].turn_to(site)])
        item.exported.initializers.clear()  # the graph has its own copies
    graph.commit()


def _turned(graph: Graph, item: Weight) -> tuple[dict[tuple, str], list[NodeProto]]:
    """({permutation: the tensor that has the weight in it}, the Transpose nodes that make them)."""
    outputs, nodes = {(): item.exported.output}, []
    for turn in dict.fromkeys(item.sites[0].turn_to(site) for site in item.sites):
        if not turn:
            continue
        name = graph.unique(f"{item.sites[0].tensor}_Transpose")
        outputs[turn] = graph.unique(f"{name}_Output")
        nodes.append(helper.make_node("Transpose", [item.exported.output], [outputs[turn]], name, perm=turn))
    return outputs, nodes


def _in_place(graph: Graph, item: Weight) -> bool:
    """Overwrite a stored tensor that only these layers read; False when that is not so."""
    stored = item.sites[0].static
    readers = {(id(site.node), site.operand) for site in item.sites}
    uses = {(id(use.node), use.index) for use in graph.uses(stored.scope, stored.name)}
    replaceable = stored.overridable and graph.model.ir_version >= 4
    if not stored.is_leaf or stored.stored is None or replaceable or uses != readers:
        return False
    name = stored.stored.name
    stored.stored.CopyFrom(item.exported.initializers[0])
    stored.stored.name = name
    return True


def _common_scope(scopes: list[Scope]) -> Scope:
    """The innermost scope that all of these see."""
    def outward(scope):
        while scope is not None:
            yield scope
            scope = scope.parent
    seen = [list(outward(scope)) for scope in scopes]
    return next(scope for scope in seen[0] if all(any(scope is s for s in others) for others in seen))


def _ancestor(site: WeightSite, home: Scope) -> int:
    """Position in `home` of the site's node, or of the node whose body it is in."""
    node = site.node
    while node.scope is not home:
        node = node.scope.owner
    return node.position
