"""The thread that owns the model: it generates for all requests and reads into memories."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Any, cast

import mlx.core as mx
from mlx_lm.generate import BatchGenerator

from fm_mlx.memory import Memory, PrefixStore
from fm_mlx.memory.prefixes import stops
from fm_mlx.memory.states import cache_from, states_of
from fm_mlx.model import Model
from fm_mlx.serving.sampling import Sampler
from fm_mlx.serving.stops import StopText

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """Tokens of a prompt were read; `total` of them there are, those of the cache included."""

    done: int
    total: int


@dataclass(frozen=True)
class Written:
    """Text was generated."""

    text: str


@dataclass(frozen=True)
class Ended:
    """A text is complete.

    Attributes:
        reason: "stop" or "length".
        completion_tokens: How many tokens were generated, the last included.
        cached_tokens: How many tokens of the prompt had been read for an earlier one.
    """

    reason: str
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class Remembered:
    """A memory has grown; `ended`: the text was read to its end."""

    memory: Memory
    ended: bool


@dataclass(frozen=True)
class Failed:
    """The work ended with an error; `status` is that of HTTP."""

    message: str
    status: int = 500


_STOPPED = Failed("the server stops", 503)

Event = Read | Written | Ended | Remembered | Failed


@dataclass(eq=False)
class Completion:
    """A text to generate.

    Attributes:
        tokens: The prompt, not empty.
        root: Names what was read before the prompt, for the store of prefixes.
        states: The states before the prompt, (layers, m, d) float32.
        max_tokens: How many tokens to generate at most.
        sampler: Draws a token from log-probabilities (1, vocab).
        logits_processors: Those of mlx-lm.
        stop: Texts that end the answer.
        tell: Is called with every event, from the engine's thread.
        cached: Tokens of the prompt that had been read for an earlier one.
        generated: Tokens of the answer so far.
    """

    tokens: list[int]
    root: bytes
    states: mx.array
    max_tokens: int
    sampler: Sampler
    logits_processors: list[Any]
    stop: Sequence[str]
    tell: Callable[[Event], None] = lambda event: None
    cached: int = 0
    generated: int = 0
    detokenizer: Any = None
    ending: StopText = field(default_factory=lambda: StopText(()))


@dataclass(eq=False)
class Reading:
    """A text to read into a memory, piece by piece.

    Attributes:
        pieces: The memory after each piece.
        tell: Is called with every event, from the engine's thread.
    """

    pieces: Iterator[Memory]
    tell: Callable[[Event], None] = lambda event: None


def told(work: Completion | Reading) -> asyncio.Queue[Event]:
    """A queue of the events of some work, for the loop that is running."""
    events: asyncio.Queue[Event] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def tell(event: Event) -> None:
        # the loop may have been closed by a server that stops
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    work.tell = tell
    return events


class Engine:
    """Works on all that was submitted, in turns, on a thread of its own.

    Args:
        model: the model, evaluated.
        tokenizer: its tokenizer, from `fm_mlx.load`.
        prefixes: the states of earlier prompts; used by the thread alone.
        prefill_step_size: tokens of a prompt that are read between two tokens of the others.
        decode_concurrency: texts that are generated at once; others wait.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Any,
        prefixes: PrefixStore,
        prefill_step_size: int = 512,
        decode_concurrency: int = 32,
    ):
        self._model = model
        self._tokenizer = tokenizer
        self._prefixes = prefixes
        self._options = {
            "stop_tokens": [[token] for token in tokenizer.eos_token_ids],
            "prefill_step_size": prefill_step_size,
            "completion_batch_size": decode_concurrency,
            "prefill_batch_size": min(8, decode_concurrency),
        }
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._completions: dict[int, Completion] = {}
        self._readings: deque[Reading] = deque()
        self._generator: BatchGenerator | None = None
        self._stopped = False
        self._owed = 0.0  # seconds that answers have before the next piece of a text is read
        self._deadline = math.inf
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is not finished fails."""
        self.end_within(0)
        self._orders.put(self._stop)
        self._thread.join()

    def end_within(self, seconds: float) -> None:
        """Let what is not finished by then fail, and all that is submitted later."""
        deadline = time.monotonic() + seconds
        self._orders.put(lambda: self._end_at(deadline))

    def submit(self, work: Completion | Reading) -> None:
        """Take on some work; its events come from the thread."""
        self._orders.put(lambda: self._begin(work))

    def cancel(self, work: Completion | Reading) -> None:
        """Give up some work; the state of what was read of its prompt is kept."""
        self._orders.put(lambda: self._give_up(work))

    def _run(self) -> None:
        while not self._stopped:
            self._take_orders()
            if time.monotonic() >= self._deadline:
                self._fail_all()
            began = time.monotonic()
            if self._completions:
                self._guarded(self._generate, self._restart)
                self._owed -= time.monotonic() - began
            # a piece is as long as many tokens: what it took is given to the answers first
            if self._readings and (self._owed <= 0 or not self._completions):
                began = time.monotonic()
                self._read()
                self._owed = time.monotonic() - began
        # a process that ends soon after a thread with streams of MLX may abort
        mx.clear_streams()

    def _take_orders(self) -> None:
        """Do what is asked for; wait for it if there is nothing else to do."""
        idle = not self._completions and not self._readings
        if idle:
            mx.clear_cache()
        try:
            order = self._orders.get(block=idle)
            while True:
                order()
                order = self._orders.get_nowait()
        except Empty:
            return

    def _stop(self) -> None:
        self._stopped = True

    def _end_at(self, deadline: float) -> None:
        self._deadline = deadline

    def _fail_all(self) -> None:
        """End all work, the texts that wait in the batch included."""
        while self._readings:
            self._readings.popleft().tell(_STOPPED)
        self._restart(_STOPPED)

    def _guarded(self, step: Callable[[], None], recover: Callable[[Failed], None]) -> None:
        """Run a step, whatever it raises: what comes after must not suffer from it."""
        try:
            step()
        except Exception as error:
            log.exception("a step of the engine failed")
            recover(Failed(f"{type(error).__name__}: {error}"))

    def _restart(self, failed: Failed) -> None:
        """End all texts with an error, and begin anew with the next."""
        completions, self._completions = self._completions, {}
        self._generator = None
        for completion in completions.values():
            completion.tell(failed)

    def _begin(self, work: Completion | Reading) -> None:
        if isinstance(work, Reading):
            self._readings.append(work)
        else:
            self._guarded(lambda: self._insert(work), work.tell)

    def _insert(self, work: Completion) -> None:
        """Put a text into the batch, with the states after the longest known beginning."""
        if self._generator is None:
            self._generator = BatchGenerator(self._model, **self._options)
        work.cached, found = self._prefixes.find(work.root, work.tokens)
        states = work.states if found is None else found
        work.detokenizer = self._tokenizer.detokenizer
        work.ending = StopText(work.stop)
        # the last token is for the first step of the decode
        cuts = [work.cached, *stops(work.cached, len(work.tokens) - 1), len(work.tokens)]
        segments = [work.tokens[a:b] for a, b in pairwise(cuts) if b > a]
        (uid,) = self._generator.insert_segments(
            [segments],
            [work.max_tokens],
            caches=[cache_from(self._model, states)],
            all_tokens=[work.tokens[: work.cached]],
            samplers=[work.sampler],
            logits_processors=[work.logits_processors],
        )
        self._completions[uid] = work

    def _generate(self) -> None:
        """One step of all texts: some tokens of the prompts, and one token of each answer."""
        generator = self._working()
        prompts, answers = generator.next()
        for prompt in prompts:
            work = self._completions[prompt.uid]
            if prompt.end_of_segment:
                cache, tokens = generator.extract_cache([prompt.uid])[prompt.uid]
                self._prefixes.put(work.root, tokens, states_of(cache))
            done, total = prompt.progress
            work.tell(Read(work.cached + done, work.cached + total))
        for answer in answers:
            self._answer(answer)

    def _answer(self, answer: Any) -> None:
        """Pass on a token of an answer, and end it where it ends."""
        work = self._completions[answer.uid]
        if not math.isfinite(cast(float, answer.logprobs[answer.token].item())):
            self._remove(answer.uid)
            work.tell(Failed("the model computes NaN"))
            return
        work.generated += 1
        if answer.finish_reason != "stop":
            work.detokenizer.add_token(answer.token)
        if answer.finish_reason is not None:
            work.detokenizer.finalize()
        text = work.ending.feed(work.detokenizer.last_segment)
        reason = "stop" if work.ending.found else answer.finish_reason
        if reason is not None:
            text += work.ending.rest()
        if text:
            work.tell(Written(text))
        if reason is None:
            return
        if answer.finish_reason is None:
            self._remove(answer.uid)
        else:
            self._prefixes.put(work.root, answer.all_tokens, states_of(answer.prompt_cache))
            del self._completions[answer.uid]
        work.tell(Ended(reason, work.generated, work.cached))

    def _remove(self, uid: int) -> None:
        """Take a text out of the batch, and keep the state of what was read."""
        work = self._completions[uid]
        kept = self._working().remove([uid], return_prompt_caches=True)
        if uid in kept:
            cache, tokens = kept[uid]
            if len(tokens) > work.cached:
                self._prefixes.put(work.root, tokens, states_of(cache))
        del self._completions[uid]  # until here it would hear of an error

    def _give_up(self, work: Completion | Reading) -> None:
        if isinstance(work, Reading):
            if work in self._readings:
                self._readings.remove(work)
            return
        for uid, other in list(self._completions.items()):
            if other is work:
                self._guarded(lambda uid=uid: self._remove(uid), self._restart)

    def _read(self) -> None:
        """One piece of the text that has waited longest."""
        work = self._readings.popleft()

        def step() -> None:
            try:
                memory = next(work.pieces)
            except ValueError as error:  # another text was begun, or this one is empty
                work.tell(Failed(str(error), 400))
                return
            ended = memory.texts[-1].complete
            if not ended:
                self._readings.append(work)
            work.tell(Remembered(memory, ended))

        self._guarded(step, work.tell)

    def _working(self) -> BatchGenerator:
        assert self._generator is not None  # there are texts in it
        return self._generator
