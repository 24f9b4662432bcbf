"""Ways to harm a run's directory: damage that its checksums find, and attacks whose checksums fit."""

import hashlib
import json
import os
import struct

from jaxvae import _saved
from jaxvae._hub import FILES

TENSORS = ("weights.safetensors", "data.safetensors")

# Damage: the files are not what was saved, and the checksums are as they were


def flip(rng, content):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def cut(rng, content):
    return content[: rng.randrange(len(content))]


def grow(rng, content):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]


def blank(rng, content):
    begin = rng.randrange(len(content))
    return content[:begin] + bytes(min(16, len(content) - begin)) + content[begin + 16 :]


def no_text(rng, content):
    place = rng.randrange(len(content))
    return content[:place] + b"\xff\xfe\xc3" + content[place + 3 :]


def damage_bytes(rng, place):
    file = place / rng.choice(FILES)
    change = rng.choice((flip, flip, flip, cut, grow, blank, no_text))
    file.write_bytes(change(rng, bytearray(file.read_bytes())))
    return f"{change.__name__} {file.name}"


def swap(rng, place):
    first, second = rng.sample(FILES, 2)
    (place / first).rename(place / "between")
    (place / second).rename(place / first)
    (place / "between").rename(place / second)
    return f"swap {first} {second}"


def in_place_of_a_file(rng, place):
    file = place / rng.choice(FILES)
    file.unlink()
    kind = rng.choice(("nothing", "folder", "pipe", "link out", "endless", "broken link", "own link"))
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "nothing":
        target = {"link out": __file__, "endless": "/dev/zero", "broken link": place / "none", "own link": file}[kind]
        file.symlink_to(target)
    return f"{kind} for {file.name}"


# Attack: the files say something else, and the checksums are those of what they say

NAMES = (
    *(
        "os:system",
        "builtins:eval",
        "builtins:exec",
        "subprocess:run",
        "pickle:loads",
        "jaxvae.run:train",
        "shutil:rmtree",
    ),
    *("jaxvae._saved:write", "jaxvae.figures:image_grid", "jax.numpy:load", "jax.numpy:save", "numpy:fromfile"),
    *("jaxvae.networks._pickling:_look_up", "jaxvae.models.vae:VAE", "jaxvae.distributions:Bernoulli", "jax.nn:relu"),
    *(
        "flax.linen:Dense",
        "flax.linen:Sequential",
        "../../evil:main",
        "__main__:exit",
        "jaxvae.models.vae:partial",
        "antigravity:x",
    ),
)
DEEP = 100_000


def hostile(rng):
    """A value that nobody expects where it stands."""
    name = rng.choice(NAMES)
    return rng.choice(
        (
            *(
                None,
                True,
                -1,
                0,
                2**31,
                2**64,
                10**40,
                1.5,
                "",
                "../../../etc/passwd",
                "\u0000\u001b[2J",
                "x" * 10_000,
                [],
                {},
                [[]],
            ),
            *({"name": name}, {"new": name, "with": {}}, {"new": name, "attributes": {"a": 1}}),
            {"partial": {"name": name}, "args": ["touch harmed"], "keywords": {}},
            {"new": name, "with": {"features": 10**12, "layers": [{"name": "jax.nn:relu"}]}},
            *(
                {"array": "../x"},
                {"array": "params/params/encoder/Dense_0/kernel"},
                {"numpy": "x"},
                {"dtype": "object"},
            ),
            *(
                {"dtype": "V100000000000"},
                {"scalar": ["float32", {"float": "nan"}]},
                {"scalar": ["O", 1]},
                {"same": "model"},
            ),
            *(
                {"float": "1e999"},
                {"dict": [[[], 1]]},
                {"dict": [[{"list": []}, 1]]},
                {"list": 3},
                {"as": "model", "name": name},
            ),
            *({"new": "jaxvae.data.dataset:Dataset", "with": {"name": "x", "arrays": {"dict": []}}}, {"frozen": {}}),
        )
    )


def nodes(value, found):
    """Every place in JSON: the container and the key in it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        nodes(value[key], found)
    return found


def seal(place, record, text=None):
    record["files"] = {
        name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in FILES if name != "run.json"
    }
    sealed = {"format": 1, "sha256": _saved._digest(record), "record": record}
    (place / "run.json").write_text(json.dumps(sealed) if text is None else text(json.dumps(sealed)))


def read_record(place):
    return json.loads((place / "run.json").read_text())["record"]


def change_the_record(rng, place):
    record = read_record(place)
    said = []
    for _ in range(rng.randrange(1, 4)):
        container, key = rng.choice(nodes(record, []))
        if rng.random() < 0.2:
            said.append(f"without {key}")
            del container[key]
        else:
            container[key] = hostile(rng)
            said.append(f"{key}: {str(container[key])[:100]}")
    seal(place, record)
    return "; ".join(said)


def change_the_text(rng, place):
    """What `json.dumps` would never write: two entries of one name, NaN, no end of nesting, no end of digits."""
    change = rng.choice(
        (
            lambda text: text.replace('"step":', '"step": 4, "step":', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": NaN', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": Infinity', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + "[" * DEEP + "]" * DEEP, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + '{"a":' * DEEP + "1" + "}" * DEEP, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + "9" * 100_000, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": 1e999999', 1),
            lambda text: text.replace('"format": 1', '"format": 2', 1),
            lambda text: "[" * DEEP + text + "]" * DEEP,
            lambda text: text.replace("VAE", "V\\ud800E"),
        )
    )
    record = read_record(place)
    seal(place, record, change)
    return "text"


def nest_the_record(rng, place):
    """As deep as JSON is still read: the code that walks it must not be what ends."""
    record = read_record(place)
    value = 1
    for _ in range(rng.choice((300, 600, 900))):
        value = rng.choice(([value], {"list": [value]}, {"partial": value, "args": [], "keywords": {}}))
    record[rng.choice(("model", "objective", "dataset", "params"))] = value
    try:
        seal(place, record)
    except RecursionError:  # nobody can write it either
        return "nothing"
    return "nested"


def change_the_tensors(rng, place):
    file = place / rng.choice(TENSORS)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice(list(header))
    entry = header[name]
    change = rng.randrange(12)
    if change == 0:
        entry["shape"] = rng.choice(([2**62, 4], [10**12], [-1], [1] * 100, [0, 2**63], "x", [1.0], [True], None))
    elif change == 1:
        entry["data_offsets"] = rng.choice(([0, 2**62], [5, 1], [-8, 8], [0], [0, 1, 2], {}, [None, None], [0, 10**30]))
    elif change == 2:
        entry["dtype"] = rng.choice(("O", "F32", "F64", "PICKLE", "I8", 7, None, "BOOL", "C64"))
    elif change == 3:
        header[rng.choice(("../../x", "/etc/passwd", "", "a" * 5000, "__metadata__"))] = header.pop(name)
    elif change == 4:
        header["twin"] = dict(entry)
    elif change == 5:
        del header[name]
    elif change == 6:
        header = rng.choice(([], 3, None, {}, {"__metadata__": 5}))
    elif change == 7:
        entry["pickle"] = "cos\nsystem\n"
    elif change == 8:
        entry["shape"], entry["dtype"] = [*entry["shape"], 1], entry["dtype"]
    text = json.dumps(header).encode()
    size = rng.choice((2**63, 2**64 - 1, 10**9, 0, 1)) if change == 9 else len(text)
    if change == 10:
        text = b"[" * DEEP + b"]" * DEEP
        size = len(text)
    if change == 11:
        rest = rng.randbytes(len(rest))  # NaN, infinity and booleans that are neither
    file.write_bytes(struct.pack("<Q", size) + text + rest)
    seal(place, read_record(place))
    return f"tensors {change} {name} {str(entry)[:100]}"


def change_the_history(rng, place):
    (place / "history.json").write_text(
        rng.choice(("{}", "3", "[1]", "null", "[" * DEEP, '[{"step": 1, "step": 2}]', "[NaN]", "[{}]", '["\\ud800"]'))
    )
    seal(place, read_record(place))
    return "history"


def plant_a_pickle(rng, place):
    """Where a former version kept code, or where NumPy would take it from."""
    harm = b"cos\nsystem\n(S'touch harmed'\ntR."
    if rng.random() < 0.5:
        (place / "run.pickle").write_bytes(harm)
        (place / "run.json").unlink()
        return "run.pickle"
    file = place / rng.choice(FILES)
    file.write_bytes(harm)
    if file.name != "run.json":
        seal(place, read_record(place))
    return f"a pickle as {file.name}"


DAMAGE = (damage_bytes,) * 6 + (swap, in_place_of_a_file)
ATTACKS = (change_the_record,) * 6 + (change_the_tensors,) * 3
ATTACKS += (change_the_text, nest_the_record, change_the_history, plant_a_pickle)
