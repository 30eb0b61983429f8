"""The captioner for OpenAI-compatible servers, against a real server on the loopback."""

import base64
import io
import json
import signal
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from ddpo_rewards import RewardError, get_reward
from ddpo_rewards.models.endpoint import endpoint_captioner


def completion(text):
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def silent_until(release):
    release.wait(60)


def image_in(body):
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


@pytest.fixture
def serve():
    """Start a server whose answer to the n-th request is `answer(n, body, headers) -> (status, text)`."""
    servers = []

    def start(answer, keep_alive=False):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1" if keep_alive else "HTTP/1.0"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                requests.append((self.path, body, dict(self.headers), self.client_address[1]))
                reply = answer(len(requests) - 1, body, self.headers)
                if reply is None:
                    return
                status, text, *more = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text.encode())), **dict(*more)}.items():
                    self.send_header(name, value)
                if status in (302, 307):
                    self.send_header("Location", text)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def captioner(endpoint, **options):
    return endpoint_captioner(endpoint, **{"model": "llava", "pause": 0.0, **options})


def plain(value, size=4):
    return np.full((size, size, 3), value, np.uint8)


def test_images_arrive_losslessly_and_answers_keep_their_order(serve):
    def answer(_, body, headers):
        value = int(image_in(body)[0, 0, 0])
        time.sleep((20 - value) / 1000)  # the first asked answers last
        return completion(f" {value} {body['messages'][0]['content'][1]['text']} ")

    endpoint, requests = serve(answer)
    images = [plain(value) for value in range(20)]
    answers = captioner(endpoint, concurrency=8)(images, [f"q{i}" for i in range(20)])
    assert answers == [f"{i} q{i}" for i in range(20)]
    path, body, *_ = requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("llava", 64, 0.0)


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("DDPO_ENDPOINT_TOKEN", "DDPO_ENDPOINT_HOST", "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_token_goes_to_the_host_that_the_environment_names_and_to_no_other(serve, monkeypatch):
    endpoint, requests = serve(lambda *_: completion("a cat"))
    other, seen_by_other = serve(lambda *_: completion("a dog"))
    captioner(endpoint)([plain(0)], ["?"])
    monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", "secret")
    monkeypatch.setenv("DDPO_ENDPOINT_HOST", urlsplit(endpoint).netloc)
    captioner(endpoint)([plain(0)], ["?"])
    captioner(other)([plain(0)], ["?"])
    assert "Authorization" not in requests[0][2]
    assert requests[1][2]["Authorization"] == "Bearer secret"
    assert "Authorization" not in seen_by_other[0][2]


def test_a_token_for_no_host_in_particular_is_refused(monkeypatch):
    monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", "secret")
    with pytest.raises(RewardError, match="set DDPO_ENDPOINT_HOST=localhost:8000") as caught:
        captioner("http://localhost:8000/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["sec ret\n", "secret\n", "sec\tret", "sec\x00ret", "secrét", "secret\r\nX-Other: 1"])
def test_a_token_that_no_header_can_carry_is_refused_without_being_shown(serve, monkeypatch, token):
    endpoint, requests = serve(lambda *_: completion("a cat"))
    if "\x00" not in token:  # which no environment can hold
        monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", token)
        monkeypatch.setenv("DDPO_ENDPOINT_HOST", urlsplit(endpoint).netloc)
        with pytest.raises(RewardError, match="DDPO_ENDPOINT_TOKEN holds") as caught:
            captioner(endpoint)([plain(0)], ["?"])
        assert "sec" not in "".join(traceback.format_exception(caught.value)).replace("secrets", "")
        assert requests == []


@pytest.mark.parametrize("reply", [(401, "no such token: secret"), (200, "no such token: secret")])
def test_a_server_that_repeats_the_token_does_not_get_it_printed(serve, monkeypatch, reply):
    endpoint, _ = serve(lambda *_: reply)
    monkeypatch.setenv("DDPO_ENDPOINT_TOKEN", "secret")
    monkeypatch.setenv("DDPO_ENDPOINT_HOST", urlsplit(endpoint).netloc)
    with pytest.raises(RewardError, match=r"no such token: \*\*\*") as caught:
        captioner(endpoint)([plain(0)], ["?"])
    assert "secret" not in str(caught.value)


def test_credentials_in_an_address_are_refused_without_being_shown():
    with pytest.raises(RewardError, match="credentials") as caught:
        captioner("http://me:secret@localhost:8000/v1")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_busy_is_asked_again(serve):
    endpoint, requests = serve(lambda n, *_: (503, "loading") if n < 2 else completion("a cat"))
    assert captioner(endpoint)([plain(0)], ["?"]) == ["a cat"]
    assert len(requests) == 3


def test_tries_are_bounded(serve):
    endpoint, requests = serve(lambda *_: (500, "out of memory"))
    with pytest.raises(RewardError, match=r"answered 500 .*after 3 tries: out of memory"):
        captioner(endpoint, retries=2)([plain(0)], ["?"])
    assert len(requests) == 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_server_that_cannot_now_is_asked_again(serve, status):
    endpoint, requests = serve(lambda n, *_: (status, "later") if n < 2 else completion("a cat"))
    assert captioner(endpoint)([plain(0)], ["?"]) == ["a cat"]
    assert len(requests) == 3


def test_a_connection_that_breaks_off_is_tried_again(serve):
    endpoint, requests = serve(lambda n, *_: None if n < 2 else completion("a cat"))
    assert captioner(endpoint)([plain(0)], ["?"]) == ["a cat"]
    assert len(requests) == 3


def test_a_server_that_says_when_is_asked_again_then(serve):
    endpoint, _ = serve(lambda n, *_: (429, "later", {"Retry-After": "1"}) if n < 1 else completion("a cat"))
    start = time.monotonic()
    assert captioner(endpoint)([plain(0)], ["?"]) == ["a cat"]
    assert time.monotonic() - start >= 1


def test_a_connection_serves_many_requests(serve):
    endpoint, requests = serve(lambda *_: completion("a cat"), keep_alive=True)
    captioner(endpoint, concurrency=2)([plain(0)] * 12, ["?"] * 12)
    assert len(requests) == 12
    assert len({port for *_, port in requests}) <= 2


def asking() -> list[threading.Thread]:
    """The threads in which requests wait for an answer."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("endpoint")]


@pytest.fixture
def interruptible():
    """Have Python raise at Ctrl-C, which a shell that starts tests in the background has it ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interruption_does_not_wait_for_the_server(serve, interruptible):
    # No request is answered; at the first, the main thread gets what Ctrl-C sends it.
    release = threading.Event()

    def answer(n, body, headers):
        if int(image_in(body)[0, 0, 0]) == 0:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return silent_until(release)

    endpoint, _ = serve(answer)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        captioner(endpoint, timeout=60.0)([plain(0), plain(1)], ["?", "?"])
    assert time.monotonic() - start < 20
    release.set()
    while asking() and time.monotonic() - start < 60:
        time.sleep(0.05)
    assert not asking()


def test_a_failure_does_not_wait_for_the_other_requests(serve):
    release = threading.Event()
    endpoint, _ = serve(
        lambda n, body, _: (404, "gone") if int(image_in(body)[0, 0, 0]) == 0 else silent_until(release)
    )
    start = time.monotonic()
    with pytest.raises(RewardError, match="answered 404"):
        captioner(endpoint, timeout=60.0)([plain(0), plain(1)], ["?", "?"])
    assert time.monotonic() - start < 20
    release.set()


def test_a_proxy_of_the_environment_is_used_and_may_be_bypassed(serve, monkeypatch):
    proxy, requests = serve(lambda *_: completion("through the proxy"))
    monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
    assert captioner("http://elsewhere.invalid:8000/v1")([plain(0)], ["?"]) == ["through the proxy"]
    assert requests[0][0] == "http://elsewhere.invalid:8000/v1/chat/completions"
    direct, _ = serve(lambda *_: completion("directly"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert captioner(direct)([plain(0)], ["?"]) == ["directly"]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_wrong_request_is_not_repeated(serve, status):
    endpoint, requests = serve(lambda *_: (status, '{"error": "no such model"}'))
    with pytest.raises(RewardError, match=f"answered {status} .*no such model"):
        captioner(endpoint)([plain(0)], ["?"])
    assert len(requests) == 1


def test_a_redirect_takes_images_and_token_nowhere(serve):
    elsewhere, received = serve(lambda *_: completion("stolen"))
    endpoint, _ = serve(lambda *_: (307, f"{elsewhere}/chat/completions"))
    with pytest.raises(RewardError, match="answered 307"):
        captioner(endpoint)([plain(0)], ["?"])
    assert received == []


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ((200, "<html>"), "want an OpenAI chat completion"),
        ((200, "{}"), "want an OpenAI chat completion"),
        ((200, '{"choices": []}'), "want an OpenAI chat completion"),
        ((200, "[]"), "want an OpenAI chat completion"),
        ((200, '{"choices": [{"message": {"content": 3}}]}'), "want a text"),
        (None, "cannot be asked after 2 tries"),
    ],
)
def test_an_answer_that_is_no_completion_is_one_clear_line(serve, reply, complaint):
    endpoint, _ = serve(lambda *_: reply)
    with pytest.raises(RewardError, match=complaint):
        captioner(endpoint, retries=1)([plain(0)], ["?"])


def test_a_server_that_says_nothing_runs_into_the_timeout(serve):
    release = threading.Event()
    endpoint, _ = serve(lambda *_: silent_until(release))
    with pytest.raises(RewardError, match=r"cannot be asked after 2 tries: .*timed out"):
        captioner(endpoint, timeout=0.2, retries=1)([plain(0)], ["?"])
    release.set()


def test_no_server_is_one_clear_line(serve):
    with pytest.raises(RewardError, match=r"cannot be asked after 4 tries: .*is the server running"):
        captioner("http://127.0.0.1:9/v1")([plain(0)], ["?"])


@pytest.mark.parametrize("endpoint", ["localhost:8000", "ftp://host/v1", "http://", "file:///etc/passwd", ""])
def test_an_endpoint_has_to_be_an_address(endpoint):
    with pytest.raises(RewardError, match="is no address"):
        captioner(endpoint)


@pytest.mark.parametrize("options", [{"retries": -1}, {"concurrency": 0}, {"timeout": 0.0}])
def test_limits_have_to_make_sense(options):
    with pytest.raises(RewardError, match="want retries"):
        captioner("http://localhost/v1", **options)


def test_an_answer_that_broke_on_its_way_is_asked_for_again(serve):
    endpoint, requests = serve(lambda number, *_: completion("a fox") if number else (200, '{"choices": [{"mess'))
    assert captioner(endpoint)([plain(0)], ["?"]) == ["a fox"]
    assert len(requests) == 2


def test_a_missing_answer_is_an_empty_one(serve):
    endpoint, _ = serve(lambda *_: (200, '{"choices": [{"message": {"content": null}}]}'))
    assert captioner(endpoint)([plain(0)], ["?"]) == [""]


def likely(**probabilities):
    tokens = [{"token": token.replace("_", " "), "logprob": float(np.log(p))} for token, p in probabilities.items()]
    return 200, json.dumps(
        {"choices": [{"message": {"content": "?"}, "logprobs": {"content": [{"top_logprobs": tokens}]}}]}
    )


def test_a_vqa_score_is_the_probability_that_the_server_states(serve):
    def answer(_, body, headers):
        asked = body["messages"][0]["content"][1]["text"]
        assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (1, 0.0, True, 20)
        prompt = asked.removeprefix('Does this figure show "').removesuffix('"? Please answer yes or no.')
        # Of one answer with and without a blank, both count; another one has nothing of either.
        return {"a": likely(Yes=0.5, _Yes=0.25, No=0.125), "b": likely(No=0.75, yes=0.25)}[prompt]

    endpoint, _ = serve(answer)
    scores, info = get_reward(f"vqascore?endpoint={endpoint}&model=x")([plain(0), plain(1)], ["a", "b"])
    assert scores.tolist() == pytest.approx([0.75, 0.0])
    assert info["no"] == pytest.approx([0.125, 0.75])


@pytest.mark.parametrize(
    "text", ['{"choices": [{"message": {"content": "Yes"}}]}', '{"choices": [{"logprobs": null}]}', "[", "[]"]
)
def test_a_server_without_log_probabilities_is_an_error(serve, text):
    endpoint, _ = serve(lambda *_: (200, text))
    with pytest.raises(RewardError, match="want an OpenAI chat completion with top_logprobs"):
        get_reward(f"vqascore?endpoint={endpoint}&model=x&retries=0")([plain(0)], ["a"])


def test_questions_and_answers_go_through_the_reward(serve):
    def answer(_, body, headers):
        asked = body["messages"][0]["content"][1]["text"]
        return completion({"How many?": "There are FIVE cats.", "Which colour?": ""}[asked])

    endpoint, _ = serve(answer)
    reward = get_reward(f"llava_vqa?endpoint={endpoint}&model=x")
    both = {"questions": ["How many?", "Which colour?"], "answers": ["five", "red"]}
    one = {"questions": ["How many?"], "answers": ["six"]}
    scores, info = reward([plain(0), plain(1), plain(2)], metadata=[both, one, {**one, "answers": ["five"]}])
    assert scores.tolist() == [0.5, 0.0, 1.0]
    assert info["answers"] == [["There are FIVE cats.", ""], ["There are FIVE cats."], ["There are FIVE cats."]]
    assert info["empty"] == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "wanted", "is_right"),
    [
        ("There are none.", "one", False),
        ("There is one cat.", "one", True),
        ("One.", "one", True),
        ("13 cats", "3", False),
        ("3 cats", "3", True),
        ("about 3.5", "3", False),
        ("3.", "3", True),
        ("1,300", "300", False),
        ("red, white", "white", True),
        ("It is a polar bear.", "Polar  Bear", True),
        ("a catfish", "cat", False),
        ("the cat's ball", "cat", True),
        ("C++", "c++", True),
        ("", "one", False),
    ],
)
def test_an_answer_holds_the_wanted_one_as_whole_words_and_numbers(answer, wanted, is_right):
    reward = get_reward("llava_vqa", captioner=lambda images, questions: [answer])
    scores = reward([plain(0)], metadata=[{"questions": ["?"], "answers": [wanted]}]).scores
    assert scores.tolist() == [float(is_right)]


@pytest.mark.parametrize(
    "item",
    [
        {},
        {"questions": ["?"], "answers": [" "]},
        {"questions": []},
        {"questions": "How many?", "answers": ["one"]},
        {"questions": [1], "answers": ["1"]},
        {"questions": ["a", "b"], "answers": ["one"]},
    ],
)
def test_metadata_without_questions_and_answers_is_refused(item):
    reward = get_reward("llava_vqa", captioner=lambda images, questions: ["x"] * len(questions))
    with pytest.raises(RewardError, match="metadata 0 has"):
        reward([plain(0)], metadata=[item])
    with pytest.raises(RewardError, match="needs metadata"):
        reward([plain(0)])
