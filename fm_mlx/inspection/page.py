"""The page: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

import fm_mlx
from fm_mlx.inspection.observe import LayerUse, Observation
from fm_mlx.inspection.tokens import TokenTexts

# Rows of a layer that the page shows; of a larger memory those are shown that are used most.
MAX_ROWS = 256

# Affinities are stored as whole numbers of this many steps.
_STEPS = 65535

_INFINITE = "∞"


def html_page(seen: Observation, token_texts: TokenTexts, model_name: str) -> str:
    """The page of an observation.

    Args:
        seen: what the model did.
        token_texts: says the texts of tokens.
        model_name: what the page calls the model.

    Returns:
        HTML without a reference to anything outside of itself.
    """
    shown = token_texts(seen.kept)
    rows, width = seen.layers[0].state.shape
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": escape(f"Inside {model_name}"),
        "style": _resource("page.css"),
        "script": script,
        "script_hash": f"sha256-{digest}",
        "version": fm_mlx.__version__,
        "facts": (
            f"{_counted(len(seen.layers), 'layer')}, each with a memory of "
            f"{_counted(rows, 'row')} of {_counted(width, 'number')}; a token writes and reads "
            f"{seen.num_active:,} of them. The prompt has {_counted(seen.tokens, 'token')}."
        ),
        "links": "".join(f'<a href="#layer-{i}">Layer {i}</a>' for i in range(len(seen.layers))),
        "rows": f"{rows:,}",
        "active": f"{seen.num_active:,}",
        "tokens": _counted(seen.tokens, "token"),
        "layer_rows": "\n".join(_layer_row(i, use) for i, use in enumerate(seen.layers)),
        "shown": _shown_tokens(seen),
        "prompt": "".join(f"<span>{_broken(text)}</span>" for text in shown),
        "layers": "\n".join(
            _layer_section(i, use, seen, token_texts) for i, use in enumerate(seen.layers)
        ),
        "data": _in_script(
            {
                "first": seen.first_kept,
                "tokens": shown,
                "layers": [_layer_data(use) for use in seen.layers],
            }
        ),
    }
    # in one pass: what is filled in is not looked at again
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _resource("page.html"))


def shown_half_life(tokens: float) -> str:
    """A half-life for a table: three digits, "∞" for a row that nothing was written to."""
    if math.isinf(tokens):
        return _INFINITE
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.3g}"


def layer_words(use: LayerUse, tokens: int, num_active: int) -> list[str]:
    """What there is to say about a layer, in sentences.

    Args:
        use: what the layer did.
        tokens: the tokens of the prompt.
        num_active: k.
    """
    rows = len(use.usage)
    largest = np.cumsum(np.sort(use.usage)[::-1])
    half = int(np.searchsorted(largest, 0.5) + 1)
    untouched = int((use.touched == 0).sum())
    first = int(use.usage.argmax())
    words = [
        f"This layer uses {use.rows_used:.1f} of its {_counted(rows, 'row')} effectively; "
        f"{_counted(half, 'row')} {'gets' if half == 1 else 'get'} half of all affinity, and "
        + (f"{_counted(untouched, 'row')} got none." if untouched else "every row got some."),
        f"A token spreads over {use.rows_per_token:.1f} of its "
        f"{_counted(num_active, 'active row')}.",
        f"What a row holds is halved {_in_words(use.median_half_life)} (the median of the rows), "
        f"in the most used one, row {first}, {_in_words(use.half_life[first])}.",
    ]
    if tokens * num_active < rows:
        words.append("The prompt is too short to touch all rows.")
    elif rows > 1 and use.rows_used <= max(1.0, rows / 4):
        words.append(
            "The routing has collapsed onto few rows: most of the memory lies idle with this "
            "prompt."
        )
    if tokens > 1 and rows > 1 and use.rows_used < 1.1 * use.rows_per_token:
        words.append("The choice of rows hardly depends on the token.")
    return words


def _in_words(half_life: float) -> str:
    return "never" if math.isinf(half_life) else f"within {shown_half_life(half_life)} tokens"


def _layer_row(number: int, use: LayerUse) -> str:
    cells = [
        f"{use.rows_used:.1f}",
        f"{use.rows_per_token:.1f}",
        f"{(use.touched == 0).sum():,}",
        shown_half_life(use.median_half_life),
        shown_half_life(use.half_life[use.usage.argmax()]),
        f"{use.mean_update_rate:.3f}",
        f"{use.mean_merge_rate:.3f}",
        _share_picture(use.usage),
    ]
    link = f'<th scope="row"><a href="#layer-{number}">{number}</a></th>'
    return f"<tr>{link}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _share_picture(usage: np.ndarray) -> str:
    """Bars of the shares, the largest first, on a scale from 0 to the largest."""
    share = np.sort(usage)[::-1]
    bars = "".join(f"M{i} 100v-{100 * s / share[0]:.1f}h1V100z" for i, s in enumerate(share))
    even = 100 - 100 / len(share) / share[0]
    return (
        f'<svg class="share" viewBox="0 0 {len(share)} 100" preserveAspectRatio="none" role="img" '
        f'aria-label="the largest share is {share[0]:.1%}"><path d="{bars}"/>'
        f'<line x1="0" x2="{len(share)}" y1="{even:.1f}" y2="{even:.1f}"/></svg>'
    )


def _layer_section(number: int, use: LayerUse, seen: Observation, token_texts: TokenTexts) -> str:
    words = " ".join(layer_words(use, seen.tokens, seen.num_active))
    return f"""<section id="layer-{number}">
<h2>Layer {number}</h2>
<p>{escape(words)}</p>
<figure>
<div class="legend">
<span><span class="what"></span>: 0<span class="ramp"></span><span class="most"></span></span>
<span><span class="none"></span>not active</span>
<span class="eta">— update rate η</span>
<span class="mu">- - merge rate μ</span>
</div>
<div class="map">
<div class="gutter"></div>
<div class="tokens"><div class="plane">
<canvas class="heat" tabindex="0" role="img" aria-label="Layer {number}: tokens from left to right,
rows from top to bottom. The arrow keys move from cell to cell."></canvas>
{_rates_picture(use)}
<div class="axis" aria-hidden="true"></div>
<div class="mark" hidden></div>
</div></div>
<div class="bars"><svg preserveAspectRatio="none" aria-hidden="true"><path/></svg>
<span>share</span></div>
</div>
<figcaption class="note">Rows of the memory from top to bottom, tokens from left to right; below,
both rates of each token on a scale from 0 to 1.</figcaption>
</figure>
{_rows_table(use, seen, token_texts)}
</section>"""


def _rates_picture(use: LayerUse) -> str:
    """Steps of eta and mu, a unit wide for each token."""
    lines = []
    for name, rate in (("eta", use.update_rate), ("mu", use.merge_rate)):
        path = "".join(f"{'V' if t else 'M0 '}{100 - 100 * r:.1f}h1" for t, r in enumerate(rate))
        lines.append(f'<path class="{name}" d="{path}"/>')
    return (
        f'<svg class="rates{" fine" if len(use.update_rate) > 200 else ""}" '
        f'viewBox="0 -2 {len(use.update_rate)} 104" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(lines)}</svg>'
    )


def _rows_table(use: LayerUse, seen: Observation, token_texts: TokenTexts) -> str:
    lines, half_life = [], use.half_life
    for row in _shown_rows(use):
        texts = [
            f"<code>{_marked(text)}</code>" for text in token_texts(use.nearest.ids[row].tolist())
        ]
        nearest = f"{use.nearest.strength[row, 0]:.1f} sd {''.join(texts)}"
        if not use.state[row].any():
            nearest = "the row holds nothing"
        cells = [
            _percent(float(use.usage[row])),
            _percent(int(use.touched[row]) / seen.tokens),
            shown_half_life(float(half_life[row])),
            nearest,
        ]
        line = f'<th scope="row">{row}</th>' + "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr>{line}</tr>")
    left_out = ""
    if len(lines) < len(use.usage):
        left_out = (
            f'<p class="note">The {len(lines):,} rows used most are shown, of '
            f"{len(use.usage):,}.</p>"
        )
    return f"""{left_out}<details>
<summary>The rows in numbers, and the tokens nearest to each after the prompt</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Rows in numbers">
<table class="rows">
<thead><tr>
<th scope="col">Row</th>
<th scope="col">Share</th>
<th scope="col">Active for<br><small>of the tokens</small></th>
<th scope="col">Half-life<br><small>tokens</small></th>
<th scope="col">Nearest tokens <small>(a lens)</small></th>
</tr></thead>
<tbody>
{chr(10).join(lines)}
</tbody>
</table>
</div>
</details>"""


def _percent(part: float) -> str:
    """A part of the whole; what is more than nothing does not look like nothing."""
    return "&lt;0.1%" if 0 < part < 0.0005 else f"{part:.1%}"


def _shown_rows(use: LayerUse) -> np.ndarray:
    """The rows that the page shows, by number."""
    return np.sort(np.argsort(-use.usage, kind="stable")[:MAX_ROWS])


def _layer_data(use: LayerUse) -> dict[str, Any]:
    """What the script draws: the affinities in 16 bits, in base64, token after token."""
    rows = _shown_rows(use)
    alpha = use.affinity[:, rows].astype(np.float64)
    steps = np.where(alpha > 0, np.maximum(np.rint(alpha * _STEPS), 1), 0)
    return {
        "rows": rows.tolist(),
        "usage": [round(share, 6) for share in use.usage[rows].tolist()],
        "eta": [round(rate, 5) for rate in use.update_rate.tolist()],
        "mu": [round(rate, 5) for rate in use.merge_rate.tolist()],
        "alpha": base64.b64encode(steps.astype("<u2").tobytes()).decode(),
    }


def _shown_tokens(seen: Observation) -> str:
    if len(seen.kept) == seen.tokens:
        return "All tokens are shown." if seen.tokens > 1 else "The one token is shown."
    return (
        f"Of {seen.tokens:,} tokens the last {len(seen.kept):,} are shown one by one, here and in "
        "the heat maps; shares, half-lives and means are over all."
    )


def _broken(text: str) -> str:
    """The text of a token inside the prompt: a line ends where its sign is."""
    return escape(text).replace("⏎", "⏎\n")


def _marked(text: str) -> str:
    """The text of a token by itself, with its spaces to be seen."""
    return escape(text).replace(" ", "·")


def _in_script(content: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _resource(name: str) -> str:
    return files("fm_mlx.inspection").joinpath(name).read_text(encoding="utf-8").rstrip("\n")
