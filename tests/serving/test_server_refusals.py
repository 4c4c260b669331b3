"""Requests that are refused, and clients that leave: the next request is answered."""

from __future__ import annotations

import json

import pytest
from leaving import Leaving
from served import CHAT, TEXT, client_of, completion, expected, refusal, some_words

# Nothing that a number, a text or a list of the fields below may be.
ODD = [
    {}, {"a": 1}, [], [[]], [None], [{}], [True], "", "x", "\ud800", True, -1, 0.5, 1e999, 10**400,
    -(10**400), 2**64, "../../etc/passwd", "/etc/passwd",
]  # fmt: skip

# Of each field the odd values that are allowed.
ALLOWED = {
    "temperature": [0.5],
    "top_p": [0.5],
    "min_p": [0.5],
    "top_k": [],
    "seed": [-1],
    "max_tokens": [],
    "max_completion_tokens": [],
    "repetition_penalty": [0.5],
    "presence_penalty": [-1, 0.5],
    "frequency_penalty": [-1, 0.5],
    "logit_bias": [{}],
    "stop": ["x", [], "../../etc/passwd", "/etc/passwd"],
    "stream": [True],
    "stream_options": [{}, {"a": 1}],
    "model": [],
    "memory": [],
    "n": [],
    "best_of": [],
    "echo": [],
    "suffix": [""],
    "logprobs": [],
    "top_logprobs": [],
    "tools": [[]],
    "functions": [[]],
    "tool_choice": [],
    "function_call": [],
    "response_format": [],
    "modalities": [],
    "adapters": [],
    "draft_model": [],
}


@pytest.fixture
def answered_afterwards(client, words):
    yield
    assert completion(client, "w5 w6", 3)[0] == expected(words, "w5 w6", 3)


def posted(client, path: str, content) -> object:
    """The answer to JSON, half pairs of surrogates and infinite numbers included."""
    text = json.dumps(content).replace("Infinity", "1e999")
    return client.post(path, content=text, headers={"Content-Type": "application/json"})


@pytest.mark.usefixtures("answered_afterwards")
class TestRefused:
    @pytest.mark.parametrize("field", ALLOWED)
    def test_values_of_a_field(self, client, field):
        for value in ODD:
            body = {"prompt": "w3", "max_tokens": 1, field: value}
            response = posted(client, TEXT, body)
            if any(type(value) is type(good) and value == good for good in ALLOWED[field]):
                assert response.status_code == 200, (value, response.text)
            else:
                assert field in refusal(response), value

    @pytest.mark.parametrize(
        "prompt",
        [None, "", " ", "\n", 3, {}, [], [[]], [""], ["w3", "w4"], [3, "w3"], [True], [0.5], [-1],
         [2000], [10**4200], "\ud800", ["\ud800"], [[3], [4]], {"a": "w3"}],
    )  # fmt: skip
    def test_prompts(self, client, prompt):
        assert "prompt" in refusal(posted(client, TEXT, {"prompt": prompt}), 400)

    @pytest.mark.parametrize(
        "messages",
        [None, [], "x", 3, {}, [3], [[]], [{}], [{"role": "user", "content": 3}],
         [{"content": "w3"}], [{"role": 3, "content": "w3"}], [{"role": "\ud800", "content": "w3"}],
         [{"role": "user", "content": "\ud800"}], [{"role": "user", "content": [3]}],
         [{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}],
         [{"role": "user", "content": [{"type": "text"}]}]],
    )  # fmt: skip
    def test_messages(self, client, messages):
        assert "message" in refusal(posted(client, CHAT, {"messages": messages}), 400)

    def test_a_conversation_of_nothing(self, client):
        body = {"messages": [{"role": "user", "content": ""}]}
        assert refusal(posted(client, CHAT, body), 400) == "the prompt is empty"

    @pytest.mark.parametrize(
        "body",
        [b"", b"{", b"\xff{", b"null", b"[]", b'"x"', b"3", b'{"prompt": NaN}', b"[" * 100_000,
         b'{"prompt": ' + b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}",
         b'{"temperature": ' + b"[" * 900 + b"]" * 900 + b', "prompt": "w3"}'],
    )  # fmt: skip
    @pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/memories"])
    def test_bodies(self, client, path, body):
        refusal(client.post(path, content=body), 400)

    def test_more_values(self, client):
        for field, value in [
            ("logit_bias", {"x": 1}), ("logit_bias", {"2000": 1}), ("logit_bias", {"3": "1"}),
            ("logit_bias", {"3": 101}), ("logit_bias", {"3": True}), ("logit_bias", {"-1": 1}),
            ("logit_bias", {"3": 1e999}), ("logit_bias", {"9" * 4000: 1}),
            ("logit_bias", {str(i): 1 for i in range(1025)}),
            ("stop", [3]), ("stop", [""]), ("stop", ["x"] * 17), ("stop", "x" * 1001),
            ("n", 2), ("tools", [{"type": "function"}]), ("echo", True), ("logprobs", 1),
            ("response_format", {"type": "json_object"}), ("max_tokens", 1 << 18),
            ("max_tokens", 0), ("temperature", 101), ("top_p", 1.1),
            ("model", "words@none"), ("model", "words@"), ("model", "@none"), ("model", "@"),
            ("model", "words@../words"), ("memory", "none"), ("memory", "../../etc/passwd"),
        ]:  # fmt: skip
            line = refusal(posted(client, TEXT, {"prompt": "w3", field: value}))
            assert field in line or "memory" in line, (field, value, line)
        options = {"include_usage": 3}
        body = {"prompt": "w3", "stream": True, "stream_options": options}
        assert "include_usage" in refusal(posted(client, TEXT, body), 400)

    def test_large_ones(self, client, words):
        assert "5001 tokens" in refusal(posted(client, TEXT, {"prompt": "w3 " * 5001}), 413)
        large = {"prompt": "w3 " * (10 << 20)}
        assert "more than 1048576 bytes" in refusal(posted(client, TEXT, large), 413)
        prompt = "w3 " * 4000
        assert completion(client, prompt, 2)[0] == expected(words, prompt, 2)

    def test_no_path_is_opened(self, client, monkeypatch):
        """Whatever names a file in a request."""

        def opened(*args, **_):
            raise AssertionError(args)

        for name in ("builtins.open", "pathlib.Path.open", "pathlib.Path.unlink", "os.open"):
            monkeypatch.setattr(name, opened)
        for path in ("/etc/passwd", "../x", "C:\\x", "file:///etc/passwd", "x\x00y"):
            for field in ("model", "memory", "adapters", "draft_model"):
                refusal(posted(client, TEXT, {"prompt": "w3", field: path}))
            for field in ("name", "from"):
                body = {"name": "x", "text": "w3"} | {field: path}
                refusal(posted(client, "/v1/memories", body))
        for path in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "%00", "..%5cx", "%ff"):
            refusal(client.get(f"/v1/memories/{path}"), 404)
            refusal(client.delete(f"/v1/memories/{path}"), 404)
            refusal(client.get(f"/v1/models/{path}"), 404)


class TestLimits:
    def test_a_full_queue(self, words):
        """With two places taken by answers that go on until their clients leave."""
        with client_of(words, max_queue=2) as client:
            busy = [Leaving(client, TEXT, {"prompt": "w3", "max_tokens": 100_000}) for _ in "ab"]
            for one in busy:
                one.streams_text()
            for path, body in [
                (TEXT, {"prompt": "w3"}),
                ("/v1/memories", {"name": "x", "text": "w3"}),
            ]:
                response = posted(client, path, body)
                assert "2 requests" in refusal(response, 429)
                assert response.headers["retry-after"] == "1"
            for one in busy:
                one.leave()
            # the places are free again, and nothing is worked on
            assert completion(client, "w5 w6", 3)[0] == expected(words, "w5 w6", 3)

    def test_places_are_free_after_refusals(self, words):
        with client_of(
            words, max_queue=1, max_prompt_tokens=5, chat_template="{{ 1 / 0 }}"
        ) as client:
            for _ in range(3):
                refusal(posted(client, TEXT, {"prompt": "w3 " * 6}), 413)
                refusal(posted(client, TEXT, {"prompt": "w3", "logit_bias": {"5000": 1}}), 400)
                refusal(posted(client, CHAT, {"messages": [{"role": "a", "content": "w3"}]}), 400)
                refusal(posted(client, "/v1/memories", {"name": "x", "text": ""}), 400)
            assert completion(client, "w5 w6", 3)[0] == expected(words, "w5 w6", 3)


class TestLeaving:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_stops_its_work(self, words, stream):
        """What was read of its prompt is kept for the next one."""
        prompt = some_words(4000, seed=60)
        with client_of(words, max_queue=2, step=50) as client:
            gone = Leaving(client, TEXT, {"prompt": prompt, "max_tokens": 100_000}, stream=stream)
            completion(client, "w5 w6", 3)  # meanwhile some of the other prompt is read
            gone.leave()
            text, cached = completion(client, prompt, 4)
            assert text == expected(words, prompt, 4)
            assert 0 < cached < 3999

    def test_one_that_leaves_before_its_request_is_whole(self, words):
        with client_of(words, max_queue=1) as client:
            gone = Leaving(client, TEXT, None)
            gone.leave()
            assert completion(client, "w5 w6", 3)[0] == expected(words, "w5 w6", 3)
