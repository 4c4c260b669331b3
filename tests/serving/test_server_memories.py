"""``/v1/memories`` of a server in this process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from leaving import Leaving
from served import PATIENCE, client_of, completion, expected, refusal, some_words
from tokenizers_of_others import prefixing_tokenizer

import fm_mlx
from fm_mlx.memory import Memory
from fm_mlx.serving.named import Named
from fm_mlx.serving.prompts import Prompts
from fm_mlx.serving.requests import asked
from fm_mlx.serving.settings import Settings

MEMORIES = "/v1/memories"


def read(client, name: str, text: str, **more):
    response = client.post(MEMORIES, json={"name": name, "text": text, **more})
    assert response.status_code == 201, response.text
    return response.json()


def names(client) -> list[str]:
    return [memory["id"] for memory in client.get(MEMORIES).json()["data"]]


def test_read_ask_append_branch_delete(words):
    first, second = some_words(60, seed=1), some_words(30, seed=2)
    memory = fm_mlx.remember(*words, first)
    both = memory.append(*words, second)
    with client_of(words) as client:
        assert names(client) == []
        told = read(client, "book", first, title="First")
        (text,) = told.pop("texts")
        assert told == {"id": "book", "object": "memory", "tokens": 60, "bytes": memory.nbytes}
        assert text.pop("read_at")
        assert text == {
            "name": "First",
            "tokens": 60,
            "bytes": len(first),
            "sha256": memory.texts[0].sha256,
            "complete": True,
        }
        wanted = expected(words, "w3 w4", 8, memory=memory)
        assert wanted != expected(words, "w3 w4", 8)
        assert completion(client, "w3 w4", 8, memory="book") == (wanted, 0)
        assert completion(client, "w3 w4", 8, model="words@book") == (wanted, 1)
        assert completion(client, "w3 w4", 8, model="words@book", memory="book") == (wanted, 1)
        # nothing of it is known without the memory
        assert completion(client, "w3 w4", 8) == (expected(words, "w3 w4", 8), 0)
        models = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert models == ["words", "words@book"]

        assert read(client, "other", second, **{"from": "book"})["tokens"] == 90
        of_both = expected(words, "w3 w4", 8, memory=both)
        assert completion(client, "w3 w4", 8, memory="other") == (of_both, 0)
        assert completion(client, "w3 w4", 8, memory="book") == (wanted, 1)
        assert read(client, "book", second, append=True)["tokens"] == 90
        assert completion(client, "w3 w4", 8, memory="book") == (of_both, 0)
        twice = {"prompt": "w3", "model": "words@book", "memory": "other"}
        assert "two memories" in refusal(client.post("/v1/completions", json=twice), 400)

        assert names(client) == ["book", "other"]
        assert client.get(f"{MEMORIES}/book").json()["tokens"] == 90
        gone = client.delete(f"{MEMORIES}/book")
        assert gone.json() == {"id": "book", "object": "memory", "deleted": True}
        for response in (
            client.get(f"{MEMORIES}/book"),
            client.delete(f"{MEMORIES}/book"),
            client.post("/v1/completions", json={"prompt": "w3", "memory": "book"}),
            client.post("/v1/completions", json={"prompt": "w3", "model": "words@book"}),
            client.post(MEMORIES, json={"name": "x", "text": "w3", "from": "book"}),
        ):
            assert "no memory 'book'" in refusal(response, 404)
        assert completion(client, "w3 w4", 8, memory="other")[0] == of_both


def test_an_answer_does_not_change_the_memory(words):
    text = some_words(60, seed=3)
    with client_of(words) as client:
        read(client, "book", text)
        replies = [completion(client, "w3 w4", 30, memory="book")[0] for _ in range(3)]
        assert len(set(replies)) == 1
        longer = f"w3 w4 {replies[0]} w9"
        memory = fm_mlx.remember(*words, text)
        assert completion(client, longer, 5, memory="book") == (
            expected(words, longer, 5, memory=memory),
            32,
        )


def is_begun(client, name: str) -> bool:
    known = client.get(f"{MEMORIES}/{name}")
    return known.status_code == 200 and known.json()["tokens"] >= 2048


@pytest.mark.parametrize("more", [{}, {"from": "base"}, {"append": True}])
def test_a_reading_that_is_left_goes_on_with_the_same_request(words, tmp_path, more):
    """To the same bits; and what was read until then is in the folder."""
    text = some_words(10_000, seed=4)
    body = {"name": "base" if "append" in more else "book", "text": text, "title": "long", **more}
    name = body["name"]
    begin = fm_mlx.remember(*words, "w3 w4 w5") if more else None
    with client_of(words, tmp_path) as client:
        if more:
            read(client, "base", "w3 w4 w5")
        gone = Leaving(client, MEMORIES, body, stream=False)
        deadline = time.monotonic() + PATIENCE
        while not is_begun(client, name):
            assert time.monotonic() < deadline
        assert "is being read" in refusal(client.post(MEMORIES, json=body), 409)
        assert "is being read" in refusal(client.delete(f"{MEMORIES}/{name}"), 409)
        gone.leave()
        (*_, part) = client.get(f"{MEMORIES}/{name}").json()["texts"]
        assert part["name"] == "long" and not part["complete"]
        assert 2048 <= part["tokens"] < 10_000
        saved = Memory.load(tmp_path / f"{name}.memory")
        assert saved.texts[-1].tokens == part["tokens"]
        # others may be asked of it meanwhile, but it reads nothing else
        other = {**body, "text": "w9 w9"}
        assert "is not the text long" in refusal(client.post(MEMORIES, json=other), 400)
        if more:
            another = (
                {"name": name, "text": text, "from": "base"}
                if "append" in more
                else {"name": name, "text": text}
            )
            assert "there is a memory" in refusal(client.post(MEMORIES, json=another), 409)
    # a new start goes on with it, too
    with client_of(words, tmp_path) as client:
        response = client.post(MEMORIES, json=body)
        assert response.status_code == 201, response.text
        assert response.json()["tokens"] == 10_000 + (3 if more else 0)
        whole = fm_mlx.remember(*words, text, begin)
        state = Memory.load(tmp_path / f"{name}.memory").state
        assert np.array_equal(np.array(state), np.array(whole.state))


def test_what_is_refused(words):
    with client_of(words, most=2) as client:
        read(client, "book", "w3 w4")
        for more, status in [
            ({"name": "book"}, 409),
            ({"name": "book", "from": "book"}, 409),
            ({"name": "book", "from": "book", "append": True}, 409),
            ({"name": "Book"}, 409),
            ({"name": "x", "from": "none"}, 404),
            ({"name": ""}, 400), ({"name": "."}, 400), ({"name": ".."}, 400),
            ({"name": "../x"}, 400), ({"name": "/x"}, 400), ({"name": "a/b"}, 400),
            ({"name": "a\\b"}, 400), ({"name": ".x"}, 400), ({"name": "x\n"}, 400),
            ({"name": "x\x00"}, 400), ({"name": "ä"}, 400), ({"name": "x" * 65}, 400),
            ({"name": "x@y"}, 400), ({"name": 3}, 400), ({"name": None}, 400), ({"name": []}, 400),
            ({"text": ""}, 400), ({"text": " "}, 400), ({"text": 3}, 400), ({"text": None}, 400),
            ({"text": ["w3"]}, 400), ({"text": {}}, 400),
            ({"title": 3}, 400), ({"title": "x" * 201}, 400), ({"title": {}}, 400),
            ({"from": 3}, 400), ({"from": {}}, 400),
            ({"append": 1}, 400), ({"append": "yes"}, 400), ({"append": []}, 400),
        ]:  # fmt: skip
            body = {"name": "x", "text": "w5 w6", **more}
            assert refusal(client.post(MEMORIES, json=body), status), more
            assert names(client) == ["book"], more
        read(client, "x" * 64, "w5")
        assert "2 memories" in refusal(client.post(MEMORIES, json={"name": "y", "text": "w5"}), 413)
        # but those that are there may grow
        read(client, "book", "w5", append=True)
        client.delete(f"{MEMORIES}/book")
        read(client, "Book", "w5")


def test_they_are_there_at_the_next_start(words, tmp_path):
    folder = tmp_path / "new" / "memories"
    with client_of(words, folder) as client:
        read(client, "a", some_words(40, seed=5))
        read(client, "b.c-d_e", "w3 w4")
        read(client, "gone", "w5")
        client.delete(f"{MEMORIES}/gone")
        described = client.get(MEMORIES).json()
        wanted = completion(client, "w7", 6, memory="a")
    assert sorted(path.name for path in folder.iterdir()) == ["a.memory", "b.c-d_e.memory"]
    (folder / ".17.a.memory").write_bytes(b"what a killed server was writing")
    with client_of(words, folder) as client:
        assert client.get(MEMORIES).json() == described
        assert completion(client, "w7", 6, memory="a") == wanted
        refusal(client.get(f"{MEMORIES}/gone"), 404)


def test_a_folder_that_cannot_be_served(words, tmp_path):
    def served(folder: Path, **options) -> None:
        with client_of(words, folder, **options):
            raise AssertionError("it was served")

    Memory.empty(*fm_mlx.load()).save(tmp_path / "other.memory")
    with pytest.raises(ValueError, match=r"other\.memory is of another model"):
        served(tmp_path)
    (tmp_path / "other.memory").unlink()
    fm_mlx.remember(*words, "w3").save(tmp_path / "not so.memory")
    with pytest.raises(ValueError, match="name is 'not so'"):
        served(tmp_path)
    (tmp_path / "not so.memory").rename(tmp_path / "fine.memory")
    with pytest.raises(ValueError, match="there are 0 memories: delete one"):
        served(tmp_path, most=0)
    (tmp_path / "fine.memory").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"fine\.memory"):
        served(tmp_path)


def test_special_tokens_stand_before_a_text_that_begins(words):
    """And not where it goes on from a memory, unless that has read nothing."""
    tokenizer = prefixing_tokenizer()
    prompts = Prompts(tokenizer, 400, Settings("words"))
    want = asked({"prompt": "the river writes"}, chat=False)
    plain = tokenizer.encode("the river writes", add_special_tokens=False)
    assert asyncio.run(prompts.tokens(want, continued=False)) == [1, *plain, 2]
    assert asyncio.run(prompts.tokens(want, continued=True)) == plain
    assert not Named(Memory.empty(*words)).has_read
    assert Named(fm_mlx.remember(*words, "w3")).has_read
