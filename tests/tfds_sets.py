"""Miniature sets on disk, as tensorflow-datasets prepares them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest


def write_set(
    data_dir, name, images, labels=None, version="1.0.0", file_format="array_record", shape=None, factors=None
):
    """Write what tensorflow-datasets prepares, without TensorFlow: a train split and an empty test split.

    `factors`, integers [N] by name, are written as dsprites and shapes3d have them: label_NAME, and value_NAME floats.
    """
    pytest.importorskip("tensorflow_datasets", reason="needs the experiments extra")
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder = Path(data_dir, name, version)
    folder.mkdir(parents=True)
    short = name.split("/")[0]
    writer = ArrayRecordWriter(f"{folder}/{short}-train.array_record-00000-of-00001", "group_size:1")
    for i, image in enumerate(images):
        png = io.BytesIO()
        Image.fromarray(image.squeeze()).save(png, format="PNG")
        example = tf_example_pb2.Example()
        example.features.feature["image"].bytes_list.value.append(png.getvalue())
        if labels is not None:
            example.features.feature["label"].int64_list.value.append(int(labels[i]))
        for factor, values in (factors or {}).items():
            example.features.feature[f"label_{factor}"].int64_list.value.append(int(values[i]))
            example.features.feature[f"value_{factor}"].float_list.value.append(values[i] / 10)
        writer.write(example.SerializeToString())
    writer.close()

    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    splits = [
        {"name": "train", "filepathTemplate": template, "numBytes": "1", "shardLengths": [str(len(images))]},
        {"name": "test", "filepathTemplate": template, "numBytes": "0", "shardLengths": []},
    ]
    info = {"name": short, "version": version, "fileFormat": file_format, "splits": splits}
    if "/" in name:
        info["configName"] = name.split("/")[1]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    package = "tensorflow_datasets.core.features."
    dimensions = [str(size) for size in shape or images[0].shape]
    features = {
        "image": {
            "pythonClassName": package + "image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
        }
    }
    if labels is not None:
        features["label"] = {
            "pythonClassName": package + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        }
    for factor, values in (factors or {}).items():
        features[f"label_{factor}"] = {
            "pythonClassName": package + "class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(max(values) + 1)},
        }
        features[f"value_{factor}"] = {
            "pythonClassName": package + "tensor_feature.Tensor",
            "tensor": {"dtype": "float32", "encoding": "none", "shape": {}},
        }
    content = {
        "pythonClassName": package + "features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
    (folder / "features.json").write_text(json.dumps(content))
    return folder


def random_images(count, shape=(4, 5, 3), levels=256, seed=0):
    return np.random.default_rng(seed).integers(0, levels, (count, *shape), np.uint8)
