"""Moments of a streamed answer, by the definitions and to the digit."""

from fake_server import DONE, piece, usage

from slimdeploy.measurements import RequestRecord
from slimdeploy.serve.bench.stream import CompletionReader


def test_first_text_and_last_choice_are_what_counts() -> None:
    reader = CompletionReader()
    moments = [
        (1.0, piece("")),  # the role; no text, so no token yet
        (2.0, piece("dark ")),
        (3.0, piece("red")),
        (4.0, piece(finish="stop")),  # the end-of-answer token took until here
        (5.0, usage(9, 3)),
        (6.0, DONE),
    ]
    for now, data in moments:
        reader.feed(data, now)
    reader.end()
    assert (reader.first_token, reader.last_token, reader.answer) == (2.0, 4.0, "dark red")
    record = RequestRecord("s", 0.5, reader.first_token, reader.last_token, reader.tokens_in, reader.tokens_out)
    assert [record.latency(metric) for metric in ("ttft", "e2e", "tpot")] == [1500.0, 3500.0, 1000.0]


def test_an_event_counts_when_its_last_byte_has_come() -> None:
    reader = CompletionReader()
    data = piece("red")
    reader.feed(data[:-2], 1.0)
    assert reader.first_token is None
    reader.feed(data[-2:], 2.0)
    assert reader.first_token == 2.0
