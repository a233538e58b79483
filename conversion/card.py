"""The first README.md of a converted folder: what it is, where it came from, how exact it is."""

from __future__ import annotations

import json
from pathlib import Path

from bert_snli.files import CARD, CERTIFICATE
from conversion.certificate import Certificate

GENERATED = "<!-- made by bert-snli; a README.md without this line is taken for your own -->"
TEMPLATE = """\
---
library_name: transformers
pipeline_tag: {pipeline_tag}
language: en
{license}tags: [d2l_bert, d2l, bert]
---
{generated}
# A BERT of *Dive into Deep Learning*, converted

A {framework} checkpoint in the book's format ({form}) as a `transformers` model: {layers} layers × {hidden} hidden,
{heads} heads, {vocabulary:,} tokens, {tensors} tensors{dropped}. Made by `bert-snli convert`;
`bert-snli verify` on this folder checks it again.

## Use

```python
{usage}
```

## Conversion

Every tensor, with its SHA-256 on both sides, is in `{certificate}`. Source: `{params}`, SHA-256 `{sha256}`.

The converted model against the book's equations (numpy, float64, from the source's arrays), on fixed probes of several
lengths, with padding and both segments: max |Δ| / max |exact value|.

| layer | same arithmetic (float64) | as it runs ({dtype}) |
|---|---|---|
{rows}
"""

USAGE = {
    "pretraining": """\
from transformers import pipeline

fill_mask = pipeline("fill-mask", {where}, trust_remote_code=True)
fill_mask("a man is playing a <mask> .")"""
}
CLASSIFIER_USAGE = """\
from transformers import pipeline

nli = pipeline("text-classification", {where}, trust_remote_code=True)
nli({{"text": "A man inspects a uniform.", "text_pair": "The man is sleeping."}})"""


def figure(difference: float | None) -> str:
    """A difference as tables show it."""
    return "not finite" if difference is None else f"{difference:.1e}"


def write_card(folder: Path, certificate: Certificate) -> None:
    """Write `README.md` into `folder`."""
    (folder / CARD).write_text(card_text(certificate, '"PATH OR HUB ID"'), encoding="utf-8")


def card_text(certificate: Certificate, where: str, license: str | None = None) -> str:
    """The card; `where` is what its example gives to `pipeline`, `license` what its metadata says."""
    source, geometry = certificate.source, certificate.geometry
    kept = [record.target for record in certificate.tensors if record.target]
    dropped = len(certificate.tensors) - len(kept)
    return TEMPLATE.format(
        pipeline_tag="fill-mask" if source.form in USAGE else "text-classification",
        license=f"license: {json.dumps(license)}\n" if license else "",
        generated=GENERATED,
        framework={"pytorch": "PyTorch", "mxnet": "MXNet"}[source.framework],
        form=source.form,
        layers=geometry["num_hidden_layers"],
        hidden=geometry["hidden_size"],
        heads=geometry["num_attention_heads"],
        vocabulary=geometry["vocab_size"],
        tensors=len(kept),
        dropped=f" ({dropped} more were left out: the model has no use for them)" if dropped else "",
        certificate=CERTIFICATE,
        params=source.params,
        sha256=source.params_sha256,
        dtype=kept[0].dtype,
        rows="\n".join(
            f"| {entry.layer} | {figure(entry.exact)} | {figure(entry.as_run)} |" for entry in certificate.proof
        ),
        usage=USAGE.get(source.form, CLASSIFIER_USAGE).format(where=where),
    )
