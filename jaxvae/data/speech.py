"""Sounds that resemble speech, with known factors: five vowels by formant synthesis, and chirps that rise or fall.

A vowel is a train of pulses of some pitch, as of a voice, through three resonances in series (Klatt, 1980) at the
formants that Peterson and Barney (1952) measured, the averages of their men and of their women. Pulses have all
harmonics below half the sample rate and none above. A chirp is a sine whose frequency moves at a constant speed. Every
sound begins and ends softly and reaches the peak that its loudness says.

References:
  Peterson and Barney, Control Methods Used in a Study of the Vowels, JASA 24, 1952, table II.
  Klatt, Software for a Cascade/Parallel Formant Synthesizer, JASA 67, 1980.
"""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_integers, host_reals
from jaxvae.data.dataset import Dataset, make_prepare
from jaxvae.data.domain import Domain
from jaxvae.keys import check_seed

CLASSES = ("heed", "head", "hod", "hawed", "whod", "up", "down")  # vowels by the word that has them; then the chirps
FACTORS = {"class": len(CLASSES), "voice": 2, "pitch": 9, "glide": 3, "loudness": 3}
RATE = 8000  # samples a second
LENGTH = 2048
# By voice (a man's, a woman's) and vowel, in Hz.
FORMANTS = np.array(
    [
        [[270, 2290, 3010], [530, 1840, 2480], [730, 1090, 2440], [570, 840, 2410], [300, 870, 2240]],
        [[310, 2790, 3310], [610, 2330, 2990], [850, 1220, 2810], [590, 920, 2710], [370, 950, 2670]],
    ],
    np.float64,
)
PITCHES = np.array([[136, 130, 124, 129, 141], [235, 223, 212, 216, 231]], np.float64)  # likewise, of the middle pitch
BANDWIDTHS = np.array([60.0, 90.0, 150.0])  # of the three resonances
GLIDES = np.array([-0.25, 0.0, 0.25])  # what a vowel's pitch changes by from end to end, as a share
CHIRPS = np.array([300.0, 450.0])  # Hz, by voice: where the middle pitch of a chirp is lowest
OCTAVES = np.array([1.0, 1.5, 2.0])  # by glide: how far a chirp goes
PEAKS = 0.9 * np.array([0.25, 0.5, 1.0])  # by loudness
SOFT = 0.01  # seconds at either end
RINGING = 0.25  # seconds after which a resonance is silent: of the narrowest by 400 dB
AT_ONCE = 256  # sounds in memory, each in double precision
SPLITS = {"train": (2100, 0), "test": (700, 1)}  # how many, from which seed


def load_speech(split: str) -> Dataset:
    """What `jaxvae.data.load` gives: `synthesize`, 2,100 sounds of seed 0 to "train", 700 of seed 1 to "test".

    Raises:
      ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"'speech' has no split {split!r}; it has {', '.join(SPLITS)}")
    count, seed = SPLITS[split]
    return synthesize(count, seed=seed)


def synthesize(count: int, *, seed: int = 0, length: int = LENGTH, rate: int = RATE) -> Dataset:
    """Sounds of random factors as a `Dataset`: x [N, T, 1] float32 in [-1, 1], labelled by their class.

    Sound i has the class i mod 7, so that classes are balanced; its other factors and the phase in which it begins are
    random, and the same however many sounds there are.

    Args:
      count: N.
      seed: decides all of them.
      length: T.
      rate: samples a second, 8000 or more.

    Raises:
      ValueError: no sounds, or a length, rate or seed out of range.
    """
    at_least(1, count=count)
    check_seed(seed)
    factors, phase = np.empty((count, len(FACTORS)), np.int32), np.empty(count)
    for i in range(count):
        own = np.random.default_rng([seed, i])
        factors[i, 0], factors[i, 1:] = i % len(CLASSES), own.integers(list(FACTORS.values())[1:])
        phase[i] = own.uniform(0, 2 * np.pi)
    arrays = {
        "x": render(factors, phase, length=length, rate=rate),
        "label": factors[:, 0],
        "factors": factors,
    }
    return Dataset(*("speech", arrays, make_prepare(), Domain("real"), tuple(FACTORS)), label_names=CLASSES, rate=rate)


def render(factors: ArrayLike, phase: ArrayLike, *, length: int = LENGTH, rate: int = RATE) -> np.ndarray:
    """Sounds [N, T, 1] float32 of integer factors [N, 5], in the order of `FACTORS`, that begin in a phase [N].

    The phase is that of the first harmonic or the sine, in radians: a pulse where it is a multiple of 2π.

    Raises:
      TypeError: factors that are not integers.
      ValueError: wrong shapes, a factor out of range, a length below 1 or a rate below 8000.
    """
    at_least(1, length=length)
    at_least(RATE, rate=rate)  # the highest formant, and every chirp, lie below 4000 Hz
    wanted, begins = host_integers(factors, "factors"), host_reals(phase, "phase")
    sizes = np.array(list(FACTORS.values()))
    if wanted.ndim != 2 or wanted.shape[1] != len(sizes) or begins.shape != wanted.shape[:1]:
        raise ValueError(f"factors must be [N, {len(sizes)}] and phase [N], got {wanted.shape} and {begins.shape}")
    outside = (wanted < 0) | (wanted >= sizes)
    if outside.any():
        i, f = np.argwhere(outside)[0]
        raise ValueError(f"factors[{i}] has {wanted[i, f]} for {list(FACTORS)[f]!r}, outside 0 .. {sizes[f] - 1}")
    x = np.empty((len(wanted), length, 1), np.float32)
    chirps = wanted[:, 0] >= PITCHES.shape[1]
    for draw, kind in ((_vowels, ~chirps), (_chirps, chirps)):
        places = np.flatnonzero(kind)
        for few in np.split(places, range(AT_ONCE, len(places), AT_ONCE)):
            sound = draw(wanted[few], begins[few, None], length, rate) * _envelope(length, rate)
            peak = np.abs(sound).max(axis=1, keepdims=True, initial=1e-12)
            x[few, :, 0] = PEAKS[wanted[few, 4], None] * sound / peak
    return x


def _vowels(factors: np.ndarray, phase: np.ndarray, length: int, rate: int) -> np.ndarray:
    """Pulses through resonances, [N, T]."""
    vowel, voice = factors[:, 0], factors[:, 1]
    pitch, glide = (PITCHES[voice, vowel] * _semitones(factors))[:, None], GLIDES[factors[:, 3]][:, None]
    seconds, duration = np.arange(length) / rate, length / rate
    # The integral of pitch · (1 + glide · (t / duration - ½)).
    turns = pitch * (seconds + glide * (seconds**2 / (2 * duration) - seconds / 2))
    harmonics = np.ceil(rate / 2 / (pitch * (1 + np.abs(glide) / 2))) - 1
    size = length + round(RINGING * rate)
    spectrum = np.fft.rfft(pulses(phase + 2 * np.pi * turns, harmonics), size)
    response = resonances(FORMANTS[voice, vowel], np.fft.rfftfreq(size, 1 / rate), rate)
    return np.fft.irfft(spectrum * response, size)[:, :length]


def pulses(phase: np.ndarray, harmonics: ArrayLike) -> np.ndarray:
    """The sum of cos(k · phase) over k = 1 .. harmonics, in closed form."""
    half, count = np.sin(phase / 2), 2 * np.asarray(harmonics) + 1
    at_pulse = np.abs(half) < 1e-6
    ratio = np.where(at_pulse, count, np.sin(count * phase / 2) / np.where(at_pulse, 1, half))
    return (ratio - 1) / 2


def resonances(formants: ArrayLike, frequency: ArrayLike, rate: int) -> np.ndarray:
    """The complex gain [..., F] of resonances in series, centres `formants` [..., 3] Hz, at frequencies [F] Hz.

    Each is Klatt's y[n] = A x[n] + B y[n-1] + C y[n-2], of gain 1 at frequency 0.
    """
    decay = np.exp(-np.pi * BANDWIDTHS / rate)
    first = 2 * decay * np.cos(2 * np.pi * np.asarray(formants) / rate)
    delay = np.exp(-2j * np.pi * np.asarray(frequency) / rate)[:, None]
    first, second = first[..., None, :], -(decay**2)
    return ((1 - first - second) / (1 - first * delay - second * delay**2)).prod(axis=-1)


def _chirps(factors: np.ndarray, phase: np.ndarray, length: int, rate: int) -> np.ndarray:
    """Sines from one frequency to another, [N, T]."""
    low, high = chirp_ends(factors)
    falls = factors[:, 0] == CLASSES.index("down")
    start, end = np.where(falls, high, low)[:, None], np.where(falls, low, high)[:, None]
    seconds = np.arange(length) / rate
    return np.sin(phase + 2 * np.pi * (start * seconds + (end - start) * seconds**2 / (2 * length / rate)))


def chirp_ends(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest frequency of chirps of these factors, each [N] Hz."""
    low = CHIRPS[factors[:, 1]] * _semitones(factors)
    return low, low * 2 ** OCTAVES[factors[:, 3]]


def _semitones(factors: np.ndarray) -> np.ndarray:
    return 2 ** ((factors[:, 2] - FACTORS["pitch"] // 2) / 12)


def _envelope(length: int, rate: int) -> np.ndarray:
    """Rises and falls by half a cosine, [T]."""
    from_the_end = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return (1 - np.cos(np.pi * np.minimum(from_the_end / (SOFT * rate), 1))) / 2
