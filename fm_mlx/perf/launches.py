"""What a model launches on a Metal GPU, by name: how often, and what that moves and computes.

The tests compare the launches of a token with the graph that MLX exports, and the kernels' bytes
with what the simulator counts. Prompts launch more than what is listed: the small operations
around the kernels are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fm_mlx.cache import cache_entries
from fm_mlx.layer import PRODUCT
from fm_mlx.metal_kernels.add_rms_norm import add_rms_norm_cost
from fm_mlx.metal_kernels.chunk_scan import chunk_scan_cost, chunk_scan_vjp_cost
from fm_mlx.metal_kernels.cost import FLOAT_BYTES, Cost
from fm_mlx.metal_kernels.route import route_dense_cost
from fm_mlx.metal_kernels.sparse_update import sparse_update_cost
from fm_mlx.metal_kernels.state_pass import state_pass_cost
from fm_mlx.model import ModelArgs
from fm_mlx.perf.plan import PREFILL_STEP, Plan
from fm_mlx.perf.work import chunks_of, update_work, write_work


@dataclass(frozen=True)
class Launches:
    """All launches of one name.

    Attributes:
        name: Of a kernel's Metal file, or of an operation of MLX.
        work: Of all of them together; `dispatches` is their number.
    """

    name: str
    work: Cost


def of_token(plan: Plan) -> list[Launches]:
    """Of a decoded token of every sequence of the batch."""
    args, batch, item = plan.args, plan.batch, plan.item_bytes
    memory = _buffered_memory if _is_buffered(args) else _dense_memory
    return [
        Launches("embedding", _moves(2 * batch * args.hidden_size * item)),
        Launches("first norm", _first_norm(batch * args.hidden_size, item)),
        *_products(plan, batch, pieces=1),
        Launches("add_rms_norm", _norms(plan, batch)),
        *(Launches(name, work * args.num_hidden_layers) for name, work in memory(plan).items()),
        Launches("SwiGLU", _swiglu(plan, batch)),
        Launches("head", _head(plan, batch)),
    ]


def _is_buffered(args: ModelArgs) -> bool:
    sizes = args.num_memory_states, args.num_active_states, args.memory_size
    return cache_entries(*sizes) > 1


def _buffered_memory(plan: Plan) -> dict[str, Cost]:
    """A layer's memory in two buffers: the active rows, and what waits to be written."""
    args, batch = plan.args, plan.batch
    active, width = args.num_active_states, args.memory_size
    return {
        "sparse_update": sparse_update_cost(batch, args.num_logits, active, width, plan.item_bytes),
        "write of rows": write_work(batch, active, width),
    }


def _dense_memory(plan: Plan) -> dict[str, Cost]:
    """A layer's memory in one array, all rows of which are read and written.

    What MLX's compiler cannot join: the rows, the sum of their squares, the weights to read
    them with, the product that reads, and in 16 bits a cast.
    """
    launches = 4 + (plan.item_bytes != FLOAT_BYTES)
    step = replace(update_work(plan.args, plan.batch, sparse=False), dispatches=launches)
    return _route_dense(plan.args, plan.batch) | {"memory step": step}


def _route_dense(args: ModelArgs, tokens: int) -> dict[str, Cost]:
    """There is no kernel for product keys, whose rows the operations of MLX choose."""
    rows = args.num_memory_states
    return {} if args.router == PRODUCT else {"route_dense": route_dense_cost(tokens, rows)}


def of_prompt(plan: Plan, tokens: int) -> list[Launches]:
    """Of one sequence of tokens, in pieces of PREFILL_STEP."""
    args, pieces = plan.args, -(-tokens // PREFILL_STEP)
    layers, rows, width = args.num_hidden_layers, args.num_memory_states, args.memory_size
    chunks, chunk, slots = chunks_of(args, tokens)
    kernels = {"chunk_scan": chunk_scan_cost(chunks, chunk, slots)}
    if slots == rows:  # where only the active rows are scanned, MLX's operations do the rest
        kernels |= _route_dense(args, tokens)
        kernels["state_pass"] = state_pass_cost(1, chunks, rows, width)
    return [
        *_products(plan, tokens, pieces),
        Launches("add_rms_norm", _in_pieces(_norms(plan, tokens), pieces)),
        *(Launches(name, _in_pieces(work, pieces) * layers) for name, work in kernels.items()),
        Launches("SwiGLU", _in_pieces(_swiglu(plan, tokens), pieces)),
    ]


def of_gradient(plan: Plan, tokens: int) -> list[Launches]:
    """The kernels that the gradient of one sequence of tokens adds, in one piece."""
    args = plan.args
    chunks, chunk, slots = chunks_of(args, tokens)
    kernels = {"chunk_scan_vjp": chunk_scan_vjp_cost(chunks, chunk, slots)}
    if slots == args.num_memory_states:
        kernels["state_pass"] = state_pass_cost(1, chunks, slots, args.memory_size)
    return [Launches(name, work * args.num_hidden_layers) for name, work in kernels.items()]


def _products(plan: Plan, tokens: int, pieces: int) -> Iterator[Launches]:
    """The five products of all blocks; every piece reads the weights."""
    args = plan.args
    hidden, width, inner = args.hidden_size, args.memory_size, args.intermediate_size
    scores = args.num_logits + 2
    of_a_layer = {
        "W_i": (hidden, width),
        "router": (hidden, scores),
        "W_o": (width, hidden),
        "gate with up": (hidden, 2 * inner),
        "down": (inner, hidden),
    }
    for name, (inputs, outputs) in of_a_layer.items():
        if name == "router":
            weights, item = inputs * outputs * FLOAT_BYTES, FLOAT_BYTES
        else:
            weights, item = round(inputs * outputs * plan.weight_bits / 8), plan.item_bytes
        moved = pieces * weights + tokens * (inputs + outputs) * item
        work = Cost(moved, moved, 2 * tokens * inputs * outputs, dispatches=pieces)
        yield Launches(name, work * args.num_hidden_layers)


def _norms(plan: Plan, tokens: int) -> Cost:
    """A sum with its norm: two a block, the last one behind the blocks instead of the first."""
    layers, hidden, item = plan.args.num_hidden_layers, plan.args.hidden_size, plan.item_bytes
    plain = add_rms_norm_cost(tokens, hidden, item)
    before_memories = add_rms_norm_cost(tokens, hidden, item, in_float=True)
    return plain * (layers + 1) + before_memories * (layers - 1)


def _first_norm(numbers: int, item: int) -> Cost:
    """Without a sum before it; in 16 bits cast to float32 and back, and for the router again."""
    moved = 2 * numbers * FLOAT_BYTES
    if item == FLOAT_BYTES:
        return _moves(moved)
    return Cost(moved + 3 * numbers * (item + FLOAT_BYTES), moved, 5 * numbers, dispatches=4)


def _swiglu(plan: Plan, tokens: int) -> Cost:
    return _moves(3 * tokens * plan.args.intermediate_size * plan.item_bytes) * (
        plan.args.num_hidden_layers
    )


def _head(plan: Plan, batch: int) -> Cost:
    weights = round(plan.head_weights * plan.weight_bits / 8)
    moved = weights + batch * (plan.args.hidden_size + plan.args.vocab_size) * plan.item_bytes
    return Cost(moved, moved, 2 * batch * plan.head_weights)


def _moves(size: int) -> Cost:
    return Cost(size, size, 0)


def _in_pieces(work: Cost, pieces: int) -> Cost:
    """The same work, every launch of it in as many."""
    return replace(work, dispatches=work.dispatches * pieces)


def total(launches: list[Launches]) -> Cost:
    """All of them together."""
    works = [of_name.work for of_name in launches]
    return sum(works[1:], start=works[0])
