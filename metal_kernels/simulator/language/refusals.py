"""Parts of Metal that are not simulated, found by their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .tokens import Token, template_end

_REFUSED = (
    (r"tensor|tensor_\w+|cooperative_tensor|mpp", "<|::", "Metal 4 tensors"),
    (r"MetalPerformancePrimitives|metal_(cooperative_)?tensor", "/|>", "Metal 4 tensors"),
    (r"(texture|depth)(1d|2d|3d|cube|_buffer)\w*", "<", "textures"),
    (r"sampler", r"\w+", "samplers"),
    (r"imageblock\w*", "<", "image blocks"),
    (r"(r|rg|rgba|rgb|rg11)\d+\w*(unorm|snorm)\w*", "<", "pixel types of image blocks"),
    (r"(visible|intersection)_function_table", "<", "function tables"),
    (r"raytracing|intersector|acceleration_structure", ".*", "rays and their intersectors"),
    (r"mesh|mesh_grid_properties", "<", "mesh shaders"),
    (r"interpolant", "<", "interpolants"),
    (r"simdgroup_event", ".*", "asynchronous copies"),
)
_NAMES = re.compile("|".join(name for name, _, _ in _REFUSED))
_STAGES = {"vertex", "fragment", "object", "patch", "tile", "intersection", "visible"}


class NotSimulated(ValueError):
    """Something that is not simulated, and the line where it stands."""

    def __init__(self, line: int, what: str):
        super().__init__(f"line {line}: {what} are not simulated")
        self.line = line
        self.what = what


def refuse(tokens: Sequence[Token]) -> None:
    """Check a text of the user.

    Raises:
        NotSimulated: for the first part of it that is not simulated.
    """
    for i, token in enumerate(tokens[:-1]):
        if token.kind != "name":
            continue
        following = tokens[i + 1].text
        refused = _REFUSED if _NAMES.fullmatch(token.text) else ()
        for name, after, what in refused:
            if not re.fullmatch(name, token.text) or not re.fullmatch(after, following):
                continue
            if following != "<" or _opens_template(tokens, i + 1):
                raise NotSimulated(token.line, what)
        attribute = i and tokens[i - 1].text == "[["
        if token.text in _STAGES and attribute:
            raise NotSimulated(token.line, f"{token.text} functions")


def _opens_template(tokens: Sequence[Token], at: int) -> bool:
    """Whether ``<`` is no comparison with a variable of that name."""
    end = template_end(tokens, at)
    return tokens[at - 1].end == tokens[at].start and tokens[end].text == ">"
