"""Loading a model folder, and one plain sentence where that fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast, overload

import mlx.core as mx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from mlx_lm.models.cache import ArraysCache, load_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS, load_adapters, load_model, load_tokenizer

from fm_mlx.model import MODEL_TYPE, Model, ModelArgs, shown
from fm_mlx.precision import may_be_quantised
from fm_mlx.support.arrays import load_arrays, named_arrays
from fm_mlx.support.files import brief, check_regular, read_json_object
from fm_mlx.support.safetensors_file import tensors_of
from fm_mlx.weights import check_sizes

PRETRAINED = Path(__file__).parent / "pretrained"

# Weights of PyTorch, in the files of a repository.
_TORCH_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.index.json")

# What libraries raise for files that are not what they should be.
BAD_FILES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,  # MLX, for a file that is cut short
    TypeError,
    ValueError,
)

# Dtypes of weights by the names of safetensors; unsigned integers hold quantised ones.
_WEIGHT_DTYPES = ("F32", "F16", "BF16", "U32", "U8")

# Keys of config.json that mlx-lm looks at beside the model's own, and what they may be.
_KINDS = {
    "quantization": (dict, "an object with group_size and bits"),
    "quantization_config": (dict, "an object"),
    "architectures": ((list, str), "a list of names"),
    "eos_token_id": ((int, list), "a token's number, or a list of them"),
}

# By which a tokenizer is known to be there.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")


@overload
def load(
    path_or_repo: str | Path | None = None,
    *,
    adapter_path: str | Path | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    lazy: bool = False,
    return_config: Literal[False] = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Model, TokenizerWrapper]: ...


@overload
def load(
    path_or_repo: str | Path | None = None,
    *,
    adapter_path: str | Path | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    lazy: bool = False,
    return_config: Literal[True],
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Model, TokenizerWrapper, dict[str, Any]]: ...


def load(
    path_or_repo: str | Path | None = None,
    *,
    adapter_path: str | Path | None = None,
    tokenizer_config: dict[str, Any] | None = None,
    model_config: dict[str, Any] | None = None,
    lazy: bool = False,
    return_config: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Model, TokenizerWrapper] | tuple[Model, TokenizerWrapper, dict[str, Any]]:
    """Load a Factorization Memory model and its tokenizer, as `mlx_lm.load` does.

    Args:
        path_or_repo: a model folder or a Hugging Face repository; None: the model in the package.
        adapter_path: folder of LoRA adapters to put on the model.
        tokenizer_config: options for the tokenizer.
        model_config: replaces keys of ``config.json``.
        lazy: leave the weights unread until they are used.
        return_config: return the config as well.
        revision: branch, tag or commit of a repository.
        trust_remote_code: let the checkpoint bring Python code and run it.

    Returns:
        (model, tokenizer), or (model, tokenizer, config).

    Raises:
        FileNotFoundError: no such model, or a file of it is missing.
        ValueError: a file of it, a value in the config, or a weight is not what it should be.
            The text of either names the file and what is allowed, in one line.
    """
    folder = find_model(path_or_repo, revision)
    args = _check_config(folder, model_config, trust_remote_code)
    if args is not None:
        _check_weights(folder, args)
        # mlx-lm looks for other people's quantisations where there is no such key
        model_config = {"quantization_config": None} | (model_config or {})
    try:
        loaded = load_model(
            folder, lazy, model_config=model_config, trust_remote_code=trust_remote_code
        )
        model, config = cast(Model, loaded[0]), loaded[1]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no weights (model*.safetensors) in {folder}") from error
    except BAD_FILES as error:
        raise ValueError(f"the weights in {folder} cannot be used: {brief(error)}") from error
    if config.get("quantization_config", True) is None:
        del config["quantization_config"]
        if "quantization" in config:  # the same under its other name, as mlx-lm writes it
            config["quantization_config"] = config["quantization"]
    if adapter_path is not None:
        _add_adapters(model, Path(adapter_path))
    tokenizer_config = {"trust_remote_code": trust_remote_code, **(tokenizer_config or {})}
    tokenizer = _tokenizer(folder, tokenizer_config, config)
    return (model, tokenizer, config) if return_config else (model, tokenizer)


def load_args(path_or_repo: str | Path | None = None) -> ModelArgs:
    """The arguments in a model's ``config.json``, without its weights.

    Raises:
        FileNotFoundError, ValueError: as `load` for the folder and its config.
    """
    args = _check_config(find_model(path_or_repo), None, trust_remote_code=False)
    assert args is not None  # only a checkpoint's own code is not looked into
    return args


def load_state(path: str | Path) -> tuple[list[Any], dict[str, str]]:
    """The caches and the metadata of a file written by `mlx_lm.models.cache.save_prompt_cache`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not hold saved caches.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no saved state at {path}: no such file")
    check_regular(path)
    try:
        cache, metadata = load_prompt_cache(str(path), return_metadata=True)
    except BAD_FILES as error:
        raise ValueError(f"{path} is not a saved state: {brief(error)}") from error
    return cache, metadata if isinstance(metadata, dict) else {}


def check_state(cache: list[Any], model: Model, path: str | Path) -> None:
    """Raise ValueError unless the caches hold a state (1, m, d) per layer of the model."""
    args = model.args
    wanted = (1, args.num_memory_states, args.memory_size)
    if len(cache) != args.num_hidden_layers:
        raise ValueError(
            f"{path} holds the state of {len(cache)} layers; the model has {args.num_hidden_layers}"
        )
    for entry in cache:
        state = entry[0] if isinstance(entry, ArraysCache) else None
        found = tuple(state.shape) if isinstance(state, mx.array) else type(entry).__name__
        if found != wanted:
            raise ValueError(f"{path} holds {found}; the model's state is {wanted} in ArraysCache")


def find_model(path_or_repo: str | Path | None, revision: str | None = None) -> Path:
    """The folder of a model, fetched if it is a repository; None: that in the package.

    Raises:
        FileNotFoundError, ValueError: as `load`.
    """
    if path_or_repo is None:
        if not PRETRAINED.is_dir():
            raise FileNotFoundError(f"the package's own model is missing from {PRETRAINED}")
        return PRETRAINED
    path = _fetched(path_or_repo, revision, DEFAULT_ALLOW_PATTERNS)
    if path.is_file():
        raise ValueError(f"{path} is a file; allowed is a model folder or a repository")
    return path


def find_checkpoint(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """A file or folder of weights of any kind, fetched if it is a repository.

    Raises:
        FileNotFoundError: if there is none.
    """
    return _fetched(path_or_repo, revision, [*DEFAULT_ALLOW_PATTERNS, *_TORCH_FILES])


def _fetched(path_or_repo: str | Path, revision: str | None, patterns: list[str]) -> Path:
    path = Path(path_or_repo).expanduser()
    if not path.exists():
        path = _downloaded(path_or_repo, revision, patterns)
    for inside in path.iterdir() if path.is_dir() else (path,):
        # whoever opened a named pipe would wait for ever
        if inside.exists() and not inside.is_dir():
            check_regular(inside)
    return path


def _downloaded(path_or_repo: str | Path, revision: str | None, patterns: list[str]) -> Path:
    try:
        return Path(
            snapshot_download(str(path_or_repo), revision=revision, allow_patterns=patterns)
        )
    except HFValidationError as error:
        raise FileNotFoundError(f"no model at {path_or_repo}: no such folder") from error
    except (HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"no model {path_or_repo}: neither a folder nor a Hugging Face repository "
            f"that can be had ({type(error).__name__})"
        ) from error


def find_tokenizer(folder: Path, config: dict[str, Any]) -> TokenizerWrapper | None:
    """The tokenizer in a model's folder, if there is one that can be used."""
    try:
        return _tokenizer(folder, {}, config)
    except (FileNotFoundError, ValueError):
        return None


def _check_config(
    folder: Path, overrides: dict[str, Any] | None, trust_remote_code: bool
) -> ModelArgs | None:
    """Raise on a config that this package's model cannot be built from; else its arguments.

    None if the checkpoint's own code decides what the config may hold.
    """
    path = folder / "config.json"
    config = read_json_object(path) | (overrides or {})
    if config.get("model_file") is not None:
        if trust_remote_code:
            return None
        raise ValueError(
            f"{path} asks to run the checkpoint's own code ({shown(config['model_file'])}); that "
            "takes trust_remote_code, or model_config={'model_file': None} for this package's class"
        )
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise ValueError(
            f"{path}: model_type is {shown(model_type)}; allowed is {MODEL_TYPE!r} "
            "(mlx-lm's own commands run other models)"
        )
    try:
        args = ModelArgs.from_dict(config)
    except ValueError as error:
        raise ValueError(f"{path}: {brief(error)}") from error
    for key, (kinds, allowed) in _KINDS.items():
        if config.get(key) is not None and not isinstance(config[key], kinds):
            raise ValueError(f"{path}: {key} is {shown(config[key])}; allowed is {allowed}")
    quantization = config.get("quantization")
    if quantization is None and config.get("quantization_config") is not None:
        raise ValueError(
            f"{path} has quantization_config and no quantization: weights that others than mlx-lm "
            "quantised are not read"
        )
    if quantization is not None:
        for key in ("group_size", "bits"):
            value = quantization.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**16:
                raise ValueError(
                    f"{path}: quantization is {shown(quantization)}; allowed is an object with "
                    "whole numbers group_size and bits"
                )
    return args


def _check_weights(folder: Path, args: ModelArgs) -> None:
    """Raise unless the files of weights are whole and of the sizes that the config says."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no weights (model*.safetensors) in {folder}")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = read_json_object(index).get("weight_map")
        named = set(map(str, named.values())) if isinstance(named, dict) else set()
        for file in files:
            if file.name not in named:
                raise ValueError(f"{file} is not named by {index.name}: remove one of them")
        for name in sorted(named):
            check_regular(folder / Path(name).name)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, tensor in tensors_of(file).items():
            if name in shapes:
                raise ValueError(f"{file} holds {name}, which another file of {folder} holds too")
            if tensor.dtype not in _WEIGHT_DTYPES:
                raise ValueError(
                    f"{name} in {file} is {tensor.dtype}; allowed are {', '.join(_WEIGHT_DTYPES)}"
                )
            shapes[name] = tensor.shape
            if tensor.dtype.startswith("U") and not _is_packed(name):
                raise ValueError(f"{name} in {file} is {tensor.dtype}: no weight that is quantised")
    try:
        check_sizes(shapes, args)
    except ValueError as error:
        raise ValueError(f"{folder}: {brief(error)}") from error


def _is_packed(name: str) -> bool:
    """Whether a weight of this name may hold packed bits, or the scales of such ones."""
    module, _, parameter = name.rpartition(".")
    return may_be_quantised(module) and parameter in ("weight", "scales")


def _add_adapters(model: Model, folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"no adapters at {folder}: no such folder")
    for file in folder.iterdir():
        if not file.is_dir():
            check_regular(file)
    config = read_json_object(folder / "adapter_config.json")
    if not (folder / "adapters.safetensors").is_file():
        raise FileNotFoundError(f"no adapters.safetensors in {folder}")
    try:
        if config.get("train_router") and config.get("fine_tune_type") != "full":
            _load_adapters_and_routers(model, folder)
        else:
            load_adapters(model, str(folder))
    except BAD_FILES as error:
        raise ValueError(f"the adapters in {folder} cannot be used: {brief(error)}") from error
    model.eval()


def _load_adapters_and_routers(model: Model, folder: Path) -> None:
    """Load an adapter that has whole routers, which mlx-lm's loader refuses.

    Routers are no linear layers (`fm_mlx.layer.Router`), and so have no low-rank form.
    """
    weights = load_arrays(folder / "adapters.safetensors")
    routers = {name: x for name, x in weights.items() if name.endswith(".router.weight")}
    with TemporaryDirectory() as rest:
        shutil.copyfile(folder / "adapter_config.json", Path(rest, "adapter_config.json"))
        others = {name: x for name, x in weights.items() if name not in routers}
        mx.save_safetensors(str(Path(rest, "adapters.safetensors")), others)
        load_adapters(model, rest)
    shapes = named_arrays(model.parameters())
    for name, router in routers.items():
        if name not in shapes or shapes[name].shape != router.shape:
            raise ValueError(f"{name} {router.shape} is no router of this model")
    model.load_weights(list(routers.items()), strict=False)


def _tokenizer(
    folder: Path, tokenizer_config: dict[str, Any], config: dict[str, Any]
) -> TokenizerWrapper:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"no tokenizer in {folder}: none of {', '.join(TOKENIZER_FILES)}")
    try:
        tokenizer = load_tokenizer(folder, tokenizer_config, config.get("eos_token_id"))
        # some of what is wrong shows when a text is encoded
        tokenizer.encode("a")
        end = [token for token in tokenizer.eos_token_ids if not isinstance(token, int)]
    except Exception as error:  # the tokenizers library raises plain Exception on a broken file
        raise ValueError(f"the tokenizer in {folder} cannot be used: {brief(error)}") from error
    if end:
        raise ValueError(f"{folder}: eos_token_id is {shown(end[0])}; allowed are whole numbers")
    if len(tokenizer) > config["vocab_size"]:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens; "
            f"the model's vocab_size is {config['vocab_size']}"
        )
    return tokenizer
