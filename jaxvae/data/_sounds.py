"""Sounds, read by soundfile and brought to one length."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

try:
    import soundfile
except (ModuleNotFoundError, OSError) as error:  # OSError: it is there, and the library that it calls is not
    raise ModuleNotFoundError("folders of sound need soundfile: pip install 'jaxvae[sound]'") from error

UNREADABLE = (soundfile.SoundFileError, OSError, ValueError)
UNKNOWN = 0xFFFFFFFF  # a length that whoever wrote the file did not know yet


class Header(NamedTuple):
    """What a file says before its samples are read.

    Attributes:
      rate: samples a second.
      channels: how many.
      frames: samples of each channel.
    """

    rate: int
    channels: int
    frames: int


class Sounds(NamedTuple):
    """What `read_folder` returns.

    Attributes:
      x: [N, T, C] float32.
      mask: [N, T], false where a sound had ended; None unless short ones are padded.
      paths: the file of each example.
      starts: the first sample of each in its file.
      rate: samples a second.
    """

    x: np.ndarray
    mask: np.ndarray | None
    paths: list[Path]
    starts: list[int]
    rate: int


def read_folder(
    root: Path,
    paths: Sequence[Path],
    *,
    rate: int | None,
    length: int | None,
    fit: str | None,
    mono: bool,
    skip_unreadable: bool,
    progress: Callable[[int, int], None] | None,
) -> Sounds:
    """The sounds of these files, as `jaxvae.data.folder` says."""
    broken: dict[Path, Exception] = {}
    headers: dict[Path, Header] = {}
    sounds: dict[Path, np.ndarray] = {}
    for path in paths:
        try:
            headers[path] = header(path)
        except UNREADABLE as error:
            broken[path] = error
    rate = _common_rate(root, headers, rate)
    _check_channels(root, headers, mono)
    for done, (path, said) in enumerate(headers.items()):
        try:
            sounds[path] = read(path, said, mono=mono)
        except UNREADABLE as error:
            broken[path] = error
        if progress is not None:
            progress(done + 1, len(headers))
    if broken and not (skip_unreadable and sounds):
        listed = ", ".join(f"{path.relative_to(root)} ({broken[path]})" for path in paths if path in broken)
        raise ValueError(
            f"{len(broken)} of {len(paths)} files in {root} cannot be read as sound: {listed}; mend them, or pass "
            "skip_unreadable=True to leave them out"
        )
    return _cut(sounds, rate, _common_length(root, sounds, length, fit), pad=fit == "pad")


def header(path: Path) -> Header:
    """Of the sound in a file; `ValueError` where it has no samples, or fewer than it says."""
    if not path.stat().st_size:
        raise ValueError("it is empty")
    info = soundfile.info(str(path))
    _check_whole(path)
    if not info.frames:
        raise ValueError("it has no samples")
    return Header(info.samplerate, info.channels, info.frames)


def read(path: Path, said: Header, *, mono: bool) -> np.ndarray:
    """The samples of a file, [T, C] float32 in [-1, 1]; C is 1 where its channels are averaged."""
    samples: np.ndarray = soundfile.read(str(path), dtype="float32", always_2d=True)[0]
    if len(samples) != said.frames:
        raise ValueError(f"it ends after {len(samples)} of {said.frames} samples")
    wrong = ~(np.abs(samples) <= 1)  # true for NaN
    if wrong.any():
        raise ValueError(f"it has {samples[wrong][0]:g}, outside [-1, 1]")
    return samples.mean(axis=1, keepdims=True) if mono else samples


def _check_whole(path: Path) -> None:
    """Raise `ValueError` for a WAV file that was cut short, which libsndfile reads as a shorter one."""
    size_of_file = path.stat().st_size
    with path.open("rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return
        while len(chunk := file.read(8)) == 8:
            size = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                left = size_of_file - file.tell()
                if left < size != UNKNOWN:
                    raise ValueError(f"it was cut short: {left} of {size} bytes of samples")
                return
            file.seek(size + size % 2, 1)


def _common_rate(root: Path, headers: dict[Path, Header], rate: int | None) -> int:
    """The sample rate of all files, which is what was asked for."""
    rates = {said.rate: path for path, said in reversed(headers.items())}
    if rate is not None and (others := rates.keys() - {rate}):
        other = min(others)
        raise ValueError(
            f"{rates[other].relative_to(root)} has {other} samples a second, and rate={rate} was asked for: bring the "
            "files to one rate first, nothing is resampled here"
        )
    if len(rates) > 1:
        (one, first), (other, second) = list(rates.items())[::-1][:2]
        raise ValueError(
            f"the sounds in {root} have {len(rates)} sample rates, {first.relative_to(root)} {one} and "
            f"{second.relative_to(root)} {other}: bring them to one first, nothing is resampled here"
        )
    return next(iter(rates), rate or 1)  # of no readable file, which is said once all were tried


def _check_channels(root: Path, headers: dict[Path, Header], mono: bool) -> None:
    numbers = {said.channels: path for path, said in reversed(headers.items())}
    if len(numbers) > 1 and not mono:
        (one, first), (other, second) = list(numbers.items())[::-1][:2]
        raise ValueError(
            f"{first.relative_to(root)} has {one} channels, and {second.relative_to(root)} {other}: pass "
            "channels='mono' to average those of each"
        )


def _common_length(root: Path, sounds: dict[Path, np.ndarray], length: int | None, fit: str | None) -> int:
    """T: what was asked for, or that of the files."""
    lengths = {len(sound): path for path, sound in reversed(sounds.items())}
    way_out = "pass length=, and fit='windows' to cut or fit='pad' to fill up"
    if length is None:
        if len(lengths) > 1 and fit != "pad":
            (one, first), (other, second) = list(lengths.items())[::-1][:2]
            raise ValueError(
                f"the sounds in {root} have {len(lengths)} lengths, {first.relative_to(root)} {one} samples and "
                f"{second.relative_to(root)} {other}: {way_out}"
            )
        return max(lengths)
    if fit is None and (others := lengths.keys() - {length}):
        other = min(others)
        raise ValueError(f"{lengths[other].relative_to(root)} has {other} samples, not length={length}: {way_out}")
    if fit == "windows" and min(lengths) < length:
        raise ValueError(
            f"{lengths[min(lengths)].relative_to(root)} has {min(lengths)} samples, fewer than a window of {length}: "
            "pass a smaller length=, or fit='pad'"
        )
    return length


def _cut(sounds: dict[Path, np.ndarray], rate: int, length: int, *, pad: bool) -> Sounds:
    """Windows of one length; where they are padded the last of a file may be shorter."""
    places = [
        (path, start)
        for path, sound in sounds.items()
        for start in range(0, len(sound) if pad else len(sound) - length + 1, length)
    ]
    x = np.zeros((len(places), length, next(iter(sounds.values())).shape[1]), np.float32)
    mask = np.zeros(x.shape[:2], bool)
    for i, (path, start) in enumerate(places):
        window = sounds[path][start : start + length]
        x[i, : len(window)], mask[i, : len(window)] = window, True
    paths, starts = [path for path, _ in places], [start for _, start in places]
    return Sounds(x, mask if pad else None, paths, starts, rate)
