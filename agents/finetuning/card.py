"""``README.md`` of a fine-tuned model: what it is, what it gives away, how to load it. No image, id or caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agents.finetuning.stop import worse_than_null
from agents.pages import number
from rewards.measurement import Measurement
from rewards.suite import is_memorization

_PEFT_OWN = ("lora", "dora")
"""Methods whose adapters plain peft reads."""

_HOUSEKEEPING = ("checkpoint_every", "validate_every", "keep", "final_images")
"""Settings that do not decide what the model is."""

EMBEDDED = "embedded"
"""What the base is called that ships with this project."""


def model_card(summary: Mapping[str, Any], *, base: str, conditional: bool) -> str:
    """The text of the card.

    Args:
        summary: What goes into ``result.json``.
        base: The base pipeline as a user names it.
        conditional: Whether the model takes a caption.
    """
    task, data, stop = (summary[key] for key in ("task", "data", "stop"))
    metrics = {name: Measurement.from_json(fields) for name, fields in summary["metrics"].items()}
    return "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(summary, base, conditional), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {task['backbone']} fine-tuned on {task['env']} ({task['method']})",
            "",
            _verdict(metrics, stop),
            "",
            "## Data",
            "",
            f"Source: {data['source']}. Licence: {data['licence']}."
            + (" They show nobody." if data["synthetic"] else ""),
            f"{data['train']} images to train on, {data['heldout']} held out, {data['test']} for the table below, "
            f"disjoint by patient; split `{data['split_sha256']}`.",
            "",
            "## Training",
            "",
            *_table(("", ""), _training_rows(summary)),
            "",
            "## Measured on the test split",
            "",
            f"{summary['training']['final_images']} generated images; the null is the same measure with real images of "
            "other patients in place of generated ones, low and high are the 95 % interval of the value.",
            "",
            *_table(("metric", "value", "low", "high", "null", "better"), _metric_rows(metrics)),
            "",
            *_steered(summary),
            "## Loading",
            "",
            *_loading(summary, base, conditional),
            "",
            "## Limitations",
            "",
            "- The metrics see only what they look for: a copy that none of them finds is still a copy. "
            f"They rest on {data['train']} training and {data['test']} test images.",
            f"- Trained for research on {data['train']} images: not for diagnosis, nor a replacement of real data.",
            "- It is no differential privacy: nothing is guaranteed about a single patient.",
            *(["- The base pipeline's safety checker, if it had one, is not part of this."] if conditional else []),
            "",
        ]
    )


def worse_in(metrics: Mapping[str, Measurement]) -> list[str]:
    """Names of the memorization metrics whose whole 95 % interval is worse than their null."""
    return [name for name, measured in metrics.items() if is_memorization(name) and worse_than_null(measured)]


def _verdict(metrics: Mapping[str, Measurement], stop: Mapping[str, Any]) -> str:
    above = worse_in(metrics)
    compared = [
        name for name, m in metrics.items() if is_memorization(name) and m.value is not None and m.null is not None
    ]
    if above:
        words = f"**Memorization is above its null** in {', '.join(above)} (of {len(compared)} measures compared)"
    elif compared:
        words = f"**Memorization was not found to be above its null** in any of {', '.join(compared)}"
    else:
        words = "**Memorization was not compared with a null**: no such metric was measured"
    return f"{words}. Rule that ends the training: {stop['rule']}. {stop['words']}"


def _front_matter(summary: Mapping[str, Any], base: str, conditional: bool) -> dict[str, Any]:
    method = summary["task"]["method"]
    return {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image" if conditional else "unconditional-image-generation",
        "base_model": base,
        "license": "other",
        "license_name": "as-base-model-and-data",
        "tags": ["diffusion", "memorization", f"method:{method}", *(["lora"] if method in _PEFT_OWN else [])],
        "datasets": [summary["task"]["env"]],
    }


def _training_rows(summary: Mapping[str, Any]) -> list[Sequence[str]]:
    task, selected, training = summary["task"], summary["selected"], summary["training"]
    options = ", ".join(f"{name} {value}" for name, value in task["method_options"].items())
    share = f"{selected['trainable_parameters']:,} ({selected['trainable_share']:.2%} of the denoiser)"
    return [
        ("method", f"{task['method']}{f' ({options})' if options else ''}"),
        ("layer groups on", ", ".join(selected["groups"])),
        ("mask", f"`{selected['schedule']}` over {', '.join(task['groups'])}: {selected['source']}"),
        ("trainable parameters", share),
        ("base", f"{task['backbone']}, sha256 `{task['backbone_sha256']}`"),
        *_mitigation_rows(summary["mitigations"]),
        *((name.replace("_", " "), str(value)) for name, value in training.items() if name not in _HOUSEKEEPING),
        ("seed", str(summary["seed"])),
    ]


def _mitigation_rows(mitigations: Mapping[str, Any]) -> list[Sequence[str]]:
    """One a mitigation: its paper, its settings, and what became of it."""
    rows: list[Sequence[str]] = []
    for name, chosen in mitigations["chosen"].items():
        own = {key: value for key, value in mitigations["figures"].items() if key.startswith(f"{name}.")}
        parts = [
            chosen["source"],
            *([", ".join(f"{key} {value}" for key, value in chosen["settings"].items())] if chosen["settings"] else []),
            *(f"{key.removeprefix(f'{name}.').replace('_', ' ')}: {number(value)}" for key, value in own.items()),
            *([] if chosen["saved"] else ["acts on the sampler, and the saved pipeline does not carry it"]),
        ]
        rows.append((f"mitigation {name}", "; ".join(parts)))
    return rows


def _steered(summary: Mapping[str, Any]) -> list[str]:
    """Whose help the measured images were sampled with that the files do not give."""
    names = [name for name, chosen in summary["mitigations"]["chosen"].items() if not chosen["saved"]]
    if not names:
        return []
    what = "pipeline" if summary["pipeline"] else "adapter"
    return [
        f"**The images were sampled with {' and '.join(names)}, which the saved {what} does not carry**: what it "
        "generates by itself was not measured and may give away more.",
        "",
    ]


def _metric_rows(metrics: Mapping[str, Measurement]) -> list[Sequence[str]]:
    return [
        (
            name,
            number(m.value) if m.value is not None else f"not measured: {m.note}",
            *("" if each is None else number(each) for each in (m.low, m.high, m.null)),
            "more" if m.higher_is_better else "less",
        )
        for name, m in metrics.items()
    ]


def _loading(summary: Mapping[str, Any], base: str, conditional: bool) -> list[str]:
    sampling = summary["sampling"]
    prompt = f'"", guidance_scale={sampling["guidance_scale"]}, ' if conditional else ""
    call = f"pipe({prompt}num_inference_steps={sampling['steps']}, generator=torch.Generator().manual_seed(0))"
    shown = [f"image = {call}.images[0]", 'image.save("sample.png")']
    hint = "The first argument is the caption." if conditional else "It takes no caption."
    lines = [f"In this folder, with diffusers installed. {hint}"]
    head = ["import torch", "from diffusers import DiffusionPipeline"]
    if summary["pipeline"]:
        lines += ["", *_code([*head, 'pipe = DiffusionPipeline.from_pretrained("pipeline")', *shown])]
    if not summary["adapter"]:
        return [*lines, *(["", summary["adapter_note"]] if summary["adapter_note"] else [])]
    if summary["task"]["method"] in _PEFT_OWN:
        attach = [
            "from peft import PeftModel",
            f'pipe = DiffusionPipeline.from_pretrained("{base}")',
            'PeftModel.from_pretrained(pipe.unet, "adapter")',
        ]
        where = f"; `{EMBEDDED}` is the folder envs/backbones/embedded of this project" if base == EMBEDDED else ""
        return [*lines, "", f"The adapter alone, on its base, with peft{where}:", "", *_code([*head, *attach, *shown])]
    note = (
        "The adapter alone needs this project:"
        if summary["pipeline"]
        else "There is no pipeline folder: this method adds layers that diffusers does not know. It needs this project:"
    )
    own = base == EMBEDDED
    load = [
        "import torch",
        "from agents.finetuning.loading import load_finetuned",
        *(["from envs.backbones import EMBEDDED"] if own else []),
        "from envs.backbones.load import load_backbone",
        f'backbone = load_backbone({"EMBEDDED" if own else repr(base)}, name="base", device=torch.device("cpu"))',
        'load_finetuned(".", backbone)  # envs.generate samples from it',
    ]
    return [*(lines if summary["pipeline"] else []), "", note, "", *_code(load)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]


def _code(lines: Sequence[str]) -> list[str]:
    return ["```python", *lines, "```"]
