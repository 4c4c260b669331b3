// In place of MLX's logging.h: nothing is logged.
#pragma once
#include <metal_stdlib>

namespace mlx {
using os_log = metal::os_log;
}
