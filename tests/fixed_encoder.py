"""An encoder whose embeddings a test chooses."""

import numpy as np

from align_jax.devices.mesh import make_mesh
from tests import tiny

SHADES = (90, 110)  # shades of the pictures that a FixedEncoder knows


class FixedEncoder:
    """Maps pictures, by their names, and texts to vectors that a test chooses."""

    mesh = make_mesh()

    def __init__(self, images, texts):
        self.images, self.texts = images, texts
        self.names = {tiny.draw(n, shade): n for n in tiny.NAMES for shade in SHADES}

    def encode_images(self, pictures):
        return np.concatenate(list(self.stream_images(pictures)))

    def stream_images(self, pictures):
        for picture in pictures:
            yield np.float32([self.images(self.names[picture])])

    def image_features(self, pictures):
        return self.encode_images(pictures)

    def classify_images(self, pictures):
        raise NotImplementedError  # it has no head

    def encode_texts(self, texts):
        return np.float32([self.texts(text) for text in texts])

    def project_texts(self, texts):
        return np.float32([len(text) * self.texts(text) for text in texts])

    text_features = project_texts


def perfect(name):
    """Returns a unit vector: colour in the first three axes, side in the others."""
    words = name.split()
    axes = [*tiny.COLOURS, *tiny.SHAPES]
    vector = np.array([axis in words for axis in axes], float)
    return vector / np.linalg.norm(vector)


def worse(wrong):
    """Returns an encoder that takes each picture for the one that `wrong` names."""
    return FixedEncoder(lambda name: perfect(wrong.get(name, name)), perfect)
