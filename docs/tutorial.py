# %% [markdown]
# # From GeoTIFFs to a map
#
# In about fifteen minutes on a laptop's CPU: look at scenes, make shards, pretrain a small encoder without labels, look at what it learnt, fine-tune it
# to land cover, and map a scene that it has never seen. The scenes are **synthetic**, so nothing here is measured and no score says anything about real
# images; with your own files the commands are the same.
#
# Run it in the clone, in the environment of `make install`: as a script, `python docs/tutorial.py`, or as the notebook beside it, which is made from the script. Every step is a command
# of the command line; `command(...)` below starts it and prints the end of what it says. Results that the notebook keeps are those of a
# smaller run, whose size the first cell tells.

# %%
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch

ROOT = next(path for path in (Path.cwd(), *Path.cwd().parents) if (path / "launch" / "shards.py").is_file())
os.chdir(ROOT)
sys.path.insert(0, str(ROOT))

WORK = Path(os.environ.get("TUTORIAL_FOLDER", "runs/tutorial"))  # must not exist yet
SCENES = int(os.environ.get("TUTORIAL_SCENES", "12"))
SIZE = int(os.environ.get("TUTORIAL_SIZE", "384"))  # pixels along a side
STEPS = int(os.environ.get("TUTORIAL_STEPS", "400"))
print(f"{SCENES} scenes of {SIZE} pixels, {STEPS} steps")


def command(script: str, *arguments: object, lines: int = 6) -> None:
    """Start a script of the clone; print the last lines of its output."""
    made = subprocess.run(
        [sys.executable, script, *map(str, arguments)], text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    print("\n".join(made.stdout.rstrip().splitlines()[-lines:]))
    if made.returncode:
        raise SystemExit(f"{script} ended with code {made.returncode}")


def show(*images: tuple[str, np.ndarray]) -> None:
    """Titled images side by side."""
    figure, axes = plt.subplots(1, len(images), figsize=(3.2 * len(images), 3.4), squeeze=False)
    for axis, (title, image) in zip(axes[0], images, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout()
    plt.show()


def true_colour(path: Path) -> np.ndarray:
    """Red, green and blue of an optical scene, stretched for display."""
    with rasterio.open(path) as file:
        image = file.read([3, 2, 1]).astype("float32")
    low, high = np.percentile(image, (2, 98))
    return np.moveaxis(np.clip((image - low) / (high - low), 0, 1), 0, -1)


# %% [markdown]
# ## 1. Scenes
# Optical (ten bands), SAR (VV and VH) and a land-cover map of each place, as GeoTIFFs. With your own, skip this step.

# %%
command("launch/synthetic.py", "scenes", WORK / "scenes", "--scenes", SCENES, "--size", SIZE, "--cube", 0, lines=1)
show(*((f"scene {index}", true_colour(WORK / f"scenes/optical/scene_{index:03d}.tif")) for index in range(3)))

# %% [markdown]
# What do the files hold, and which sensors fit? `inspect` reads headers and some pixels, and says why a sensor does not fit.

# %%
command("launch/inspect.py", WORK / "scenes/optical/scene_000.tif", lines=20)

# %% [markdown]
# ## 2. Shards
# Scenes are cut into tiles once. The shards hold the stored numbers, and an index with checksums and the statistics of every band.

# %%
for kind in ("optical", "sar"):
    command("launch/shards.py", WORK / "scenes" / kind, "--sensor", f"synthetic-{kind}", "--out", WORK / "shards" / kind,
            "--tile", 96, lines=14)  # fmt: skip

# %% [markdown]
# ## 3. Pretraining
# Both sensors in one run, two optical steps for each SAR step. The run can be stopped at any time (Ctrl-C) and goes on with `--run.resume auto`.

# %%
sources = [{"shards": f"{WORK}/shards/optical", "weight": 2}, {"shards": f"{WORK}/shards/sar", "weight": 1}]
command(
    "launch/pretrain.py", "--config", "configs/pretrain/nano.yaml", "--run.dir", WORK / "pretrained", "--run.steps", STEPS,
    "--run.log_every", 10, "--data.sources", json.dumps(sources), lines=4,
)  # fmt: skip

# %% [markdown]
# Losses of the three stages, by sensor, from `metrics.jsonl`; 1 is what predicting the mean would give.

# %%
records = [json.loads(line) for line in (WORK / "pretrained/metrics.jsonl").read_text().splitlines()]
steps = [record for record in records if "event" not in record]
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True)
for axis, sensor in zip(axes, ("synthetic-optical", "synthetic-sar"), strict=True):
    own = [record for record in steps if record["sensor"] == sensor]
    for stage in ("low", "mid", "high"):
        axis.plot([record["step"] for record in own], [record[f"loss_{stage}"] for record in own], label=stage)
    axis.set(title=sensor, xlabel="step", ylabel="masked error")
axes[0].legend()
plt.show()

# %% [markdown]
# What the decoder makes of the visible patches: low, mid and full are its three stages.

# %%
picture = sorted((WORK / "pretrained/pictures").glob("*_synthetic-optical.png"))[-1]
plt.figure(figsize=(12, 5))
plt.imshow(plt.imread(picture))
plt.axis("off")
plt.show()

# %% [markdown]
# ## 4. The encoder
# Ten lines of API. Features are per patch and band group; here are the first three principal components of those of a scene.

# %%
import alliance  # noqa: E402

encoder = alliance.load_encoder(WORK / "pretrained")
sensor = encoder.sensors["synthetic-optical"]
last = f"scene_{SCENES - 1:03d}.tif"  # is kept for testing below
with rasterio.open(WORK / "scenes/optical" / last) as file:
    stored = file.read()[None]
with torch.inference_mode():
    features = encoder(sensor.to_physical(stored), sensor)
print(
    "cls",
    tuple(features.cls.shape),
    " frequency",
    tuple(features.frequency.shape),
    " tokens",
    tuple(features.tokens.shape),
)

tokens = features.tokens.mean(1)[0]  # (n, d), groups averaged
scores = (tokens - tokens.mean(0)) @ torch.pca_lowrank(tokens, 3)[2]
side = SIZE // encoder.patch_size
rgb = ((scores - scores.amin(0)) / (scores.amax(0) - scores.amin(0))).reshape(side, side, 3).numpy()
show(("image", true_colour(WORK / "scenes/optical" / last)), ("features", rgb))

# %% [markdown]
# ## 5. Land cover
# A description says which files are images and labels, and what serves for what. The last scene is for testing.

# %%
classes = ["water", "forest", "cropland", "grass", "built-up", "bare soil", "road"]
names = [f"scene_{index:03d}" for index in range(SCENES)]
description = {
    "name": "land-cover",
    "root": str((WORK / "scenes").resolve()),
    "optical": {"files": "optical/{key}.tif", "sensor": "synthetic-optical", "statistics": "dataset"},
    "label": {"files": "labels/{key}.tif", "first": 0},
    "classes": classes,
    "splits": {"train": names[:-1], "test": names[-1:]},
}
(WORK / "land-cover.yaml").write_text(json.dumps(description))  # JSON is YAML

command(
    "finetune/segment.py", "--config", "configs/finetune/segment_dubai.yaml", "--run.dir", WORK / "land-cover",
    "--data.set", WORK / "land-cover.yaml", "--data.evaluate", "test", "--data.test", "null", "--data.window", 96,
    "--augment.crop", 96, "--checkpoint", WORK / "pretrained", "--run.steps", STEPS, "--run.picture_every", 0,
    "--evaluate_every", max(STEPS // 2, 1), "--run.save_every", STEPS, lines=3,
)  # fmt: skip
found = json.loads((WORK / "land-cover/scores.json").read_text())
print({name: round(found[name], 1) for name in ("miou", "oa")})

# %% [markdown]
# ## 6. The map
# A Cloud Optimised GeoTIFF on the grid of the image, with class names and colours.

# %%
command("finetune/predict.py", "--checkpoint", WORK / "land-cover", "--image", f"optical={WORK}/scenes/optical/{last}",
        "--out", WORK / "map.tif")  # fmt: skip
with rasterio.open(WORK / "scenes/labels" / last) as file:
    truth, table = file.read(1), file.colormap(1)
colours = np.array([table[index][:3] for index in range(len(classes))], dtype=np.uint8)
with rasterio.open(WORK / "map.tif") as file:
    mapped = file.read(1)
assert mapped.shape == truth.shape and set(np.unique(mapped)) <= set(range(len(classes)))
print(f"{100 * (mapped == truth).mean():.1f} % of the pixels as in the truth")
show(("image", true_colour(WORK / "scenes/optical" / last)), ("truth", colours[truth]), ("map", colours[mapped]))

# %% [markdown]
# ## And then
# Your own scenes: [shards](shards.md) and [pretraining](pretraining.md); other tasks: [dense tasks](dense.md), [whole images](scenes.md),
# [pixels with few labels](pixels.md); several GPUs: [clusters](clusters.md). Whether features are good is a question for [probes](probes.md) on real labels, not for synthetic scenes.
