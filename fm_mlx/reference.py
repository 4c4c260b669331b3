"""Factorization Memory in one file: NumPy, float64, a plain loop over time.

This is the paper as code ("Language Modeling With Factorization Memory", Xiong,
Tkachenko, Effendi, Cai, 2025, arXiv:2511.00315, equations 4 to 13). It is slow on
purpose: every other implementation in this project is tested against it.

Glossary
    code              paper       shape         meaning
    ----              -----       -----         -------
    x                 x_t         (T, hidden)   input of the layer
    router[:m]        W_alpha     (m, hidden)   scores the m rows of the memory
    router[m]         w_eta       (hidden,)     how much to write
    router[m + 1]     w_mu        (hidden,)     how much to read
    in_proj           W_i         (d, hidden)   makes the value
    out_proj          W_o         (hidden, d)   maps what was read back
    temperature       tau         scalar        softness of the routing
    num_active        k           scalar        rows a token touches
    affinity          alpha_t     (T, m)        memory affinity: softmax(W_alpha x_t / tau)
    product_keys                                weights of two halves instead of m rows
    gamma             gamma_t     (T, m)        mask of the k rows of largest affinity
    update_rate       eta_t       (T, 1)        sigmoid(w_eta . x_t)
    merge_rate        mu_t        (T, 1)        sigmoid(w_mu . x_t)
    theta             theta_t     (T, m)        write weights: eta_t alpha_t
    phi               phi_t       (T, m)        merge (read) weights: mu_t alpha_t
    values            v_t         (T, d)        W_i x_t, the same for every row
    state             h_t         (m, d)        the memory
    y                 y_t         (T, d)        what is read, before W_o

Together these are equations 4 to 13 of the paper: the dense layer, and its sparse form, in
which only the k rows of largest affinity take part. k = m is the dense layer.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def softmax(logits: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def rms(x: Array, eps: float) -> Array:
    """Root mean square over the last axis, which is kept with length 1."""
    return np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def product_logits(halves: Array) -> Array:
    """The logits of m = n * n rows, row i n + j that of i in the first half and of j in the second.

    Not the paper's: product keys (Lample et al., 2019, arXiv:1907.05242).

    Args:
        halves: (T, 2 n).

    Returns:
        (T, n * n).
    """
    first, second = np.split(halves, 2, axis=-1)
    return (first[:, :, None] + second[:, None, :]).reshape(len(halves), -1)


def affinity(logits: Array, num_active: int, temperature: float = 1.0) -> Array:
    """Memory affinity alpha of each token, dense over the m rows.

    Args:
        logits: W_alpha x, shape (T, m).
        num_active: k. Rows beyond the k largest get 0; ties go to the lowest index.
        temperature: tau.

    Returns:
        (T, m), each row sums to 1.
    """
    alpha = softmax(logits / temperature)
    best = np.argsort(-alpha, axis=-1, kind="stable")[:, :num_active]
    gamma = np.zeros_like(alpha)
    np.put_along_axis(gamma, best, 1.0, axis=-1)
    return gamma * alpha / np.sum(gamma * alpha, axis=-1, keepdims=True)


def memory_loop(
    theta: Array, phi: Array, values: Array, state: Array | None = None, eps: float = 1e-6
) -> tuple[Array, Array]:
    """The recurrence, one token at a time.

    Args:
        theta: write weights, (T, m).
        phi: merge weights, (T, m).
        values: v_t, (T, d).
        state: h_0, (m, d); zeros if None.
        eps: added under the root of the row norm.

    Returns:
        y of shape (T, d), and the last state (m, d).
    """
    h = np.zeros((theta.shape[1], values.shape[1])) if state is None else state
    y = np.empty_like(values)
    for t, value in enumerate(values):
        h = (1.0 - theta[t, :, None]) * h + theta[t, :, None] * value
        y[t] = phi[t] @ (h / rms(h, eps))
    return y, h


def memory_layer(
    x: Array,
    weights: dict[str, Array],
    num_active: int,
    temperature: float = 1.0,
    state: Array | None = None,
    eps: float = 1e-6,
    product_keys: bool = False,
) -> tuple[Array, Array]:
    """One Factorization Memory layer.

    Args:
        x: (T, hidden).
        weights: ``in_proj`` (d, hidden), ``router`` (m + 2, hidden), ``out_proj`` (hidden, d);
            with product keys ``router`` is (2 sqrt(m) + 2, hidden).
        num_active: k.
        temperature: tau.
        state: h_0, (m, d); zeros if None.
        eps: added to the mean square in the row norm.
        product_keys: whether the logits of the rows are sums (`product_logits`).

    Returns:
        The layer's output (T, hidden), and the last state (m, d).
    """
    routing = x @ weights["router"].T
    logits = product_logits(routing[:, :-2]) if product_keys else routing[:, :-2]
    alpha = affinity(logits, num_active, temperature)
    update_rate = sigmoid(routing[:, -2:-1])
    merge_rate = sigmoid(routing[:, -1:])
    values = x @ weights["in_proj"].T
    y, state = memory_loop(update_rate * alpha, merge_rate * alpha, values, state, eps)
    return y @ weights["out_proj"].T, state


def language_model(
    tokens: Array, weights: dict[str, Array], config: dict, states: list[Array] | None = None
) -> tuple[Array, list[Array]]:
    """The whole model: embedding, blocks, final norm, head.

    Args:
        tokens: (T,) integers.
        weights: the weights by the names of a checkpoint
            (``model.layers.0.memory.in_proj.weight`` ...).
        config: the keys of ``config.json``.
        states: one (m, d) array per layer; zeros if None.

    Returns:
        logits (T, vocab), and the last states.
    """

    def norm(x: Array, name: str) -> Array:
        return x / rms(x, config["rms_norm_eps"]) * weights[name + ".weight"]

    def linear(x: Array, name: str) -> Array:
        return x @ weights[name + ".weight"].T

    x = weights["model.embed_tokens.weight"][tokens]
    last_states = []
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.{i}"
        memory = {
            name: weights[f"{block}.memory.{name}.weight"]
            for name in ("in_proj", "router", "out_proj")
        }
        read, state = memory_layer(
            norm(x, f"{block}.memory_norm"),
            memory,
            config["num_active_states"],
            config["affinity_temperature"],
            None if states is None else states[i],
            config["memory_norm_eps"],
            config.get("router") == "product",
        )
        last_states.append(state)
        x = x + read
        z = norm(x, f"{block}.mlp_norm")
        gate = linear(z, f"{block}.mlp.gate_proj")
        up = linear(z, f"{block}.mlp.up_proj")
        x = x + linear(gate * sigmoid(gate) * up, f"{block}.mlp.down_proj")
    x = norm(x, "model.norm")
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return linear(x, head), last_states
