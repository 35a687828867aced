"""Functions that another program calls by their names, in processes of their own. The model is made once per process."""

import numpy as np


def init(context):
    global weights
    rng = np.random.default_rng(context["seed"])
    weights = [rng.normal(size=(context["features"], 64)), rng.normal(size=(64, 3))]


def predict(features):
    """Scores of three classes for each row."""
    rows = np.asarray(features, dtype=np.float64).reshape(-1, len(weights[0]))
    scores = np.exp(np.tanh(rows @ weights[0]) @ weights[1])
    return scores / scores.sum(axis=1, keepdims=True)
