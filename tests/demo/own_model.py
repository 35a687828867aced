"""A user's function in Python: pairs of numbers, and a least-squares line through them, with numpy."""

import numpy


def predict(rows):
    x, y = rows.reshape(2, -1)
    slope, offset = numpy.polyfit(x, y, 1) if len(x) > 1 else (0.0, 0.0)
    return round(float(slope + offset), 4)
