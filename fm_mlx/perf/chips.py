"""Apple's chips: memory bandwidth and arithmetic, for bounds.

Bandwidths are Apple's figures; programs reach 80 to 87 % of them. Arithmetic in float32 is
known here for some chips only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A chip.

    Attributes:
        name: The name that ``--chip`` takes.
        bandwidth: The bandwidth of its memory in GB/s.
        teraflops: Its float32 operations in TFLOP/s; None if they are not known here.
    """

    name: str
    bandwidth: int
    teraflops: float | None = None


# Where a chip comes with two widths of memory, both stand here.
CHIPS = (
    Chip("m1", 68, 2.6),
    Chip("m1-pro", 200),
    Chip("m1-max", 400),
    Chip("m1-ultra", 800),
    Chip("m2", 100),
    Chip("m2-pro", 200, 6.8),
    Chip("m2-max", 400),
    Chip("m2-ultra", 800),
    Chip("m3", 100),
    Chip("m3-pro", 150),
    Chip("m3-max-300", 300),
    Chip("m3-max-400", 400),
    Chip("m3-ultra", 819),
    Chip("m4", 120, 4.6),
    Chip("m4-pro", 273, 9.2),
    Chip("m4-max-410", 410),
    Chip("m4-max-546", 546, 18.4),
    Chip("m5", 153),
    Chip("m5-pro", 307),
    Chip("m5-max-460", 460),
    Chip("m5-max-614", 614),
)


def find_chips(name: str) -> tuple[Chip, ...]:
    """The chips of a name: one, its two widths of memory ("m4-max"), or "all".

    Raises:
        ValueError: if there is none.
    """
    if name == "all":
        return CHIPS
    wanted = name.lower().replace(" ", "-").removeprefix("apple-")
    exact = tuple(chip for chip in CHIPS if chip.name == wanted)
    widths = tuple(chip for chip in CHIPS if chip.name.rpartition("-")[0] == wanted)
    found = exact or tuple(chip for chip in widths if chip.name.rpartition("-")[2].isdigit())
    if not found:
        allowed = ", ".join(chip.name for chip in CHIPS)
        raise ValueError(f"no chip {name!r}; allowed are all, {allowed}")
    return found
