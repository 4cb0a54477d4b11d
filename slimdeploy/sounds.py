"""Sounds from outside: WAV files of whole numbers (PCM), read by the standard library. Knows nothing of samples' use.

The rate has to be the one that a model hears: resampling well is a matter of taste and of other programs.
"""

import io
import wave

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .samples import SoundSource


def load_sound(source: SoundSource, rate: int, longest: int) -> NDArray[np.float32]:
    """The waveform in [-1, 1], its channels averaged. rate: in hertz, what the file must have. longest: in samples.

    Raises DataError for what cannot be read, has another rate, is longer, or is silent by being empty.
    """
    name = _name(source)
    frames, width, channels, found = _read(source)
    if found != rate:
        raise DataError(f"{name} has {found} samples a second, and the model hears {rate}; resample it")
    waveform = _decode(frames, width).reshape(-1, channels).mean(1)
    if len(waveform) > longest:
        raise DataError(
            f"{name} lasts {len(waveform) / rate:.1f} seconds, and the model hears {longest / rate:.1f}; cut it"
        )
    return np.asarray(waveform, np.float32)


def check_sound(source: SoundSource) -> None:
    """Raises DataError for what no `load_sound` would take."""
    _read(source)


def _name(source: SoundSource) -> str:
    return "sound" if isinstance(source, bytes) else str(source)


def _read(source: SoundSource) -> tuple[bytes, int, int, int]:
    """Frames, bytes of one sample, channels, samples a second."""
    name = _name(source)
    try:
        stream = io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
        with wave.open(stream) as file:
            frames = file.readframes(file.getnframes())
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            whole = len(frames) == file.getnframes() * width * channels
    except FileNotFoundError:
        raise DataError(f"{name} does not exist") from None
    except PermissionError:
        raise DataError(f"{name} cannot be opened: permission denied") from None
    except (wave.Error, EOFError, OSError, ValueError) as error:
        raise DataError(f"{name} is no WAV file of PCM samples ({error}); convert it to one") from None
    if not frames or not whole:
        raise DataError(f"{name} is empty or truncated")
    return frames, width, channels, rate


def _decode(frames: bytes, width: int) -> NDArray[np.float64]:
    """In [-1, 1]. Samples of 8 bits have an offset of 128; longer ones are signed, little-endian."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8) - 128.0) / 128
    padded = np.zeros((len(frames) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(frames, np.uint8).reshape(-1, width)
    return padded.reshape(-1).view("<i4") / 2.0**31
