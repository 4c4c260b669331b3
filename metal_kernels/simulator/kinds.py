"""The kinds of findings, and which of them fail a launch."""

from __future__ import annotations

from .execution import native

NOT_METAL = "not-metal"
FAST_MATH_NAN = "fast-math-nan"
COMPILE_ERROR = "compile-error"
STRIDES_IGNORED = "strides-ignored"
TOO_LARGE = "too-large"
SCHEDULE_DEPENDENT = "schedule-dependent"
SCHEDULE_ROUNDING = "schedule-rounding"

# Those of the runtime, then those that are found around it: in the text, in the arguments of
# the launch, between launches.
KINDS = frozenset(
    {
        *native.KINDS,
        *(NOT_METAL, FAST_MATH_NAN, COMPILE_ERROR),
        *(STRIDES_IGNORED, TOO_LARGE, SCHEDULE_DEPENDENT, SCHEDULE_ROUNDING),
    }
)

# Those that raise unless told otherwise: not the ones that hardware handles as one hopes.
FATAL = KINDS - {
    *("race-same-value", "simd-lockstep", "simd-partial", "simd-divergent"),
    *("half-overflow", FAST_MATH_NAN, SCHEDULE_ROUNDING),
}
