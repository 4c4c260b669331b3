"""Where a bug of a public kernel stands, and a kernel of ours with the same mistake."""

from __future__ import annotations

from dataclasses import dataclass

from planted.cases import Case


@dataclass(frozen=True)
class Bug:
    """A mistake that stands in a public repository.

    Attributes:
        repository: Its owner and name on GitHub.
        places: Files of it with the lines, or the functions, where the mistake stands.
        on_gpu: What it does there.
        case: A correct kernel of ours; its one mistake is that of the public one.
    """

    repository: str
    places: tuple[str, ...]
    on_gpu: str
    case: Case
