# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a photograph to a table
#
# A photograph of 24 coins, and a model that finds them: how large is each? The model is that of the
# demonstration, which `fcvit demo --data coins` trains in some three minutes on two CPU cores. It
# has seen the upper rows of this photograph, not the lowest one.
#
# This notebook is kept as text: Jupyter opens it by [jupytext](https://jupytext.readthedocs.io),
# and `jupytext --to ipynb photograph_to_table.py` converts it.

# %%
import math

import numpy as np
import skimage
from PIL import Image

import fcvit_mm

predictor = fcvit_mm.load("work_dirs/demo_detection_coins")
predictor.classes

# %% [markdown]
# The photograph is gray, (303, 384). A model takes colors: (H, W, 3), RGB, 0 to 255.

# %%
gray = skimage.data.coins()
image = np.stack([gray] * 3, axis=-1)
result = predictor(image).select(threshold=0.5)
print(len(result), "coins")

# %%
Image.fromarray(result.draw(scale=2))

# %% [markdown]
# `to_table` has a row per object, the most certain first: its class, score, sides in pixels, and
# how many pixels its mask covers. Were that a disc, this would be its diameter:

# %%
table = result.to_table()
for row in table:
    row["diameter"] = 2 * math.sqrt(row["pixels"] / math.pi)
table.sort(key=lambda row: row["diameter"], reverse=True)
table[:3]

# %% [markdown]
# With pandas it is a table to look at, to sort, and to save for a spreadsheet.

# %%
import pandas as pd

coins = pd.DataFrame(table).round(2)
coins.to_csv("coins.csv", index=False)
coins
