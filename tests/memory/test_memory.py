"""Memories: exact to continue, to save and to rewind; of one model; whole or refused."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import struct
from dataclasses import asdict, replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.utils import linear_to_lora_layers
from safetensors.numpy import save_file
from tokenizers_of_others import prefixing_tokenizer
from transformers import PreTrainedTokenizerFast

import fm_mlx
from fm_mlx.memory import Memory, Snapshot, Text, remember
from fm_mlx.memory import memory as memory_module
from fm_mlx.memory import reading as reading_module
from fm_mlx.memory.records import thinned

WORDS = "In the beginning God created the heaven and the earth. And the earth was without form\n"


@pytest.fixture(scope="module")
def loaded(reader):
    return fm_mlx.load(reader)


@pytest.fixture(scope="module")
def book() -> str:
    return "".join(f"{i} {WORDS}" for i in range(1000))


@pytest.fixture(scope="module")
def whole(loaded, book) -> Memory:
    return remember(*loaded, book, name="book")


def same(a: Memory, b: Memory) -> bool:
    """Bit for bit, but for the time of reading."""

    def plain(text):
        fields = asdict(replace(text, read_at=""))
        return {**fields, "log_kept": text.log_kept.tobytes()}

    def bits(memory):
        return np.array(memory.state).tobytes(), [plain(text) for text in memory.texts]

    states = [[memory, *map(memory.at, memory.snapshots)] for memory in (a, b)]
    return [bits(memory) for memory in states[0]] == [bits(memory) for memory in states[1]]


class TestReading:
    def test_the_state_is_that_of_a_prompt(self, loaded, book, whole):
        model, tokenizer = loaded
        ids = tokenizer.encode(book)
        cache = model.make_cache()
        for start in range(0, len(ids), 2048):
            model(mx.array(ids[start : start + 2048])[None], cache=cache)
        assert whole.tokens_seen == len(ids)
        states = mx.concatenate([fm_mlx.cache.state_of(layer) for layer in cache])
        assert mx.array_equal(whole.state, states)

    def test_what_was_read_is_known(self, book, whole):
        (text,) = whole.texts
        assert (text.name, text.bytes, text.beyond, text.complete) == (
            "book",
            len(book.encode()),
            0,
            True,
        )
        assert text.sha256 == hashlib.sha256(book.encode()).hexdigest()

    @pytest.mark.parametrize("kind", ["file", "path", "pieces"])
    def test_any_source(self, loaded, book, whole, tmp_path, kind):
        path = tmp_path / "book"
        path.write_text(book)
        sources = {
            "file": io.StringIO(book),
            "path": path,
            "pieces": (book[i : i + 777] for i in range(0, len(book), 777)),
        }
        assert same(remember(*loaded, sources[kind], name="book"), whole)

    @pytest.mark.parametrize("steps", [1, 2, 5, 9])
    def test_goes_on_where_it_was_left(self, loaded, book, whole, tmp_path, steps):
        memory = Memory.empty(*loaded)
        reading = memory.read(*loaded, book, name="book")
        for _ in range(steps):
            memory = next(reading)
        assert memory.tokens_seen == 2048 * steps
        memory.save(tmp_path / "part")
        memory = Memory.load(tmp_path / "part")
        *_, memory = memory.read(*loaded, book, name="book")
        assert same(memory, whole)

    @pytest.mark.parametrize("mutant", ["rounded state", "read again", "skipped", "kept twice"])
    def test_mutants_of_going_on(self, loaded, book, whole, monkeypatch, mutant):
        """A reading that does not go on rightly is another one: the test before would notice."""
        reading = Memory.empty(*loaded).read(*loaded, book, name="book")
        memory = [next(reading) for _ in range(5)][-1]
        text, put_states = memory.texts[-1], reading_module.put_states
        changed = {
            "read again": replace(text, beyond=text.beyond - 1),
            "skipped": replace(text, beyond=text.beyond + 1),
            "kept twice": replace(text, log_kept=2 * text.log_kept),
        }
        if mutant == "rounded state":

            def put_rounded(cache, states, num_active):
                put_states(cache, states.astype(mx.bfloat16).astype(mx.float32), num_active)

            monkeypatch.setattr(reading_module, "put_states", put_rounded)
        else:
            memory = replace(memory, texts=[changed[mutant]])
        *_, memory = memory.read(*loaded, book, name="book")
        assert not same(memory, whole)

    def test_another_text_is_not_gone_on_with(self, loaded, book):
        memory = Memory.empty(*loaded)
        reading = memory.read(*loaded, book, name="book")
        for _ in range(6):  # past the first place where the text is cut
            memory = next(reading)
        with pytest.raises(ValueError, match="this is not the text book that was read"):
            next(memory.read(*loaded, "x" + book))

    @pytest.mark.parametrize("left", [0, 1000])
    def test_a_text_that_ends_before_is_not_gone_on_with(self, loaded, book, left):
        """The tokens beyond the last place where the text was cut are not there any more."""
        reading = Memory.empty(*loaded).read(*loaded, book, name="book")
        memory = [next(reading) for _ in range(6)][-1]
        (text,) = memory.texts
        assert text.bytes and text.beyond > 1000
        short = book[: text.bytes + left]
        with pytest.raises(ValueError, match=r"that was read: it ends before"):
            next(memory.read(*loaded, short))
        with pytest.raises(ValueError, match=r"that was read: it ends before"):
            memory.rewind(*loaded, text.tokens - 1, short)

    def test_a_step_that_is_broken_off_changes_nothing(self, loaded, book, whole, monkeypatch):
        """Whatever is interrupted within a piece, the memory before it goes on to the same bits."""
        reading = Memory.empty(*loaded).read(*loaded, book, name="book")
        memory = [next(reading) for _ in range(3)][-1]

        def interrupted(snapshots):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(memory_module, "thinned", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(reading)
        assert memory.tokens_seen == 3 * 2048
        *_, memory = memory.read(*loaded, book, name="book")
        assert same(memory, whole)

    def test_special_tokens_stand_before_the_first_text_alone(self, loaded, book, monkeypatch):
        """Also if the reading is broken off within it: what follows is no beginning."""
        model, tokenizer = loaded[0], prefixing_tokenizer()
        tokens: list[int] = []

        def prefill(model, piece, cache, where):
            tokens.extend(piece)
            unchanged_prefill(model, piece, cache, where)

        unchanged_prefill = reading_module.prefill
        monkeypatch.setattr(reading_module, "prefill", prefill)
        reading = Memory.empty(model, tokenizer).read(model, tokenizer, book)
        memory = [next(reading) for _ in range(6)][-1]
        assert memory.texts[0].bytes
        *_, memory = memory.read(model, tokenizer, book)
        whole = [tokenizer.bos_token_id, *tokenizer.encode(book, add_special_tokens=False)]
        assert tokens == whole
        tokens.clear()
        remember(model, tokenizer, book)
        assert tokens == whole
        tokens.clear()
        remember(model, tokenizer, "And more.", memory)
        assert tokens == tokenizer.encode("And more.", add_special_tokens=False)

    def test_texts_one_after_the_other(self, loaded, book):
        together = Memory.empty(*loaded)
        for text in ("First.", book[:9000], "Last."):
            together = remember(*loaded, text, together)
        again = remember(*loaded, "First.")
        kept = np.array(again.state)
        branch = remember(*loaded, "Last.", remember(*loaded, book[:9000], again))
        assert same(together, branch)
        assert [text.tokens for text in again.texts] == [again.tokens_seen]
        assert np.array_equal(kept, np.array(again.state))

    @pytest.mark.parametrize("empty", ["", [], io.StringIO("")])
    def test_empty(self, loaded, empty):
        with pytest.raises(ValueError, match="text has no text"):
            remember(*loaded, empty)

    @pytest.mark.parametrize("length", [12, 9000])
    def test_what_rows_keep(self, loaded, book, length):
        """exp(log_kept) is what the recurrence keeps of the state before the first token."""
        model, tokenizer = loaded
        text = book[:length]
        memory = remember(model, tokenizer, text)
        assert len(memory.snapshots) == (1 if length == 12 else 2)
        theta = []
        for layer in model.layers:
            route = layer.memory.route

            def kept(x, cache=None, route=route):
                routing = route(x, cache)
                theta.append(np.array(routing.theta, np.float64)[0])
                return routing

            layer.memory.route = kept
        try:
            model(mx.array(tokenizer.encode(text))[None])
        finally:
            for layer in model.layers:
                del layer.memory.route
        expected = np.array([np.log(np.maximum(1 - x, 1e-30)).sum(axis=0) for x in theta])
        np.testing.assert_allclose(memory.log_kept, expected, rtol=1e-5, atol=1e-5)


class TestRewind:
    def test_to_a_snapshot(self, loaded, book, whole):
        for snapshot in whole.snapshots:
            back = whole.rewind(*loaded, snapshot.tokens)
            assert back.tokens_seen == snapshot.tokens
            assert mx.array_equal(back.state, snapshot.state)
            assert back.snapshots[-1] is snapshot

    def test_to_any_token(self, loaded, book, whole, tmp_path):
        model, tokenizer = loaded
        ids = tokenizer.encode(book)
        path = tmp_path / "book"
        path.write_text(book)
        for tokens in (1, 2047, 4099, 5000, len(ids) - 1):
            back = whole.rewind(model, tokenizer, tokens, path)
            assert back.tokens_seen == tokens
            cache = model.make_cache()
            for start in range(0, tokens, 2048):
                model(mx.array(ids[start : min(tokens, start + 2048)])[None], cache=cache)
            states = mx.concatenate([fm_mlx.cache.state_of(layer) for layer in cache])
            assert mx.array_equal(back.state, states), tokens

    def test_to_nothing(self, loaded, whole):
        assert same(whole.rewind(*loaded, 0), Memory.empty(*loaded))

    def test_in_a_later_text(self, loaded, book):
        memory = remember(*loaded, book[:20000], remember(*loaded, "Before."))
        tokens = memory.tokens_seen - 100
        back = memory.rewind(*loaded, tokens, book[:20000])
        assert back.tokens_seen == tokens
        *_, back = back.read(*loaded, book[:20000])
        assert back.tokens_seen == memory.tokens_seen

    def test_over_several_texts(self, loaded, book, tmp_path):
        """From the last snapshot in one text, through the next, into a third."""
        path = tmp_path / "third"
        path.write_text(book[:30000])
        texts = ["First. " * 900, "Second. " * 20, path]
        memory = None
        for text in texts:
            memory = remember(*loaded, text, memory)
        first, second = (text.tokens for text in memory.texts[:2])
        snapshots = [one for one in memory.snapshots if one.tokens <= first // 2]
        memory = replace(memory, snapshots=snapshots)
        tokens = first + second + 1000
        back = memory.rewind(*loaded, tokens, texts)
        assert back.tokens_seen == tokens
        *_, back = back.read(*loaded, path)
        # the third text was cut at another place: the last bits may differ
        assert mx.allclose(back.state, memory.state, atol=1e-5)
        assert [text.sha256 for text in back.texts] == [text.sha256 for text in memory.texts]
        end = memory.rewind(*loaded, first + second, texts[:2])
        assert [text.complete for text in end.texts] == [True, True]
        with pytest.raises(ValueError, match=r"and no text to read again; wanted are text, text;"):
            memory.rewind(*loaded, first + second)
        with pytest.raises(ValueError, match="and 3 texts to read again"):
            memory.rewind(*loaded, first + second, texts)

    def test_what_cannot_be(self, loaded, book, whole):
        with pytest.raises(ValueError, match=r"cannot rewind to token -1; allowed are 0 to"):
            whole.rewind(*loaded, -1)
        with pytest.raises(ValueError, match=r"and no text to read again; wanted are book"):
            whole.rewind(*loaded, 5000)
        with pytest.raises(ValueError, match="this is not the text book that was read"):
            whole.rewind(*loaded, 5000, book.replace("999", "998"))

    def test_snapshots_are_few_and_close(self):
        """About two for each doubling; any token costs at most half the distance, or a piece."""
        text = Text("", "", 0, 0, 0, False, "", np.zeros((1, 1)))
        state = mx.zeros((1, 1, 1))
        kept: list[Snapshot] = []
        for n in range(1, 1001):
            kept = thinned([*kept, Snapshot(state, 1, text, n)])
            places = [snapshot.tokens for snapshot in kept]
            assert places[-1] == n
            assert len(kept) <= 4 + 2 * np.log2(n) / np.log2(1.5)
            gaps = zip([*places], [*places[1:]], strict=False)
            assert all(b - a <= max(1, (n - b) / 2) for a, b in gaps), places


class TestFiles:
    @pytest.fixture
    def path(self, whole, tmp_path):
        path = tmp_path / "book.memory"
        whole.save(path)
        return path

    def test_to_the_bit(self, whole, path):
        assert same(Memory.load(path), whole)

    def test_of_8_bits(self, whole, tmp_path):
        """Every number is off by half a step of 1/127 of its row's largest, at most."""
        for bits in (32, 8):
            whole.save(tmp_path / str(bits), bits=bits)
        sizes = [(tmp_path / bits).stat().st_size for bits in ("32", "8")]
        assert sizes[1] < 0.5 * sizes[0]
        small = Memory.load(tmp_path / "8")
        pairs = [(small, whole), *zip(small.snapshots, whole.snapshots, strict=True)]
        for rounded, exact in pairs:
            rounded, exact = np.array(rounded.state), np.array(exact.state)
            step = abs(exact).max(axis=-1, keepdims=True) / 127
            assert (abs(rounded - exact) <= 0.501 * step).all()
            assert rounded.dtype == np.float32
        small.save(tmp_path / "again", bits=8)
        assert mx.array_equal(Memory.load(tmp_path / "again").state, small.state)
        with pytest.raises(ValueError, match="bits is 4; allowed are 32 and 8"):
            whole.save(tmp_path / "4", bits=4)
        assert not (tmp_path / "4").exists()

    def test_others_may_read_it(self, path, tmp_path):
        other = tmp_path / "other"
        other.touch()
        assert path.stat().st_mode == other.stat().st_mode

    def test_no_names_of_classes(self, path):
        (size,) = struct.unpack("<Q", path.read_bytes()[:8])
        header = path.read_bytes()[8 : 8 + size].decode()
        assert not re.search(r"fm_mlx|Snapshot|__class|import", header)

    def test_cut_short(self, path):
        data = path.read_bytes()
        for length in (0, 7, 100, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match="not a whole safetensors file"):
                Memory.load(path)

    def test_altered(self, path):
        data = path.read_bytes()
        places = np.random.default_rng(0).integers(8, len(data), 200)
        for place in places:
            changed = bytearray(data)
            changed[place] ^= 1 << (place % 8)
            path.write_bytes(changed)
            with pytest.raises(ValueError):
                Memory.load(path)

    def test_newer_and_other_files(self, path, tmp_path):
        metadata = {"format": "fm-mlx memory", "version": "2"}
        save_file({"state": np.zeros(3)}, path, metadata)
        with pytest.raises(ValueError, match="is of version '2'; this is read: 1"):
            Memory.load(path)
        save_file({"state": np.zeros(3)}, path)
        with pytest.raises(ValueError, match="is no memory: its format is None"):
            Memory.load(path)
        with pytest.raises(FileNotFoundError, match="no nowhere in"):
            Memory.load(tmp_path / "nowhere")

    def test_texts_of_other_types(self, whole, path):
        for wrong in ({"tokens": "3"}, {"bytes": -1}, {"complete": 1}, {"name": None}):
            replace(whole, texts=[replace(whole.texts[0], **wrong)]).save(path)
            with pytest.raises(ValueError, match=f"cannot be used: {next(iter(wrong))} is"):
                Memory.load(path)

    def test_states_of_other_shapes(self, whole, path):
        replace(whole, state=whole.state[:, 1:]).save(path)
        with pytest.raises(ValueError, match="cannot be used: the shapes of its states differ"):
            Memory.load(path)

    def test_a_description_that_fits_nothing(self, path):
        for description in ("{}", "[]", "3", json.dumps({"identity": {}, "snapshots": []})):
            digest = hashlib.sha256(description.encode()).hexdigest()
            metadata = {"format": "fm-mlx memory", "version": "1", "sha256": digest}
            save_file({}, path, metadata | {"description": description})
            with pytest.raises(ValueError, match="cannot be used"):
                Memory.load(path)


class TestIdentity:
    @pytest.fixture
    def model(self, reader):
        return fm_mlx.load(reader)[0]

    def test_weights(self, model, loaded, whole):
        weight = tree_flatten(model.parameters())[-1][1]
        model.update(tree_map(lambda x: x + 1e-3 if x is weight else x, model.parameters()))
        with pytest.raises(ValueError, match=r"another model: weights \w{12}, not \w{12}$"):
            whole.prompt_cache(model, loaded[1])

    def test_dtype(self, model, loaded, whole):
        model.set_dtype(mx.bfloat16)
        with pytest.raises(ValueError, match=r"weights .*; dtype float32, not bfloat16"):
            remember(model, loaded[1], "more", whole)

    def test_adapter(self, model, loaded, whole):
        config = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": ["memory.in_proj"]}
        linear_to_lora_layers(model, 2, config)
        with pytest.raises(ValueError, match="adapter none, not"):
            whole.rewind(model, loaded[1], 0)

    def test_config(self, model, loaded, whole):
        model.args = replace(model.args, affinity_temperature=0.5)
        with pytest.raises(ValueError, match="config"):
            whole.prompt_cache(model, loaded[1])

    def test_tokenizer(self, model, loaded, whole):
        other = PreTrainedTokenizerFast(tokenizer_object=loaded[1].backend_tokenizer)
        whole.prompt_cache(model, other)
        other.add_tokens(["<new>"])
        with pytest.raises(ValueError, match="tokenizer"):
            whole.prompt_cache(model, other)


class TestGenerating:
    def test_goes_on_from_a_memory(self, loaded, whole, tmp_path):
        model, tokenizer = loaded
        whole.save(tmp_path / "m")
        kept = np.array(whole.state)
        text = fm_mlx.generate(model, tokenizer, "And", max_tokens=20, memory=whole)
        again = Memory.load(tmp_path / "m")
        assert fm_mlx.generate(model, tokenizer, "And", max_tokens=20, memory=again) == text
        assert np.array_equal(np.array(whole.state), kept)
        cache = whole.prompt_cache(model)
        assert fm_mlx.generate(model, tokenizer, "And", max_tokens=20, prompt_cache=cache) == text
        assert fm_mlx.generate(model, tokenizer, "And", max_tokens=20) != text

    def test_not_both(self, loaded, whole):
        with pytest.raises(ValueError, match="allowed is one of them"):
            fm_mlx.generate(*loaded, "And", memory=whole, prompt_cache=[])

    def test_branches_share_what_they_did_not_write(self, loaded, whole):
        branches = [whole.branch() for _ in range(100)]
        gc.collect()  # what other tests have left
        before = mx.get_active_memory()
        branches = [branch.branch() for branch in branches]
        assert mx.get_active_memory() == before
        one = remember(*loaded, "Something else.", branches[0])
        assert not mx.array_equal(one.state, whole.state)
        assert all(branch.state is whole.state for branch in branches)
        # what it wrote: a state, kept as a snapshot as well
        assert mx.get_active_memory() - before <= 2 * whole.state.nbytes
