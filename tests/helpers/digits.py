"""Handwritten digits on grey canvases as a folder in COCO's format: ``python digits.py FOLDER``.

The digits are scikit-learn's (1797 scans of 8 x 8 pixels), enlarged 2 to 5 times; those of the
validation images do not occur in the training images. Boxes are those of the visible strokes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

SIZE = 128


def write_digits(folder, num_train=800, num_val=200, seed=0):
    """Writes ``<part>.json`` and the folder of images ``<part>`` for "train" and "val"."""
    scans, labels = load_digits(return_X_y=True)
    scans = scans.reshape(-1, 8, 8)
    random = np.random.RandomState(seed)
    order = random.permutation(len(scans))
    parts = {"train": (num_train, order[:1400]), "val": (num_val, order[1400:])}
    for part, (count, choice) in parts.items():
        (Path(folder) / part).mkdir(parents=True, exist_ok=True)
        # ids with gaps, as in COCO
        content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 3 * digit + 1, "name": f"digit {digit}"} for digit in range(10)],
        }
        for number in range(count):
            name = f"{number:06d}.png"
            canvas, boxes = _canvas(random, scans, choice)
            Image.fromarray(canvas).save(Path(folder) / part / name)
            content["images"].append(
                {"id": number + 1, "file_name": name, "width": SIZE, "height": SIZE}
            )
            for index, box in boxes:
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number + 1,
                        "category_id": 3 * int(labels[index]) + 1,
                        "bbox": box,
                    }
                )
        (Path(folder) / f"{part}.json").write_text(json.dumps(content))


def _canvas(random, scans, choice):
    canvas = random.randint(90, 140, (SIZE, SIZE)).astype(np.float32)
    taken = np.zeros((SIZE, SIZE), bool)
    boxes = []
    for _ in range(random.randint(0, 7)):
        index = random.choice(choice)
        side = 8 * random.randint(2, 6)
        image = Image.fromarray((scans[index] * 255 / 16).astype(np.uint8))
        ink = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        x, y = random.randint(0, SIZE - side, 2)
        place = np.s_[y : y + side, x : x + side]
        if taken[place].any():
            continue
        taken[place] = True
        color = random.choice([0, 255])
        canvas[place] = canvas[place] * (1 - ink) + color * ink
        rows, columns = (np.flatnonzero((ink > 0.3).any(axis)) for axis in (1, 0))
        box = [x + columns[0], y + rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        boxes.append((index, [int(value) for value in box]))
    return canvas.astype(np.uint8), boxes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    write_digits(parser.parse_args().folder)
