"""Folders of sound: what they become, how they are cut and padded, and what is refused with the way out."""

import sys

import jax
import numpy as np
import pytest

import jaxvae
from jaxvae import data
from jaxvae.data import speech
from jaxvae.models.vq_vae import signed_gaussian
from jaxvae.run import _default_objective

soundfile = pytest.importorskip("soundfile")
RATE, STEP = 8000, 1 / 32768  # of sixteen bits
RNG = np.random.default_rng(0)


def write(folder, **sounds):
    """Files of samples [T] or [T, C], named by keywords; __ stands for a sub-folder."""
    for name, samples in sounds.items():
        path = folder / f"{name.replace('__', '/')}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, RATE, subtype="PCM_16")
    return folder


def noise(*shape):
    return RNG.uniform(-0.9, 0.9, shape).astype(np.float32)


def test_drawn_speech_comes_back_from_a_folder_within_sixteen_bits(tmp_path):
    drawn, seen = speech.synthesize(10, length=512), []
    for i, (sound, label) in enumerate(zip(drawn.x, drawn.label, strict=True)):
        folder = tmp_path / speech.CLASSES[label]
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / f"{i:02d}.wav", sound, drawn.rate, subtype="PCM_16")
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / ".hidden.wav").write_text("nor this")
    own = data.folder(tmp_path, label_names=speech.CLASSES, progress=lambda *done: seen.append(done))
    assert (own.x.shape, own.x.dtype, own.rate) == ((10, 512, 1), np.float32, RATE)
    assert (own.domain, own.label_names) == (data.Domain("real"), speech.CLASSES)
    assert "mask" not in own.arrays
    assert seen == [(i, 10) for i in range(1, 11)]
    order = [int(name[-6:-4]) for name in own.example_names]
    assert own.example_names[:2] == ("down/06.wav", "hawed/03.wav")
    np.testing.assert_array_equal(own.label, drawn.label[order])
    np.testing.assert_allclose(own.x, drawn.x[order], atol=1.5 * STEP)
    prepared = own.prepared(10, key=jax.random.key(0))["x"]
    np.testing.assert_array_equal(prepared, own.x)  # models see it in [-1, 1]


def test_long_sounds_are_cut_into_windows_and_short_ones_padded(tmp_path):
    long, short = noise(25), noise(12)
    write(tmp_path, a=long, b=short)
    with pytest.raises(
        ValueError, match=r"2 lengths, a\.wav 25 samples and b\.wav 12: pass length=, and fit='windows'"
    ):
        data.folder(tmp_path)
    with pytest.raises(ValueError, match=r"b\.wav has 12 samples, not length=25: pass length=, and fit='windows' to"):
        data.folder(tmp_path, length=25)
    cut = data.folder(tmp_path, length=10, fit="windows")
    assert cut.example_names == ("a.wav:0", "a.wav:10", "b.wav")
    np.testing.assert_allclose(cut.x[..., 0], [long[:10], long[10:20], short[:10]], atol=STEP)
    assert "mask" not in cut.arrays
    with pytest.raises(
        ValueError, match=r"b\.wav has 12 samples, fewer than a window of 20: pass a smaller length=, or"
    ):
        data.folder(tmp_path, length=20, fit="windows")

    padded = data.folder(tmp_path, length=10, fit="pad")
    assert padded.example_names == ("a.wav:0", "a.wav:10", "a.wav:20", "b.wav:0", "b.wav:10")
    assert padded.arrays["mask"].sum(axis=1).tolist() == [10, 10, 5, 10, 2]
    assert padded.arrays["mask"][2].tolist() == [True] * 5 + [False] * 5
    np.testing.assert_allclose(padded.x[2, :5, 0], long[20:], atol=STEP)
    assert (padded.x[2, 5:] == 0).all()
    longest = data.folder(tmp_path, fit="pad")
    assert longest.x.shape == (2, 25, 1)
    assert longest.arrays["mask"].sum(axis=1).tolist() == [25, 12]
    assert data.folder(write(tmp_path / "one", a=long), length=20, fit="windows").label is None


def test_every_window_has_the_label_of_its_file(tmp_path):
    write(tmp_path, cats__a=noise(25), dogs__b=noise(12), dogs__c=noise(31))
    cut = data.folder(tmp_path, length=10, fit="windows")
    assert cut.example_names[1:4] == ("cats/a.wav:10", "dogs/b.wav", "dogs/c.wav:0")
    assert (cut.label.tolist(), cut.label_names) == ([0, 0, 1, 1, 1, 1], ("cats", "dogs"))
    assert data.folder(tmp_path, length=10, fit="pad").label.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


def test_channels_are_kept_or_averaged(tmp_path):
    stereo = noise(30, 2)
    write(tmp_path, a=stereo)
    np.testing.assert_allclose(data.folder(tmp_path).x[0], stereo, atol=STEP)
    np.testing.assert_allclose(data.folder(tmp_path, channels="mono").x[0, :, 0], stereo.mean(axis=1), atol=STEP)
    write(tmp_path, b=stereo[:, 0])
    with pytest.raises(ValueError, match=r"a\.wav has 2 channels, and b\.wav 1: pass channels='mono'"):
        data.folder(tmp_path)
    assert data.folder(tmp_path, channels="mono").x.shape == (2, 30, 1)


def test_one_sample_rate_and_no_resampling(tmp_path):
    write(tmp_path, a=noise(20))
    assert data.folder(tmp_path, rate=RATE).rate == RATE
    with pytest.raises(ValueError, match=r"a\.wav has 8000 samples a second, and rate=16000 was asked for"):
        data.folder(tmp_path, rate=16000)
    soundfile.write(tmp_path / "b.flac", noise(20), 16000)
    with pytest.raises(ValueError, match=r"2 sample rates, a\.wav 8000 and b\.flac 16000: bring them to one first"):
        data.folder(tmp_path)
    with pytest.raises(ValueError, match=r"b\.flac has 16000 samples a second, and rate=8000 was asked for"):
        data.folder(tmp_path, rate=RATE)


def test_damaged_and_empty_files_are_named_or_left_out(tmp_path):
    write(tmp_path, a=noise(20), cut=noise(20), none=np.zeros(0))
    (tmp_path / "cut.wav").write_bytes((tmp_path / "cut.wav").read_bytes()[:-10])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("this is no sound at all, but long enough for a header of a sound")
    soundfile.write(tmp_path / "loud.wav", np.full(20, 1.5), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "nan.wav", np.full(20, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"6 of 7 files in .* cannot be read as sound") as caught:
        data.folder(tmp_path)
    said = str(caught.value)
    assert "cut.wav (it was cut short: 30 of 40 bytes of samples)" in said
    assert "empty.wav (it is empty)" in said
    assert "loud.wav (it has 1.5, outside [-1, 1])" in said
    assert "nan.wav (it has nan, outside [-1, 1])" in said
    assert "none.wav (it has no samples)" in said
    assert "text.wav (" in said
    assert data.folder(tmp_path, skip_unreadable=True).example_names == ("a.wav",)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match="6 of 6 files"):
        data.folder(tmp_path, skip_unreadable=True)


def test_options_that_cannot_be(tmp_path):
    write(tmp_path, a=noise(20))
    for options, said in (
        ({"fit": "crop"}, "fit must be one of 'windows', 'pad', got 'crop'"),
        ({"channels": "left"}, "channels must be one of 'mono', 'keep', got 'left'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"rate": -1}, "rate must be at least 1, got -1"),
        ({"size": 8}, "size only for pictures, and .* has sounds"),
    ):
        with pytest.raises(ValueError, match=said):
            data.folder(tmp_path, **options)
    Image = pytest.importorskip("PIL.Image")
    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    with pytest.raises(ValueError, match=r"has both pictures and sounds, such as p\.png and a\.wav"):
        data.folder(tmp_path)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ValueError, match=r"rate, length only for sounds, and .* has pictures"):
        data.folder(tmp_path, rate=8000, length=4)


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path, a=noise(20))
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.delitem(sys.modules, "jaxvae.data._sounds", raising=False)
    monkeypatch.delattr("jaxvae.data._sounds", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"folders of sound need soundfile: pip install 'jaxvae\[sound\]'"):
        data.folder(tmp_path)


def test_a_mask_has_the_shape_of_x_and_is_refused_where_it_would_not_be_read():
    x, mask = np.zeros((3, 8, 1), np.float32), np.ones((3, 8), bool)
    own = data.Dataset("own", {"x": x, "mask": mask}, data.make_prepare(), data.Domain("real"))
    assert data.feeds.per_example(own)["mask"].shape == (3, 8)
    for wrong in (mask[..., None], mask.astype(np.float32)):
        with pytest.raises(ValueError, match=r"mask must be bool \(3, 8\), as x without its last axis, got"):
            data.Dataset("own", {"x": x, "mask": wrong}, data.make_prepare(), data.Domain("real"))
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (4,)), jaxvae.MLPDecoder((8, 1), (4,)))
    params, batch = (
        model.init(jax.random.key(0), x),
        {"x": x, "mask": mask, "index": np.arange(3)},
    )
    with pytest.raises(ValueError, match=r"has padding \(batch\['mask'\]\), which this objective or model would read"):
        jaxvae.vae_loss(model, params, (), batch, key=jax.random.key(2), step=0)


@pytest.mark.slow
def test_a_vq_vae_trains_on_padded_sounds(tmp_path):
    """Its unit is the variance of what is there: zeros that fill up would make it smaller."""
    tones = {f"s{i}": 0.8 * np.sin(np.arange(40 + 16 * i) * (0.2 + 0.1 * i)) for i in range(6)}
    own = data.folder(write(tmp_path, **tones), length=128, fit="pad")
    body = {"channels": (8, 8), "blocks": 0, "residual": 1}
    encoder, decoder = jaxvae.ResidualEncoder(4, centre=0.0, **body), jaxvae.ResidualDecoder(1, **body)
    model = jaxvae.VQVAE(encoder, decoder, jaxvae.EMACodebook(16), signed_gaussian)
    variance = _default_objective(model, own).keywords["variance"]
    assert variance == pytest.approx(own.x[own.arrays["mask"]].var(dtype=np.float64), rel=1e-6)
    assert variance > 1.2 * own.x.var(dtype=np.float64)
    run = jaxvae.train(model, own, epochs=1, batch_size=6, validation=0, progress=False)
    assert np.isfinite(run.history[-1]["train"]["loss"])
    assert run.encode(own).shape == (6, 32)
