"""Apple chips, as MLX describes the GPU that it finds.

The figures are what `mx.device_info()` printed on such a machine, as its owners published it:
M1 16 GB, M2 16 GB, M2 Ultra 192 GB, M3 16 GB, M3 Ultra 256 GB, M4 Pro 48 GB, M5 Max 128 GB;
that of the M1 Max is from gfx-rs/wgpu#2502. macOS derives the working set from the memory, so
the M4, M4 Max and M5 take theirs from a machine with as much. The last letter of the
architecture, by which MLX chooses among its kernels, is "g" for a base chip, "s" for a Pro or
Max and "d" for an Ultra.
"""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 1 << 30


@dataclass(frozen=True)
class Chip:
    """A chip, with the memory of a usual configuration.

    Attributes:
        device_name: What Metal calls it.
        architecture: What Metal calls its GPU.
        memory_size: The bytes of memory, which the CPU and the GPU share.
        working_set: How many of them Metal recommends to use at a time.
        max_buffer_length: The most bytes of a buffer.
    """

    device_name: str
    architecture: str
    memory_size: int
    working_set: int
    max_buffer_length: int

    def device_info(self) -> dict[str, str | int]:
        """What `mx.device_info()` gives."""
        return {
            "device_name": self.device_name,
            "architecture": self.architecture,
            "memory_size": self.memory_size,
            "max_recommended_working_set_size": self.working_set,
            "max_buffer_length": self.max_buffer_length,
            "resource_limit": 499000,
        }


_OF_16_GB = (16 * _GIB, 12713115648, 9534832640)
_OF_128_GB = (128 * _GIB, 115448725504, 86586540032)

CHIPS = {
    "m1": Chip("Apple M1", "applegpu_g13g", 16 * _GIB, 11453251584, 8589934592),
    "m1-max": Chip("Apple M1 Max", "applegpu_g13s", 64 * _GIB, 48 * _GIB, 36 * _GIB),
    "m2": Chip("Apple M2", "applegpu_g14g", *_OF_16_GB),
    "m2-ultra": Chip("Apple M2 Ultra", "applegpu_g14d", 192 * _GIB, 173173080064, 129879801856),
    "m3": Chip("Apple M3", "applegpu_g15g", *_OF_16_GB),
    "m3-ultra": Chip("Apple M3 Ultra", "applegpu_g15d", 256 * _GIB, 223338299392, 167503724544),
    "m4": Chip("Apple M4", "applegpu_g16g", *_OF_16_GB),
    "m4-pro": Chip("Apple M4 Pro", "applegpu_g16s", 48 * _GIB, 40200896512, 30150672384),
    "m4-max": Chip("Apple M4 Max", "applegpu_g16s", *_OF_128_GB),
    "m5": Chip("Apple M5", "applegpu_g17g", *_OF_16_GB),
    "m5-max": Chip("Apple M5 Max", "applegpu_g17s", *_OF_128_GB),
}

DEFAULT_CHIP = "m4-max"


def chip_named(name: str) -> Chip:
    """A chip by the name that options have for it.

    Raises:
        ValueError: if there is no such chip.
    """
    try:
        return CHIPS[name]
    except KeyError:
        raise ValueError(f"no chip {name!r}; allowed are {', '.join(CHIPS)}") from None
