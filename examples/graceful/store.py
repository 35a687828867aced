"""Stands for a database: rows are safe once it was closed, and it takes none afterwards."""

import json


class Store:
    def __init__(self, path):
        self._path = path
        self._rows = []
        self._closed = False

    def add(self, row):
        if self._closed:
            raise RuntimeError("the store is closed")
        self._rows.append(json.dumps(row) + "\n")

    def close(self):
        """Returns how many rows it has written."""
        self._closed = True
        with open(self._path, "a") as file:
            file.write("".join(self._rows))
        return len(self._rows)
