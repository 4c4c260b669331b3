"""What Python runs first in every process that a test starts: it hides PyTorch.

transformers, whose tokenizers mlx-lm uses, imports PyTorch where it is installed, more than half of
the time in which a command starts. Users who do not convert need not have it.
"""

import sys
from typing import Any, cast

cast(dict[str, Any], sys.modules)["torch"] = None  # Python then says that there is no such module
