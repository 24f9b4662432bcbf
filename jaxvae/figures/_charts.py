"""Numbers over epochs, latents, models and factors."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._host import host_array, host_reals
from jaxvae.figures._page import COLORS, FAINT, INK, latent_name, new_figure, save, tidy
from jaxvae.figures._records import SPLITS, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_QUANTITIES = ("rate", "distortion", "negative_elbo", "nll")
GROUP = re.compile(r"rate_z\d+")
NAMED_LATENTS = 24  # at most so many have room for their names below a chart
LEAST_RATE = 0.01  # nats, the bottom of a logarithmic axis
_INACTIVE = "#b4c4d2"  # the colour of latents that are not active


def learning_curves(
    path: str | Path,
    records: Sequence[Mapping[str, Any]],
    *,
    condition: str | None = None,
    title: str | None = None,
) -> Path:
    """Rate, distortion, -ELBO and -log p(x) in nats against the epoch, one panel each, a line for each split.

    `records` are the lines of `metrics.jsonl`: {"epoch", "train": {"rate", "distortion", "negative_elbo", "nll"}},
    and the same under "validation" or "test". Values that are missing or not finite are left out, and so is a
    panel without values. The vertical axis follows the bulk: the first epochs may leave the panel.

    Of a conditional model `condition` is the letter of what it is given, such as "y", which then stands in all names.
    """
    curves = {name: _curves(records, name) for name in _QUANTITIES}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        raise ValueError(f"records hold none of {', '.join(_QUANTITIES)} under {', '.join(SPLITS)}")

    figure, titles = new_figure(3.3 * len(curves), 3.1, layout="constrained"), _titles(condition)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    lines: dict[str, Any] = {}  # a split in any panel has its place in the legend
    for axes, (name, found) in zip(panels, curves.items(), strict=True):
        for split, (epochs, values) in found.items():
            size = 4 if len(epochs) <= 20 else 0
            (lines[split],) = axes.plot(epochs, values, **SPLITS[split], linewidth=1.5, markersize=size)
        axes.set_title(titles[name], fontsize=10, color=INK)
        axes.set(xlabel="epoch")
        axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        limits = _robust_limits(np.concatenate([values for _, values in found.values()]))
        if limits:
            axes.set_ylim(*limits)
        tidy(axes)
    panels[0].set_ylabel("nats per example")
    panels[-1].legend(lines.values(), lines, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save(figure, path)


def _titles(condition: str | None) -> dict[str, str]:
    """What the quantities are called; every term stands under the condition, where there is one."""
    given, also = ("", "") if condition is None else (f"|{condition}", f",{condition}")
    return {
        "rate": rf"rate  $\mathrm{{KL}}(q(z|x{also})\,\|\,p(z{given}))$",
        "distortion": rf"distortion  $-\log\,p(x|z{also})$",
        "negative_elbo": "$-$ELBO = rate + distortion" + ("" if condition is None else f", given ${condition}$"),
        "nll": rf"$-\log\,p(x{given})$",
    }


def group_rates(path: str | Path, records: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Path:
    """The rate of each group of latents in nats against the epoch, a line for each, on a logarithmic scale from 0.01.

    `records` are the lines of `metrics.jsonl`, as for `learning_curves`, with "rate_z1" and so on under "test",
    "validation" or "train": the first of these that has them is drawn. A group that has fallen silent lies at the
    bottom.
    """
    names = {name for record in records for split in SPLITS for name in record.get(split, {}) if GROUP.fullmatch(name)}
    if not names:
        raise ValueError(f"records hold no rate_z1, rate_z2, ... under {', '.join(SPLITS)}")
    ordered = sorted(names, key=lambda name: int(name.removeprefix("rate_z")))
    split = next(split for split in reversed(SPLITS) if any(ordered[0] in record.get(split, {}) for record in records))
    figure = new_figure(5.2, 3.4, layout="constrained")
    axes = figure.subplots()
    for name, color in zip(reversed(ordered), _log_colors(1.0 + np.arange(len(ordered))), strict=True):
        epochs, values = curve(records, split, name, along="epoch")
        size = 4 if len(epochs) <= 20 else 0
        label = latent_name(int(name.removeprefix("rate_z")) - 1)
        axes.plot(epochs, values.clip(LEAST_RATE), color=color, marker="o", markersize=size, linewidth=1.5, label=label)
    axes.set(xlabel="epoch", ylabel=f"nats per example ({split})", yscale="log", ylim=(LEAST_RATE, None))
    axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(ordered) // 9, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(axes)
    axes.set_title(title or "rate of each group", fontsize=11, color=INK)
    return save(figure, path)


def kl_bars(path: str | Path, kl: ArrayLike, *, active: ArrayLike | None = None, title: str | None = None) -> Path:
    """The KL of every latent [D] in nats, from the largest down, each under its name z₁, z₂, ... where there is room.

    `active` [D] bool, from `jaxvae.evaluation.active_latents`, says which latents are: the others are faint, on grey.
    """
    nats = host_reals(kl, "kl")
    if nats.ndim != 1 or not nats.size or not np.isfinite(nats).all():
        raise ValueError(f"kl must be [D] and finite, got {nats.shape}: {nats}")
    used = np.ones(len(nats), bool) if active is None else host_array(active, "active")
    if used.dtype != bool or used.shape != nats.shape:
        raise ValueError(f"active must be [{len(nats)}] bool, one per latent, got {used.dtype}{list(used.shape)}")
    order = np.argsort(-nats, kind="stable")
    nats, used = nats[order], used[order]
    rank = np.arange(1, len(nats) + 1)
    figure = new_figure(6.4, 3.2, layout="constrained")
    axes = figure.add_subplot()
    for part, color in ((used, COLORS[0]), (~used, _INACTIVE)):
        axes.bar(rank[part], nats[part], width=0.75, color=color, edgecolor=color, linewidth=0.8)
    for place in rank[~used]:
        axes.axvspan(place - 0.5, place + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
    bottom, top = 1.05 * min(nats[-1], 0), 1.05 * max(nats[0], 0.01)
    axes.set(xlim=(0.5, len(nats) + 0.5), ylim=(bottom, top), ylabel="KL (nats)")
    if len(nats) <= NAMED_LATENTS:
        axes.set_xticks(rank, [latent_name(latent) for latent in order])
        axes.set(xlabel="latent")
    else:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.set(xlabel="latent, by rank")
    count = "" if active is None else f"{used.sum()} of {len(nats)} latents active; "
    axes.set_title(f"{count}rate {nats.sum():.2f} nats", loc="right", fontsize=8, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    tidy(axes)
    return save(figure, path)


def frontier(rate: ArrayLike, distortion: ArrayLike) -> np.ndarray:
    """Indices of the models that some β prefers: the lower convex hull of (rate, distortion), where it falls.

    Distortion + β · rate is smallest, for every β > 0, at one of them. Between two neighbours the slope is −β of the
    objective that likes both alike. Points on a straight piece of the hull are left out, and so are copies.

    Args:
      rate: [M], nats.
      distortion: [M], nats.

    Returns:
      Indices in order of rate, int64.

    Raises:
      ValueError: where the two are not finite arrays [M] of one length.

    Reference: Alemi et al., Fixing a Broken ELBO, 2018.

    >>> frontier([0.0, 1.0, 2.0, 3.0, 1.0], [9.0, 4.0, 3.0, 5.0, 8.0])
    array([0, 1, 2])
    """
    x, y = _check_models(rate=rate, distortion=distortion)
    hull: list[int] = []
    for i in np.lexsort((y, x)).tolist():
        if hull and y[i] >= y[hull[-1]]:
            continue  # a larger rate for no smaller distortion
        while len(hull) > 1 and _turns_right(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return np.array(hull)


def rate_distortion(
    path: str | Path, rate: ArrayLike, distortion: ArrayLike, beta: ArrayLike, *, title: str | None = None
) -> Path:
    """Trained models [M] by rate and distortion in nats, coloured by β, with their `frontier`.

    Along a faint line −ELBO = rate + distortion is constant. Where models share a β, as seeds do, a ring marks
    their mean.
    """
    x, y, betas = _check_models(rate=rate, distortion=distortion, beta=beta)
    if not (betas > 0).all():
        raise ValueError(f"beta must be positive, its scale is logarithmic: got {betas.min():g}")
    kinds, kind = np.unique(betas, return_inverse=True)
    legend_columns = math.ceil(len(kinds) / 16)
    figure = new_figure(5.6 + 0.9 * legend_columns, 4.6, layout="constrained")
    axes = figure.add_subplot()
    colors = _log_colors(kinds)
    for values, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        pad = 0.08 * float(np.ptp(values)) or 1.0
        set_limits(float(values.min()) - pad, float(values.max()) + pad)
    _elbo_lines(axes, x, y)
    best = frontier(x, y)
    axes.plot(x[best], y[best], color=INK, linewidth=1.2, zorder=2, label="frontier")
    axes.scatter(x, y, s=26, c=colors[kind], linewidths=0, zorder=3)
    for i, value in enumerate(kinds):
        same = kind == i
        if same.sum() > 1:
            axes.scatter(x[same].mean(), y[same].mean(), s=110, facecolors="none", edgecolors=[colors[i]], zorder=3)
        axes.scatter([], [], s=30, color=colors[i], label=rf"$\beta = {value:g}$")
    if len(kinds) < len(betas):
        axes.scatter([], [], s=90, facecolors="none", edgecolors=INK, label="mean")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, handletextpad=0.4, ncols=legend_columns)
    axes.set(xlabel="rate (nats)", ylabel="distortion (nats)")
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    tidy(axes)
    return save(figure, path)


def metrics_by_beta(
    path: str | Path, beta: ArrayLike, metrics: Mapping[str, ArrayLike], *, title: str | None = None
) -> Path:
    """One panel for each metric of trained models [M] against their β: a dot per model, a line through the means."""
    if not metrics:
        raise ValueError("metrics must hold one or more, by name")
    betas, *columns = _check_models(beta=beta, **metrics)
    if not (betas > 0).all():
        raise ValueError(f"beta must be positive, its scale is logarithmic: got {betas.min():g}")
    kinds, kind = np.unique(betas, return_inverse=True)
    across = min(4, len(columns))
    down = math.ceil(len(columns) / across)
    figure = new_figure(2.9 * across, 2.5 * down, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, name, values in zip(panels, metrics, columns, strict=False):
        means = np.bincount(kind, values) / np.bincount(kind)
        axes.plot(kinds, means, color=COLORS[0], linewidth=1.5)
        axes.scatter(betas, values, s=14, color=COLORS[0], linewidths=0, alpha=0.7)
        axes.set_xscale("log", base=2)
        axes.set_xticks(kinds, [f"{value:g}" for value in kinds])
        axes.minorticks_off()
        axes.set(xlabel=r"$\beta$")
        if (values[np.isfinite(values)] % 1 == 0).all():
            axes.locator_params(axis="y", integer=True, min_n_ticks=1)
        axes.set_title(name, fontsize=10, color=INK)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        tidy(axes)
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save(figure, path)


def probe_accuracy(path: str | Path, probes: Sequence[Any], *, title: str | None = None) -> Path:
    """What `jaxvae.evaluation.probe` returned: accuracy by the number of labels, a panel for each classifier.

    A line goes through the means of each kind of features, a bar from the least to the largest accuracy of the draws.
    """
    if not probes:
        raise ValueError("probes must hold one or more, as jaxvae.evaluation.probe returns them")
    classifiers, names = (
        list(dict.fromkeys(getattr(p, field) for p in probes)) for field in ("classifier", "features")
    )
    figure = new_figure(3.8 * len(classifiers), 3.4, layout="constrained")
    panels = figure.subplots(1, len(classifiers), squeeze=False, sharey=True)[0]
    lines: dict[str, Any] = {}
    for axes, classifier in zip(panels, classifiers, strict=True):
        for i, name in enumerate(names):
            found = sorted(
                (
                    (p.num_labels, np.asarray(p.accuracy))
                    for p in probes
                    if (p.classifier, p.features) == (classifier, name)
                ),
                key=lambda pair: pair[0],
            )
            counts, means = [count for count, _ in found], [values.mean() for _, values in found]
            reach = [[m - values.min() for m, (_, values) in zip(means, found, strict=True)]]
            reach += [[values.max() - m for m, (_, values) in zip(means, found, strict=True)]]
            color = COLORS[i % len(COLORS)]
            style: dict[str, Any] = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.5}
            lines[name] = axes.errorbar(counts, means, reach, **style)
        axes.set_xscale("log")
        kinds = sorted({p.num_labels for p in probes})
        axes.set_xticks(kinds, [str(count) for count in kinds])
        axes.minorticks_off()
        axes.set(xlabel="labelled examples")
        axes.set_title(classifier, fontsize=10, color=INK)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        tidy(axes)
    panels[0].set_ylabel("test accuracy")
    panels[-1].legend(lines.values(), lines, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save(figure, path)


def factor_information(
    path: str | Path,
    information: ArrayLike,
    names: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """How much each latent tells of each factor, I(z; v) / H(v) in [0, 1], as a heat map [D, F].

    `names` [F] stand below the columns, `labels` [D] beside the rows: z₁, z₂, ... where there are none.
    """
    shares = host_reals(information, "information")
    if shares.ndim != 2 or not shares.size or not ((shares >= -1e-3) & (shares <= 1 + 1e-3)).all():
        raise ValueError(
            f"information must be [D, F] in [0, 1], divided by each factor's entropy, got {shares.shape}: {shares}"
        )
    latents, factors = shares.shape
    rows = [latent_name(d) for d in range(latents)] if labels is None else labels
    if len(names) != factors:
        raise ValueError(f"names must be {factors} texts, one per column of information, got {names}")
    if len(rows) != latents:
        raise ValueError(f"labels must be {latents} texts, one per row of information, got {rows}")

    figure = new_figure(2.2 + 0.8 * factors, 1.3 + 0.3 * latents, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for (d, f), share in np.ndenumerate(shares.clip(0, 1)):
        ink = "white" if share < 0.6 else "black"
        axes.text(f, d, f"{share:.2f}", color=ink, fontsize=9, ha="center", va="center")
    axes.set_xticks(range(factors), names)
    axes.set_yticks(range(latents), rows)
    axes.set_xlabel("factor v", fontsize=9, color=INK)
    axes.set_ylabel("latent z", fontsize=9, color=INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9, labelcolor=INK)
    bar = figure.colorbar(image, ax=axes, ticks=(0, 0.25, 0.5, 0.75, 1))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=3, labelsize=8, color=FAINT, labelcolor=INK)
    bar.set_label("$I(z; v)\\,/\\,H(v)$", fontsize=9, color=INK)
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    return save(figure, path)


def _curves(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs and values of one quantity for every split that has it."""
    curves = {split: curve(records, split, name, along="epoch") for split in SPLITS}
    return {split: found for split, found in curves.items() if found[0].size}


def _robust_limits(values: np.ndarray) -> tuple[float, float] | None:
    """Limits that hold all values but those far outside the quartiles; None where there is no spread."""
    first, third = np.quantile(values, (0.25, 0.75))
    reach = 5 * (third - first)
    bulk = values[(values >= first - reach) & (values <= third + reach)]
    low, high = bulk.min(), bulk.max()
    pad = 0.06 * (high - low)
    return (float(low - pad), float(high + pad)) if pad else None


def _check_models(**quantities: ArrayLike) -> list[np.ndarray]:
    """Raise `ValueError` unless all quantities are [M] and finite; return them as float64."""
    arrays = {name: host_reals(values, name) for name, values in quantities.items()}
    count = next(iter(arrays.values())).size
    for name, values in arrays.items():
        if values.shape != (count,) or not count or not np.isfinite(values).all():
            raise ValueError(f"{name} must be [M], one number per model, and finite, got {values.shape}: {values}")
    return list(arrays.values())


def _turns_right(x: np.ndarray, y: np.ndarray, first: int, middle: int, last: int) -> bool:
    """Whether the middle point lies on or above the line from the first to the last."""
    rise, run = y[last] - y[first], x[last] - x[first]
    return bool((y[middle] - y[first]) * run >= rise * (x[middle] - x[first]))


def _log_colors(values: np.ndarray) -> np.ndarray:
    """[count, 4] for increasing values [count]: places on a sequential map by their logarithm."""
    from matplotlib import colormaps

    place = np.log(values / values[0]) / max(np.log(values[-1] / values[0]), 1e-9)
    return colormaps["viridis"](0.92 * place)  # without the yellow that is faint on white


def _elbo_lines(axes: "Axes", x: np.ndarray, y: np.ndarray) -> None:
    """Lines of constant rate + distortion over the axes' limits, named at the end that is further from the points."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, top - bottom
    for level in MaxNLocator(7).tick_values(left + bottom, right + top):
        enters, leaves = max(left, level - top), min(right, level - bottom)
        if leaves - enters < 0.2 * width:
            continue  # too short to be named
        axes.plot((enters, leaves), (level - enters, level - leaves), color="#dddddd", linewidth=0.8, zorder=1)
        ends = np.array([enters + 0.08 * width, leaves - 0.08 * width])
        across, up = np.subtract.outer(ends, x) / width, np.subtract.outer(level - ends, y) / height
        end = ends[np.hypot(across, up).min(axis=1).argmax()]
        name = axes.text(end, level - end, f"$-$ELBO {level:g}", color=FAINT, fontsize=7, ha="center", va="center")
        name.set(rotation=-45, rotation_mode="anchor", transform_rotates_text=True, zorder=1)
        name.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 1})
