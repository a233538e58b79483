"""The page as a Gradio app: a tab for one pair, a tab for a file of them, and an endpoint for programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from bert_snli.data.pair_files import COLUMNS, DELIMITERS, count_pairs, format_predictions, iterate_pairs
from bert_snli.errors import BertSnliError
from bert_snli.serving.answering import MAX_CHARACTERS, Answerer, check_pair
from bert_snli.serving.page import SHADINGS, render, render_table

TITLE = "Does it follow?"
MAX_FILE_SIZE = "5mb"
MAX_ROWS = 10_000
ROWS_SHOWN = 100
KEEP_FILES = 3600  # seconds that what was uploaded and answered stays on the server's disk
SUFFIXES = [*DELIMITERS, ".jsonl"]
EXAMPLES = [
    ["A woman in a red coat is walking her dog along the beach.", "A woman is outside with an animal."],
    ["Three children are playing football in the park.", "The children are asleep in their beds."],
    ["A man is playing the guitar on a street corner.", "The man wants to earn money for his rent."],
    ["Nobody is sitting on the bench by the lake.", "Two people are sitting on a bench."],
    ["A barista in a zoot suit pours a flat white.", "Someone is making coffee."],
]

F = TypeVar("F", bound=Callable)


def told_plainly(function: F) -> F:
    """Show a user's mistake as one line; Gradio shows such lines as HTML."""

    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        try:
            return function(*args)
        except BertSnliError as error:
            raise gr.Error(escape(str(error), quote=False), print_exception=False) from error

    return wrapped  # type: ignore[return-value]


def build_app(answerer: Answerer) -> gr.Blocks:
    """The app around a model."""

    @told_plainly
    def show(premise: str, hypothesis: str, shading: str) -> str:
        return render(answerer.answer(premise, hypothesis, shading), shading)

    @told_plainly
    def predict(premise: str, hypothesis: str) -> dict:
        check_pair(premise, hypothesis)
        (scores,) = answerer.predict([(premise, hypothesis)])
        return {"label": next(iter(scores)), "scores": scores}

    @told_plainly
    def answer_file(path: str) -> tuple[str, Any, str]:
        summary, answered, table = label_file(answerer, Path(path))
        return summary, gr.File(str(answered), visible=True), table

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEEP_FILES, KEEP_FILES)) as app:
        gr.HTML(_head(answerer))
        with gr.Tab("One pair"), gr.Row(elem_classes="bs-pair"):
            _pair_tab(show, app)
        with gr.Tab("A file of pairs"):
            _file_tab(answer_file)
        with gr.Accordion("Ask it from a program", open=False):
            gr.Markdown(API_HELP)
        # Not queued, so that one POST is answered by one response.
        gr.api(predict, api_name="predict", api_description=API_DESCRIPTION, queue=False)
    return app


def _head(answerer: Answerer) -> str:
    config = answerer.model.config
    return (
        f'<div class="bs-head"><h1>{TITLE}</h1>'
        "<p>Natural language inference: take the premise to be true. Does the hypothesis follow from it "
        "(entailment), can it not be true (contradiction), or neither (neutral)?</p>"
        f'<p class="bs-note">Model <b>{escape(answerer.name)}</b>: {config.num_hidden_layers} layers of '
        f"{config.hidden_size}, a vocabulary of {config.vocab_size:,} words, pairs of up to {answerer.max_length} "
        "tokens. It knows captions of everyday photographs and is often wrong about other things.</p></div>"
    )


def _pair_tab(show: Callable[[str, str, str], str], app: gr.Blocks) -> None:
    """The sentences on the left, examples below them, the answer on the right; on a phone the examples come last."""
    first_premise, first_hypothesis = EXAMPLES[0]
    shading = next(iter(SHADINGS))
    with gr.Column(min_width=280):
        premise = gr.Textbox(first_premise, label="Premise", lines=2, max_lines=8, max_length=MAX_CHARACTERS)
        hypothesis = gr.Textbox(first_hypothesis, label="Hypothesis", lines=2, max_lines=8, max_length=MAX_CHARACTERS)
        button = gr.Button("Does it follow?", variant="primary")
    with gr.Column(min_width=280):
        answer = gr.HTML(elem_id="answer", container=True, padding=True)
        choice = gr.Radio(
            [(label, value) for value, (label, _) in SHADINGS.items()], value=shading, label="Colour of the words"
        )
    inputs = [premise, hypothesis, choice]
    gr.on(
        [app.load, button.click, premise.submit, hypothesis.submit, choice.input],
        show,
        inputs,
        answer,
        api_visibility="private",
        show_progress="minimal",
    )
    with gr.Column(min_width=280):
        gr.Examples(
            [[*pair, shading] for pair in EXAMPLES],
            inputs,
            answer,
            show,
            example_labels=[pair[1] for pair in EXAMPLES],
            label="Examples, by their hypothesis",
            run_on_click=True,
            cache_examples=False,
            api_visibility="private",
        )


def _file_tab(answer_file: Callable[[str], tuple[str, Any, str]]) -> None:
    gr.Markdown(
        f"A CSV or TSV file with the columns `{COLUMNS[0]}` and `{COLUMNS[1]}`, or a JSONL file with these keys in "
        f"each line; at most {MAX_ROWS:,} pairs and {MAX_FILE_SIZE[:-2]} MB. It is answered as soon as it is here, and "
        f"is deleted from the server within {2 * KEEP_FILES // 3600} hours."
    )
    upload = gr.File(label="File of pairs", file_types=SUFFIXES, height=140)
    summary = gr.Markdown()
    download = gr.File(label="All answers", interactive=False, visible=False)
    table = gr.HTML(elem_id="table")
    outputs = [summary, download, table]
    upload.upload(answer_file, upload, outputs, api_visibility="private")
    upload.clear(lambda: ("", gr.File(None, visible=False), ""), None, outputs, api_visibility="private")


def label_file(answerer: Answerer, path: Path) -> tuple[str, Path, str]:
    """A summary in a line, the file of all answers, which is written beside `path`, and the first of them as HTML.

    Raises:
        BertSnliError: the file is not one of pairs, or holds too many.
    """
    count = count_pairs(path, name=path.name)
    if count > MAX_ROWS:
        raise BertSnliError(f"{path.name}: {count:,} pairs; give at most {MAX_ROWS:,} at once")
    pairs = list(iterate_pairs(path, name=path.name))
    answers = answerer.predict(pairs)
    labels = [next(iter(scores)) for scores in answers]
    counts = ", ".join(f"{labels.count(label):,} {label}" for label in sorted(answers[0]))
    shown = f"; the first {ROWS_SHOWN} below" if len(pairs) > ROWS_SHOWN else ""
    # Beside the upload, in the folder of Gradio's that is emptied now and then.
    answered = path.with_name(f"{path.stem}-answers.jsonl")
    answered.write_text(format_predictions(pairs, answers), encoding="utf-8")
    return (
        f"**{len(pairs):,} pairs**: {counts}{shown}",
        answered,
        render_table(pairs[:ROWS_SHOWN], answers[:ROWS_SHOWN]),
    )


API_DESCRIPTION = "Probability of entailment, contradiction and neutral for a premise and a hypothesis."
API_HELP = """\
`/predict` takes a premise and a hypothesis, and says what `bert-snli predict` says. ADDRESS is that of this page.

```python
from gradio_client import Client  # pip install gradio_client

Client("ADDRESS").predict("A dog runs.", "An animal moves.", api_name="/predict")
# {'label': 'entailment', 'scores': {'entailment': ..., 'neutral': ..., 'contradiction': ...}}
```

```sh
curl ADDRESS/gradio_api/run/predict -H "Content-Type: application/json" \\
     -d '{"data": ["A dog runs.", "An animal moves."]}'
# {"data": [{"label": "entailment", "scores": {...}}], ...}
```
"""
