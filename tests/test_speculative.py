"""Drafts change how long decoding takes, and nothing of what it writes or keeps."""

from __future__ import annotations

import json
from contextlib import contextmanager

import mlx.core as mx
import pytest
from cases import REAL, Code, close, tiny_model, tokens
from laws.decoding import BUFFERED
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import llama, mamba
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mutant import mutated
from tiny import some_text

import fm_mlx
from fm_mlx.cache import state_of
from fm_mlx.commands import cli
from fm_mlx.drafting import ModelDrafter, PromptLookup
from fm_mlx.finite import NotFiniteError

VOCAB = 512

# Of states of unit scale, computed by a pass over more tokens and over fewer.
STATE_TOLERANCE = 1e-6

LLAMA = dict(
    model_type="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=32,
    num_attention_heads=2, rms_norm_eps=1e-6, vocab_size=VOCAB, tie_word_embeddings=False,
)  # fmt: skip


def llama_model(**config):
    mx.random.seed(3)
    model = llama.Model(llama.ModelArgs.from_dict(LLAMA | config))
    # attention to earlier tokens decides what comes next
    for layer in model.layers:
        layer.self_attn.update(tree_map(lambda x: 4 * x, layer.self_attn.parameters()))
    return model


def noisy(model, amount: float):
    """A copy of a model with noise in its weights."""
    copy = type(model)(model.args)
    mx.random.seed(5)
    copy.update(
        tree_map(lambda x: x + amount * x.std() * mx.random.normal(x.shape), model.parameters())
    )
    return copy


def model_with_a_head(**config):
    """Whose text does not repeat its last token, as that of a tied random model does."""
    config = {"vocab_size": VOCAB, "tie_word_embeddings": False, **config}
    model = tiny_model(REAL, **config)
    # far apart enough that rounding does not change which token is the likeliest
    model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape)
    return model


@pytest.fixture(scope="module")
def models():
    return {
        "one state": model_with_a_head(num_memory_states=16),
        "two buffers": model_with_a_head(**BUFFERED),
    }


@pytest.fixture(params=["one state", "two buffers"])
def model(request, models):
    return models[request.param]


@pytest.fixture(scope="module")
def small(models):
    return models["one state"]


@pytest.fixture(scope="module")
def tokenizer(loaded):
    return loaded[1]


@pytest.fixture
def generated(tokenizer):
    """The responses to a prompt of random tokens, or to the one that is given."""

    def run(model, max_tokens=24, *, prompt=None, seed=0, **options):
        prompt = tokens((40,), seed) if prompt is None else prompt
        mx.random.seed(seed)
        responses = fm_mlx.stream_generate(model, tokenizer, prompt, max_tokens, **options)
        return list(responses)

    return run


def assert_same(found, plain):
    """The same responses, but for their times and where they come from."""
    assert [r.token for r in found] == [r.token for r in plain]
    assert "".join(r.text for r in found) == "".join(r.text for r in plain)
    for ours, theirs in zip(found, plain, strict=True):
        close(ours.logprobs, theirs.logprobs, 1e-5, "log-probabilities")
        assert ours.finish_reason == theirs.finish_reason
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert ours.generation_tokens == theirs.generation_tokens


def drafted(responses) -> int:
    return sum(r.from_draft for r in responses)


# ---- The state after the drafts that stand


def rewound_is_never_drafted(code: Code, length: int = 9) -> None:
    """The state taken back to the first tokens of a pass = that after a pass over those alone."""
    model = tiny_model(code, num_memory_states=16)
    before = model.make_cache()
    model(tokens((1, 20)), before)
    states = [layer[0] for layer in before]
    drafts = tokens((1, length), seed=1)
    for kept in range(1, length + 1):
        rewound, alone = ([code.cache.RewindableCache(s) for s in states] for _ in range(2))
        model(drafts, rewound)
        model(drafts[:, :kept], alone)
        for a, b in zip(rewound, alone, strict=True):
            a.rewind(kept)
            close(a[0], b[0], STATE_TOLERANCE, f"state after {kept} of {length}")


def test_rewound_is_never_drafted():
    for length in (1, 2, 9, 40):  # 40: more than a chunk
        rewound_is_never_drafted(REAL, length)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (None, "tokens = max(1, tokens - 1)"),
        ("keep.prod(axis=1)", "mx.ones_like(keep[:, 0])"),
        (
            "mx.cumprod(keep, axis=1, reverse=True, inclusive=False)",
            "mx.cumprod(keep, axis=1, reverse=True)",
        ),
    ],
    ids=["one token too few", "what was there does not decay", "a token decays at once"],
)
def test_the_law_of_rewinding_fails_on(old, new):
    mx.disable_compile()
    try:
        broken = mutated("cache", "RewindableCache.rewind", old, new)
        with pytest.raises(AssertionError, match="state after"):
            rewound_is_never_drafted(broken)
    finally:
        mx.enable_compile()


# ---- Drafts of models


@pytest.mark.parametrize("count", [1, 3, 8])
def test_a_draft_model_that_is_the_model_is_always_right(generated, model, count):
    plain = generated(model)
    assert len({r.token for r in plain}) > 5
    found = generated(model, draft_model=model, num_draft_tokens=count)
    assert_same(found, plain)
    passes = -(-24 // (count + 1))
    assert drafted(found) == 24 - passes
    assert [r.from_draft for r in found[: count + 1]] == [True] * count + [False]


def test_a_draft_model_that_is_always_wrong(generated, model):
    stranger = model_with_a_head(seed=9, num_hidden_layers=1)
    found = generated(model, draft_model=stranger)
    assert_same(found, generated(model))
    assert drafted(found) <= 2


@pytest.mark.parametrize("count", [1, 4])
def test_a_draft_model_that_is_right_now_and_then(generated, model, count):
    right = 0
    for seed in range(4):
        options = {"draft_model": noisy(model, 0.2), "num_draft_tokens": count}
        found = generated(model, 40, seed=seed, **options)
        assert_same(found, generated(model, 40, seed=seed))
        right += drafted(found)
    assert 20 < right < 4 * (40 - 40 // (count + 1))


def test_a_llama_drafts(generated, model):
    found = generated(model, draft_model=llama_model())
    assert_same(found, generated(model))


@pytest.mark.parametrize("kind", ["recurrent", "trimmed"])
def test_a_drafter_that_went_back_drafts_like_a_new_one(small, kind):
    """However many of its drafts were right."""
    model = small if kind == "recurrent" else llama_model()
    drafter = ModelDrafter(model, VOCAB)
    text = tokens((30,)).tolist()
    drafter.read(text)
    added = [7]
    for count, right in [(4, 0), (4, 2), (4, 4), (1, 1), (1, 0), (8, 7), (3, 3), (5, 1)]:
        drafts = drafter.draft(added, count).tolist()
        afresh = ModelDrafter(model, VOCAB)
        text += added
        afresh.read(text[:-1])
        assert drafts == afresh.draft(text[-1:], count).tolist()
        added = [*drafts[:right], [*drafts, 0][right] + 1]


def test_a_full_window_drafts_nothing(generated, small):
    """It cannot be trimmed any more."""
    window = llama_model(layer_types=["full_attention", "sliding_attention"], sliding_window=50)
    found = generated(small, 30, draft_model=window)
    assert_same(found, generated(small, 30))
    drafter = ModelDrafter(window, VOCAB)
    drafter.read(tokens((60,)).tolist())
    assert drafter.draft([7], 3).size == 0


# ---- Drafts of the text itself


def test_prompt_lookup(generated, model):
    right = 0
    for seed in range(4):
        prompt = mx.concatenate([tokens((20,), seed)] * 3)
        found = generated(model, 60, prompt=prompt, prompt_lookup=True)
        assert_same(found, generated(model, 60, prompt=prompt))
        right += drafted(found)
    # greedy text of a random model repeats itself now and then
    assert right > 20


def test_the_longest_and_last_match_is_taken():
    lookup = PromptLookup()
    lookup.read([1, 2, 3, 10, 11, 9, 2, 3, 20, 1, 2, 3, 30, 31, 32, 5])
    assert lookup.draft([9, 9, 2, 3], 2).tolist() == [20, 1]
    assert lookup.draft([8, 1, 2, 3], 3).tolist() == [30, 31, 32]
    assert lookup.draft([7, 2, 3], 2).tolist() == [7, 2]  # 7, 2, 3 was never there
    assert lookup.draft([40, 41], 3).size == 0


def test_lookup_goes_round_in_a_circle():
    lookup = PromptLookup()
    lookup.read([5, 6, 7, 5, 6])
    assert lookup.draft([7], 8).tolist() == [5, 6, 7, 5, 6, 7, 5, 6]


def test_lookup_forgets():
    lookup = PromptLookup(window=100)
    lookup.read([1000, 1001, 1002])
    for start in range(0, 900, 50):
        lookup.read(range(start, start + 50))
        lookup.read([2000, 2001, start])
        assert len(lookup._tokens) <= 100
        assert len(lookup._after) <= 200
    assert lookup.draft([1000, 1001], 1).size == 0
    assert lookup.draft([2000, 2001], 1).tolist() == [850]


# ---- What goes with drafts

WAYS = {
    "draft model": lambda model: {"draft_model": noisy(model, 0.1)},
    "prompt lookup": lambda model: {"prompt_lookup": True},
}


@pytest.fixture(params=WAYS)
def drafting(request):
    """Options that make drafts for a model, of which some are right."""
    return WAYS[request.param]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
def test_there_are_as_many_tokens_as_asked_for(generated, small, drafting, count):
    found = generated(small, count, **drafting(small))
    assert_same(found, generated(small, count))
    assert len(found) == count
    assert found[-1].finish_reason == "length"


def test_a_prompt_of_one_token(generated, model, drafting):
    prompt = tokens((1,))
    assert_same(generated(model, prompt=prompt, **drafting(model)), generated(model, prompt=prompt))


def test_sampled_text_is_that_of_plain_decoding(generated, model, drafting):
    """To the same seed; so its distribution is that of plain decoding as well."""
    for seed in range(4):
        options = {"sampler": make_sampler(2.0, top_p=0.9), "seed": seed}
        plain = generated(model, 40, **options)
        assert len({r.token for r in plain}) > 20
        assert_same(generated(model, 40, **options, **drafting(model)), plain)


def test_logits_processors(generated, small, drafting):
    """They see the tokens before each position, drafts that stand included."""
    options = {"logits_processors": make_logits_processors(repetition_penalty=1.2)}
    plain = generated(small, 40, **options)
    found = generated(small, 40, **options, **drafting(small))
    assert_same(found, plain)
    assert [r.token for r in plain] != [r.token for r in generated(small, 40)]


@contextmanager
def ending(tokenizer, token):
    """With one more token that ends the text."""
    before = set(tokenizer.eos_token_ids)
    tokenizer.eos_token_ids = before | {token}
    try:
        yield
    finally:
        tokenizer.eos_token_ids = before


def test_the_end_of_the_text_among_the_drafts(generated, tokenizer, model):
    last = generated(model, draft_model=model, num_draft_tokens=6)[9]
    assert last.from_draft
    with ending(tokenizer, last.token):
        caches = [make_prompt_cache(model) for _ in range(2)]
        plain = generated(model, -1, prompt_cache=caches[0])
        found = generated(model, -1, prompt_cache=caches[1], draft_model=model, num_draft_tokens=6)
    assert_same(found, plain)
    assert found[-1].finish_reason == "stop"
    assert found[-1].from_draft
    assert_same_states(*caches)


def assert_same_states(found, plain):
    for a, b in zip(found, plain, strict=True):
        close(state_of(a), state_of(b), 1e-5, "state")


@pytest.mark.parametrize("count", [1, 6, 7, 30])
def test_the_prompt_cache_goes_on(generated, model, drafting, count):
    caches = [make_prompt_cache(model) for _ in range(2)]
    for seed in (1, 2):
        plain = generated(model, count, prompt_cache=caches[0], seed=seed)
        found = generated(model, count, prompt_cache=caches[1], seed=seed, **drafting(model))
        assert_same(found, plain)
        assert_same_states(*caches)
    assert_same(*(generated(model, 12, prompt_cache=cache) for cache in caches))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
def test_a_generator_that_is_left_leaves_the_state_behind(model, tokenizer, count):
    """That after the tokens which it gave, as in plain decoding."""

    def left(**options):
        cache = make_prompt_cache(model)
        run = fm_mlx.stream_generate(
            model, tokenizer, tokens((40,)), 50, prompt_cache=cache, **options
        )
        for _ in range(count):
            next(run)
        run.close()
        return cache

    assert_same_states(left(draft_model=model, num_draft_tokens=4), left())


def test_a_memory_goes_before(generated, loaded, drafting):
    model, _ = loaded
    memory = fm_mlx.remember(*loaded, some_text(3000))
    options = {"memory": memory, "prompt": "the river"}
    plain = generated(model, 30, **options)
    assert_same(generated(model, 30, **options, **drafting(model)), plain)
    without = generated(model, 1, prompt="the river")
    assert not mx.allclose(plain[0].logprobs, without[0].logprobs)


def test_prompts_in_pieces(generated, small, drafting):
    text = some_text(3000)
    plain = generated(small, prompt=text, prefill_step_size=64)
    for prompt in (text, iter([text[:1000], text[1000:]])):
        calls = []
        found = generated(
            small, prompt=prompt, prefill_step_size=64, **drafting(small),
            prompt_progress_callback=lambda *call, calls=calls: calls.append(call),
        )  # fmt: skip
        assert_same(found, plain)
        count = found[0].prompt_tokens
        assert calls[-1] == (count, count)
        read = [done for done, _ in calls]
        assert read == sorted(read)
        assert len(read) > 10


def test_a_prompt_that_is_read_twice_takes_no_memory(generated, small):
    """By the model and by what drafts, each piece of it when it comes."""
    peaks = []

    def progress(done, _):
        peaks.append((done, mx.get_active_memory()))

    generated(
        small, 2, prompt=(some_text(2000, i) for i in range(10)), prefill_step_size=256,
        draft_model=noisy(small, 0.1), prompt_progress_callback=progress,
    )  # fmt: skip
    assert peaks[-1][0] > 5000
    assert peaks[-1][1] - next(peak for done, peak in peaks if done >= 1000) < 1e6


def test_what_is_not_finite_is_said(changed, checkpoint, loaded, drafting):
    name = "model.layers.1.memory.out_proj.weight"
    shape = mx.load(str(checkpoint / "model.safetensors"))[name].shape
    broken, tokenizer = fm_mlx.load(changed(weights={name: mx.full(shape, float("nan"))}))
    with pytest.raises(NotFiniteError, match=f"before token 1.*the output of layer 1.*{name}"):
        next(fm_mlx.stream_generate(broken, tokenizer, "river", **drafting(loaded[0])))


def test_a_state_that_is_not_finite_is_said(loaded, drafting):
    model, tokenizer = loaded
    cache = make_prompt_cache(model)
    model(tokens((1, 9)), cache)
    cache[1][0] = cache[1][0] * float("nan")
    options = {"prompt_cache": cache, **drafting(model)}
    with pytest.raises(NotFiniteError, match="the state of layer 1 is not"):
        next(fm_mlx.stream_generate(model, tokenizer, [5], 9, **options))


# ---- What is refused


def recurrent_model_of_mlx_lm():
    args = mamba.ModelArgs(
        model_type="mamba", vocab_size=VOCAB, hidden_size=32, intermediate_size=32,
        state_size=4, num_hidden_layers=1, conv_kernel=4, use_bias=False, use_conv_bias=True,
        time_step_rank=4,
    )  # fmt: skip
    return mamba.Model(args)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (lambda: {"draft_model": llama_model(vocab_size=99)}, "has 99 tokens; the model has 512"),
        (
            lambda: {"draft_model": recurrent_model_of_mlx_lm()},
            r"cache cannot be trimmed \(ArraysCache\)",
        ),
        (
            lambda: {"draft_model": llama_model(), "prompt_lookup": True},
            "a draft_model and prompt_lookup; allowed is one",
        ),
        (
            lambda: {"prompt_lookup": True, "num_draft_tokens": 0},
            "num_draft_tokens is 0; allowed are whole numbers from 1",
        ),
        (
            lambda: {"prompt_lookup": True, "num_draft_tokens": 2.5},
            "num_draft_tokens is 2.5; allowed are whole numbers from 1",
        ),
        (
            lambda: {"prompt_lookup": True, "kv_bits": 4},
            "kv_bits cannot be had with drafts; allowed are sampler and logits_processors",
        ),
    ],
)
def test_bad_arguments_are_one_line(generated, small, options, error):
    with pytest.raises(ValueError, match=error) as raised:
        generated(small, **options())
    assert "\n" not in str(raised.value)


def test_models_of_others_check_no_drafts(generated):
    with pytest.raises(ValueError, match="allowed is one of Factorization Memory"):
        generated(llama_model(), prompt_lookup=True)


# ---- The command


@pytest.fixture
def fm(capsys):
    def run(*argv):
        status = cli.main(["generate", *map(str, argv)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def llama_folder(tmp_path, checkpoint):
    folder = tmp_path / "llama"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    weights = dict(tree_flatten(llama_model().parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder


def test_the_command_writes_the_same_text(fm, checkpoint, llama_folder):
    asked = ("--model", checkpoint, "-p", "the river", "-m", 30, "--temp", 1, "--seed", 5)
    status, plain, _ = fm(*asked)
    assert status == 0
    for options in (
        ("--prompt-lookup",),
        ("--draft-model", checkpoint, "--num-draft-tokens", 4),
        ("--draft-model", llama_folder),
    ):
        status, out, err = fm(*asked, *options)
        assert (status, err) == (0, "")
        assert out.split("\nPrompt: ")[0] == plain.split("\nPrompt: ")[0]
        assert " of the 30 tokens\n" in out
    assert "Drafts: " not in plain


def test_the_command_refuses_in_one_line(fm, checkpoint, llama_folder, tmp_path):
    asked = ("--model", checkpoint, "-p", "the river")
    vocabulary = json.loads((llama_folder / "tokenizer.json").read_text())
    pieces = vocabulary["model"]["vocab"]
    pieces["<other>"] = pieces.pop("<0x41>")
    (llama_folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    for options, error in (
        (("--num-draft-tokens", 4), "--num-draft-tokens takes --draft-model or --prompt-lookup"),
        (("--draft-model", llama_folder), "has another tokenizer than the model"),
        (("--draft-model", tmp_path / "nothing"), "no model at"),
    ):
        status, out, err = fm(*asked, *options)
        assert (status, out) == (2, "")
        assert error in err
        assert err.count("\n") == 1
    (llama_folder / "model.safetensors").write_bytes(b"no weights")
    status, _, err = fm(*asked, "--draft-model", llama_folder)
    assert status == 2
    assert "cannot be used" in err and err.count("\n") == 1
