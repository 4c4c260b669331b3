"""``fm-mlx server`` in this process: completions, conversations, and what is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served import CHAT, PLAIN, TEXT, client_of, completion, expected, refusal, some_words

import fm_mlx


def streamed(client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a stream that ends well."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith(("data: ", ": read ")) for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1] if line[0] == "d"]


def is_working(client, words) -> bool:
    return completion(client, "w5 w6", 3)[0] == expected(words, "w5 w6", 3)


class TestAnswers:
    def test_a_completion(self, client, words):
        body = {"model": "words", "prompt": "w3 w4", "max_tokens": 7}
        reply = client.post(TEXT, json=body).json()
        (choice,) = reply.pop("choices")
        assert reply.pop("id").startswith("cmpl-")
        assert isinstance(reply.pop("created"), int)
        assert choice == {
            "index": 0,
            "text": expected(words, "w3 w4", 7),
            "logprobs": None,
            "finish_reason": "length",
        }
        assert reply == {
            "object": "text_completion",
            "model": "words",
            "usage": {
                "prompt_tokens": 2,
                "completion_tokens": 7,
                "total_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 0},
            },
        }

    @pytest.mark.parametrize("prompt", [[3, 4], [[3, 4]], ["w3 w4"]])
    def test_other_forms_of_a_prompt(self, client, words, prompt):
        assert completion(client, prompt, 6)[0] == expected(words, "w3 w4", 6)

    def test_a_stream_is_the_answer_in_pieces(self, client, words):
        wanted = expected(words, "w3 w4", 12)
        parts = streamed(client, TEXT, {"prompt": "w3 w4", "max_tokens": 12})
        assert len(parts) > 5
        assert "".join(part["choices"][0]["text"] for part in parts) == wanted
        reasons = [part["choices"][0]["finish_reason"] for part in parts]
        assert reasons == [None] * (len(parts) - 1) + ["length"]
        body = {
            "messages": [{"role": "user", "content": "w3 w4"}],
            "max_completion_tokens": 12,
            "stream_options": {"include_usage": True},
        }
        first, *parts, last, usage = streamed(client, CHAT, body)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["choices"][0]["delta"]["content"] for part in parts) == wanted
        assert last["choices"][0] == {
            "index": 0, "delta": {}, "logprobs": None, "finish_reason": "length",
        }  # fmt: skip
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 12
        assert {part["object"] for part in (first, last, usage)} == {"chat.completion.chunk"}
        assert len({part["id"] for part in (first, *parts, last, usage)}) == 1

    def test_a_stop_text(self, client, words):
        whole = expected(words, "w3 w4", 20)
        stop = whole.split()[5]
        body = {"prompt": "w3 w4", "max_tokens": 20, "stop": stop}
        (choice,) = client.post(TEXT, json=body).json()["choices"]
        assert choice["text"] == whole[: whole.find(stop)]
        assert choice["finish_reason"] == "stop"
        parts = streamed(client, TEXT, {**body, "stop": [stop, "never"]})
        assert "".join(part["choices"][0]["text"] for part in parts) == choice["text"]

    def test_options_change_the_text(self, client, words):
        plain = completion(client, "w3 w4", 8)[0]
        likeliest = int(plain.split()[0][1:])
        assert not completion(client, "w3 w4", 8, logit_bias={likeliest: -100})[0].startswith(
            f"w{likeliest} "
        )
        assert completion(client, "w3 w4", 8, temperature=0.0)[0] == plain
        sampled = [completion(client, "w3 w4", 8, temperature=1.5, seed=seed)[0] for seed in (1, 2)]
        assert len({plain, *sampled}) == 3
        assert completion(client, "w3 w4", 8, temperature=1.5, seed=1)[0] == sampled[0]
        assert completion(client, "w3 w4", 8, temperature=1.5, seed=1, top_k=1)[0] == plain
        # without a seed two texts differ, in these odds of some 2,000^8
        unseeded = {completion(client, "w3 w4", 8, temperature=1.5)[0] for _ in "ab"}
        assert len(unseeded) == 2

    def test_many_at_once(self, client, words):
        """Greedy and seeded, of all lengths: each as if it were alone."""
        asked = [(some_words(5 + 40 * i, seed=40 + i), 5 + i) for i in range(12)]
        seeded = {"temperature": 1.2, "seed": 7}

        def answer(number: int) -> str:
            prompt, count = asked[number]
            return completion(client, prompt, count, **(seeded if number % 3 == 0 else {}))[0]

        with ThreadPoolExecutor(12) as threads:
            together = list(threads.map(answer, range(12)))
        assert together == [answer(number) for number in range(12)]
        for number in (1, 2, 4, 11):
            assert together[number] == expected(words, *asked[number])

    def test_models(self, client):
        (model,) = client.get("/v1/models").json()["data"]
        assert (model["id"], model["object"]) == ("words", "model")
        assert client.get("/v1/models/words").json() == model
        assert "no model" in refusal(client.get("/v1/models/other"), 404)
        assert client.get("/health").json() == {"status": "ok"}
        refusal(client.get("/nothing/here"), 404)
        assert refusal(client.get(TEXT), 405) == "'GET /v1/completions' is not served"

    def test_web_pages_only_where_asked(self, client, words):
        page = {"Origin": "http://page.example"}
        assert "access-control-allow-origin" not in client.get("/health", headers=page).headers
        allowed = ("http://page.example",)
        with client_of(words, allowed_origins=allowed) as asked:
            name = "access-control-allow-origin"
            assert asked.get("/health", headers=page).headers[name] == page["Origin"]
            other = {"Origin": "http://other.example"}
            assert name not in asked.get("/health", headers=other).headers


class TestConversations:
    def said(self, client, messages: list, count: int = 6) -> tuple[str, dict[str, Any]]:
        body = {"messages": messages, "max_tokens": count}
        reply = client.post(CHAT, json=body).json()
        return reply["choices"][0]["message"]["content"], reply["usage"]

    def test_a_turn_reads_its_own_tokens_only(self, client, words):
        """Also after others came between; and two branches of one conversation stay apart."""
        ask = {"role": "user", "content": some_words(90, seed=50)}
        first, usage = self.said(client, [ask])
        assert first == expected(words, ask["content"], 6)
        assert usage["prompt_tokens"] == 90
        assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
        said = [ask, {"role": "assistant", "content": first}]
        replies = []
        for seed in (51, 52, 51):
            turn = some_words(8, seed=seed)
            reply, usage = self.said(client, [*said, {"role": "user", "content": turn}])
            assert reply == expected(words, f"{ask['content']} {first} {turn}", 6)
            assert usage["prompt_tokens"] == 104
            # at the third time all but the last token is known
            wanted = 103 if len(replies) == 2 else 96
            assert usage["prompt_tokens_details"] == {"cached_tokens": wanted}
            replies.append(reply)
        assert replies[0] == replies[2] != replies[1]

    def test_a_reply_that_comes_back_in_other_words(self, client, words):
        ask = {"role": "user", "content": some_words(70, seed=53)}
        self.said(client, [ask])
        changed = [ask, {"role": "assistant", "content": "w2"}, {"role": "user", "content": "w3"}]
        reply, usage = self.said(client, changed)
        assert reply == expected(words, f"{ask['content']} w2 w3", 6)
        assert usage["prompt_tokens_details"] == {"cached_tokens": 70}

    def test_a_reply_that_comes_back_in_other_tokens(self):
        """Its text is the same; what is known then ends with the prompt."""
        loaded = fm_mlx.load()
        tokenizer = loaded[1]

        def changes(token: int) -> bool:
            text = tokenizer.decode([token] * 6)
            back = tokenizer.encode("And " + text, add_special_tokens=False)
            return text.isalpha() and back[-6:] != [token] * 6

        odd = next(token for token in range(300, 2000) if changes(token))
        with client_of(loaded, chat_template=PLAIN) as client:
            ask = {"role": "user", "content": "And God said unto Moses,"}
            body = {"messages": [ask], "max_tokens": 6, "logit_bias": {odd: 100}}
            first = client.post(CHAT, json=body).json()
            text = first["choices"][0]["message"]["content"]
            assert text == tokenizer.decode([odd] * 6)
            messages = [ask, {"role": "assistant", "content": text}, ask]
            second, usage = self.said(client, messages)
            # the space after the prompt goes with the reply
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            assert first["usage"]["prompt_tokens"] - 2 <= cached <= first["usage"]["prompt_tokens"]
            prompt = f"{ask['content']} {text} {ask['content']} "
            tokens = tokenizer.encode(prompt, add_special_tokens=False)
            assert second == expected(loaded, tokens, 6)

    def test_parts_of_a_message(self, client, words):
        parts = [{"type": "text", "text": "w3 "}, {"type": "text", "text": "w4"}]
        assert self.said(client, [{"role": "user", "content": parts}])[0] == expected(
            words, "w3 w4", 6
        )
        nothing = {"role": "assistant", "content": None}
        assert self.said(client, [nothing, {"role": "user", "content": "w3 w4"}])[0] == expected(
            words, "w3 w4", 6
        )

    def test_without_a_template_and_with_one_that_fails(self, words):
        body = {"messages": [{"role": "user", "content": "w3"}]}
        with client_of(words) as client:
            assert "no chat template" in refusal(client.post(CHAT, json=body), 400)
            assert is_working(client, words)
        for template in ("{{ raise_exception('no') }}", "{% for", "{{ messages[7].content }}"):
            with client_of(words, chat_template=template) as client:
                assert "chat template" in refusal(client.post(CHAT, json=body), 400)
                assert is_working(client, words)
