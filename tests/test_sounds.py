"""Sounds are read as they were written, and what no model can hear is refused in one sentence."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from sample_files import lines

from slimdeploy.errors import DataError
from slimdeploy.records import read_records
from slimdeploy.samples import Sample
from slimdeploy.sounds import check_sound, load_sound

WAVEFORM = np.array([0, 0.5, -1, 0.25, -0.125])


def wav(waveform: np.ndarray, width: int = 2, channels: int = 1, rate: int = 8000) -> bytes:
    """channels: how often every sample is written."""
    numbers = np.round(waveform * 2 ** (8 * width - 1)).astype(np.int64).repeat(channels)
    if width == 1:
        numbers += 128
    encoded = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(encoded)
    return stream.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_width_gives_the_waveform(width: int, channels: int) -> None:
    heard = load_sound(wav(WAVEFORM, width, channels), rate=8000, longest=5)
    assert heard.dtype == np.float32
    np.testing.assert_array_equal(heard, WAVEFORM)


def test_channels_are_averaged() -> None:
    both = wav(np.array([0.5, -0.5, 1 / 2, 0]), channels=1).replace(b"\x01\x00\x01\x00", b"\x01\x00\x02\x00", 1)
    with wave.open(io.BytesIO(both)) as file:
        assert file.getnchannels() == 2
    np.testing.assert_array_equal(load_sound(both, 8000, 9), [0, 0.25])


@pytest.mark.parametrize(
    ("sound", "sentence"),
    [
        (wav(WAVEFORM, rate=44_100), "sound has 44100 samples a second, and the model hears 8000; resample it"),
        (wav(np.zeros(8001)), r"sound lasts 1\.0 seconds, and the model hears 1\.0; cut it"),
        (wav(np.zeros(0)), "sound is empty or truncated"),
        (wav(WAVEFORM)[:-2], "sound is empty or truncated"),
        (b"ID3\x03 an MP3", r"sound is no WAV file of PCM samples \(.*convert it"),
        (b"", "sound is no WAV file"),
        (Path("/nowhere/a.wav"), "/nowhere/a.wav does not exist"),
    ],
)
def test_what_cannot_be_heard_is_refused(sound: bytes | Path, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        load_sound(sound, rate=8000, longest=8000)


def test_a_check_finds_what_is_cut_off_and_knows_no_rate() -> None:
    check_sound(wav(WAVEFORM, rate=44_100))
    with pytest.raises(DataError, match="truncated"):
        check_sound(wav(WAVEFORM)[:-2])


def test_samples_with_sounds_are_read_and_differ_by_them(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(wav(WAVEFORM * (name == "b.wav")))
    entries = [{"id": name, "audio": f"{name}.wav", "question": "What is it?"} for name in ("a", "b")]
    a, b = (item.sample for item in read_records(lines(tmp_path / "x.jsonl", *entries), tmp_path))
    assert a == Sample("a", "What is it?", sounds=(tmp_path / "a.wav",))
    assert a.content_hash() != b.content_hash()
