"""Writes a CSV of so many orders to stdout: `make.py ROWS`."""

import random
import sys

rnd = random.Random(1)
print("id,country,item,quantity,price")
for n in range(int(sys.argv[1])):
    country, item = rnd.choice(("at", "br", "cz", "dk")), rnd.choice(('"chair, oak"', "desk", "lamp"))
    print(f"{n},{country},{item},{rnd.randint(1, 9)},{rnd.randint(100, 9999) / 100}")
