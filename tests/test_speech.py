"""Drawn speech: its resonances and pulses against the difference equation, its spectra, its chirps, its balance."""

import numpy as np
import pytest
import scipy.signal

from jaxvae import data
from jaxvae.data import speech

MEN = {"heed": (270, 2290, 3010), "head": (530, 1840, 2480), "hod": (730, 1090, 2440), "hawed": (570, 840, 2410)}
MEN |= {"whod": (300, 870, 2240)}  # Peterson and Barney (1952), table II
STEADY, MIDDLE = 1, 4  # the glide and the pitch of the published averages


def factors(name, voice=0, pitch=MIDDLE, glide=STEADY, loudness=2):
    return np.array([[speech.CLASSES.index(name), voice, pitch, glide, loudness]])


def inner(x, rate=speech.RATE):
    """Without the soft ends."""
    edge = round(speech.SOFT * rate) + 1
    return x[edge:-edge]


@pytest.mark.parametrize("name", MEN)
def test_a_vowel_is_pulses_through_resonances_of_the_published_formants(name):
    """Against a train of pulses that is summed harmonic by harmonic and filtered sample by sample."""
    length, phase, pitch = 1024, 0.7, {"heed": 136, "head": 130, "hod": 124, "hawed": 129, "whod": 141}[name]
    seconds = np.arange(length) / speech.RATE
    sound = sum(np.cos(k * (phase + 2 * np.pi * pitch * seconds)) for k in range(1, 4000 // pitch + 1))
    for formant, bandwidth in zip(MEN[name], (60, 90, 150), strict=True):
        radius, angle = np.exp(-np.pi * bandwidth / speech.RATE), 2 * np.pi * formant / speech.RATE
        denominator = [1, -2 * radius * np.cos(angle), radius**2]
        sound = scipy.signal.lfilter([sum(denominator)], denominator, sound)
    expected = inner(sound)
    drawn = inner(speech.render(factors(name), [phase], length=length)[0, :, 0])
    scale = np.vdot(drawn, expected) / np.vdot(drawn, drawn)
    np.testing.assert_allclose(scale * drawn, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("voice", "name"), [(0, "heed"), (0, "hod"), (1, "head"), (1, "hawed"), (1, "whod")])
def test_spectra_peak_at_the_formants(voice, name):
    """The harmonics of nine pitches lie close enough to show where the resonances are."""
    length, formants = 4096, speech.FORMANTS[voice, speech.CLASSES.index(name)]
    frequency, height = [], []
    for pitch in range(9):
        sound = speech.render(factors(name, voice, pitch), [0.0], length=length)[0, :, 0] * np.hanning(length)
        first = speech.PITCHES[voice, speech.CLASSES.index(name)] * 2 ** ((pitch - 4) / 12)
        harmonics = first * np.arange(1, int(3900 / first))
        waves = np.exp(-2j * np.pi * np.outer(harmonics, np.arange(length)) / speech.RATE)
        heard = np.abs(waves @ sound)
        # Each sound has a peak of its own: they are compared by the gain of their first harmonic.
        gain = 1.0
        for formant, bandwidth in zip(formants, (60, 90, 150), strict=True):
            radius, angle = np.exp(-np.pi * bandwidth / speech.RATE), 2 * np.pi * formant / speech.RATE
            denominator = [1, -2 * radius * np.cos(angle), radius**2]
            gain *= scipy.signal.freqz([sum(denominator)], denominator, [first], fs=speech.RATE)[1][0]
        frequency += harmonics.tolist()
        height += (heard / heard[0] * np.abs(gain)).tolist()
    frequency, height = np.array(frequency), np.array(height)
    for formant in formants:
        near = np.abs(frequency - formant) < 120
        assert frequency[near][height[near].argmax()] == pytest.approx(formant, abs=30)


def test_the_fundamental_is_the_pitch_and_glides():
    for pitch, glide in ((0, 1), (8, 1), (4, 0), (4, 2)):
        drawn = inner(speech.render(factors("hod", 0, pitch, glide), [0.0], length=4096)[0, :, 0])
        expected = 124 * 2 ** ((pitch - 4) / 12)
        for part, share in ((drawn[:1000], -0.36), (drawn[-1000:], 0.36)):
            spectrum = np.abs(np.fft.rfft(part * np.hanning(1000), 2**16))
            frequency = np.fft.rfftfreq(2**16, 1 / speech.RATE)
            low = (frequency > 0.6 * expected) & (frequency < 1.5 * expected)
            found = frequency[low][spectrum[low].argmax()]
            assert found == pytest.approx(expected * (1 + (glide - 1) * 0.25 * share), rel=0.03)


@pytest.mark.parametrize(("name", "voice", "pitch", "glide"), [("up", 0, 4, 0), ("up", 1, 8, 2), ("down", 0, 0, 1)])
def test_a_chirp_moves_at_a_constant_speed(name, voice, pitch, glide):
    drawn = speech.render(factors(name, voice, pitch, glide), [1.0], length=2048)[0, :, 0].astype(np.float64)
    phase = np.unwrap(np.angle(scipy.signal.hilbert(drawn)))[200:-200]
    found = np.diff(phase) * speech.RATE / (2 * np.pi)
    low = (300, 450)[voice] * 2 ** ((pitch - 4) / 12)
    ends = (low, low * 2 ** (1, 1.5, 2)[glide])
    start, end = ends if name == "up" else ends[::-1]
    expected = start + (end - start) * (np.arange(200, 1847) + 0.5) / 2048
    np.testing.assert_allclose(found, expected, atol=0.01 * end + 5)


def test_pulses_are_the_sum_of_their_harmonics():
    phase = np.concatenate([np.linspace(-7, 7, 101), [0, 2 * np.pi, -4 * np.pi, 1e-7, 2 * np.pi - 1e-5]])
    for harmonics in (1, 7, 30):
        expected = np.cos(np.outer(np.arange(1, harmonics + 1), phase)).sum(axis=0)
        np.testing.assert_allclose(speech.pulses(phase, harmonics), expected, atol=1e-8)


def test_sounds_are_balanced_soft_at_their_ends_and_as_loud_as_they_say():
    drawn = speech.synthesize(70, seed=3, length=600)
    assert (drawn.x.shape, drawn.x.dtype, drawn.rate) == ((70, 600, 1), np.float32, 8000)
    assert (drawn.domain, drawn.factor_names[:2]) == (data.Domain("real"), ("class", "voice"))
    assert np.bincount(drawn.label).tolist() == [10] * 7
    assert drawn.label_names == speech.CLASSES
    np.testing.assert_array_equal(drawn.label, drawn.factors[:, 0])
    peaks = np.abs(drawn.x).max(axis=(1, 2))
    np.testing.assert_allclose(peaks, [0.225 * 2**loudness for loudness in drawn.factors[:, 4]], rtol=1e-6)
    assert np.abs(drawn.x[:, [0, -1], 0]).max() < 0.01
    for column, size in enumerate(speech.FACTORS.values()):
        assert set(drawn.factors[:, column]) == set(range(size))


def test_a_sound_depends_on_the_seed_and_its_number_alone():
    few, many = speech.synthesize(8, seed=1, length=300), speech.synthesize(300, seed=1, length=300)
    np.testing.assert_array_equal(few.x, many.x[:8])
    np.testing.assert_array_equal(few.factors, many.factors[:8])
    assert not np.array_equal(few.x, speech.synthesize(8, seed=2, length=300).x)
    again = speech.render(many.factors, np.zeros(300), length=300)
    np.testing.assert_array_equal(again[290:], speech.render(many.factors[290:], np.zeros(10), length=300))


def test_both_splits_load_by_name():
    test = data.load("speech", "test")
    assert (test.x.shape, test.shape, test.name) == ((700, 2048, 1), (2048, 1), "speech")
    with pytest.raises(ValueError, match="'speech' has no split 'dev'; it has train, test"):
        data.load("speech", "dev")


def test_what_cannot_be_drawn_is_refused_by_name():
    with pytest.raises(ValueError, match=r"factors\[1\] has 9 for 'pitch', outside 0 \.\. 8"):
        speech.render(np.array([[0, 0, 0, 0, 0], [0, 0, 9, 0, 0]]), [0, 0])
    with pytest.raises(ValueError, match=r"factors must be \[N, 5\] and phase \[N\], got \(1, 5\) and \(2,\)"):
        speech.render(np.zeros((1, 5), int), [0, 0])
    with pytest.raises(TypeError, match="factors"):
        speech.render(np.zeros((1, 5)), [0])
    with pytest.raises(ValueError, match="rate must be at least 8000, got 6000"):
        speech.synthesize(1, rate=6000)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        speech.synthesize(0)
    assert speech.synthesize(3, length=400, rate=16000).rate == 16000
